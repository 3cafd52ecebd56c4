"""`sgpo bench`: check everything, prepare the task, tune the baseline, run what is not finished, report on what is."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sgpo_verl.bench import commands, execute, tune
from sgpo_verl.bench.commands import BenchRun
from sgpo_verl.bench.execute import Failed, State, state_of
from sgpo_verl.bench.spec import Spec, load_spec
from sgpo_verl.demo import progress
from sgpo_verl.demo.child import run_child
from sgpo_verl.demo.guard import ends_on_sigterm, only_one
from sgpo_verl.demo.screen import Screen
from sgpo_verl.errors import SgpoError


@dataclass(frozen=True)
class Choice:
    """What of the benchmark this call is about. methods, seeds: empty means all. fresh: runs to be made again."""

    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    fresh: tuple[str, ...] = ()

    def of(self, runs: Sequence[BenchRun]) -> list[BenchRun]:
        return [
            r
            for r in runs
            if (not self.methods or r.label in self.methods) and (not self.seeds or r.seed in self.seeds)
        ]


def seeds_of(text: str) -> tuple[int, ...]:
    """ "0,2" -> (0, 2). Raises SgpoError if it is something else."""
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise SgpoError(f"--seeds {text}: write numbers with commas, as in 0,1") from None


def main(path: Path, bench: Path, choice: Choice, show: bool = False, report_only: bool = False) -> int:
    """Run the benchmark of the file at ``path`` in the folder ``bench``; 0, or 1 if a run failed.

    show: print the commands instead. report_only: start nothing. Raises SgpoError before anything starts if the file, or
    the command of any run, is wrong; SystemExit(130) on Ctrl-C and SystemExit(143) on SIGTERM, with no child left behind.
    """
    spec, bench = load_spec(path), bench.resolve()
    _check_choice(spec, choice)
    if choice.fresh and (show or report_only):
        raise SgpoError(
            "--fresh: removes runs in order to make them again; leave it out with --print and --report-only"
        )
    try:
        bench.mkdir(parents=True, exist_ok=True)
        (bench / "lock").touch()
    except OSError as error:
        raise SgpoError(f"--dir {bench}: cannot be written to ({error.strerror}); name another folder") from None
    with only_one(bench, "benchmark"), ends_on_sigterm():
        if show:
            return _print(spec, path, bench, choice)
        try:
            failed = [] if report_only else _run_all(spec, path, bench, choice)
        except (KeyboardInterrupt, SystemExit) as stop:
            print("stopped; the same command goes on where this one was", flush=True)
            sys.exit(stop.code if isinstance(stop, SystemExit) else 130)
        _report(spec, bench, bool(failed))
    for run, reason in failed:
        print(f"FAILED {run.name} ({reason}): {execute.last_words(run.log)}\n       its log: {run.log}")
    return 1 if failed else 0


def _check_choice(spec: Spec, choice: Choice) -> None:
    for option, given, known in (
        ("--only", choice.methods, list(spec.methods)),
        ("--seeds", choice.seeds, spec.seeds),
    ):
        if wrong := [str(value) for value in given if value not in known]:
            raise SgpoError(f"{option} {wrong[0]}: not in this benchmark; it has {', '.join(map(str, known))}")


def _print(spec: Spec, path: Path, bench: Path, choice: Choice) -> int:
    """A line of shell for every run that is not finished; while the baseline is not tuned, for the tuning only."""
    runs, first = _todo(spec, bench, choice)
    _check(spec, path, bench, choice, runs, first)
    if spec.task and not _is_prepared(spec, bench):
        marker = shlex.quote(json.dumps(spec.task.model_dump()))
        folder = shlex.quote(str(bench / "task"))
        command = shlex.join(commands.prepare_command(spec, bench))
        print(f"mkdir -p {folder} && {command} > {folder}/log 2>&1 && printf %s {marker} > {folder}/done.json")
        print("sgpo: the first line makes the task's data and base model; the others need them", file=sys.stderr)
    for run in runs:
        if state_of(run) is not State.FINISHED:
            done = json.dumps({"digest": run.digest})
            print(commands.shell_line(run, json.dumps(execute.facts(run)), done))
    if first:
        print(
            "sgpo: these tune the baseline; when they are finished, the same command prints the rest", file=sys.stderr
        )
    return 0


def _todo(spec: Spec, bench: Path, choice: Choice) -> tuple[list[BenchRun], bool]:
    """(runs of this call, whether they are those of the tuning, which come first)."""
    tuning = tune.every_run(spec, bench)
    execute.refuse_changed(tuning)
    if tune.unfinished(spec, bench):
        return tuning, True
    runs = choice.of(commands.method_runs(spec, bench, _chosen(spec, bench)))
    execute.refuse_changed(runs)
    return runs, False


def _chosen(spec: Spec, bench: Path) -> list[str]:
    return commands.tuned_overrides(spec, tune.tuned(spec, bench).best) if spec.tune else []


def _forget(spec: Spec, path: Path, bench: Path, fresh: Sequence[str]) -> None:
    """Remove the runs of --fresh, once it is certain that the file gives commands to make them again."""
    runs = [*tune.every_run(spec, bench), *commands.method_runs(spec, bench)]
    meant = []
    for name in fresh:
        named = [run for run in runs if f"{run.name}/".startswith(f"{name}/")]
        meant += named
        if not named:
            raise SgpoError(f"--fresh {name}: no such run; it has {', '.join(run.name for run in runs)}")
    _compose(path, meant, finished=True)
    for run in meant:
        execute.forget(run)


def _compose(path: Path, runs: Sequence[BenchRun], finished: bool = False) -> dict[str, int | None]:
    """Check the command of each method once: those whose runs are finished only if asked to.

    Returns the number of steps by the place in the file that a run comes from.
    """
    steps: dict[str, int | None] = {}
    for run in runs:
        if run.where not in steps and (finished or state_of(run) is not State.FINISHED):
            try:
                steps[run.where] = commands.check(run)["trainer"]["total_training_steps"]
            except SgpoError as error:
                raise SgpoError(f"{path}: {error}") from None
    return steps


def _run_all(spec: Spec, path: Path, bench: Path, choice: Choice) -> list[tuple[BenchRun, str]]:
    """The runs that failed, with reasons."""
    _forget(spec, path, bench, choice.fresh)
    runs, first = _todo(spec, bench, choice)
    steps = _check(spec, path, bench, choice, runs, first)
    screen = Screen(len(runs))
    if spec.task:
        _prepare(spec, bench)
    failed = _execute(runs, steps, screen)
    if not first:
        return failed
    if failed:
        raise SgpoError(
            f"tuning: {', '.join(run.name for run, _ in failed)} failed ({execute.last_words(failed[0][0].log)}): the same "
            f"command tries again; an option that cannot run has to leave tune: ({failed[0][0].log})"
        )
    screen.say(tune.tuned(spec, bench).text(spec))
    return _run_all(spec, path, bench, Choice(choice.methods, choice.seeds))


def _check(
    spec: Spec, path: Path, bench: Path, choice: Choice, runs: Sequence[BenchRun], first: bool
) -> dict[str, int | None]:
    """All commands of this call compose, those that follow the tuning included: they do with any options, or with none."""
    if not first:
        return _compose(path, runs)
    covering = tune.covering(commands.tune_runs(spec, bench), spec)
    options = tuple(next(iter(axis)) for axis in spec.tune.values())
    later = choice.of(commands.method_runs(spec, bench, commands.tuned_overrides(spec, options)))
    return _compose(path, [*covering, *later])


def _execute(runs: Sequence[BenchRun], steps: dict[str, int | None], screen: Screen) -> list[tuple[BenchRun, str]]:
    failed = []
    for number, run in enumerate(runs, 1):
        if state_of(run) is State.FINISHED:
            seconds = execute.read(run.directory / "done.json").get("seconds", 0.0)
            screen.reused(number, run.name, seconds)
            continue
        try:
            execute.execute(run, number, screen, steps.get(run.where))
        except Failed as failure:
            failed.append((run, str(failure)))
            screen.say(f"[{number}/{len(runs)}] {run.name} failed ({failure}); going on with the others")
    return failed


def _is_prepared(spec: Spec, bench: Path) -> bool:
    """Raises SgpoError if another task was prepared there."""
    assert spec.task is not None
    made = execute.read(bench / "task" / "done.json")
    if made and made != spec.task.model_dump():
        raise SgpoError(f"{bench / 'task'}: holds another task than this file's ({made}); use another --dir")
    return bool(made)


def _prepare(spec: Spec, bench: Path) -> None:
    """Data and base model of a built-in task, once: all runs start from them."""
    assert spec.task is not None
    if _is_prepared(spec, bench):
        return
    folder, screen = bench / "task", Screen(1)
    folder.mkdir(exist_ok=True)
    log = folder / "log"
    with screen.stage(1, f"prepare the task {spec.task.name}") as tick:

        def look() -> None:
            tick(progress.last_line(log, ("step", "right"), "loading torch"))

        status = run_child(commands.prepare_command(spec, bench), log, {"PYTHONUNBUFFERED": "1"} | spec.env, look)
        if status:
            raise SgpoError(f"task: could not be prepared ({execute.last_words(log)}); its log: {log}")
        look()
    execute.write_whole(folder / "done.json", spec.task.model_dump())


def _report(spec: Spec, bench: Path, quiet: bool) -> None:
    """The page over all finished runs. quiet: no error if there are none."""
    from sgpo_verl import report

    notes = []
    if spec.tune:
        if left := tune.unfinished(spec, bench):
            raise SgpoError(
                f"{bench}: not tuned yet ({', '.join(run.name for run in left)} not finished); nothing to report"
            )
        notes.append(tune.tuned(spec, bench).text(spec))
    runs = commands.method_runs(spec, bench, _chosen(spec, bench))
    execute.refuse_changed(runs)
    finished = [run for run in runs if state_of(run) is State.FINISHED]
    if missing := [run.name for run in runs if run not in finished]:
        notes.append(f"Not finished, and left out: {', '.join(missing)}.")
    if not finished:
        if quiet:
            return
        raise SgpoError(f"{bench}: no run is finished yet; nothing to report")
    loaded = [report.load_run(run.directory) for run in finished]
    if len(commits := sorted({run.commit for run in loaded})) > 1:
        notes.append(f"The runs were made at different commits: {', '.join(c[:12] or 'unknown' for c in commits)}.")
    print(report.compare(loaded, spec.metric, spec.baseline, tuple(notes)).to_text())
    print(f"report: {report.write(loaded, bench / 'report.html', spec.metric, spec.baseline, tuple(notes))[0]}")
