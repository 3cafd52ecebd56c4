"""What a plan will cost, before anything is trained: rollouts, tokens and FLOPs beside stock GRPO on the same data."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sgpo_verl.config import Settings
from sgpo_verl.cost import ModelShape, StepTokens, generate_flops, step_flops
from sgpo_verl.plan import ProfiledPlan


@dataclass(frozen=True)
class Forecast:
    """Expected cost of a run.

    rollouts: the profile's included. flops, of which flops_profile. mixed: share of groups that hold both outcomes, the
    only ones that teach. teaching_rollouts: rollouts in them.
    """

    steps: int
    rollouts: int
    generated_tokens: float
    trained_tokens: float
    flops: float
    flops_profile: float
    mixed: float
    teaching_rollouts: float

    @property
    def flops_per_teaching_rollout(self) -> float:
        """What a rollout of a mixed group costs, everything that taught nothing included; infinite if none is expected."""
        return self.flops / self.teaching_rollouts if self.teaching_rollouts else float("inf")


def forecast(made: ProfiledPlan, shape: ModelShape | None) -> tuple[Forecast, Forecast | None]:
    """(stock GRPO on all prompts, this plan): lengths and pass rates as profiled, nothing learned on the way.

    None for a plan that chooses by what it learns on the way (``chooses_on_the_way``): ``sgpo simulate`` shows those.

    Prompts that could not be profiled, which stock GRPO draws too: as long as the others on average, and never solved.
    shape: of the model; without it FLOPs are 0.
    """
    shape = shape or ModelShape(0, 0)
    plan, table, numbers = made.plan, made.profile.table, made.plan.numbers
    everyone_P = np.arange(len(table))
    steps = numbers.stock_steps(len(table))
    prune = bool(plan.settings.prune)
    stock = [(everyone_P, numbers.rollout_n, steps, numbers.train_batch_size * numbers.rollout_n, False)]
    ours = [
        (p.prompts_M, p.group_size if p.sizes_M is None else p.sizes_M, s, r, prune)
        for p, s, r in zip(plan.phases, plan.steps, plan.rollouts, strict=True)
    ]
    if chooses_on_the_way(plan.settings):
        return _forecast(made, shape, stock, 0, 0.0), None
    profile = made.profile if plan.settings.needs_profile else replace(made.profile, table=table.iloc[:0])
    profile_flops = generate_flops(shape, profile.tokens())
    return _forecast(made, shape, stock, 0, 0.0), _forecast(made, shape, ours, profile.samples, profile_flops)


def chooses_on_the_way(settings: Settings) -> bool:
    """Whether prompts or rollouts depend on what training shows, so that a profile alone does not tell what it will cost."""
    parts = (settings.curriculum.order, settings.allocation, settings.filter.by)
    return bool({"greso", "posterior", "custom", "rescue", "mixed"} & set(parts)) or settings.advantage == "aero"


def _forecast(
    made: ProfiledPlan, shape: ModelShape, parts: list[tuple[Any, ...]], samples: int, profile_flops: float
) -> Forecast:
    table, numbers = made.profile.table, made.plan.numbers
    pass_rate_P = (table["successes"] / table["trials"].clip(lower=1)).to_numpy()
    prompt_P, response_P = table["prompt_tokens"].to_numpy(float), table["response_tokens_mean"].to_numpy(float)
    sampled_P = table["trials"].to_numpy() > 0
    totals, groups, mixed, teaching = np.zeros(4), 0, 0.0, 0.0
    for rows_M, size, steps, rollouts, prune in parts:
        p_M = pass_rate_P[rows_M]
        mixed_M = 1 - p_M**size - (1 - p_M) ** size
        share = float((mixed_M * size).mean() / np.mean(size))  # of rollouts, in mixed groups
        trained = rollouts * share if prune else rollouts
        drawn = rollouts // size if isinstance(size, int) else rollouts / size.mean()
        sampled_M = rows_M[sampled_P[rows_M]]
        prompt, response = prompt_P[sampled_M].mean(), response_P[sampled_M].mean()
        step = StepTokens(
            groups=drawn,
            prompt_tokens=drawn * prompt,
            rows=rollouts,
            response_tokens=rollouts * response,
            trained=trained * (prompt + response),
            trained_rows=trained,
            scoring_passes=numbers.scoring_passes,
            epochs=numbers.ppo_epochs,
        )
        totals += steps * np.array([rollouts, step.generated, step.trained, sum(step_flops(shape, step))])
        groups += steps * drawn
        mixed += steps * drawn * float(mixed_M.mean())
        teaching += steps * rollouts * share
    return Forecast(
        steps=sum(part[2] for part in parts),
        rollouts=int(totals[0]) + samples,
        generated_tokens=totals[1],
        trained_tokens=totals[2],
        flops=totals[3] + profile_flops,
        flops_profile=profile_flops,
        mixed=mixed / groups if groups else 0.0,
        teaching_rollouts=teaching,
    )
