"""The class of a method of one's own, from a file or an installed package: found, checked, and known by its text."""

import hashlib
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

from sgpo_verl.config import CustomSettings
from sgpo_verl.errors import SgpoError

VERBS = ("next_groups", "more_groups", "observe", "state_dict", "load_state_dict", "metrics")
KEY = "sgpo.curriculum.custom"
PACKAGE, FILE = "pkg://", "file://"


def load_class(custom: CustomSettings) -> type:
    """The class that ``custom`` names. Raises SgpoError if it cannot be had, lacks a verb or does not take its kwargs."""
    source = source_file(custom)
    module = _module(str(custom.path), source)
    found = getattr(module, str(custom.name), None)
    if not isinstance(found, type):
        classes = [
            name
            for name, value in vars(module).items()
            if isinstance(value, type) and value.__module__ == module.__name__
        ]
        there = f"; its classes: {', '.join(classes)}" if classes else ""
        raise SgpoError(f"{KEY}.name={custom.name}: no such class in {custom.path}{there}")
    if missing := [verb for verb in VERBS if not callable(getattr(found, verb, None))]:
        raise SgpoError(f"{KEY}.name={custom.name}: lacks {', '.join(missing)}; a method has {', '.join(VERBS)}")
    try:
        inspect.signature(found).bind(None, **custom.kwargs)
    except TypeError as error:
        raise SgpoError(
            f"{KEY}.kwargs={custom.kwargs}: {error}; it is {custom.name}{inspect.signature(found)}, the context first"
        ) from None
    return found


def source_file(custom: CustomSettings) -> Path:
    """Of the module that ``custom.path`` names. Raises SgpoError if there is none, or its package cannot be imported."""
    path = str(custom.path)
    if not path.startswith(PACKAGE):
        file = Path(path.removeprefix(FILE)).expanduser()
        if not file.is_file():
            raise SgpoError(
                f"{KEY}.path={path}: no such file; a module of an installed package is {PACKAGE}package.module"
            )
        if file.suffix != ".py":
            raise SgpoError(f"{KEY}.path={path}: not a Python file (.py)")
        return file
    origin = module_origin(_dotted(path), f"{KEY}.path={path}")
    if not origin or not Path(origin).is_file():
        raise SgpoError(f"{KEY}.path={path}: no such module here; a file is given by its path")
    return Path(origin)


def module_origin(name: str, setting: str) -> str | None:
    """Where the module ``a.b.c`` comes from, found without importing it; None if there is none.

    Its packages a and a.b are imported for this. Raises SgpoError beginning with ``setting`` if they cannot be.
    """
    try:
        spec = importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError):
        return None
    except Exception as error:  # a package may do anything
        raise SgpoError(f"{setting}: cannot be imported ({type(error).__name__}: {error})") from None
    return spec.origin if spec else None


def source_digest(custom: CustomSettings) -> str:
    """Of the module's text: 16 hex digits of a sha256."""
    return hashlib.sha256(source_file(custom).read_bytes()).hexdigest()[:16]


def _dotted(path: str) -> str:
    return path.removeprefix(PACKAGE).replace("/", ".")


def _module(path: str, source: Path) -> Any:
    """Loaded once for each text of the file. Raises SgpoError for whatever it raises: it is not our text."""
    try:
        if path.startswith(PACKAGE):
            return importlib.import_module(_dotted(path))
        name = f"sgpo_custom_{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}"
        if name in sys.modules:
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, source)
        assert spec is not None and spec.loader is not None  # of a .py file there is one
        module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look there for their module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module
    except Exception as error:
        raise SgpoError(f"{KEY}.path={path}: cannot be imported ({type(error).__name__}: {error})") from None
