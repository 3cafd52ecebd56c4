"""What a run must agree on with the checkpoint that it resumes: its prompts, the settings that decide, its schedule."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sgpo_verl.config import Settings
from sgpo_verl.extern import source_digest
from sgpo_verl.profile import Profile
from sgpo_verl.prompts import Keys
from sgpo_verl.schedule import RunNumbers

# Settings that decide who is drawn, and what is learned from it.
DECIDING = {
    "seed",
    "success_threshold",
    "filter",
    "allocation",
    "group_size",
    "curriculum",
    "advantage",
    "train_fraction",
}
KEYS = pa.schema([("prompt_key", pa.large_string())])


def fingerprint(
    settings: Settings, numbers: RunNumbers, counts: str, steps: Sequence[int], rollouts: Sequence[int]
) -> dict[str, Any]:
    """By name, so that a difference can be told. counts: digest of the prompts, and of their profile if there is one."""
    s, kept = settings, set(DECIDING)
    kept |= {"greso"} if s.curriculum.order == "greso" or s.filter.by == "mixed" else set()
    kept |= {"posterior"} if s.needs_posterior else set()
    kept |= {"aero"} if s.allocation == "rescue" or s.advantage == "aero" else set()
    dumped = s.model_dump(include=kept)
    custom = dumped["curriculum"].pop("custom")
    own = {}
    if s.curriculum.order == "custom":  # its code, wherever it lies
        own = {
            "sgpo.curriculum.custom": json.dumps({**custom, "path": source_digest(s.curriculum.custom)}, sort_keys=True)
        }
    shuffled = {"data.shuffle": numbers.shuffle} if s.curriculum.order in ("shuffle", "greso") else {}
    size = {"actor_rollout_ref.rollout.n": numbers.rollout_n} if s.allocation == "uniform" else {}
    return {
        "profile": counts,
        **{f"sgpo.{name}": json.dumps(value, sort_keys=True) for name, value in dumped.items()},
        **own,
        "steps per phase": list(steps),
        "rollouts per step": list(rollouts),
        **shuffled,
        **size,
    }


def digest(profile: Profile) -> str:
    """Of every prompt's key, trials and successes, in their order: 16 hex digits of a sha256, from the columns' own memory."""
    column = pa.Table.from_pandas(profile.table[["prompt_key"]], KEYS, preserve_index=False).column(0)
    trials_P, successes_P = (profile.table[name].to_numpy(np.int32) for name in ("trials", "successes"))
    return _digest(column.combine_chunks(), trials_P, successes_P)


def digest_of_keys(keys_P: Keys) -> str:
    """The same where there is no profile: every prompt with no trials."""
    nothing_P = np.zeros(len(keys_P), dtype=np.int32)
    return _digest(pa.array(keys_P, pa.large_string()), nothing_P, nothing_P)


def _digest(keys: pa.LargeStringArray, *counts: np.ndarray) -> str:
    ends = np.frombuffer(keys.buffers()[1], np.int64)[keys.offset : keys.offset + len(keys) + 1]
    text = keys.buffers()[2].slice(ends[0], ends[-1] - ends[0])
    hashed = hashlib.sha256()
    for part in (np.diff(ends), text, *counts):
        hashed.update(part)
    return hashed.hexdigest()[:16]
