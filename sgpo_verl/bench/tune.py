"""The baseline is tuned first: all combinations of the options; the best final validation, over seeds, is used for all.

tune.json, beside the runs, holds what was tried and what came of it; the report repeats it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from sgpo_verl.bench.commands import BenchRun, tune_runs, tuned_overrides
from sgpo_verl.bench.execute import State, state_of, write_whole
from sgpo_verl.bench.spec import Spec


@dataclass(frozen=True)
class Tuned:
    """accuracies: by the names of the options, one per axis. best: those chosen."""

    accuracies: dict[tuple[str, ...], float]
    best: tuple[str, ...]

    def text(self, spec: Spec) -> str:
        """One sentence for the report."""
        seeds = spec.seeds[: spec.tune_seeds]
        tried = ", ".join(f"{' + '.join(options)} {value:.3f}" for options, value in self.accuracies.items())
        return (
            f"Tuned for {spec.baseline}, {'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}, then used for "
            f"all ({', '.join(spec.tune)}): {' + '.join(self.best)}. Where each ended, mean of the last 3 validations: {tried}."
        )


def unfinished(spec: Spec, bench: Path) -> list[BenchRun]:
    return [run for run in every_run(spec, bench) if state_of(run) is not State.FINISHED]


def every_run(spec: Spec, bench: Path) -> list[BenchRun]:
    return [run for runs in tune_runs(spec, bench).values() for run in runs]


def tuned(spec: Spec, bench: Path) -> Tuned:
    """The choice, from finished runs; the first of equals. Writes tune.json."""
    from sgpo_verl.report.headline import evaluations, final_accuracy
    from sgpo_verl.report.runs import load_run

    runs = tune_runs(spec, bench)

    def ended(run: BenchRun) -> float:
        return final_accuracy(evaluations(load_run(run.directory), spec.metric))

    accuracies = {options: fmean(map(ended, of)) for options, of in runs.items()}
    best = max(accuracies, key=accuracies.__getitem__)
    tried = [{"options": list(o), "folders": [run.name for run in runs[o]], "accuracy": accuracies[o]} for o in runs]
    content = {"axes": list(spec.tune), "tried": tried, "chosen": list(best), "overrides": tuned_overrides(spec, best)}
    write_whole(bench / "tune.json", content)
    return Tuned(accuracies, best)


def covering(runs: dict[tuple[str, ...], list[BenchRun]], spec: Spec) -> list[BenchRun]:
    """Few runs in which every option occurs: enough to see that each composes."""
    axes = [list(options) for options in spec.tune.values()]
    rounds = range(max(map(len, axes), default=0))
    picked: Sequence[tuple[str, ...]] = [tuple(names[i % len(names)] for names in axes) for i in rounds]
    return [runs[options][0] for options in picked]
