"""Which checkpoint a run resumes from, and whether the plugin's state in it can be read.

verl writes ``latest_checkpointed_iteration.txt`` last, so a run killed while it saves resumes from the checkpoint before. Two
cases are left: killed while writing that file itself, it is empty, though the checkpoint it was to name is complete; and a
checkpoint without the dataloader's state makes verl start its data from the beginning, with a warning only.
"""

import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from sgpo_verl.errors import SgpoError

TRACKER = "latest_checkpointed_iteration.txt"
STATE = "data.pt"


def resumed_state(config: DictConfig) -> dict[str, Any] | None:
    """The dataloader's state in the checkpoint that verl will resume from, None if it will start anew.

    Raises SgpoError naming the file that is missing or torn, and the way out.
    """
    folder = _resumed_folder(config)
    if folder is None:
        return None
    path = folder / STATE
    try:
        return torch.load(path, weights_only=False)
    except FileNotFoundError:
        raise SgpoError(f"{path}: no such file, so nothing says which prompts come next; {_ways_out(folder)}") from None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
        raise SgpoError(f"{path}: cannot be read ({_line(error)}); {_ways_out(folder)}") from None


def not_saved(config: DictConfig, step: int, error: Exception) -> SgpoError:
    """What to say when verl could not write a checkpoint: torch says of a full disk no more than "iostream error"."""
    place = Path(config.trainer.default_local_dir)
    tracker = place / TRACKER
    last = f"step {tracker.read_text()}" if tracker.is_file() else "the beginning"
    free = shutil.disk_usage(place).free / 2**30 if place.is_dir() else 0.0
    return SgpoError(
        f"{place}: the checkpoint of step {step} could not be written ({_line(error)}; {free:.1f} GiB free there): make room "
        f"and start the same command again, it resumes from {last}"
    )


def _resumed_folder(config: DictConfig) -> Path | None:
    """As verl chooses it."""
    trainer = config.trainer
    if trainer.resume_mode == "resume_path" and isinstance(trainer.resume_from_path, str):
        return Path(trainer.resume_from_path)
    tracker = Path(trainer.default_local_dir) / TRACKER
    if trainer.resume_mode != "auto" or not tracker.is_file():
        return None
    text = tracker.read_text(errors="replace").strip()
    step = int(text) if re.fullmatch(r"\d+", text) else _mend(tracker, text)
    folder = tracker.parent / f"global_step_{step}"
    if not folder.is_dir():
        raise SgpoError(
            f"{tracker}: names step {step}, but there is no {folder.name} beside it; write the number of a checkpoint that is "
            "there into the file, or delete it to start anew"
        )
    return folder


def _mend(tracker: Path, text: str) -> int:
    """Name the newest complete checkpoint in a tracker that was cut off while it was written."""
    complete = sorted(
        int(folder.name.removeprefix("global_step_"))
        for folder in tracker.parent.glob("global_step_*")
        if re.fullmatch(r"global_step_\d+", folder.name) and (folder / STATE).is_file()
    )
    if text or not complete:
        raise SgpoError(
            f"{tracker}: holds {text!r:.40}, not the number of a step; write the number of a complete checkpoint into it, or "
            "delete it to start anew"
        )
    whole = tracker.with_suffix(".tmp")
    whole.write_text(str(complete[-1]))
    os.replace(whole, tracker)
    print(f"sgpo: {tracker} was empty; resuming from step {complete[-1]}, the newest complete checkpoint", flush=True)
    return complete[-1]


def _ways_out(folder: Path) -> str:
    return (
        "resume from another checkpoint (trainer.resume_mode=resume_path trainer.resume_from_path=...), or start a new run "
        f"from the weights in {folder}/actor"
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
