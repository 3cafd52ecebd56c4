"""What a run writes, and where it resumes: folders, trackers, checkpoints. verl looks at these once all models are up."""

import ast
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgpo_verl import seams
from sgpo_verl.checks.findings import Doubt
from sgpo_verl.errors import SgpoError
from sgpo_verl.run_config import group_at, value_at
from sgpo_verl.sources import Source

PACKAGES = {
    "wandb": "wandb",
    "tracking": "wandb",
    "mlflow": "mlflow",
    "swanlab": "swanlab",
    "vemlp_wandb": "volcengine_ml_platform",
    "tensorboard": "tensorboard",
    "clearml": "clearml",
    "trackio": "trackio",
}
MODES = ("auto", "disable", "resume_path")


def check_output(config: Mapping[str, Any]) -> str:
    """Where things go, in words. Raises SgpoError naming the key; Doubt if a tracker is not installed here, or for a ~."""
    trainer = group_at(config, "trainer")
    folder = trainer.get("default_local_dir")
    if not isinstance(folder, str):
        raise SgpoError(f"trainer.default_local_dir={folder!r}: must be a folder")
    for key in ("default_local_dir", "rollout_data_dir", "validation_data_dir"):
        if isinstance(trainer.get(key), str):
            _check_writable(f"trainer.{key}", str(trainer[key]))
    resumes = _resumes(config, folder)
    loggers = _loggers(config)
    if folder.startswith("~"):
        raise Doubt(
            f"trainer.default_local_dir={folder}: verl takes ~ for the name of a folder, and makes it in this one",
            f"write {Path(folder).expanduser()}",
        )
    return f"checkpoints in {folder} ({resumes}); metrics to {', '.join(loggers) or 'nowhere'}"


def _check_writable(key: str, folder: str) -> None:
    """The folder, or the one that it will be made in."""
    place = Path(folder).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        reason = f"{place} is no folder" if not place.is_dir() else f"{place} is not ours to write into"
        raise SgpoError(f"{key}={folder}: cannot be written ({reason})", "name another folder")


def _resumes(config: Mapping[str, Any], folder: str) -> str:
    mode = value_at(config, "trainer.resume_mode")
    if mode not in MODES:
        raise SgpoError(f"trainer.resume_mode={mode}: must be one of {', '.join(MODES)}")
    if mode == "resume_path":
        path = value_at(config, "trainer.resume_from_path")
        if not isinstance(path, str) or "global_step_" not in path:
            raise SgpoError(
                f"trainer.resume_from_path={path!r}: with trainer.resume_mode=resume_path it must be a folder global_step_N"
            )
        if not Path(path).is_dir():
            raise SgpoError(f"trainer.resume_from_path={path}: no such folder")
        return f"resumes from {path}"
    tracker = Path(folder) / "latest_checkpointed_iteration.txt"
    if mode == "auto" and tracker.is_file():
        return f"resumes from step {tracker.read_text(errors='replace').strip() or '?'}"
    return "starts anew"


def _loggers(config: Mapping[str, Any]) -> list[str]:
    named = value_at(config, "trainer.logger")
    loggers = [named] if isinstance(named, str) else named or []
    if not isinstance(loggers, list):
        raise SgpoError(f"trainer.logger={named!r}: must be a name, or a list of names")
    known = supported_loggers()
    for logger in loggers:
        if logger not in known and logger != "tracking":
            raise SgpoError(f"trainer.logger={logger}: verl knows {', '.join(known)}")
    for logger in loggers:
        package = PACKAGES.get(logger)
        if package and importlib.util.find_spec(package) is None:
            raise Doubt(
                f"trainer.logger={logger}: the package {package} is not installed here; where the run trains it must be, or it "
                "ends after all models have been loaded",
                f"pip install {package}",
            )
    return loggers


def supported_loggers() -> list[str]:
    """Names that verl's tracking knows, read from its source: its import would be slow."""
    found = Source(seams.folders()).member("verl.utils.tracking", "Tracking", "supported_backend")
    if found is None or not isinstance(found.node, ast.Assign):
        raise SgpoError("verl.utils.tracking: Tracking.supported_backend is gone", "see `sgpo doctor --seams`")
    return ast.literal_eval(found.node.value)
