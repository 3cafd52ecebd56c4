"""Profile + settings + the training run's own numbers -> who is trained, how often, for how many steps, at what cost."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from sgpo_verl.config import Settings
from sgpo_verl.errors import SgpoError
from sgpo_verl.methods.paper import Paper, Phase, classify, group_size, phases
from sgpo_verl.profile import Profile

KEYS = pa.schema([("prompt_key", pa.large_string())])


@dataclass(frozen=True)
class RunNumbers:
    """What the training run asks for, named as in verl's configuration.

    train_batch_size: prompts per step. rollout_n: rollouts per prompt. mini_batch_size: actor.ppo_mini_batch_size,
    prompts. total_epochs, total_training_steps: as in ``trainer`` (the latter may be None). scoring_passes, ppo_epochs:
    as in ``cost.StepTokens``.
    """

    train_batch_size: int
    rollout_n: int
    mini_batch_size: int
    total_epochs: int = 1
    total_training_steps: int | None = None
    scoring_passes: int = 1
    ppo_epochs: int = 1

    @property
    def updates_per_step(self) -> int:
        """Optimizer updates of one pass over a step's batch."""
        return -(-self.train_batch_size // self.mini_batch_size)

    def stock_steps(self, prompts: int) -> int:
        """Steps of stock verl on ``prompts`` prompts: its loop ends at whichever of the two limits comes first."""
        epochs = prompts // self.train_batch_size * self.total_epochs
        return epochs if self.total_training_steps is None else min(epochs, self.total_training_steps)


@dataclass(frozen=True)
class Plan:
    """What training follows: the schedule, and nothing else that is as long as the data set.

    steps: per phase. rollouts: per step, per phase. counts: digest of the profile that it was made from.
    """

    settings: Settings
    numbers: RunNumbers
    phases: list[Phase]
    steps: list[int]
    rollouts: list[int]
    counts: str

    @property
    def total_steps(self) -> int:
        return sum(self.steps)

    @property
    def steps_per_pass(self) -> int:
        """Steps that one pass over every phase takes: what an epoch is to stock verl."""
        return sum(_steps_of_passes(p, r, 1) for p, r in zip(self.phases, self.rollouts, strict=True))

    def step_rollouts(self, size: int) -> int:
        """Rollouts of a step in a phase of groups of ``size``."""
        return _step_rollouts(self.settings, self.numbers, size)

    @property
    def rollouts_per_prompt(self) -> float | None:
        """What one of the baseline's prompts is worth in a step; None where a step is counted in prompts."""
        return None if self.settings.batch.unit == "prompts" else self.step_rollouts(1) / self.numbers.train_batch_size

    def method(self) -> Paper:
        """The curriculum, at its start."""
        budgets = [s * r for s, r in zip(self.steps, self.rollouts, strict=True)]
        return Paper(self.phases, budgets, self.settings.curriculum, self.settings.seed, self.fingerprint())

    def fingerprint(self) -> dict[str, Any]:
        """What a checkpoint must agree on to be resumed: the counts, the settings that decide the order, the schedule."""
        kept = self.settings.model_dump(include={"seed", "filter", "group_size", "curriculum"})
        return {
            "profile": self.counts,
            **{f"sgpo.{name}": json.dumps(value, sort_keys=True) for name, value in kept.items()},
            "steps per phase": self.steps,
            "rollouts per step": self.rollouts,
        }


@dataclass(frozen=True)
class ProfiledPlan:
    """A plan beside what it was made from: for forecasts and views. class_P: int8, in the order of the profile's rows."""

    plan: Plan
    profile: Profile
    class_P: np.ndarray


def make_plan(profile: Profile, settings: Settings, numbers: RunNumbers) -> ProfiledPlan:
    """Decide. A position in the plan is a row of ``profile``, which is not changed.

    Raises SgpoError if nothing is learnable, or if group sizes, budget and steps contradict each other.
    """
    trials_D, successes_D, which_P = _distinct(profile)
    class_P = classify(trials_D, successes_D, settings.filter)[which_P]
    size_P = group_size(trials_D, successes_D, settings.group_size)[which_P]
    phase_list = phases(class_P, size_P, settings.filter, settings.seed)
    rollouts = [_step_rollouts(settings, numbers, phase.group_size) for phase in phase_list]
    _check_budget(settings, numbers)
    steps = phase_steps(phase_list, rollouts, settings, numbers)
    return ProfiledPlan(Plan(settings, numbers, phase_list, steps, rollouts, digest(profile)), profile, class_P)


def _distinct(profile: Profile) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(trials, successes) of the D distinct pairs of counts, few even among millions of prompts; and which one is each's."""
    trials_P, successes_P = (profile.table[name].to_numpy(np.int64) for name in ("trials", "successes"))
    which_P, pair_D = pd.factorize((trials_P << 32) + successes_P)
    return pair_D >> 32, pair_D & 0xFFFFFFFF, which_P


def digest(profile: Profile) -> str:
    """Of every prompt's key, trials and successes, in their order: 16 hex digits of a sha256, from the columns' own memory."""
    column = pa.Table.from_pandas(profile.table[["prompt_key"]], KEYS, preserve_index=False).column(0)
    keys = column.combine_chunks()
    ends = np.frombuffer(keys.buffers()[1], np.int64)[keys.offset : keys.offset + len(keys) + 1]
    text = keys.buffers()[2].slice(ends[0], ends[-1] - ends[0])
    counts = (profile.table[name].to_numpy(np.int32) for name in ("trials", "successes"))
    hashed = hashlib.sha256()
    for part in (np.diff(ends), text, *counts):
        hashed.update(part)
    return hashed.hexdigest()[:16]


def _step_rollouts(settings: Settings, numbers: RunNumbers, size: int) -> int:
    if settings.batch.unit == "prompts":
        return numbers.train_batch_size * size
    return settings.batch.rollouts or numbers.train_batch_size * numbers.rollout_n


def _check_budget(settings: Settings, numbers: RunNumbers) -> None:
    """A step must hold the largest group, and divide into the baseline's number of updates."""
    if settings.batch.unit == "prompts":
        return
    budget, updates = _step_rollouts(settings, numbers, 1), numbers.updates_per_step
    said = "sgpo.batch.rollouts" if settings.batch.rollouts else "data.train_batch_size x actor_rollout_ref.rollout.n"
    if settings.group_size.max > budget:
        raise SgpoError(
            f"sgpo.group_size.max={settings.group_size.max} is more than the {budget} rollouts of a step ({said}): "
            "lower the one or raise the other"
        )
    if budget % updates:
        raise SgpoError(
            f"{said}={budget} does not divide into the {updates} optimizer updates of a step (data.train_batch_size="
            f"{numbers.train_batch_size} / actor_rollout_ref.actor.ppo_mini_batch_size={numbers.mini_batch_size}): "
            f"use a multiple of {updates}"
        )


def phase_steps(
    phase_list: Sequence[Phase], rollouts: Sequence[int], settings: Settings, numbers: RunNumbers
) -> list[int]:
    """Training steps of each phase.

    trainer.total_training_steps unset: as many as ``epochs`` passes over the phase take, the last one filled up.
    Set: that many in all, shared in proportion to the rollouts of one pass, at least one each.
    until=steps with ``curriculum.steps``: those.
    """
    curriculum, total = settings.curriculum, numbers.total_training_steps
    if curriculum.steps is not None:
        return _given_steps(curriculum.steps, phase_list, total)
    if total is None:
        return [_steps_of_passes(p, r, curriculum.epochs) for p, r in zip(phase_list, rollouts, strict=True)]
    return share([p.rollouts_per_pass for p in phase_list], total)


def _steps_of_passes(phase: Phase, rollouts: int, passes: int) -> int:
    """Steps of ``rollouts`` that ``passes`` over a phase take. Counted in groups, as they are dealt: one too many for
    the last step needs another."""
    return -(-len(phase.prompts_M) * passes // (rollouts // phase.group_size))


def _given_steps(steps: Sequence[int], phase_list: Sequence[Phase], total: int | None) -> list[int]:
    sizes = [p.group_size for p in phase_list]
    if len(steps) != len(sizes) or min(steps, default=0) < 1:
        raise SgpoError(
            f"sgpo.curriculum.steps={list(steps)}: needs one positive number for each of the {len(sizes)} phases "
            f"(group sizes {sizes})"
        )
    if total is not None and total != sum(steps):
        raise SgpoError(
            f"sgpo.curriculum.steps={list(steps)} adds up to {sum(steps)}, trainer.total_training_steps is {total}: "
            "set one of the two to null"
        )
    return list(steps)


def share(weights: Sequence[int], total: int) -> list[int]:
    """``total`` split in proportion to ``weights`` by largest remainders, at least 1 each while they last.

    share([6, 3, 1], 10) = [6, 3, 1]; share([98, 1, 1], 10) = [8, 1, 1]; share([5, 5, 5], 2) = [1, 1, 0].
    """
    if total <= len(weights):
        return [int(i < total) for i in range(len(weights))]
    spare, whole = total - len(weights), sum(weights)
    exact = [max(0.0, w * total / whole - 1) for w in weights]
    scale = spare / sum(exact) if sum(exact) else 0.0
    exact = [e * scale for e in exact]
    parts = [int(e) for e in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: (parts[i] - exact[i], i))
    for i in by_remainder[: spare - sum(parts)]:
        parts[i] += 1
    return [part + 1 for part in parts]
