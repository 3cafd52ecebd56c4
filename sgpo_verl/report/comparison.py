"""Runs side by side: one row per method, seeds folded into median and range, and one honest sentence about them."""

import io
from dataclasses import dataclass

from sgpo_verl.errors import SgpoError
from sgpo_verl.report import headline, units, wording
from sgpo_verl.report.headline import MEASURES, Spread, spread
from sgpo_verl.report.methodrow import MethodRow, method_row
from sgpo_verl.report.runs import Run


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
            costs = [(*wording.ratio_text(row, measure), wording.sides_text(row, measure)) for measure in MEASURES]
            shares = [
                wording.accuracy_text(row.equal_flops),
                wording.accuracy_text(row.final),
                wording.range_text(row.frac_mixed, units.share),
            ]
            cells = [
                ("\n".join(filter(None, lines))) for lines in [(row.label, wording.reached_text(row)), *costs, *shares]
            ]
            table.add_row(*cells)
            table.add_section()
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
    twice = [run.path for i, run in enumerate(runs) if run.path.resolve() in [r.path.resolve() for r in runs[:i]]]
    if twice:
        raise SgpoError(f"{twice[0]}: is given twice - it would count as two seeds")
    baselines = headline.baseline_runs(runs)
    budget = headline.common_budget(runs)
    labels = list(dict.fromkeys([run.label for run in baselines] + [run.label for run in runs]))
    rows = tuple(method_row([run for run in runs if run.label == label], baselines, budget, metric) for label in labels)
    baseline = baselines[0].label if baselines else ""
    targets = [headline.final_accuracy(headline.evaluations(run, metric)) for run in baselines]
    return Comparison(
        runs=tuple(runs),
        metric=metric,
        baseline=baseline,
        target=spread(targets),
        budget=budget,
        rows=rows,
        finding=wording.finding(rows, baseline, spread(targets)),
        notes=tuple(_notes(runs)),
    )


def _notes(runs: list[Run]) -> list[str]:
    notes = [f"{run.path}: {remark}" for run in runs for remark in ((run.gap,) if run.gap else ()) + run.remarks]
    models = sorted({run.model for run in runs})
    if len(models) > 1:
        notes.append(
            f"the runs train different models ({', '.join(models)}): their costs and accuracies do not compare"
        )
    return notes
