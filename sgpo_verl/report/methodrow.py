"""One method over its seeds: what it took to the target, what it ended with, what it was made of."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sgpo_verl.report import headline
from sgpo_verl.report.headline import MEASURES, Outcome, Rule, Spread, spread
from sgpo_verl.report.runs import Run


@dataclass(frozen=True, eq=False)
class ToTarget:
    """The way of one method to the target, over its seeds, by one of the two rules.

    outcomes: one per run of known cost. ratio: baseline cost / method cost by measure, median and range (None: half the
    seeds or more never got there). cost, baseline_cost: the two sides, medians; infinite where not reached. reached,
    at_end: how many seeds got there, and how many of those only at their last evaluation.
    """

    outcomes: tuple[Outcome, ...]
    ratio: dict[str, Spread | None]
    cost: dict[str, float]
    baseline_cost: dict[str, float]
    reached: int
    at_end: int

    @property
    def compared(self) -> int:
        return len(self.outcomes)


@dataclass(frozen=True, eq=False)
class MethodRow:
    """One method, over its seeds.

    held, smoothed: its way to the target by either rule. equal_flops, final: accuracy, mean and range.
    frac_mixed: mean over steps. totals: cost of the whole run by measure. profile_share: of total FLOPs.
    plugin_share: of step time. padding_share: of trained rows. Shares and totals are medians with ranges; NaN unknown.
    """

    label: str
    held: ToTarget
    smoothed: ToTarget
    equal_flops: Spread
    final: Spread
    frac_mixed: Spread
    totals: dict[str, Spread]
    profile_share: Spread
    plugin_share: Spread
    padding_share: Spread

    def by(self, rule: Rule) -> ToTarget:
        return self.held if rule is Rule.HELD else self.smoothed


def method_row(runs: list[Run], baselines: list[Run], budget: float, metric: str | None) -> MethodRow:
    """The runs of one label -> its row. baselines, budget, metric: as in ``headline``."""
    evals = [headline.evaluations(run, metric) for run in runs]
    tables = [run.table for run in runs]
    return MethodRow(
        label=runs[0].label,
        held=_to_target(runs, baselines, metric, Rule.HELD),
        smoothed=_to_target(runs, baselines, metric, Rule.SMOOTHED),
        equal_flops=spread([headline.accuracy_at(e, budget) for e in evals], np.mean),
        final=spread([headline.final_accuracy(e) for e in evals], np.mean),
        frac_mixed=spread([float(table["frac_mixed"].mean()) for table in tables]),
        totals={m: spread([float(table[m].max()) for table in tables]) for m in MEASURES},
        profile_share=spread([_profile_share(run) for run in runs]),
        plugin_share=spread([_share(table["plugin_seconds"], table["step_seconds"]) for table in tables]),
        padding_share=spread(
            [_share(table["padding_rows"], table["trained_rollouts"] + table["padding_rows"]) for table in tables]
        ),
    )


def _to_target(runs: list[Run], baselines: list[Run], metric: str | None, rule: Rule) -> ToTarget:
    outcomes = [headline.outcome(run, baselines, metric, rule) for run in runs if baselines and not _costless(run)]
    reaches = [outcome.reach for outcome in outcomes if outcome.reach]
    return ToTarget(
        outcomes=tuple(outcomes),
        ratio={m: headline.median_ratio([outcome.ratio[m] for outcome in outcomes]) for m in MEASURES},
        cost={m: _median([o.reach.cost[m] if o.reach else math.inf for o in outcomes]) for m in MEASURES},
        baseline_cost={m: _median([outcome.baseline_cost[m] for outcome in outcomes]) for m in MEASURES},
        reached=len(reaches),
        at_end=sum(reach.at_end for reach in reaches),
    )


def _costless(run: Run) -> bool:
    """Whether the run's cost is unknown: a stock log cut by a resume. Ours carry their totals across it."""
    return not run.table["total_flops"].notna().any()


def _profile_share(run: Run) -> float:
    total = float(run.table["total_flops"].max())
    return run.profile.get("total_flops", 0.0) / total if total else math.nan


def _median(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.median(known)) if known else math.nan


def _share(part: pd.Series, whole: pd.Series) -> float:
    known = part.notna() & whole.notna()
    return float(part[known].sum() / whole[known].sum()) if whole[known].sum() > 0 else math.nan
