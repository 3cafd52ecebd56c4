"""Runs side by side: one row per method, seeds folded into median and range, and one honest sentence about them."""

import io
import math
from dataclasses import dataclass

import numpy as np

from sgpo_verl import headline, units
from sgpo_verl.errors import SgpoError
from sgpo_verl.headline import MEASURES, Outcome, Spread, spread
from sgpo_verl.runs import Run

MEASURE_NAMES = {
    "total_flops": "FLOPs",
    "total_trained_tokens": "trained tokens",
    "total_rollouts": "rollouts",
    "total_seconds": "wall-clock",
}
MEASURE_FORMATS = {
    "total_flops": units.flops,
    "total_trained_tokens": units.count,
    "total_rollouts": units.count,
    "total_seconds": units.duration,
}
# Ratios nearer to 1 than this are called equal: evaluations are steps apart, so finer differences are not resolved.
EQUAL = 0.05


@dataclass(frozen=True, eq=False)
class MethodRow:
    """One method, over its seeds.

    ratio: baseline cost / method cost by measure, median and range (None: half the seeds or more never got there).
    cost, baseline_cost: the two sides, medians; infinite where not reached. reached, at_end: how many seeds
    reached the target, and how many of those only at their last evaluation. equal_flops, final: accuracy, mean and range.
    frac_mixed: mean over steps. totals: cost of the whole run by measure. profile_share: of total FLOPs.
    plugin_share: of step time. padding_share: of trained rows. Shares and totals are medians with ranges; NaN unknown.
    """

    label: str
    outcomes: tuple[Outcome, ...]
    ratio: dict[str, Spread | None]
    cost: dict[str, float]
    baseline_cost: dict[str, float]
    reached: int
    at_end: int
    equal_flops: Spread
    final: Spread
    frac_mixed: Spread
    totals: dict[str, Spread]
    profile_share: Spread
    plugin_share: Spread
    padding_share: Spread

    @property
    def compared(self) -> int:
        return len(self.outcomes)


@dataclass(frozen=True, eq=False)
class Comparison:
    """All of it. baseline: its label, "" without a usable stock run. target: what the baseline ends with, median and
    range over its seeds. budget: FLOPs of the equal-FLOPs column. finding: the result in one or two sentences."""

    runs: tuple[Run, ...]
    metric: str | None
    baseline: str
    target: Spread
    budget: float
    rows: tuple[MethodRow, ...]
    finding: str
    notes: tuple[str, ...]

    def to_text(self, width: int = 130) -> str:
        """The headline table, finding and notes as plain text, ``width`` columns wide."""
        from rich import box
        from rich.console import Console
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("method")
        for name in ("FLOPs to target", "tokens", "rollouts", "wall-clock", "at equal FLOPs", "at the end", "mixed"):
            table.add_column(name, justify="right")
        for row in self.rows:
            cells = [f"{ratio_text(row, measure)}\n{sides_text(row, measure)}" for measure in MEASURES]
            accuracies = [accuracy_text(row.equal_flops), accuracy_text(row.final)]
            table.add_row(row.label, *cells, *accuracies, units.share(row.frac_mixed.middle), end_section=False)
        console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False, markup=False)
        console.print(self.finding)
        console.print(table)
        for note in self.notes:
            console.print(f"- {note}")
        return console.file.getvalue()


def compare(runs: list[Run], metric: str | None = None) -> Comparison:
    """Runs -> Comparison. metric: see ``headline.evaluations``. Raises SgpoError if there are no runs or a run does
    not log the metric."""
    if not runs:
        raise SgpoError("no runs given - name at least one run directory")
    baselines = headline.baseline_runs(runs)
    budget = headline.common_budget(runs)
    labels = list(dict.fromkeys([run.label for run in baselines] + [run.label for run in runs]))
    rows = tuple(_row([run for run in runs if run.label == label], baselines, budget, metric) for label in labels)
    baseline = baselines[0].label if baselines else ""
    targets = [headline.final_accuracy(headline.evaluations(run, metric)) for run in baselines]
    return Comparison(
        runs=tuple(runs),
        metric=metric,
        baseline=baseline,
        target=spread(targets),
        budget=budget,
        rows=rows,
        finding=finding(rows, baseline, spread(targets)),
        notes=tuple(_notes(runs)),
    )


def _row(runs: list[Run], baselines: list[Run], budget: float, metric: str | None) -> MethodRow:
    outcomes = [headline.outcome(run, baselines, metric) for run in runs if baselines and not _costless(run)]
    evals = [headline.evaluations(run, metric) for run in runs]
    reaches = [outcome.reach for outcome in outcomes if outcome.reach]
    tables = [run.table for run in runs]
    return MethodRow(
        label=runs[0].label,
        outcomes=tuple(outcomes),
        ratio={m: headline.median_ratio([outcome.ratio[m] for outcome in outcomes]) for m in MEASURES},
        cost={m: _median([o.reach.cost[m] if o.reach else math.inf for o in outcomes]) for m in MEASURES},
        baseline_cost={m: _median([outcome.baseline_cost[m] for outcome in outcomes]) for m in MEASURES},
        reached=len(reaches),
        at_end=sum(reach.at_end for reach in reaches),
        equal_flops=spread([headline.accuracy_at(e, budget) for e in evals], np.mean),
        final=spread([headline.final_accuracy(e) for e in evals], np.mean),
        frac_mixed=spread([float(table["frac_mixed"].mean()) for table in tables]),
        totals={m: spread([float(table[m].max()) for table in tables]) for m in MEASURES},
        profile_share=spread([r.profile.get("total_flops", 0.0) / float(r.table["total_flops"].max()) for r in runs]),
        plugin_share=spread([_share(table["plugin_seconds"], table["step_seconds"]) for table in tables]),
        padding_share=spread([_share(table["padding_rows"], table["trained_rollouts"]) for table in tables]),
    )


def _costless(run: Run) -> bool:
    """Whether the run's cost is unknown: a stock log cut by a resume. Ours carry their totals across it."""
    return not run.table["total_flops"].notna().any()


def _median(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.median(known)) if known else math.nan


def _share(part, whole) -> float:
    known = part.notna() & whole.notna()
    return float(part[known].sum() / whole[known].sum()) if whole[known].sum() > 0 else math.nan


def _notes(runs: list[Run]) -> list[str]:
    notes = [f"{run.path}: {remark}" for run in runs for remark in ((run.gap,) if run.gap else ()) + run.remarks]
    models = sorted({run.model for run in runs})
    if len(models) > 1:
        notes.append(f"the runs train different models ({', '.join(models)}): their costs and accuracies do not compare")
    return notes


def ratio_text(row: MethodRow, measure: str) -> str:
    """ "2.61x (2.30-2.90)", "not reached" or "-"."""
    ratio = row.ratio[measure]
    if ratio is None:
        return "not reached"
    if math.isnan(ratio.middle):
        return "–"
    return f"{ratio.middle:.2f}×{_range(ratio, '.2f')}"


def sides_text(row: MethodRow, measure: str) -> str:
    """The two sides of the ratio, method against baseline, and how many seeds got there if not all did."""
    show = MEASURE_FORMATS[measure]
    if not row.compared:
        return ""
    own, other = row.cost[measure], row.baseline_cost[measure]
    sides = [show(cost) if math.isfinite(cost) or math.isnan(cost) else "never" for cost in (own, other)]
    remark = f"; {row.reached} of {row.compared} seeds" if 0 < row.reached < row.compared else ""
    remark += "; at the end" if row.at_end and row.at_end == row.reached else ""
    return f"{sides[0]} / {sides[1]}{remark}"


def accuracy_text(accuracy: Spread) -> str:
    return "–" if math.isnan(accuracy.middle) else f"{accuracy.middle:.3f}{_range(accuracy, '.3f')}"


def _range(value: Spread, digits: str) -> str:
    low, high = format(value.low, digits), format(value.high, digits)
    return f" ({low}–{high})" if low != high else ""


def finding(rows: tuple[MethodRow, ...], baseline: str, target: Spread) -> str:
    """The result in words, from FLOPs: which methods were cheaper, which were not, which never got there."""
    if not baseline:
        return "No complete stock GRPO run is among these, so there is no target to compare costs at."
    others = [row for row in rows if row.label != baseline and row.compared]
    own = next(row for row in rows if row.label == baseline)
    if own.ratio["total_flops"] is None or math.isnan(own.ratio["total_flops"].middle):
        return f"{baseline} does not hold its own final accuracy ({target.middle:.3f}): evaluate on more samples or longer."
    if not others:
        return f"{baseline} ends at {target.middle:.3f}; no other method with a known cost is here to compare."
    ordered = sorted(others, key=lambda row: -(row.ratio["total_flops"].middle if row.ratio["total_flops"] else -1.0))
    claims = "; ".join(_claim(row, baseline) for row in ordered)
    seeds = min(row.compared for row in others)
    caution = " Fewer than 3 seeds: the difference may be luck." if seeds < 3 else ""
    return f"To {baseline}'s final accuracy ({target.middle:.3f}): {claims}.{caution}"


def _claim(row: MethodRow, baseline: str) -> str:
    ratio = row.ratio["total_flops"]
    if ratio is None:
        got = f" in {row.compared - row.reached} of {row.compared} seeds" if row.reached else ""
        return f"{row.label} never got there{got}"
    if math.isnan(ratio.middle):
        return f"{row.label}'s cost is unknown"
    costs = f"{units.flops(row.cost['total_flops'])} against {units.flops(row.baseline_cost['total_flops'])}"
    if abs(ratio.middle - 1) < EQUAL:
        words = f"about as many FLOPs as {baseline}"
    elif ratio.middle > 1:
        words = f"{ratio.middle:.1f}× fewer FLOPs than {baseline}"
    else:
        words = f"{1 / ratio.middle:.1f}× more FLOPs than {baseline}"
    doubt = ", the seeds disagree" if ratio.low < 1 - EQUAL and ratio.high > 1 + EQUAL else ""
    return f"{row.label} needed {words} ({costs}{_range(ratio, '.1f').replace(' (', '; ratio ').rstrip(')')}{doubt})"
