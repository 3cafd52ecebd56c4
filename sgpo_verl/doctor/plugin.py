"""Whether verl and Hydra see the plugin, and whether verl is still what it is built on. Imports verl after looking for it."""

import importlib
import importlib.metadata
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from sgpo_verl import seams
from sgpo_verl.checks.findings import Check, Unseen, raised
from sgpo_verl.errors import SgpoError
from sgpo_verl.run_config import TRAINER_MODES

REINSTALL = "install the package again: pip install --force-reinstall --no-deps sgpo-verl"


def checks() -> Iterator[Check]:
    yield "plugin", _plugin
    yield "names in verl", _registered
    yield "Hydra", _groups


def trainer_checks() -> Iterator[Check]:
    yield "trainer modes", _modes


def seam_checks(verl: Path | None = None) -> Iterator[Check]:
    """verl: a checkout; None: the installed one."""
    yield "seams", partial(_seams, verl)


def load(what: str, action: Callable[[], Any]) -> Any:
    """Its result. Whatever a broken installation raises instead is what we are here to show: as one line, with its place."""
    try:
        return action()
    except Exception as error:
        raise SgpoError(f"{what} raised {raised(error)}", "mend what it names, or " + REINSTALL) from None


def _plugin(_: None) -> str:
    """Load our entry point as verl does, but let its exception out."""
    entry_points = [e for e in importlib.metadata.entry_points(group="verl.plugins") if e.name == "sgpo"]
    if not entry_points:
        raise SgpoError(
            "there is no entry point sgpo in the group verl.plugins", "install the package: pip install sgpo-verl"
        )
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip()
    allowed = [name.strip() for name in policy.lower().split(",")]
    if policy.lower() != "auto" and "sgpo" not in allowed:
        others = [name for name in allowed if name and name != "none"]
        raise SgpoError(
            f"VERL_USE_EXTERNAL_PLUGINS={policy} leaves it out",
            f"unset it, or set it to {','.join([*others, 'sgpo'])}",
        )
    load(f"import {entry_points[0].value}", entry_points[0].load)
    return f"verl.plugins: sgpo = {entry_points[0].value}"


def _registered(_: None) -> str:
    """Import what every check of a run needs of verl, and look our estimator up."""
    _look_up("verl.trainer.ppo.core_algos", lambda algorithms: algorithms.get_adv_estimator_fn("sgpo"))
    return "advantage estimator sgpo"


def _modes(_: None) -> str:
    """Import verl's trainers as a training process does, and look ours up."""
    _look_up("verl.trainer.ppo.v1", lambda v1: [v1.get_trainer_cls(mode) for mode in TRAINER_MODES])
    return ", ".join(TRAINER_MODES)


def _look_up(module: str, action: Callable[[Any], Any]) -> None:
    try:
        _plugin(None)
    except SgpoError:
        raise Unseen("the plugin has to load first") from None
    imported = load(f"import {module}", lambda: importlib.import_module(module))
    try:
        action(imported)
    except ValueError as error:
        raise SgpoError(f"{' '.join(str(error).split())}: the plugin loads, but did not register", REINSTALL) from None


def _groups(_: None) -> str:
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    found = [p.__name__ for p in Plugins.instance().discover(SearchPathPlugin)]
    if "SgpoSearchPath" not in found:
        raise SgpoError("does not see +sgpo=...: hydra_plugins.sgpo_search_path is not importable", REINSTALL)
    conf = Path(__file__).parent.parent / "conf"
    groups = [
        f"+{folder}={'|'.join(sorted(f.stem for f in (conf / folder).glob('*.yaml')))}"
        for folder in ("sgpo", "runtime")
    ]
    return ", ".join(groups)


def _seams(verl: Path | None, _: None) -> str:
    """Every name, parameter and key of verl that the plugin uses, looked up in its source."""
    count, problems = seams.check(verl)
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise SgpoError(
            f"{len(problems)} of {count} are not where the plugin expects them: {'; '.join(problems[:3])}{more}",
            "python -m sgpo_verl.seams lists them all",
        )
    return f"all {count} names, parameters and keys of verl that the plugin uses are where it expects them"
