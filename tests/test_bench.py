"""sgpo bench: the file, the commands, what is run, skipped, continued or refused, and one real benchmark of two steps.

Where verl is not what is tested, ``MAIN`` is a script of a few lines that leaves what a run leaves.
"""

import json
import random
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import tiny
import yaml
from rundirs import config, sgpo_step, stock_step, validation

from sgpo_verl import cli
from sgpo_verl.bench import command, commands, execute, tune
from sgpo_verl.bench.command import Choice
from sgpo_verl.bench.execute import State, state_of
from sgpo_verl.bench.spec import load_spec
from sgpo_verl.demo import child
from sgpo_verl.demo.sorting import SORT, SORT_LONG
from sgpo_verl.errors import SgpoError

REPO = Path(__file__).resolve().parent.parent
SPEC = {
    "name": "toy",
    "seeds": [0, 1],
    "baseline": "grpo",
    "common": ["data.train_batch_size=4", "trainer.test_freq=1"],
    "methods": {"grpo": [], "ours": ["+sgpo=prune"]},
    "env": {"FAKE": "{bench}"},
}


def write_spec(folder: Path, **changes) -> Path:
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in {**SPEC, **changes}.items() if v is not None}, sort_keys=False))
    return path


# the file


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nmae": "x"}, "nmae: no such key; did you mean name?"),
        ({"seeds": []}, "seeds=[]"),
        ({"seeds": ["a"]}, "seeds.0='a'"),
        ({"seeds": [1, 1]}, "seeds: [1, 1] names one twice"),
        ({"name": None}, "name: is missing"),
        ({"name": "a/b"}, "name: it names a folder: use letters, digits, dot, dash and underscore"),
        ({"baseline": "gpro"}, "baseline: gpro is none of the methods (grpo, ours)"),
        ({"methods": {"grpo": [], "task": []}}, "methods: task is the name of a folder of the benchmark's own"),
        ({"methods": {"grpo": [{"trainer.test_freq": 8}]}}, "is no Hydra override: write key=value, in quotes if YAML"),
        ({"common": ["trainer.test_freq"]}, "common.0: 'trainer.test_freq' is no Hydra override: write key=value"),
        ({"tune": {"rate": {}}}, "tune.rate: names no option"),
        ({"tune_seeds": 3}, "tune_seeds: 3 is more than the 2 seeds"),
        ({"task": {"name": "sudoku"}}, "task.name='sudoku': Input should be 'double', 'sort' or 'sort_long'"),
        ({"task": {"name": "sort", "step": 5}}, "task.step: no such key; did you mean task.steps?"),
    ],
)
def test_a_bad_file_is_refused_by_key_with_the_way_out(tmp_path, changes, words):
    path = write_spec(tmp_path, **changes)
    with pytest.raises(SgpoError) as refused:
        load_spec(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("text", "words"), [("a: [1", "cannot be read as YAML"), ("[1]", "must be a mapping with name,")]
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text, words):
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.raises(SgpoError, match=words):
        load_spec(tmp_path / "spec.yaml")


def test_numbers_as_names_and_in_the_environment_are_texts(tmp_path):
    spec = load_spec(write_spec(tmp_path, tune={"rollouts": {32: ["a=1"]}}, env={"A": 1}))
    assert (spec.tune["rollouts"], spec.env) == ({"32": ["a=1"]}, {"A": "1"})


# commands


def test_seeds_are_interleaved_and_set_wherever_verl_and_we_have_one(tmp_path):
    runs = commands.method_runs(load_spec(write_spec(tmp_path)), tmp_path)
    assert [run.name for run in runs] == ["grpo/seed0", "ours/seed0", "grpo/seed1", "ours/seed1"]
    seeds = ["data.seed=1", "actor_rollout_ref.rollout.seed=1", "actor_rollout_ref.actor.data_loader_seed=1"]
    assert list(runs[2].arguments[:4]) == [*seeds, "data.train_batch_size=4"]
    assert list(runs[3].arguments[:4]) == [*seeds, "sgpo.seed=1"]
    assert f"hydra.run.dir={tmp_path}/ours/seed1" in runs[3].arguments
    assert runs[0].environment == {"PYTHONUNBUFFERED": "1", "FAKE": str(tmp_path)}


def test_placeholders_are_filled_in_flags_come_first_and_the_files_own_overrides_win(tmp_path):
    common = ["a=x{seed}", "--config-name=mine", "b={dir}/p", "c={bench}/q", "data.seed=7", "d={k: 1}"]
    run = commands.method_runs(load_spec(write_spec(tmp_path, common=common)), tmp_path)[2]
    assert run.arguments[0] == "--config-name=mine"
    assert {"a=x1", f"b={tmp_path}/grpo/seed1/p", f"c={tmp_path}/q", "d={k: 1}"} <= set(run.arguments)
    assert run.arguments.index("data.seed=7") > run.arguments.index("data.seed=1")


def test_a_digest_is_of_what_is_computed_and_not_of_where(tmp_path):
    spec = load_spec(write_spec(tmp_path))
    here, there = commands.method_runs(spec, tmp_path), commands.method_runs(spec, tmp_path / "moved")
    assert [run.digest for run in here] == [run.digest for run in there]
    assert len({run.digest for run in here}) == 4
    other = commands.method_runs(load_spec(write_spec(tmp_path, common=["data.train_batch_size=8"])), tmp_path)
    assert not {run.digest for run in here} & {run.digest for run in other}


def test_tuning_runs_all_combinations_with_the_first_seed(tmp_path):
    spec = load_spec(
        write_spec(tmp_path, tune={"lr": {"low": ["x=1"], "high": ["x=2"]}, "n": {"4": ["y=4"], "8": ["y=8"]}})
    )
    runs = commands.tune_runs(spec, tmp_path)
    assert list(runs) == [("low", "4"), ("low", "8"), ("high", "4"), ("high", "8")]
    assert [run.name for run in runs["high", "4"]] == ["tune/high+4/seed0"]
    assert {"x=2", "y=4", "data.seed=0"} <= set(runs["high", "4"][0].arguments)
    assert [run.label for run in tune.covering(runs, spec)] == ["low+4", "high+8"]  # every option once


def test_a_misspelt_override_names_file_method_and_override(tmp_path):
    methods = {"grpo": ["algorithm.adv_estimator=grpo"], "ours": ["trainer.total_trainig_steps=3"]}
    path = write_spec(tmp_path, common=["trainer.test_freq=1"], methods=methods)
    with pytest.raises(SgpoError, match=r"spec.yaml: methods.ours: .*total_trainig_steps"):
        command.main(path, tmp_path / "out", Choice())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["lock"]  # nothing was started


def test_an_override_that_contradicts_the_method_is_refused_before_anything_starts(tmp_path):
    path = write_spec(tmp_path, common=["algorithm.adv_estimator=grpo", "trainer.test_freq=1"])
    with pytest.raises(SgpoError, match=r"methods.ours: sgpo.prune=True: needs algorithm.adv_estimator=sgpo"):
        command.main(path, tmp_path / "out", Choice())


def test_a_benchmark_without_validation_is_refused(tmp_path):
    with pytest.raises(SgpoError, match=r"methods.grpo: trainer.test_freq=-1: nothing would be compared"):
        command.main(write_spec(tmp_path, common=["trainer.total_epochs=1"]), tmp_path / "out", Choice())


@pytest.mark.parametrize(("name", "tuning"), [("cpu", 4 * 3), ("gpu", 3 * 3)])
def test_the_recipes_compose(name, tuning):
    spec = load_spec(REPO / "recipes" / "bench" / f"{name}.yaml")
    runs = {run.label: run for run in commands.method_runs(spec, Path("/b")) if run.seed == 0}
    assert list(runs)[:8] == ["grpo", "dapo", "prune", "paper", "paper_pruned", "greso", "aero", "bayes"]
    for method in ("grpo", "dapo", "paper_pruned", "bayes"):
        made = commands.check(runs[method])
        assert made["trainer"]["v1"]["trainer_mode"] == ("sync" if method in ("grpo", "dapo") else "sgpo_sync")
        assert made["actor_rollout_ref"]["actor"]["ppo_mini_batch_size"] == made["data"]["train_batch_size"]
    assert len(tune.every_run(spec, Path("/b"))) == tuning


# runs, by a stand-in for verl's main

FAKE = """
import json, os, sys
values = dict(a.split("=", 1) for a in sys.argv[1:] if "=" in a)
folder = values["hydra.run.dir"].strip("'")
name = values["trainer.experiment_name"].strip("'")
orders = json.load(open(os.environ["FAKE"] + "/orders.json"))
with open(os.environ["FAKE"] + "/order", "a") as file:
    file.write(name + "\\n")
kind = "ours" if "+sgpo" in values else "grpo"
os.makedirs(folder + "/.hydra", exist_ok=True)
json.dump(orders["config"][kind], open(folder + "/.hydra/config.yaml", "w"))
rows = orders["rows"].get(name) or orders["rows"][kind]
first = 0
if os.path.exists(folder + "/checkpoints/latest_checkpointed_iteration.txt"):
    first = int(open(folder + "/checkpoints/latest_checkpointed_iteration.txt").read())
    rows = [row for row in rows if row["step"] > first]
with open(os.environ["VERL_FILE_LOGGER_PATH"], "w") as log:
    for row in rows:
        log.write(json.dumps(row, separators=(",", ":")) + "\\n")
        log.flush()
        if name in orders["die"] and row["step"] == 2:
            if orders["die"][name] == "after saving":
                os.makedirs(folder + "/checkpoints", exist_ok=True)
                open(folder + "/checkpoints/latest_checkpointed_iteration.txt", "w").write("2")
            print("Traceback\\nsgpo: reward function: NaN for a rollout\\n(raylet) bye")
            sys.exit(3)
print("from", first, "done")
"""


def rows_of(accuracies, step):
    return [validation(0, accuracies[0]), *(step(i, a) for i, a in enumerate(accuracies[1:], 1))]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A folder for a benchmark of the stand-in; ``bench(...)`` changes what it does."""
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setattr(commands, "MAIN", (sys.executable, str(tmp_path / "fake.py")))
    monkeypatch.setattr(commands, "check", lambda run: {"trainer": {"total_training_steps": 5}})
    monkeypatch.setattr(child, "_POLL_SECONDS", 0.02)
    folder = tmp_path / "out"
    folder.mkdir()
    configs = {"grpo": config(), "ours": config(sgpo__method="prune")}
    (tmp_path / "model").mkdir()
    shape = {"hidden_size": 1, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 2}
    (tmp_path / "model" / "config.json").write_text(json.dumps(shape))
    for one in configs.values():
        one["actor_rollout_ref"]["model"]["path"] = str(tmp_path / "model")
    rows = {
        "grpo": rows_of([0.2, 0.3, 0.4, 0.5, 0.5, 0.5], stock_step),
        "ours": rows_of([0.2, 0.3, 0.5, 0.5, 0.5, 0.5], sgpo_step),
    }

    def orders(**changes):
        merged = {"config": configs, "die": {}, **changes}
        merged["rows"] = rows | changes.get("rows", {})
        (folder / "orders.json").write_text(json.dumps(merged))
        return folder

    return orders


def started(folder: Path) -> list[str]:
    """The runs that were started since this was last asked, in order."""
    path = folder / "order"
    names = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return names


ALL = ["grpo/seed0", "ours/seed0", "grpo/seed1", "ours/seed1"]


def test_every_run_is_made_once_and_compared(tmp_path, bench, capsys):
    out, spec = bench(), write_spec(tmp_path)
    assert command.main(spec, out, Choice()) == 0
    assert started(out) == ALL
    # GRPO reaches 0.5 at step 3; N = 10, A = 1 for it. Ours at step 2: 1000 + 2 x 3000.
    assert "ours reached grpo's final accuracy (0.500) with 7.00 kFLOP" in capsys.readouterr().out
    assert (out / "report.html").exists()
    made = json.loads((out / "ours" / "seed1" / "run.json").read_text())
    assert (made["label"], made["seed"]) == ("ours", 1)
    assert made["versions"]["verl"] and set(made) >= {"commit", "digest", "command", "environment"}
    assert command.main(spec, out, Choice()) == 0
    assert started(out) == []  # finished runs are skipped
    assert command.main(spec, out, Choice(fresh=("ours/seed1",))) == 0
    assert started(out) == ["ours/seed1"]
    assert command.main(spec, out, Choice(fresh=("grpo",), seeds=(0,))) == 0
    assert started(out) == ["grpo/seed0"]
    assert "Not finished, and left out: grpo/seed1." in capsys.readouterr().out


def test_a_part_of_it_can_be_chosen(tmp_path, bench):
    out, spec = bench(), write_spec(tmp_path)
    assert command.main(spec, out, Choice(methods=("ours",), seeds=(1,))) == 0
    assert started(out) == ["ours/seed1"]
    for choice, words in [
        (Choice(methods=("other",)), "--only other: not in this benchmark; it has grpo, ours"),
        (Choice(seeds=(5,)), "--seeds 5: not in this benchmark; it has 0, 1"),
        (Choice(fresh=("x/seed0",)), "--fresh x/seed0: no such run; it has grpo/seed0"),
    ]:
        with pytest.raises(SgpoError, match=words):
            command.main(spec, out, choice)


def test_nothing_is_removed_by_a_file_that_is_wrong_or_by_a_call_that_starts_nothing(tmp_path, bench, monkeypatch):
    out, spec = bench(), write_spec(tmp_path)
    command.main(spec, out, Choice(seeds=(0,)))
    for only_look in ({"show": True}, {"report_only": True}):
        with pytest.raises(SgpoError, match="--fresh: removes runs"):
            command.main(spec, out, Choice(fresh=("ours",)), **only_look)

    def refuse(run):
        raise SgpoError("misspelt")

    monkeypatch.setattr(commands, "check", refuse)
    with pytest.raises(SgpoError, match="misspelt"):
        command.main(spec, out, Choice(fresh=("ours",)))
    assert (out / "ours" / "seed0" / "done.json").exists()


def test_a_failed_run_stops_no_other_and_is_shown_with_its_last_words(tmp_path, bench, capsys):
    out, spec = bench(die={"grpo/seed0": "x"}), write_spec(tmp_path)
    assert command.main(spec, out, Choice()) == 1
    assert started(out) == ALL
    shown = capsys.readouterr().out
    assert "FAILED grpo/seed0 (exit status 3): sgpo: reward function: NaN for a rollout" in shown
    assert str(out / "grpo" / "seed0" / "log") in shown
    assert "Not finished, and left out: grpo/seed0." in shown
    bench()
    assert command.main(spec, out, Choice()) == 0
    assert started(out) == ["grpo/seed0"]
    assert not list((out / "grpo" / "seed0").glob("metrics.*.jsonl"))  # no checkpoint: started over


def test_a_run_that_broke_off_after_a_checkpoint_is_continued_and_keeps_its_earlier_log(tmp_path, bench):
    out, spec = bench(die={"grpo/seed0": "after saving"}), write_spec(tmp_path)
    assert command.main(spec, out, Choice(seeds=(0,))) == 1
    run = out / "grpo" / "seed0"
    assert state_of(commands.method_runs(load_spec(spec), out)[0]) is State.BROKEN
    bench()
    assert command.main(spec, out, Choice(seeds=(0,))) == 0
    assert [json.loads(line)["step"] for line in (run / "metrics.1.jsonl").read_text().splitlines()] == [0, 1, 2]
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [3, 4, 5]
    assert "NaN" in (run / "log.1").read_text() and "from 2 done" in (run / "log").read_text()
    from sgpo_verl.report.runs import load_run

    loaded = load_run(run)
    assert (loaded.gap, loaded.table.index.tolist()) == ("", [0, 1, 2, 3, 4, 5])


def test_starting_over_keeps_a_finished_profile(tmp_path, bench):
    out, spec = bench(die={"ours/seed0": "x"}), write_spec(tmp_path)
    assert command.main(spec, out, Choice(seeds=(0,))) == 1
    profile = out / "ours" / "seed0" / "checkpoints" / "sgpo" / "profile.parquet"
    profile.parent.mkdir(parents=True)
    profile.write_text("counts")
    bench()
    assert command.main(spec, out, Choice(seeds=(0,))) == 0
    assert profile.read_text() == "counts"


def test_a_run_whose_command_has_changed_is_refused_with_the_way_out(tmp_path, bench):
    out, spec = bench(), write_spec(tmp_path)
    command.main(spec, out, Choice(seeds=(0,)))
    started(out)
    changed = write_spec(tmp_path, methods={"grpo": [], "ours": ["+sgpo=bayes"]})
    with pytest.raises(
        SgpoError, match=r"made by another command.*\(ours/seed0\).*--fresh ours/seed0, or use another --dir"
    ):
        command.main(changed, out, Choice())
    assert started(out) == []
    assert command.main(changed, out, Choice(fresh=("ours",), seeds=(0,))) == 0
    assert started(out) == ["ours/seed0"]


def test_the_best_options_for_the_baseline_are_used_for_all_and_recorded(tmp_path, bench, capsys):
    good = rows_of([0.2, 0.4, 0.6, 0.6, 0.6, 0.6], stock_step)
    out = bench(rows={"tune/high/seed0": good})
    spec = write_spec(tmp_path, tune={"rate": {"low": ["x=1"], "high": ["x=2"]}})
    assert command.main(spec, out, Choice(seeds=(1,))) == 0
    assert started(out) == ["tune/low/seed0", "tune/high/seed0", "grpo/seed1", "ours/seed1"]
    assert "x=2" in json.loads((out / "ours" / "seed1" / "run.json").read_text())["command"]
    record = json.loads((out / "tune.json").read_text())
    assert (record["chosen"], record["overrides"]) == (["high"], ["x=2"])
    assert [tried["accuracy"] for tried in record["tried"]] == pytest.approx([0.5, 0.6])
    assert "high. Where each ended, mean of the last 3 validations: low 0.500, high 0.600." in " ".join(
        capsys.readouterr().out.split()
    )
    assert "low 0.500, high 0.600" in (out / "report.html").read_text()


def test_tuning_with_several_seeds_goes_by_the_mean(tmp_path, bench):
    # low: 0.5 and 0.5; high: 0.6 with the first seed, 0.3 with the second
    good, bad = (rows_of([0.2, 0.4, end, end, end, end], stock_step) for end in (0.6, 0.3))
    out = bench(rows={"tune/high/seed0": good, "tune/high/seed1": bad})
    spec = write_spec(tmp_path, tune={"rate": {"low": ["x=1"], "high": ["x=2"]}}, tune_seeds=2)
    assert command.main(spec, out, Choice(methods=("grpo",), seeds=(1,))) == 0
    record = json.loads((out / "tune.json").read_text())
    assert record["chosen"] == ["low"]
    assert [tried["accuracy"] for tried in record["tried"]] == pytest.approx([0.5, 0.45])


def test_a_tuning_that_failed_ends_the_benchmark_there(tmp_path, bench):
    out = bench(die={"tune/low/seed0": "x"})
    spec = write_spec(tmp_path, tune={"rate": {"low": ["x=1"], "high": ["x=2"]}})
    with pytest.raises(SgpoError, match=r"tuning: tune/low/seed0 failed \(sgpo: reward function: NaN"):
        command.main(spec, out, Choice())
    assert started(out) == ["tune/low/seed0", "tune/high/seed0"]


def test_printed_lines_run_as_they_are_and_count_as_finished(tmp_path, bench, capsys):
    out, spec = bench(), write_spec(tmp_path)
    assert command.main(spec, out, Choice(), show=True) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and started(out) == []
    for line in lines[:2]:
        assert subprocess.run(["bash", "-c", line], cwd="/").returncode == 0
    assert started(out) == ALL[:2]
    assert command.main(spec, out, Choice(), show=True) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert command.main(spec, out, Choice(), report_only=True) == 0
    assert started(out) == []
    assert "ours reached grpo's final accuracy" in capsys.readouterr().out


def test_printed_lines_keep_the_log_of_a_run_that_broke_off(tmp_path, bench, capsys):
    out, spec = bench(), write_spec(tmp_path)
    (out / "grpo" / "seed0").mkdir(parents=True)
    (out / "grpo" / "seed0" / "metrics.jsonl").write_text("{}\n")
    command.main(spec, out, Choice(), show=True)
    assert subprocess.run(["bash", "-c", capsys.readouterr().out.splitlines()[0]]).returncode == 0
    assert len(list((out / "grpo" / "seed0").glob("metrics.*.jsonl"))) == 1


def test_there_is_nothing_to_report_before_a_run_is_finished(tmp_path, bench):
    with pytest.raises(SgpoError, match="no run is finished yet"):
        command.main(write_spec(tmp_path), bench(), Choice(), report_only=True)


def test_two_benchmarks_in_one_folder_are_refused(tmp_path, bench):
    out = bench()
    from sgpo_verl.demo.guard import only_one

    (out / "lock").touch()
    with only_one(out), pytest.raises(SgpoError, match="another benchmark is running there; use another --dir"):
        command.main(write_spec(tmp_path), out, Choice())


def test_last_words_are_ours_or_the_last_line(tmp_path):
    log = tmp_path / "log"
    assert execute.last_words(log) == "an empty log"
    log.write_text("a\nRuntimeError: no\n\n")
    assert execute.last_words(log) == "RuntimeError: no"


# the task


def test_the_sorting_pool_is_as_it_should_be():
    rows = SORT.train_rows(2048, seed=0)
    texts = [(row["prompt"][0]["content"], row["reward_model"]["ground_truth"]) for row in rows]
    right = [(text, truth) for text, truth in texts if truth == "".join(sorted(text))]
    assert (len(rows), len(right)) == (2048, 2048 - 716)  # 35% hopeless
    assert sum(len(text) in (1, 2) for text, _ in texts) == 716  # 35% trivial
    assert {len(text) for text, truth in texts if truth != "".join(sorted(text))} == {6, 7, 8}
    assert {len(text) for text, _ in right} == set(range(1, 9))
    assert [row["extra_info"]["index"] for row in rows] == list(range(2048))
    held_out = SORT.validation_rows(128, 0, rows)
    assert not {row["prompt"][0]["content"] for row in held_out} & {text for text, _ in texts}
    assert {len(row["prompt"][0]["content"]) for row in held_out} == set(range(3, 9))


@pytest.mark.parametrize("task", [SORT, SORT_LONG])
def test_sorting_demonstrations_are_right_as_often_as_they_should_be(task):
    rng = random.Random(0)
    for length in (3, task.max_length):
        shown = [task.demonstration(rng, length) for _ in range(2000)]
        right = sum(task.answer(string) == text for string, text in shown) / 2000
        # A wrong one is right by chance now and then: of three shuffled digits, one in 6 x 10 or so, in 20% of cases.
        assert right == pytest.approx(task.right[length - 1], abs=0.05)


def test_a_base_model_of_the_task_is_made_with_its_data(tmp_path):
    from sgpo_verl.demo import base

    base.main([str(tmp_path), "--task", "sort", "--steps", "1", "--prompts", "64", "--validation", "16"])
    assert [len(pd.read_parquet(tmp_path / "data" / f"{name}.parquet")) for name in ("train", "val")] == [64, 16]
    assert (tmp_path / "base" / "config.json").exists()


def test_a_task_is_prepared_once_and_another_one_in_its_place_is_refused(tmp_path, bench, monkeypatch):
    made = f"import sys; open({str(tmp_path / 'made')!r}, 'a').write('x')"
    monkeypatch.setattr(commands, "prepare_command", lambda spec, bench: (sys.executable, "-c", made))
    out, spec = bench(), write_spec(tmp_path, task={"name": "sort"})
    for _ in range(2):
        assert command.main(spec, out, Choice(seeds=(0,))) == 0
    assert (tmp_path / "made").read_text() == "x"
    arguments = json.loads((out / "grpo" / "seed0" / "run.json").read_text())["command"]
    assert f"actor_rollout_ref.model.path={out}/task/base" in arguments
    with pytest.raises(SgpoError, match=r"--fresh grpo/seed0"):  # another base: other runs
        command.main(write_spec(tmp_path, task={"name": "sort", "seed": 1}), out, Choice(seeds=(0,)))
    with pytest.raises(SgpoError, match="task: holds another task than this file's"):
        command.main(write_spec(tmp_path, task={"name": "sort", "seed": 1}), out, Choice(seeds=(1,)))


def test_a_task_that_cannot_be_prepared_ends_the_benchmark_there(tmp_path, bench, monkeypatch):
    monkeypatch.setattr(commands, "prepare_command", lambda spec, bench: (sys.executable, "-c", "exit('no space')"))
    out = bench()
    with pytest.raises(SgpoError, match=r"task: could not be prepared \(no space\); its log: "):
        command.main(write_spec(tmp_path, task={"name": "sort"}), out, Choice())
    assert started(out) == []


# the command line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("none.yaml --dir out", "none.yaml: no such file"),
        ("bad.yaml --dir out", "bad.yaml: nmae: no such key; did you mean name?"),
        ("spec.yaml --dir out --seeds a", "--seeds a: write numbers with commas"),
        ("spec.yaml --dir out --only x", "--only x: not in this benchmark"),
        ("spec.yaml --dir spec.yaml", "spec.yaml: cannot be written to"),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    write_spec(tmp_path, nmae="x").rename(tmp_path / "bad.yaml")
    write_spec(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sgpo", "bench", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    err = capsys.readouterr().err
    assert (ended.value.code, len(err.splitlines())) == (2, 1)
    assert err.startswith("sgpo: ") and words in err


def test_a_failed_run_is_exit_code_1(tmp_path, bench, monkeypatch):
    out = bench(die={"grpo/seed0": "x"})
    monkeypatch.setattr(sys, "argv", ["sgpo", "bench", str(write_spec(tmp_path)), "--dir", str(out), "--seeds", "0"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1


# the real thing


@pytest.mark.stack
def test_a_real_benchmark_of_two_steps(folder, tmp_path, capsys):
    settings = {"data.seed": None, "trainer.logger": None, "algorithm.adv_estimator": None}
    steps = {"trainer.total_training_steps": 2, "trainer.test_freq": 1, "trainer.val_before_train": True}
    spec = write_spec(
        tmp_path,
        seeds=[3],
        common=tiny.overrides(folder, **settings, **steps),
        methods={"grpo": ["algorithm.adv_estimator=grpo"], "prune": ["+sgpo=prune"]},
        env={"VERL_PLATFORM": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"},
    )
    out = tmp_path / "out"
    assert command.main(spec, out, Choice()) == 0, (out / "grpo" / "seed3" / "log").read_text()[-3000:]
    made = load_spec(spec)
    assert [state_of(run) for run in commands.method_runs(made, out)] == [State.FINISHED] * 2
    for method in ("grpo", "prune"):
        logged = tiny.metrics(out / method / "seed3")
        assert sum("timing_s/step" in row for row in logged) == 2
        assert len([row for row in logged if any(key.startswith("val-core/") for key in row)]) == 3
    page = (out / "report.html").read_text()
    assert "grpo" in page and "prune" in page and page.count("<svg") >= 4
    capsys.readouterr()
    assert command.main(spec, out, Choice(), show=True) == 0
    assert capsys.readouterr().out == ""  # nothing left to run
