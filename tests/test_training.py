"""Real training: verl 0.9.1, Ray, vLLM and FSDP2 on a real (tiny) model. What happened is read from verl's own dumps."""

import itertools
import math
import os
import shutil

import pandas as pd
import psutil
import pytest
import tiny
import torch
from paper_run import GROUP_SIZE, LEARNING_RATE, UNSOLVED, groups_of_step, overrides, profile, rows_of

from sgpo_verl.profile import load_profile

pytestmark = pytest.mark.stack

# Rollouts of one pass, two unsolved prompts in each: 2 x 18 = 36, 4 x 10 = 40, 8 x 6 = 48. Twelve steps shared in
# proportion, each phase at least one: 12 x (36, 40, 48) / 124 = (3.5, 3.9, 4.6).
STEPS = [3, 4, 5]


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A finished sGPO run of twelve steps from a profile with ``SUCCESSES``."""
    run = tmp_path_factory.mktemp("sgpo")
    process = tiny.train(run, overrides(folder, **{"sgpo.profile.path": profile(folder)}))
    assert process.returncode == 0, (run / "log").read_text()[-3000:]
    return run


@pytest.fixture(scope="module")
def row_of(folder):
    return rows_of(folder)


def test_every_step_holds_exactly_the_baselines_rollouts_and_no_padding(trained, row_of):
    for step, logged in enumerate(tiny.metrics(trained), start=1):
        assert sum(n for _, n in groups_of_step(trained, step, row_of)) == 8 * 8
        assert logged["sgpo/rollouts/generated"] == 64
        assert logged["sgpo/rollouts/padding"] == 0
        assert logged["sgpo/tokens/trained"] == logged["perf/total_num_tokens"]


def test_every_prompt_gets_its_planned_rollouts_in_its_planned_phase(trained, row_of):
    step = 0
    for size, steps in zip((2, 4, 8), STEPS, strict=True):
        seen = []
        for _ in range(steps):
            step += 1
            groups = groups_of_step(trained, step, row_of)
            assert {n for _, n in groups} == {size}
            seen += [row for row, _ in groups]
        learnable = {row for row, planned in GROUP_SIZE.items() if planned == size}
        unsolved = set(seen) & UNSOLVED
        assert set(seen) == learnable | unsolved
        assert len(unsolved) == 2
        passes = [seen.count(row) for row in set(seen)]
        assert max(passes) - min(passes) <= 1


def test_phase_progress_and_group_shares_are_logged(trained):
    logged = tiny.metrics(trained)
    assert [m["sgpo/curriculum/phase"] for m in logged] == [0] * 3 + [1] * 4 + [2] * 5
    assert [m["sgpo/curriculum/progress"] for m in logged] == pytest.approx([step / 12 for step in range(1, 13)])
    assert [m["sgpo/group/size_mean"] for m in logged] == [2] * 3 + [4] * 4 + [8] * 5
    for m in logged:
        shares = [m[f"sgpo/group/frac_{kind}"] for kind in ("mixed", "all_correct", "all_wrong")]
        assert sum(shares) == pytest.approx(1)


def test_group_shares_are_those_of_the_dumped_scores(trained):
    for step, logged in enumerate(tiny.metrics(trained), start=1):
        groups = tiny.dumped_groups(trained, step).values()
        mixed = [len({row["score"] for row in rows}) > 1 for rows in groups]
        assert logged["sgpo/group/frac_mixed"] == pytest.approx(sum(mixed) / len(mixed))


def test_learning_rate_and_progress_bar_follow_the_plan(trained):
    # One scheduler step per training step; cosine from LEARNING_RATE to 0 over the plan's twelve steps.
    expected = [LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / 12)) for step in range(1, 13)]
    assert [m["actor/lr"] for m in tiny.metrics(trained)] == pytest.approx(expected, abs=1e-9)
    assert "12/12" in (trained / "log").read_text()
    # One pass over every phase: 18 groups of 2, 10 of 4, 6 of 8, each less than a step of 64 rollouts; so three steps.
    assert [m["training/epoch"] for m in tiny.metrics(trained)] == [(step - 1) // 3 for step in range(1, 13)]


def test_every_step_makes_the_planned_number_of_optimizer_updates(trained):
    # train_batch_size 8 / ppo_mini_batch_size 4: two updates in each step, counted by AdamW itself
    state = torch.load(trained / "checkpoints/global_step_12/actor/optim_world_size_1_rank_0.pt", weights_only=False)
    assert {int(of["step"]) for of in state["state"].values()} == {12 * 2}


def test_cost_adds_up_and_includes_the_profile(trained):
    logged = tiny.metrics(trained)
    assert {m["sgpo/rollouts/profile"] for m in logged} == {48 * 8}
    assert [m["sgpo/rollouts/total"] for m in logged] == [48 * 8 + 64 * (i + 1) for i in range(12)]
    for m in logged:
        parts = [m[f"sgpo/flops/{part}"] for part in ("profile", "generate", "train")]
        assert m["sgpo/flops/total"] == pytest.approx(sum(parts))


def test_a_run_killed_twice_goes_on_with_the_same_prompts_sizes_and_totals(trained, folder, tmp_path, row_of):
    """kill -9 of every process while the checkpoint of step 9 is written; then SIGTERM after step 10."""
    arguments = overrides(folder, **{"sgpo.profile.path": folder / "profile.parquet"})
    checkpoints, lines = tmp_path / "checkpoints", []

    state = checkpoints / "global_step_9" / "data.pt"
    state.parent.mkdir(parents=True)
    os.mkfifo(state)  # nobody reads it, so the checkpoint is never done
    first = tiny.start(tmp_path, arguments)
    tiny.wait_until((state.parent / "actor" / "huggingface").exists, first)
    tiny.kill_all(first)
    state.unlink()
    assert (checkpoints / "latest_checkpointed_iteration.txt").read_text() == "6"
    lines += tiny.metrics(tmp_path)[:6]  # verl's logger begins its file anew

    second = tiny.start(tmp_path, arguments)
    tiny.wait_until(lambda: (tmp_path / "rollouts" / "10.jsonl").exists() and len(tiny.metrics(tmp_path)) >= 4, second)
    of_second = psutil.Process(second.pid).children(recursive=True)
    second.terminate()
    second.wait(300)
    assert not psutil.wait_procs(of_second, timeout=300)[1]  # nothing is left running
    assert (checkpoints / "latest_checkpointed_iteration.txt").read_text() == "9"
    lines += tiny.metrics(tmp_path)[:3]

    third = tiny.train(tmp_path, arguments)
    assert third.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    lines += tiny.metrics(tmp_path)
    for step in range(1, 13):
        again, whole = groups_of_step(tmp_path, step, row_of), groups_of_step(trained, step, row_of)
        assert sorted(again) == sorted(whole)
    assert [m["sgpo/rollouts/total"] for m in lines] == [m["sgpo/rollouts/total"] for m in tiny.metrics(trained)]
    assert [m["sgpo/curriculum/phase"] for m in lines] == [m["sgpo/curriculum/phase"] for m in tiny.metrics(trained)]
    assert [m["actor/lr"] for m in lines] == [m["actor/lr"] for m in tiny.metrics(trained)]
    trained_tokens = itertools.accumulate(m["sgpo/tokens/trained"] for m in lines)  # of the steps that count, each once
    assert [m["sgpo/tokens/total_trained"] for m in lines] == list(trained_tokens)


def test_a_checkpoint_of_another_order_is_refused_before_a_model_is_loaded(trained, folder, tmp_path):
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints", ignore=shutil.ignore_patterns("actor"))
    more = {"sgpo.profile.path": folder / "profile.parquet", "sgpo.seed": 7, "sgpo.profile.allow_mismatch": True}
    process = tiny.train(tmp_path, overrides(folder, **more))
    assert process.returncode == 2
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last.startswith("sgpo: checkpoint: its plan is not this run's (sgpo.seed: checkpoint '0', run '7')")


def test_without_a_profile_the_run_makes_one_first_and_unit_prompts_keeps_their_number(folder, tmp_path, row_of):
    more = {"sgpo.batch.unit": "prompts", "trainer.total_training_steps": 2, "trainer.save_freq": -1}
    process = tiny.train(tmp_path, overrides(folder, **more))
    assert process.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    made = load_profile(tmp_path / "checkpoints" / "sgpo" / "profile.parquet")
    assert made.samples == 48 * 8
    for step, logged in enumerate(tiny.metrics(tmp_path), start=1):
        groups = groups_of_step(tmp_path, step, row_of)
        assert len(groups) == 8
        assert logged["sgpo/rollouts/padding"] == 0
        assert logged["sgpo/rollouts/trained"] == sum(n for _, n in groups)
        assert logged["sgpo/flops/profile"] > 0


def test_stock_verl_is_untouched_while_the_plugin_is_installed(folder, tmp_path, row_of):
    process = tiny.train(tmp_path, tiny.overrides(folder, **{"trainer.total_training_steps": 2}))
    assert process.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    assert not [key for m in tiny.metrics(tmp_path) for key in m if key.startswith("sgpo/")]
    expected = stock_order(folder)
    for step in (1, 2):
        rows = dict(groups_of_step(tmp_path, step, row_of))
        assert rows == dict.fromkeys(expected[8 * (step - 1) : 8 * step], 8)


def stock_order(folder) -> list[int]:
    """Rows in the order of verl's own sampler for the run's seed."""
    from omegaconf import OmegaConf
    from verl.trainer.ppo.utils import create_rl_sampler

    frame = pd.read_parquet(folder / "train.parquet")
    sampler = create_rl_sampler(OmegaConf.create({"shuffle": True, "seed": 1}), list(range(len(frame))))
    return [int(i) for i in sampler]
