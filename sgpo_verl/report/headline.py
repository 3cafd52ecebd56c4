"""Compute to target: what each method spent to get where the baseline ends, against what the baseline itself spent.

There are two rules, each the same for all methods, the baseline included:

HELD      The target is the accuracy that the baseline of the same seed ends with at its full budget. It is reached at the
          first evaluation at or above it whose next evaluation holds it.
SMOOTHED  The target is the mean of that over all seeds of the baseline. A run's curve is replaced by the mean of each
          evaluation and its two neighbours, and reaches the target at its first point at or above it. A baseline
          that does not get there within its full budget is counted with that budget: it would have taken more.

The second stands where a baseline's validations swing around their end, so that it does not hold what it ends with. Nothing
is interpolated: a cost is one that was really paid. The ratio is baseline cost / method cost: above 1 the method was cheaper.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import pandas as pd

from sgpo_verl.errors import SgpoError
from sgpo_verl.report.runs import BASELINE, Run

MEASURES = ("total_flops", "total_trained_tokens", "total_rollouts", "total_seconds")
CORE_METRIC = re.compile(r"val-core/(?P<source>.+)/(acc|reward)/mean@\d+")
WINDOW = 3  # evaluations: how many a run's end, and a point of a smoothed curve, is the mean of
# Means of equal accuracies differ in the last bit.
TOLERANCE = 1e-9


class Rule(Enum):
    """How a target is set and reached: see above."""

    HELD = "held"
    SMOOTHED = "smoothed"


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
    """One run against the baseline: its target, the baseline's cost to it by measure (HELD: infinite where the baseline
    does not hold its own target), where the run reached it (None: never), and baseline cost / run cost by measure
    (0: not reached; NaN: a side is unknown). budget_counted: SMOOTHED, and the baseline's full budget stands for its cost."""

    run: Run
    target: float
    baseline_cost: dict[str, float]
    reach: Reach | None
    ratio: dict[str, float]
    budget_counted: bool = False


def evaluations(run: Run, metric: str | None = None) -> pd.DataFrame:
    """The run's evaluations: index step, columns accuracy and the four total costs (NaN where unknown).

    metric: the logged metric that is the accuracy; without one, val-core/<source>/(acc|reward)/mean@<n>, averaged
    over the data sources. Raises SgpoError if the run does not log it.
    """
    if metric is not None:
        if metric not in run.log:
            known = [column for column in run.log.columns if column.startswith("val-")]
            raise SgpoError(f"{run.path}: no metric {metric} in its log; it has {', '.join(known[:6])}")
        accuracy = run.log[metric]
    else:
        sources: dict[str, list[str]] = {}
        for column in run.log.columns:
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
    return float(trained.iloc[-WINDOW:].mean()) if len(trained) >= WINDOW else float(evals["accuracy"].iloc[-1])


def smoothed(evals: pd.DataFrame) -> pd.DataFrame:
    """The same evaluations, each accuracy the mean of itself and its two neighbours; of one where it has only one."""
    mean = evals["accuracy"].rolling(WINDOW, center=True, min_periods=1).mean()
    return evals.assign(accuracy=mean)


def first_reach(evals: pd.DataFrame, target: float, rule: Rule = Rule.HELD) -> Reach | None:
    """The first evaluation at or above ``target``. HELD: that the next one holds; the last one needs no next. SMOOTHED: of
    the smoothed curve, whose last point is the mean of two only."""
    curve = smoothed(evals) if rule is Rule.SMOOTHED else evals
    above = (curve["accuracy"] >= target - TOLERANCE).tolist()
    for i, reached in enumerate(above):
        at_end = i + 1 == len(above)
        if reached and (at_end or rule is Rule.SMOOTHED or above[i + 1]):
            cost = {measure: float(evals[measure].iloc[i]) for measure in MEASURES}
            return Reach(step=int(evals.index[i]), cost=cost, at_end=at_end)
    return None


def outcome(run: Run, baselines: list[Run], metric: str | None = None, rule: Rule = Rule.HELD) -> Outcome:
    """``run`` against the baselines with its seed, or against the median of all where none has it."""
    peers = [b for b in baselines if b.seed is not None and b.seed == run.seed] or baselines
    ends = [final_accuracy(evaluations(b, metric)) for b in (peers if rule is Rule.HELD else baselines)]
    target = float(np.median(ends) if rule is Rule.HELD else np.mean(ends))
    costs, budget_counted = [], False
    for i, peer in enumerate(peers):
        evals = evaluations(peer, metric)
        reached = first_reach(evals, ends[i] if rule is Rule.HELD else target, rule)
        if reached is None and rule is Rule.SMOOTHED:
            budget_counted = True
            costs.append({measure: float(peer.table[measure].max()) for measure in MEASURES})
        else:
            costs.append(reached.cost if reached else dict.fromkeys(MEASURES, math.inf))
    baseline_cost = {measure: float(np.median([cost[measure] for cost in costs])) for measure in MEASURES}
    reach = first_reach(evaluations(run, metric), target, rule)
    ratio = {measure: _ratio(baseline_cost[measure], reach, measure) for measure in MEASURES}
    return Outcome(run, target, baseline_cost, reach, ratio, budget_counted)


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
    """Accuracy at the last evaluation with total FLOPs at or below ``budget``. Where a profile alone costs more, that of the
    untrained model, which is what the budget would have bought; NaN if nothing is known."""
    within = evals["accuracy"][evals["total_flops"] <= budget]
    if len(within):
        return float(within.iloc[-1])
    untrained = evals.index[0] == 0 and not math.isnan(budget) and evals["total_flops"].notna().any()
    return float(evals["accuracy"].iloc[0]) if untrained else math.nan


def common_budget(runs: list[Run]) -> float:
    """The largest total FLOPs that every run reached (runs of unknown cost left out); NaN if none is known."""
    largest = [run.table["total_flops"].max() for run in runs if run.table["total_flops"].notna().any()]
    return float(min(largest)) if largest else math.nan


def baseline_runs(runs: list[Run], label: str | None = None) -> list[Run]:
    """The runs that others are held against: those of ``label``, or without one the stock GRPO runs, of several labels the
    first given. Incomplete logs are out."""
    complete = [run for run in runs if not run.gap and (run.kind == BASELINE if label is None else run.label == label)]
    return [run for run in complete if run.label == complete[0].label]


def spread(values: list[float], middle: Callable[[list[float]], Any] = np.median) -> Spread:
    """Middle and range of the known values; all NaN if none is."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return Spread(math.nan, math.nan, math.nan)
    return Spread(float(middle(known)), float(min(known)), float(max(known)))
