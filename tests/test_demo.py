"""The demo's own parts: task, reward, tokenizer, base training, stages and child processes. verl is not started."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from sgpo_verl.demo import progress, run, stages, task
from sgpo_verl.demo.child import run_child
from sgpo_verl.demo.reward import compute_score
from sgpo_verl.demo.screen import Screen
from sgpo_verl.demo.stages import Stage
from sgpo_verl.errors import SgpoError


def content(row):
    return row["prompt"][0]["content"]


def truth(row):
    return row["reward_model"]["ground_truth"]


# task


def test_answer_is_the_double_one_place_longer():
    assert task.answer("7") == "14"
    assert task.answer("4") == "08"
    assert task.answer("4738") == "09476"
    assert task.answer("8231") == "16462"


def test_draw_has_the_length_asked_for():
    rng = random.Random(0)
    assert all(len(task.draw(rng, n)) == n for n in range(2, 9) for _ in range(50))


def test_demonstrations_are_right_as_often_as_they_should_be():
    rng = random.Random(0)
    for length in (1, 5, 8):
        right = [task.answer(number) == text for number, text in (task.demonstration(rng, length) for _ in range(2000))]
        # Three standard deviations of a share of 2,000 are at most 3 x 0.0112.
        assert sum(right) / 2000 == pytest.approx(task.RIGHT[length - 1], abs=0.034)


def test_slip_is_another_digit():
    rng = random.Random(0)
    assert {task.slip(rng, "5") for _ in range(500)} == set("012346789")


def test_train_pool_shares_and_truths():
    rows = task.train_rows(200, seed=3)
    right = [truth(row) == task.answer(content(row)) for row in rows]
    assert len(rows) == 200
    assert right.count(False) == 70  # 35% hopeless
    assert all(len(content(row)) in task.HOPELESS for row, ok in zip(rows, right, strict=True) if not ok)
    assert sum(len(content(row)) in task.TRIVIAL for row in rows) == 70  # 35% trivial
    assert {len(content(row)) for row in rows} == {2, 3, 4, 5, 6, 7, 8}


def test_hopeless_truths_are_far_from_right():
    rng = random.Random(1)
    for _ in range(100):
        number = task.draw(rng, 6)
        wrong = task.wrong_answer(rng, number)
        assert len(wrong) == 7
        assert sum(a != b for a, b in zip(wrong, task.answer(number), strict=True)) >= 4


def test_prompts_and_indices_are_unique_and_validation_is_held_out():
    train = task.train_rows(task.POOL_SIZE, seed=0)
    val = task.validation_rows(task.VALIDATION_SIZE, seed=0, train=train)
    assert [row["extra_info"]["index"] for row in train] == list(range(task.POOL_SIZE))
    assert [row["extra_info"]["index"] for row in val] == list(range(task.VALIDATION_SIZE))
    assert len({content(row) for row in train}) == len(train)
    assert not {content(row) for row in train} & {content(row) for row in val}
    assert all(truth(row) == task.answer(content(row)) for row in val)
    assert {len(content(row)) for row in val} == set(task.LEARNABLE)


def test_same_seed_same_data_other_seed_other_data():
    assert task.train_rows(64, seed=1) == task.train_rows(64, seed=1)
    assert task.train_rows(64, seed=1) != task.train_rows(64, seed=2)


def test_files_have_verls_row_format(tmp_path):
    import pandas as pd

    task.write(tmp_path / "data", seed=0)
    row = pd.read_parquet(tmp_path / "data" / "train.parquet").iloc[0].to_dict()
    assert set(row) == {"data_source", "prompt", "ability", "reward_model", "extra_info"}
    assert row["prompt"][0]["role"] == "user"
    assert row["reward_model"]["style"] == "rule"
    assert row["extra_info"] == {"index": 0, "split": "train"}
    assert len(pd.read_parquet(tmp_path / "data" / "val.parquet")) == task.VALIDATION_SIZE


# reward


def test_reward_is_one_for_the_ground_truth_only():
    assert compute_score("sgpo_demo/double", "09476", "09476") == 1.0
    assert compute_score("sgpo_demo/double", " 09476\n", "09476", extra_info={"index": 3}, other=1) == 1.0
    assert compute_score("sgpo_demo/double", "9476", "09476") == 0.0
    assert compute_score("sgpo_demo/double", "094760", "09476") == 0.0
    assert compute_score("sgpo_demo/double", "", "09476") == 0.0


# base model


def test_base_training_writes_a_model_that_loads(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sgpo_verl.demo import base

    base.main([str(tmp_path), "--seed", "5", "--steps", "2"])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "4738"}], add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]
    assert tokenizer.decode(ids) == "4738="
    answer = tokenizer("09476", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode([*answer, tokenizer.eos_token_id], skip_special_tokens=True) == "09476"
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert 0.5e6 < model.num_parameters() < 0.7e6


def test_base_training_is_the_same_for_the_same_seed():
    from sgpo_verl.demo import base

    first, again, other = (base.train(seed, steps=1).state_dict() for seed in (1, 1, 2))
    assert all((first[name] == again[name]).all() for name in first)
    assert any((first[name] != other[name]).any() for name in first)


def test_pass_rate_of_an_untrained_model_is_a_guess():
    from sgpo_verl.demo import base

    rates = base.pass_rates(base.make_model(seed=0), numbers=4)
    assert len(rates) == 8
    # One digit: two places and the end, each about 1 of 13 tokens: about 5e-4. Longer numbers: less.
    assert all(0 < rate < 5e-3 for rate in rates)


def test_the_model_knows_no_token_that_the_tokenizer_lacks():
    from sgpo_verl.demo import base

    assert base.make_model(seed=0).config.vocab_size == len(base.make_tokenizer())


def test_labels_cover_the_answer_and_its_end_only():
    from sgpo_verl.demo import base

    ids, labels = base.encode([("123", "0246")] * 4)
    assert ids.shape == (4, 9)  # 3 digits, "=", 4 digits, end
    assert (labels[:, :4] == base.IGNORED).all()
    assert (labels[:, 4:] == ids[:, 4:]).all()
    assert (ids[:, -1] == base.VOCABULARY[base.EOS]).all()


# progress


def test_training_progress_reads_step_reward_and_accuracy(tmp_path):
    log = tmp_path / "metrics.jsonl"
    assert progress.training(log, 40) == "starting Ray and vLLM (about a minute)"
    accuracy = "val-core/sgpo_demo/double/acc/mean@2"
    rows = [
        {"step": 0, "data": {accuracy: 0.25}},
        {"step": 1, "data": {"critic/rewards/mean": 0.4}},
        {"step": 2, "data": {"critic/rewards/mean": 0.5, accuracy: 0.375}},
    ]
    log.write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 3, "da')
    assert progress.training(log, 40) == "step 2/40  reward 0.50  accuracy 0.25 -> 0.38"


def test_last_line_sees_through_progress_bars_and_warnings(tmp_path):
    log = tmp_path / "log"
    assert progress.last_line(log, ("step",), "starting") == "starting"
    log.write_text("step 1\n 10%\rstep 2\r\n\nWARNING: step\n")
    assert progress.last_line(log, ("step",), "starting") == "step 2"


# stages


def python_stage(directory: Path, code: str, **more) -> Stage:
    return Stage("one", "a stage", (sys.executable, "-c", code), (directory / "out",), lambda: "busy", **more)


def plain_screen(stage_count: int = 1) -> Screen:
    return Screen(stage_count, Console(file=open(os.devnull, "w"), force_terminal=False))


def run_all(todo, directory, fresh=False):
    for folder in ("logs", "done"):
        (directory / folder).mkdir(exist_ok=True)
    run._run_all(todo, directory, fresh, plain_screen(len(todo)))


def test_finished_stage_is_reused_until_its_settings_change(tmp_path):
    settings = tmp_path / "settings.yaml"
    settings.write_text("a: 1")
    count = f"import sys; open({str(tmp_path / 'count')!r}, 'a').write('x'); open({str(tmp_path / 'out')!r}, 'w')"
    runs = lambda: len((tmp_path / "count").read_text())  # noqa: E731
    todo = [python_stage(tmp_path, count, sources=(settings,))]
    run_all(todo, tmp_path)
    run_all(todo, tmp_path)
    assert runs() == 1
    settings.write_text("a: 2")
    run_all(todo, tmp_path)
    assert runs() == 2
    (tmp_path / "out").unlink()
    run_all(todo, tmp_path)
    assert runs() == 3
    run_all(todo, tmp_path, fresh=True)
    assert runs() == 4


def test_a_stage_runs_again_when_one_that_it_reads_did(tmp_path):
    def stage(name, after=()):
        code = f"open({str(tmp_path / name)!r}, 'w'); open({str(tmp_path / 'order')!r}, 'a').write({name!r})"
        return Stage(name, name, (sys.executable, "-c", code), (tmp_path / name,), lambda: "", after=after)

    todo = [stage("a"), stage("b", after=("a",)), stage("c")]
    run_all(todo, tmp_path)
    run_all(todo, tmp_path)
    (tmp_path / "a").unlink()
    run_all(todo, tmp_path)
    assert (tmp_path / "order").read_text() == "abcab"


def test_failed_stage_names_itself_and_its_log(tmp_path):
    with pytest.raises(SgpoError, match=r"a stage, failed \(exit status 3\); its log: .*one\.log"):
        run_all([python_stage(tmp_path, "print('boom'); raise SystemExit(3)")], tmp_path)
    assert (tmp_path / "logs" / "one.log").read_text() == "boom\n"
    with pytest.raises(SgpoError, match="it did not write"):
        run_all([python_stage(tmp_path, "pass")], tmp_path)


def test_half_written_output_is_removed_before_a_stage_runs_again(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "half").write_text("")
    run_all([python_stage(tmp_path, f"import os; os.mkdir({str(tmp_path / 'out')!r})")], tmp_path)
    assert list((tmp_path / "out").iterdir()) == []


def test_two_demos_in_one_directory_are_refused(tmp_path):
    with run._only_one(tmp_path), pytest.raises(SgpoError, match="another demo is running"), run._only_one(tmp_path):
        pass


def test_every_stage_names_its_sources_and_outputs_inside_the_directory(tmp_path):
    todo = stages.stages(tmp_path, seed=1)
    assert [stage.name for stage in todo] == ["base", "profile", "plan", "grpo", "sgpo", "report"]
    assert all(path.is_file() for stage in todo for path in stage.sources)
    assert all(path.is_relative_to(tmp_path) for stage in todo for path in stage.outputs)


# child processes

GRANDCHILD = (
    "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], "
)
GRANDCHILD += "process_group=0); print(p.pid, flush=True); time.sleep(60)"
needs_process_group = pytest.mark.skipif(sys.version_info < (3, 11), reason="Popen(process_group=) is new in 3.11")


def wait_for_pid(log: Path) -> int:
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(log.read_text())


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@needs_process_group
def test_an_interrupt_stops_the_child_and_what_it_started(tmp_path):
    log, seen = tmp_path / "log", []

    def tick():
        seen.append(1)
        if log.read_text().strip():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_child((sys.executable, "-c", GRANDCHILD), log, {}, tick)
    assert not alive(wait_for_pid(log))


@needs_process_group
def test_a_killed_demo_takes_its_child_along(tmp_path):
    log = tmp_path / "log"
    child = (sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    code = "from pathlib import Path; from sgpo_verl.demo.child import run_child; "
    code += f"run_child({child!r}, Path({str(log)!r}), {{}}, lambda: None)"
    parent = subprocess.Popen([sys.executable, "-c", code])
    pid = wait_for_pid(log)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 50
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)


def test_exit_status_and_output_of_a_child(tmp_path):
    log = tmp_path / "log"
    assert run_child((sys.executable, "-c", "import os; print(os.environ['A']); exit(4)"), log, {"A": "b"}, list) == 4
    assert log.read_text() == "b\n"


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SgpoError, match=r"--dir .*file: cannot be written to"):
        run.main(tmp_path / "file")
