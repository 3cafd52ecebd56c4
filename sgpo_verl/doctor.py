"""``sgpo doctor``: is everything in place, and if not, what to do. Imports verl only after looking for it."""

import importlib
import importlib.metadata
import os
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape

from sgpo_verl.errors import SgpoError
from sgpo_verl.provenance import installed_versions


def run(arguments: Sequence[str]) -> bool:
    """Print one line per check; with training arguments, check that configuration too. True if nothing failed."""
    os.environ.setdefault(
        "VERL_LOGGING_LEVEL", "ERROR"
    )  # what verl lacks on a machine without a GPU is not the question
    warnings.simplefilter("ignore")
    console = Console(highlight=False, soft_wrap=True)
    checks: list[tuple[str, Callable[[], str]]] = [
        ("versions", _versions),
        ("verl version", _verl),
        ("plugin loads", _plugin),
        ("registered with verl", _registered),
        ("Hydra groups", _groups),
    ]
    if arguments:
        checks.append(("configuration", lambda: _configuration(arguments)))
    ok = True
    for name, check in checks:
        try:
            console.print(f"[green]ok[/]    {name}: {escape(check())}")
        except SgpoError as error:
            ok = False
            console.print(f"[red]FAIL[/]  {name}: {escape(str(error))}")
    return ok


def _versions() -> str:
    return ", ".join(f"{name} {version}" for name, version in installed_versions().items())


def _verl() -> str:
    from sgpo_verl.binding.verl_version import check_verl_version

    return f"{check_verl_version()} is supported"


def _load(what: str, load: Callable[[], Any]) -> Any:
    """Its result; whatever a broken installation raises instead is what we are here to show. Raises SgpoError with it."""
    try:
        return load()
    except Exception as error:
        lines = traceback.format_exception(error)
        raise SgpoError(f"{what} raised: {''.join(lines[-2:]).strip()}") from None


def _plugin() -> str:
    """Load our entry point as verl does, but let its exception out."""
    entry_points = [e for e in importlib.metadata.entry_points(group="verl.plugins") if e.name == "sgpo"]
    if not entry_points:
        raise SgpoError("no `verl.plugins` entry point named sgpo: install the package (pip install sgpo-verl)")
    _load(f"import {entry_points[0].value}", entry_points[0].load)
    return f"verl.plugins: sgpo = {entry_points[0].value}"


def _registered() -> str:
    """Import verl as a training process does, and look our names up."""
    v1 = _load("import verl.trainer.ppo.v1", lambda: importlib.import_module("verl.trainer.ppo.v1"))
    algorithms = importlib.import_module("verl.trainer.ppo.core_algos")
    try:
        trainer = v1.get_trainer_cls("sgpo_sync")
        algorithms.get_adv_estimator_fn("sgpo")
    except ValueError as error:
        raise SgpoError(
            f"{error} The plugin did not register; is VERL_USE_EXTERNAL_PLUGINS set to leave it out?"
        ) from None
    return f"trainer mode sgpo_sync ({trainer.__name__}), advantage estimator sgpo"


def _groups() -> str:
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    found = [p.__name__ for p in Plugins.instance().discover(SearchPathPlugin)]
    if "SgpoSearchPath" not in found:
        raise SgpoError("Hydra does not see +sgpo=...: the package hydra_plugins.sgpo_search_path is not importable")
    return "+sgpo=paper, +runtime=cpu"


def _configuration(arguments: Sequence[str]) -> str:
    from sgpo_verl.binding.preflight import check_run
    from sgpo_verl.run_config import compose

    check_run(compose(arguments))
    return "composes, and nothing in it contradicts anything else"
