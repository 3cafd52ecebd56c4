"""Keys that nobody reads. Hydra refuses a misspelt one on the command line, but takes any after ``+`` and from a file.

parts/math.yaml: actor_rollout_ref.actor.ppo_mini_batchsize: no such setting; did you mean ...ppo_mini_batch_size?
"""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from sgpo_verl.checks.findings import Doubt
from sgpo_verl.errors import SgpoError
from sgpo_verl.run_config import compose

UNLISTED = {  # what verl reads where it is set, and lists nowhere; and groups whose keys are somebody else's
    "data.cache_dir",
    "data.chat_template_func",
    "data.filter_prompts",
    "data.need_tools_kwargs",
    "ray_kwargs.ray_init",
    "reward.custom_reward_function.reward_kwargs",
    "reward.reward_kwargs",
    "trainer.wandb_proxy",
}


def check_keys(config: Mapping[str, Any]) -> str:
    """Raises Doubt naming the keys of a composed configuration that are most likely misspelt: unknown, and like another.

    Keys like no other may be the user's own, for a reward function or a data set. Composes once: not for use inside Hydra.
    """
    engine = config.get("model_engine")
    if not isinstance(engine, str):
        return "not looked at: the configuration names no model_engine"
    schema, lines = _schema(engine), []
    for path in _paths(config):
        unlisted = any(".".join(path[:depth]) in UNLISTED for depth in range(1, len(path) + 1))
        if not unlisted and not _is_known(path, schema) and (hint := _hint(path, schema)):
            lines.append(f"{'.'.join(path)}: no such setting{hint}")
    if lines:
        more = f" (and {len(lines) - 3} more)" if len(lines) > 3 else ""
        raise Doubt(" ".join(lines[:3]) + more, "nobody reads a setting of that name")
    return "none looks misspelt"


def unknown_keys(folder: Path, name: str) -> list[str]:
    """One line for every key of the recipe, and of the files of ``folder`` it inherits, that neither verl nor we have.

    A name of the recipe's own is fine where another value refers to it: ``run_dir: ...`` and ``${run_dir}``.
    """
    schema = _schema(compose(["--config-dir", str(folder), "--config-name", name])["model_engine"])
    files = {file: _loaded(file) for file in inherited(folder, name)}
    texts = " ".join(file.read_text() for file in files)
    lines = []
    for file, node in files.items():
        for path in _paths(node):
            own = path[0] == "hydra" or (len(path) == 1 and f"${{{path[0]}}}" in texts)
            if own or _is_known(path, schema):
                continue
            lines.append(f"{file.relative_to(folder)}: {'.'.join(path)}: no such setting{_hint(path, schema)}")
    return lines


@cache
def _schema(engine: str) -> dict[str, Any]:
    """Every setting there is beside a training engine of verl's (dp, megatron, ...), with its default."""
    return compose(["+sgpo=paper", f"model_engine={engine}"])


def inherited(folder: Path, name: str) -> list[Path]:
    """The recipe's file and those of ``folder`` that its defaults name, and theirs, each once."""
    files: list[Path] = []
    waiting = [folder / f"{name.removesuffix('.yaml')}.yaml"]
    while waiting:
        file = waiting.pop(0)
        if file in files:
            continue
        files.append(file)
        for entry in _loaded(file, keep_defaults=True).get("defaults", []):
            if isinstance(entry, str):  # relative to the file's own folder, or from the top
                found = (folder if entry.startswith("/") else file.parent) / f"{entry.lstrip('/')}.yaml"
                waiting += [found] if found.is_file() else []
    return files


def _loaded(file: Path, keep_defaults: bool = False) -> dict[str, Any]:
    import yaml

    node = yaml.safe_load(file.read_text())
    if not isinstance(node, Mapping):
        raise SgpoError(f"{file}: is not a YAML mapping")
    return {key: value for key, value in node.items() if keep_defaults or key != "defaults"}


def _paths(node: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _paths(value, (*above, str(key)))
        else:
            yield (*above, str(key))


def _is_known(path: tuple[str, ...], schema: Mapping[str, Any]) -> bool:
    """Whether ``path`` leads to a setting, or into a group that takes any: an empty one, and ``override_...``."""
    node: Any = schema
    for key in path:
        if isinstance(node, Mapping) and key in node:
            if key.startswith("override_"):
                return True
            node = node[key]
        else:
            return node == {} or key in _fields(node)
    return True


def _fields(node: Any) -> set[str]:
    """Settings of a group that are only in verl's dataclass for it, not in its YAML file."""
    from hydra.utils import get_class

    target = node.get("_target_") if isinstance(node, Mapping) else None
    return {field.name for field in dataclasses.fields(get_class(target))} if target else set()


def _hint(path: tuple[str, ...], schema: Mapping[str, Any]) -> str:
    """The setting or group that is most like the first part that is unknown, among those beside it, if one is."""
    node: Any = schema
    for depth, part in enumerate(path):
        if not isinstance(node, Mapping):
            return ""
        if part not in node:
            beside = [*node, *_fields(node)]
            close = difflib.get_close_matches(part, beside, n=1, cutoff=0.75)
            return f"; did you mean {'.'.join([*path[:depth], close[0], *path[depth + 1 :]])}?" if close else ""
        node = node[part]
    return ""
