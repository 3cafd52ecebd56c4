"""Compute to target: what each method spent to get where stock GRPO ends, against what GRPO itself spent.

The target is the accuracy that the baseline ends with at its full budget. A run reaches it at the first evaluation at
or above it whose next evaluation holds it; nothing is interpolated, so a cost is one that was really paid. The ratio
is baseline cost / method cost: above 1 the method was cheaper.
"""

import math
import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sgpo_verl.errors import SgpoError
from sgpo_verl.report.runs import BASELINE, Run

MEASURES = ("total_flops", "total_trained_tokens", "total_rollouts", "total_seconds")
CORE_METRIC = re.compile(r"val-core/(?P<source>.+)/(acc|reward)/mean@\d+")
# Means of equal accuracies differ in the last bit.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Spread:
    """Some seeds' values in one: the middle (median or mean, as the owner says) and the range."""

    middle: float
    low: float
    high: float


@dataclass(frozen=True)
class Reach:
    """Where a run reached a target: the step, the cost up to it by measure, and whether it was the last evaluation,
    after which nothing could show that the target is held."""

    step: int
    cost: dict[str, float]
    at_end: bool


@dataclass(frozen=True, eq=False)
class Outcome:
    """One run against the baseline: its target, the baseline's cost to it by measure (infinite where the baseline
    does not hold its own target), where the run reached it (None: never), and baseline cost / run cost by measure
    (0: not reached; NaN: a side is unknown)."""

    run: Run
    target: float
    baseline_cost: dict[str, float]
    reach: Reach | None
    ratio: dict[str, float]


def evaluations(run: Run, metric: str | None = None) -> pd.DataFrame:
    """The run's evaluations: index step, columns accuracy and the four total costs (NaN where unknown).

    metric: the logged metric that is the accuracy; without one, val-core/<source>/(acc|reward)/mean@<n>, averaged
    over the data sources. Raises SgpoError if the run does not log it.
    """
    if metric is not None:
        if metric not in run.log:
            known = [column for column in run.log if column.startswith("val-")]
            raise SgpoError(f"{run.path}: no metric {metric} in its log; it has {', '.join(known[:6])}")
        accuracy = run.log[metric]
    else:
        sources: dict[str, list[str]] = {}
        for column in run.log:
            if match := CORE_METRIC.fullmatch(column):
                sources.setdefault(match["source"], []).append(column)
        if not sources:
            raise SgpoError(f"{run.path}: no val-core/.../mean@n in its log - name the metric to compare by")
        # Of a source whose n changed between resumes, each step has one column; a step counts if no source is missing.
        each = pd.DataFrame({source: run.log[columns].bfill(axis=1).iloc[:, 0] for source, columns in sources.items()})
        accuracy = each.mean(axis=1, skipna=False)
    table = run.table[list(MEASURES)].assign(accuracy=accuracy).dropna(subset="accuracy")
    if table.empty:
        raise SgpoError(f"{run.path}: no evaluation in its log yet - set trainer.test_freq, or wait for the first one")
    return table


def final_accuracy(evals: pd.DataFrame) -> float:
    """Where a run ends: the mean of its last 3 evaluations after step 0, to damp their noise, or its last evaluation
    if there are fewer than 3."""
    trained = evals["accuracy"][evals.index > 0]
    return float(trained.iloc[-3:].mean()) if len(trained) >= 3 else float(evals["accuracy"].iloc[-1])


def first_reach(evals: pd.DataFrame, target: float) -> Reach | None:
    """The first evaluation at or above ``target`` that the next one holds; the last one needs no next."""
    above = (evals["accuracy"] >= target - TOLERANCE).tolist()
    for i, reached in enumerate(above):
        at_end = i + 1 == len(above)
        if reached and (at_end or above[i + 1]):
            cost = {measure: float(evals[measure].iloc[i]) for measure in MEASURES}
            return Reach(step=int(evals.index[i]), cost=cost, at_end=at_end)
    return None


def outcome(run: Run, baselines: list[Run], metric: str | None = None) -> Outcome:
    """``run`` against the baselines with its seed, or against the median of all where none has it.

    Each baseline's cost is its cost to its own final accuracy; ``target`` and ``baseline_cost`` are medians over them.
    """
    peers = [b for b in baselines if b.seed is not None and b.seed == run.seed] or baselines
    targets, costs = [], []
    for peer in peers:
        evals = evaluations(peer, metric)
        targets.append(final_accuracy(evals))
        reached = first_reach(evals, targets[-1])
        costs.append(reached.cost if reached else dict.fromkeys(MEASURES, math.inf))
    target = float(np.median(targets))
    baseline_cost = {measure: float(np.median([cost[measure] for cost in costs])) for measure in MEASURES}
    reach = first_reach(evaluations(run, metric), target)
    ratio = {measure: _ratio(baseline_cost[measure], reach, measure) for measure in MEASURES}
    return Outcome(run, target, baseline_cost, reach, ratio)


def _ratio(baseline_cost: float, reach: Reach | None, measure: str) -> float:
    # A target at or below the base model's accuracy is reached at no cost: there is nothing to compare.
    if not math.isfinite(baseline_cost) or baseline_cost == 0:
        return math.nan
    if reach is None:
        return 0.0
    return baseline_cost / reach.cost[measure] if reach.cost[measure] > 0 else math.nan


def median_ratio(ratios: list[float]) -> Spread | None:
    """Median over seeds, a seed that never reached the target counting as 0; the range is of those that did.

    None where half of them or more never did: there is no median then. NaN (unknown) is left out; all NaN gives NaN.
    """
    known = [ratio for ratio in ratios if not math.isnan(ratio)]
    reached = [ratio for ratio in known if ratio > 0]
    if not known:
        return Spread(math.nan, math.nan, math.nan)
    if 2 * len(reached) <= len(known):
        return None
    return Spread(float(np.median(known)), min(reached), max(reached))


def accuracy_at(evals: pd.DataFrame, budget: float) -> float:
    """Accuracy at the last evaluation with total FLOPs at or below ``budget``; NaN if there is none."""
    within = evals["accuracy"][evals["total_flops"] <= budget]
    return float(within.iloc[-1]) if len(within) else math.nan


def common_budget(runs: list[Run]) -> float:
    """The largest total FLOPs that every run reached (runs of unknown cost left out); NaN if none is known."""
    largest = [run.table["total_flops"].max() for run in runs if run.table["total_flops"].notna().any()]
    return float(min(largest)) if largest else math.nan


def baseline_runs(runs: list[Run]) -> list[Run]:
    """The stock GRPO runs that others are held against: of several labels, the first given; incomplete logs are out."""
    complete = [run for run in runs if run.kind == BASELINE and not run.gap]
    return [run for run in complete if run.label == complete[0].label]


def spread(values: list[float], middle=np.median) -> Spread:
    """Middle and range of the known values; all NaN if none is."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return Spread(math.nan, math.nan, math.nan)
    return Spread(float(middle(known)), float(min(known)), float(max(known)))
