"""Runs side by side: one row per method, seeds folded into median and range, and one honest sentence about them."""

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sgpo_verl.errors import SgpoError
from sgpo_verl.report import headline, units, wording
from sgpo_verl.report.headline import MEASURES, Rule, Spread, spread
from sgpo_verl.report.methodrow import MethodRow, method_row
from sgpo_verl.report.runs import Run

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, eq=False)
class Comparison:
    """All of it. baseline: its label, "" without a usable one. target: what the baseline ends with, median and range over
    its seeds. smoothed_target: their mean. rule: the one that the finding goes by. budget: FLOPs of the equal-FLOPs column.
    finding: the result in one or two sentences."""

    runs: tuple[Run, ...]
    metric: str | None
    baseline: str
    target: Spread
    smoothed_target: float
    rule: Rule
    budget: float
    rows: tuple[MethodRow, ...]
    finding: str
    notes: tuple[str, ...]

    def to_text(self, width: int = 130) -> str:
        """Finding, the headline table by either rule, and notes as plain text, ``width`` columns wide."""
        from rich.console import Console

        written = io.StringIO()
        console = Console(file=written, width=width, color_system=None, highlight=False, markup=False)
        console.print(self.finding)
        console.print(self._table(Rule.HELD, ("at equal FLOPs", "at the end", "mixed")))
        if self.baseline:
            console.print(f"By smoothed curves, to {self.smoothed_target:.3f}:")
            console.print(self._table(Rule.SMOOTHED, ()))
        for note in self.notes:
            console.print(f"- {note}")
        return written.getvalue()

    def _table(self, rule: Rule, more: tuple[str, ...]) -> "Table":
        """more: columns beside the costs."""
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("method")
        for name in ("FLOPs to target", "tokens", "rollouts", "wall-clock", *more):
            table.add_column(name, justify="right")
        for row in self.rows:
            way = row.by(rule)
            cells: list[tuple[str, ...]] = [(row.label, wording.reached_text(way))]
            cells += [(*wording.ratio_text(way, measure), wording.sides_text(way, measure)) for measure in MEASURES]
            shares = [
                wording.accuracy_text(row.equal_flops),
                wording.accuracy_text(row.final),
                wording.range_text(row.frac_mixed, units.share),
            ]
            table.add_row(*("\n".join(filter(None, lines)) for lines in [*cells, *shares[: len(more)]]))
            table.add_section()
        return table


def compare(
    runs: list[Run], metric: str | None = None, baseline: str | None = None, notes: tuple[str, ...] = ()
) -> Comparison:
    """Runs -> Comparison. metric: see ``headline.evaluations``. baseline: its label; without one, the stock GRPO runs.
    notes: what else a reader should know. Raises SgpoError if there are no runs or a run does not log the metric."""
    if not runs:
        raise SgpoError("no runs given - name at least one run directory")
    twice = [run.path for i, run in enumerate(runs) if run.path.resolve() in [r.path.resolve() for r in runs[:i]]]
    if twice:
        raise SgpoError(f"{twice[0]}: is given twice - it would count as two seeds")
    baselines = headline.baseline_runs(runs, baseline)
    budget = headline.common_budget(runs)
    labels = list(dict.fromkeys([run.label for run in baselines] + [run.label for run in runs]))
    rows = tuple(method_row([run for run in runs if run.label == label], baselines, budget, metric) for label in labels)
    label = baselines[0].label if baselines else ""
    ends = [headline.final_accuracy(headline.evaluations(run, metric)) for run in baselines]
    smoothed_target = float(np.mean(ends)) if ends else float("nan")
    return Comparison(
        runs=tuple(runs),
        metric=metric,
        baseline=label,
        target=spread(ends),
        smoothed_target=smoothed_target,
        rule=wording.rule_of(rows[0].held),
        budget=budget,
        rows=rows,
        finding=wording.finding(rows, label, spread(ends), smoothed_target),
        notes=(*notes, *_notes(runs, rows, label)),
    )


def _notes(runs: list[Run], rows: tuple[MethodRow, ...], baseline: str) -> list[str]:
    notes = [f"{run.path}: {remark}" for run in runs for remark in ((run.gap,) if run.gap else ()) + run.remarks]
    models = sorted({run.model for run in runs})
    if len(models) > 1:
        notes.append(
            f"the runs train different models ({', '.join(models)}): their costs and accuracies do not compare"
        )
    for row in rows:
        short = sum(outcome.budget_counted for outcome in row.smoothed.outcomes)
        if row.label == baseline and short:
            notes.append(
                f"by smoothed curves, {baseline} does not reach the target with {short} of {row.smoothed.compared} seeds: its "
                "full budget is counted there, which is less than it would have taken"
            )
    return notes + _estimates(runs, rows, baseline)


def _estimates(runs: list[Run], rows: tuple[MethodRow, ...], baseline: str) -> list[str]:
    """How much of a method's generated tokens is an estimate, and how far off it may be."""
    notes = []
    for row in rows:
        own = [run for run in runs if run.label == row.label and run.estimated > 0]
        if not own:
            continue
        share = spread([run.estimated for run in own])
        lengths = [float(np.mean([run.row_tokens for run in some])) for some in (own, _of(runs, baseline)) if some]
        beside = f"; a kept rollout has {lengths[0]:.1f} tokens with its prompt"
        beside += f", one of {baseline}, which keeps all, {lengths[1]:.1f}" if len(lengths) > 1 else ""
        notes.append(
            f"{row.label}: {units.share(share.middle)} of its generated tokens are estimated: verl logs how many groups it "
            f"threw away, not their lengths, so they are counted at the mean lengths of those kept{beside}"
        )
    return notes


def _of(runs: list[Run], label: str) -> list[Run]:
    return [run for run in runs if run.label == label]
