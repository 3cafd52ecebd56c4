"""The settings reference, from sgpo_verl/config.py and sgpo_verl/parts.py."""

import json
import types
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sgpo_verl.config import Settings
from sgpo_verl.parts import PARTS, SWITCH

HEAD = """# Settings

Everything under `sgpo:`, made from [config.py](../sgpo_verl/config.py) when this page was built. Set one as any of verl's:
`sgpo.group_size.max=16`. An unknown key or a bad value is refused by name.

## What a method is made of

A word, `+sgpo=paper`, chooses five parts. What you set yourself stands; `null` is the method's own ([methods.md](methods.md)).

"""
SIGNS = (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))


def page() -> str:
    return "\n".join([HEAD + _parts(), *_sections(Settings, "sgpo")])


def _parts() -> str:
    keys = [f"sgpo.{part}.{SWITCH[part]}" if part in SWITCH else f"sgpo.{part}" for part in PARTS["paper"]]
    lines = [["", *(f"`{key}`" for key in keys)], ["---"] * (len(keys) + 1)]
    lines += [[f"`{method}`", *(f"`{_yaml(value)}`" for value in parts.values())] for method, parts in PARTS.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _sections(node: type[BaseModel], path: str) -> Iterator[str]:
    """A section for the settings of a group, then those of the groups in it."""
    groups = {name: f.annotation for name, f in node.model_fields.items() if _is_group(f.annotation)}
    yield f"\n## {path}\n\n{' '.join((node.__doc__ or '').split())}\n"
    yield "| setting | values | default | |\n|---|---|---|---|"
    for name, field in node.model_fields.items():
        if name not in groups:
            row = (f"`{path}.{name}`", _values(field), _default(path, name, field), _text(field))
            yield f"| {' | '.join(row)} |"
    for name, group in groups.items():
        yield from _sections(group, f"{path}.{name}")


def _is_group(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _default(path: str, name: str, field: FieldInfo) -> str:
    part = next((part for part, switch in SWITCH.items() if f"{path}.{name}" == f"sgpo.{part}.{switch}"), name)
    own = part in PARTS["paper"] and (path == "sgpo" or part != name)
    return "the method's" if own else f"`{_yaml(field.default)}`"


def _text(field: FieldInfo) -> str:
    return (field.description or "").replace("|", r"\|")


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool | dict):
        return json.dumps(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _values(field: FieldInfo) -> str:
    return ", ".join([_type(field.annotation), *_bounds(field.metadata)])


def _bounds(metadata: Iterable[Any]) -> list[str]:
    return [
        f"{word} {getattr(item, sign)}"
        for item in metadata
        for sign, word in SIGNS
        if getattr(item, sign, None) is not None
    ]


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{_yaml(value)}`" for value in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_type(item) for item in get_args(annotation))
    if get_origin(annotation) is Annotated:
        inner, bounded = get_args(annotation)
        return " ".join([_type(inner), *_bounds(bounded.metadata)])
    if get_origin(annotation) is list:
        return f"list of {_type(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return "names and values"
    names = {int: "whole number", float: "number", str: "text", bool: "`true`, `false`", type(None): "`null`"}
    return names[annotation]
