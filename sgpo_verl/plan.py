"""Profile + settings + the training run's own numbers -> who is trained, how often, for how many steps, at what cost."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from sgpo_verl.allocation import alone, mixed
from sgpo_verl.config import Settings
from sgpo_verl.errors import SgpoError
from sgpo_verl.fingerprint import digest, digest_of_keys, fingerprint
from sgpo_verl.methods.base import Method
from sgpo_verl.methods.bayes import Bayes
from sgpo_verl.methods.curriculum import Curriculum, Phase
from sgpo_verl.methods.custom import Context, Custom, Known
from sgpo_verl.methods.greso import Greso
from sgpo_verl.methods.paper import Class, classify, group_size, phases
from sgpo_verl.posterior import Posterior
from sgpo_verl.profile import Profile
from sgpo_verl.prompts import Keys
from sgpo_verl.schedule import RunNumbers, phase_steps, step_rollouts, steps_of_passes, stock_steps, whole_batches


@dataclass(frozen=True)
class Plan:
    """What training follows: the schedule, and nothing else that is as long as the data set, unless beliefs are kept.

    steps: per phase. rollouts: per step, per phase. counts: digest of the prompts, and of their profile if there is one.
    prompts: of the data set. prior: where a posterior is kept, what it begins with. known: what a custom method is told.
    """

    settings: Settings
    numbers: RunNumbers
    phases: list[Phase]
    steps: list[int]
    rollouts: list[int]
    counts: str
    prompts: int
    prior: Posterior | None = field(default=None, repr=False)
    known: Known | None = field(default=None, repr=False)

    @property
    def total_steps(self) -> int:
        return sum(self.steps)

    @property
    def steps_per_pass(self) -> int:
        """Steps that one pass over every phase takes: what an epoch is to stock verl."""
        if as_stock(self.settings):
            return whole_batches(self.phases[0], self.rollouts[0])
        return sum(steps_of_passes(p, r, 1) for p, r in zip(self.phases, self.rollouts, strict=True))

    def step_rollouts(self, size: int) -> int:
        """Rollouts of a step in a phase of groups of ``size``."""
        return step_rollouts(self.settings, self.numbers, size)

    @property
    def rollouts_per_prompt(self) -> float | None:
        """What one of the baseline's prompts is worth in a step; None where a step is counted in prompts."""
        if self.settings.batch.unit == "prompts" or self.settings.allocation == "rescue":
            return None
        return self.step_rollouts(1) / self.numbers.train_batch_size

    @property
    def largest_group(self) -> int:
        """Rollouts of the largest group that may be drawn, rescue aside."""
        chosen = self.settings.allocation in ("profile", "posterior")
        return self.settings.group_size.max if chosen else self.phases[0].group_size

    def start(self) -> tuple[Method, Posterior | None]:
        """(the method, at its start; what it believes, if it believes anything). Both keep state."""
        s, posterior, rollouts = self.settings, copy.deepcopy(self.prior), self.rollouts[0]
        total = sum(s * r for s, r in zip(self.steps, self.rollouts, strict=True))
        run = (s.seed, self.fingerprint())
        shuffle = self.numbers.shuffle or s.curriculum.order == "phases"
        if s.curriculum.order == "posterior":
            assert posterior is not None
            sizes = s.group_size if s.allocation == "posterior" else None
            gain = alone if s.advantage == "rare" else mixed
            phase = self.phases[0]
            return Bayes(s.method, phase, posterior, sizes, rollouts, total, s.posterior, gain, *run), posterior
        if s.curriculum.order == "custom":
            return self._custom(posterior, total, *run), posterior
        if s.curriculum.order == "greso":
            return Greso(s.method, self.phases[0], self.prompts, rollouts, total, s.greso, *run, shuffle), posterior
        return Curriculum(s.method, self.phases, self.steps, self.rollouts, s.curriculum, *run, shuffle), posterior

    def _custom(self, posterior: Posterior | None, total: int, seed: int, agreed: dict[str, Any]) -> Custom:
        assert posterior is not None and self.known is not None
        known, phase, rollouts = self.known, self.phases[0], self.rollouts[0]
        size = phase.group_size if phase.sizes_M is None else None
        sizes_P = np.zeros(self.prompts, dtype=np.int32)
        sizes_P[phase.prompts_M] = phase.group_size if phase.sizes_M is None else phase.sizes_M
        context = Context(
            keys_P=known.keys_P,
            prompts_M=phase.prompts_M,
            sizes_P=sizes_P,
            size=size,
            rollouts=rollouts,
            total_rollouts=total,
            seed=seed,
            trials_P=known.trials_P,
            successes_P=known.successes_P,
            posterior=posterior,
        )
        s = self.settings
        one_size = size if s.filter.by == "mixed" or s.allocation == "rescue" else None
        in_update = rollouts // self.numbers.updates_per_step
        return Custom(s.method, s.curriculum.custom, context, in_update, one_size, agreed)

    def fingerprint(self) -> dict[str, Any]:
        """What a checkpoint must agree on to be resumed: the counts, the settings that decide the order, the schedule."""
        return fingerprint(self.settings, self.numbers, self.counts, self.steps, self.rollouts)


def as_stock(settings: Settings) -> bool:
    """Whether prompts are drawn as stock GRPO draws them: all of them, each ``rollout.n`` times, an epoch the data set's."""
    return not settings.needs_profile


@dataclass(frozen=True)
class ProfiledPlan:
    """A plan beside what it was made from: for forecasts and views. class_P: int8, in the order of the profile's rows."""

    plan: Plan
    profile: Profile
    class_P: np.ndarray


def make_plan(profile: Profile, settings: Settings, numbers: RunNumbers) -> ProfiledPlan:
    """Decide, from a profile. A position in the plan is a row of ``profile``, which is not changed.

    Raises SgpoError if nothing is learnable, or if group sizes, budget and steps contradict each other.
    """
    trials_D, successes_D, which_P = _distinct(profile)
    class_D = classify(trials_D, successes_D, settings.filter)
    if settings.filter.by != "profile":
        class_D = np.where(class_D == Class.FAILED, Class.FAILED, Class.LEARNABLE).astype(np.int8)
    class_P = class_D[which_P]
    size_P = group_size(trials_D, successes_D, settings.group_size)[which_P]
    table = profile.table
    tokens_P = (table["prompt_tokens"] + table["response_tokens_mean"]).to_numpy(np.float32)
    prior = _prior(settings, table["trials"].to_numpy(), table["successes"].to_numpy(), tokens_P)
    listed = phases(class_P, size_P, settings.filter, settings.seed)
    phase_list = listed if settings.curriculum.order == "phases" else [merged(listed)]
    plan = _schedule(_sized(phase_list, settings, numbers), settings, numbers, digest(profile), len(profile), prior)
    if settings.curriculum.order == "custom":
        counts_P = (table[name].to_numpy(np.int32) for name in ("trials", "successes"))
        plan = replace(plan, known=Known(table["prompt_key"].array, *counts_P))
    return ProfiledPlan(plan, profile, class_P)


def plan_without_profile(keys_P: Keys, settings: Settings, numbers: RunNumbers) -> Plan:
    """The schedule of a method that needs no profile: every prompt may be drawn. Raises SgpoError as ``make_plan``."""
    count = len(keys_P)
    nothing_P = np.zeros(count, dtype=np.int32)
    everyone = Phase(0, count, 0, np.arange(count, dtype=np.int32))
    prior = _prior(settings, nothing_P, nothing_P, nothing_P)
    plan = _schedule(_sized([everyone], settings, numbers), settings, numbers, digest_of_keys(keys_P), count, prior)
    return replace(plan, known=Known(keys_P)) if settings.curriculum.order == "custom" else plan


def _prior(settings: Settings, trials_P: np.ndarray, successes_P: np.ndarray, tokens_P: np.ndarray) -> Posterior | None:
    if not settings.needs_posterior:
        return None
    return Posterior(trials_P, successes_P, tokens_P, settings.posterior)


def merged(phase_list: Sequence[Phase]) -> Phase:
    """All phases as one, each prompt with the group size that it had; an unsolved one drawn into several counts once."""
    learnable_M = [p.prompts_M[: p.learnable] for p in phase_list]
    last = phase_list[-1]
    sizes = [np.full(len(m), p.group_size, np.int32) for m, p in zip(learnable_M, phase_list, strict=True)]
    sizes_M = np.concatenate([*sizes, np.full(last.unsolved, last.group_size, np.int32)])
    prompts_M = np.concatenate([*learnable_M, last.prompts_M[last.learnable :]])
    return Phase(round(float(sizes_M.mean())), len(prompts_M) - last.unsolved, last.unsolved, prompts_M, sizes_M)


def _sized(phase_list: Sequence[Phase], settings: Settings, numbers: RunNumbers) -> list[Phase]:
    """The phases with the group sizes of ``sgpo.allocation``; those of the profile are there already."""
    if settings.allocation == "profile":
        return list(phase_list)
    size = settings.aero.explore if settings.allocation == "rescue" else numbers.rollout_n
    return [replace(phase, group_size=size, sizes_M=None) for phase in phase_list]


def _schedule(
    phase_list: list[Phase], settings: Settings, numbers: RunNumbers, counts: str, prompts: int, prior: Posterior | None
) -> Plan:
    rollouts = [step_rollouts(settings, numbers, phase.group_size) for phase in phase_list]
    plan = Plan(settings, numbers, phase_list, [], rollouts, counts, prompts, prior)
    _check_budget(plan)
    if as_stock(settings):
        return replace(plan, steps=[stock_steps(phase_list[0], rollouts[0], numbers)])
    return replace(plan, steps=phase_steps(phase_list, rollouts, settings, numbers))


def _distinct(profile: Profile) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(trials, successes) of the D distinct pairs of counts, few even among millions of prompts; and which one is each's."""
    trials_P, successes_P = (profile.table[name].to_numpy(np.int64) for name in ("trials", "successes"))
    which_P, pair_D = pd.factorize((trials_P << 32) + successes_P)
    return pair_D >> 32, pair_D & 0xFFFFFFFF, which_P


def _check_budget(plan: Plan) -> None:
    """A step must hold the largest group, and divide into the baseline's number of updates."""
    settings, numbers = plan.settings, plan.numbers
    if settings.batch.unit == "prompts":
        return
    budget, updates = plan.step_rollouts(1), numbers.updates_per_step
    said = "sgpo.batch.rollouts" if settings.batch.rollouts else "data.train_batch_size x actor_rollout_ref.rollout.n"
    if plan.largest_group > budget:
        keys = {"rescue": "sgpo.aero.explore", "uniform": "actor_rollout_ref.rollout.n"}
        raise SgpoError(
            f"{keys.get(settings.allocation, 'sgpo.group_size.max')}={plan.largest_group} is more than the {budget} rollouts "
            f"of a step ({said}): lower the one or raise the other"
        )
    if settings.allocation == "uniform" and settings.advantage == "grpo" and numbers.rollout_n < 2:
        raise SgpoError("actor_rollout_ref.rollout.n=1: a group of one has no advantage against itself; use 2 or more")
    if settings.filter.by == "mixed" and budget % numbers.rollout_n:
        raise SgpoError(
            f"sgpo.batch.rollouts={budget} does not divide into groups of actor_rollout_ref.rollout.n={numbers.rollout_n}, as "
            f"sgpo.filter=mixed needs: use a multiple of {numbers.rollout_n}"
        )
    if budget % updates:
        raise SgpoError(
            f"{said}={budget} does not divide into the {updates} optimizer updates of a step (data.train_batch_size="
            f"{numbers.train_batch_size} / actor_rollout_ref.actor.ppo_mini_batch_size={numbers.mini_batch_size}): "
            f"use a multiple of {updates}"
        )
