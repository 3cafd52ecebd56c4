"""Python packages as text: where a name is defined, what a class has, what a function takes. Nothing is imported.

Names are followed through ``from ... import`` and classes through their bases, inside the packages that are given.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

Function = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Found:
    """A definition: the module that holds it, and its node."""

    module: str
    node: ast.AST


class Source:
    """packages: name -> folder."""

    def __init__(self, packages: Mapping[str, Path]):
        self.packages = dict(packages)
        self._modules: dict[str, dict[str, ast.AST] | None] = {}

    def module(self, name: str) -> dict[str, ast.AST] | None:
        """A module's top-level names with their nodes, those inside ``if`` and ``try`` too; None if there is no such module."""
        if name not in self._modules:
            file = self._file(name)
            tree = ast.parse(file.read_bytes()) if file else None
            self._modules[name] = None if tree is None else dict(_definitions(tree.body))
        return self._modules[name]

    def _file(self, name: str) -> Path | None:
        package, *parts = name.split(".")
        if package not in self.packages:
            return None
        place = self.packages[package].joinpath(*parts)
        return next((f for f in (place / "__init__.py", place.with_name(f"{place.name}.py")) if f.is_file()), None)

    def names(self, module: str) -> list[str]:
        return list(self.module(module) or {})

    def find(self, module: str, name: str) -> Found | None:
        """Where ``name`` of ``module`` is defined; a name from a package that is not given stays at its import."""
        node = (self.module(module) or {}).get(name)
        if isinstance(node, ast.ImportFrom):
            origin = self._origin(module, node)
            asked = next(a.name for a in node.names if (a.asname or a.name) == name)
            if self.module(origin) is None:
                return Found(module, node)
            return self.find(origin, asked)
        if node is not None:
            return Found(module, node)
        submodule = f"{module}.{name}"
        return Found(submodule, ast.Pass()) if self._file(submodule) else None

    def _origin(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        file = self._file(module)
        package = module.split(".") if file and file.name == "__init__.py" else module.split(".")[:-1]
        return ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])

    def lineage(self, module: str, name: str) -> Iterator[Found]:
        """A class and those that it inherits from, nearest first."""
        found = self.find(module, name)
        if found is not None and isinstance(found.node, ast.Assign) and isinstance(found.node.value, ast.Attribute):
            root = next(part for part in ast.walk(found.node.value) if isinstance(part, ast.Name))
            yield from self.lineage(found.module, root.id)  # Worker = TheRayActor.__ray_metadata__.modified_class
        if found is None or not isinstance(found.node, ast.ClassDef):
            return
        yield found
        for base in found.node.bases:
            base = base.value if isinstance(base, ast.Subscript) else base
            if isinstance(base, ast.Name):
                yield from self.lineage(found.module, base.id)

    def member(self, module: str, owner: str, name: str) -> Found | None:
        """A method, field or attribute of a class, where it is set first."""
        for place in self.lineage(module, owner):
            if name in (has := dict(_members(place.node))):
                return Found(place.module, has[name])
        return None

    def members(self, module: str, owner: str) -> list[str]:
        return [name for place in self.lineage(module, owner) for name, _ in _members(place.node)]


def _definitions(body: list[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ImportFrom | ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name.partition(".")[0], node
        elif isinstance(node, ast.If | ast.Try | ast.With):
            parts = [getattr(node, part, []) for part in ("orelse", "finalbody", "body")]
            handlers = [handler.body for handler in getattr(node, "handlers", [])]
            for part in (*handlers, *parts):  # the body last: its definition is the usual one
                yield from _definitions(part)
        else:
            yield from ((name, node) for name in _assigned(node))


def _assigned(node: ast.AST) -> Iterator[str]:
    """Plain names that a statement sets."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    for target in targets:
        for part in ast.walk(target) if target is not None else ():
            if isinstance(part, ast.Name):
                yield part.id


def _members(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Attributes set in a class's methods, then its own names, which win."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store) and _is_self(inner.value):
            yield inner.attr, inner
    yield from _definitions(node.body)  # type: ignore[attr-defined]


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls", "instance")


def parameters_of(node: ast.AST) -> tuple[list[str], list[str]] | None:
    """(names, those without a default) of a function, or of a class's ``__init__``; None for anything else."""
    if isinstance(node, ast.ClassDef):
        node = dict(_members(node)).get("__init__", node)
    if not isinstance(node, Function):
        return None
    a = node.args
    positional = [*a.posonlyargs, *a.args]
    names = [p.arg for p in positional] + ([f"*{a.vararg.arg}"] if a.vararg else [])
    names += [p.arg for p in a.kwonlyargs] + ([f"**{a.kwarg.arg}"] if a.kwarg else [])
    required = positional[: len(positional) - len(a.defaults)]
    required += [p for p, default in zip(a.kwonlyargs, a.kw_defaults, strict=True) if default is None]
    return names, [p.arg for p in required]


def mentions(node: ast.AST, word: str) -> bool:
    """Whether a name, attribute, argument or text in a body is, or a text holds, ``word``."""
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and word in part.value:
            return True
        if word in (getattr(part, name, None) for name in ("id", "attr", "arg", "name")):
            return True
    return False
