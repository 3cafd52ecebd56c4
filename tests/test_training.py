"""Real training: verl 0.9.1, Ray, vLLM and FSDP2 on a real (tiny) model. What happened is read from verl's own dumps."""

import math
import shutil

import pandas as pd
import pytest
import tiny

from sgpo_verl.profile import load_profile

pytestmark = pytest.mark.stack

# 48 prompts, successes of 8 trials: 12 trivial, 16 of G = 2, 8 of G = 4, 4 of G = 8, 8 unsolved (a quarter drawn: 2).
SUCCESSES = [8] * 12 + [4] * 16 + [2] * 8 + [1] * 4 + [0] * 8
GROUP_SIZE = {**dict.fromkeys(range(12, 28), 2), **dict.fromkeys(range(28, 36), 4), **dict.fromkeys(range(36, 40), 8)}
UNSOLVED = set(range(40, 48))
# Rollouts of one pass, two unsolved prompts in each: 2 x 18 = 36, 4 x 10 = 40, 8 x 6 = 48. Six steps shared in
# proportion, each phase at least one: 6 x (36, 40, 48) / 124 = (1.7, 1.9, 2.3).
STEPS = [2, 2, 2]
LEARNING_RATE = 1e-3


def sgpo_overrides(folder, **more):
    settings = {
        "algorithm.adv_estimator": None,
        "+sgpo": "paper",
        "sgpo.filter.unsolved_fraction": 0.25,
        "trainer.total_training_steps": 6,
        "trainer.save_freq": 3,
        "actor_rollout_ref.actor.optim.lr_scheduler_type": "cosine",
        **more,
    }
    return tiny.overrides(folder, **settings)


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A finished sGPO run of six steps from a profile with ``SUCCESSES``."""
    profile = tiny.make_profile(folder, SUCCESSES, sgpo_overrides(folder))
    run = tmp_path_factory.mktemp("sgpo")
    process = tiny.train(run, sgpo_overrides(folder, **{"sgpo.profile.path": profile}))
    assert process.returncode == 0, (run / "log").read_text()[-3000:]
    return run


@pytest.fixture(scope="module")
def row_of(folder):
    """Prompt text -> row of train.parquet."""
    frame = pd.read_parquet(folder / "train.parquet")
    return {messages[0]["content"]: row for row, messages in enumerate(frame["prompt"])}


def groups_of_step(run, step, row_of):
    """[(row of the data, rollouts)] as verl dumped them."""
    groups = tiny.dumped_groups(run, step).values()
    return [(row_of[rows[0]["input"]], len(rows)) for rows in groups]


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
    assert [m["sgpo/curriculum/phase"] for m in logged] == [0, 0, 1, 1, 2, 2]
    assert [round(m["sgpo/curriculum/progress"], 3) for m in logged] == [0.167, 0.333, 0.5, 0.667, 0.833, 1.0]
    assert [m["sgpo/group/size_mean"] for m in logged] == [2, 2, 4, 4, 8, 8]
    for m in logged:
        shares = [m[f"sgpo/group/frac_{kind}"] for kind in ("mixed", "all_correct", "all_wrong")]
        assert sum(shares) == pytest.approx(1)


def test_group_shares_are_those_of_the_dumped_scores(trained):
    for step, logged in enumerate(tiny.metrics(trained), start=1):
        groups = tiny.dumped_groups(trained, step).values()
        mixed = [len({row["score"] for row in rows}) > 1 for rows in groups]
        assert logged["sgpo/group/frac_mixed"] == pytest.approx(sum(mixed) / len(mixed))


def test_learning_rate_and_progress_bar_follow_the_plan(trained):
    # One scheduler step per training step; cosine from LEARNING_RATE to 0 over the plan's six steps.
    expected = [LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(1, 7)]
    assert [m["actor/lr"] for m in tiny.metrics(trained)] == pytest.approx(expected, abs=1e-9)
    assert "6/6" in (trained / "log").read_text()


def test_cost_adds_up_and_includes_the_profile(trained):
    logged = tiny.metrics(trained)
    assert {m["sgpo/rollouts/profile"] for m in logged} == {48 * 8}
    assert [m["sgpo/rollouts/total"] for m in logged] == [48 * 8 + 64 * (i + 1) for i in range(6)]
    for m in logged:
        parts = [m[f"sgpo/flops/{part}"] for part in ("profile", "generate", "train")]
        assert m["sgpo/flops/total"] == pytest.approx(sum(parts))


def test_a_resumed_run_goes_on_with_the_same_prompts_sizes_and_totals(trained, folder, tmp_path, row_of):
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(trained / "checkpoints" / "global_step_3", checkpoints / "global_step_3")
    (checkpoints / "latest_checkpointed_iteration.txt").write_text("3")
    profile = folder / "profile.parquet"
    process = tiny.train(tmp_path, sgpo_overrides(folder, **{"sgpo.profile.path": profile}))
    assert process.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    for step in (4, 5, 6):
        again, first = groups_of_step(tmp_path, step, row_of), groups_of_step(trained, step, row_of)
        assert sorted(again) == sorted(first)
    assert tiny.metrics(tmp_path)[-1]["sgpo/rollouts/total"] == tiny.metrics(trained)[-1]["sgpo/rollouts/total"]


def test_without_a_profile_the_run_makes_one_first_and_unit_prompts_keeps_their_number(folder, tmp_path, row_of):
    more = {"sgpo.batch.unit": "prompts", "trainer.total_training_steps": 2, "trainer.save_freq": -1}
    process = tiny.train(tmp_path, sgpo_overrides(folder, **more))
    assert process.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    profile = load_profile(tmp_path / "checkpoints" / "sgpo" / "profile.parquet")
    assert profile.samples == 48 * 8
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
