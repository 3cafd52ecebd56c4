"""Bad days, each injected into a real run: what ends it, what it says, and that nothing trained on is short or doubled."""

import pytest
import tiny
from paper_run import groups_of_step, overrides, profile, rows_of

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def arguments(folder):
    return overrides(
        folder, **{"sgpo.profile.path": profile(folder), "trainer.save_freq": 2, "trainer.total_training_steps": 6}
    )


@pytest.mark.long
def test_a_run_survives_a_full_disk_a_dead_worker_and_a_dead_server(folder, tmp_path, arguments):
    """One after the other, in one run, each time resumed by the same command; at the end every step is as planned."""
    checkpoints = tmp_path / "checkpoints"
    tracker = checkpoints / "latest_checkpointed_iteration.txt"

    # 1. The disk is full when the checkpoint of step 2 is written.
    state = checkpoints / "global_step_2" / "data.pt"
    state.parent.mkdir(parents=True)
    state.symlink_to("/dev/full")
    run = tiny.train(tmp_path, arguments)
    assert run.returncode == 2
    assert tiny.last_line(tmp_path).startswith(f"sgpo: {checkpoints}: the checkpoint of step 2 could not be written (")
    assert "it resumes from the beginning" in tiny.last_line(tmp_path)
    assert not tracker.exists()  # no checkpoint is complete
    state.unlink()

    # 2. An agent-loop worker dies while it samples step 3.
    run = tiny.start(tmp_path, arguments)
    tiny.wait_until(lambda: len(tiny.metrics(tmp_path)) >= 2, run)
    tiny.kill_titled(run, "ray::AgentLoopWorkerTQ")
    assert run.wait(300) == 2
    assert tiny.last_line(tmp_path).startswith("sgpo: an agent-loop worker died, with the rollouts that it held")
    assert tracker.read_text() == "2"

    # 3. A rollout server's engine dies while it samples.
    (tmp_path / "metrics.jsonl").unlink()
    run = tiny.start(tmp_path, arguments)
    tiny.wait_until(lambda: len(tiny.metrics(tmp_path)) >= 1, run)  # step 3
    tiny.kill_titled(run, "VLLM::EngineCore")
    assert run.wait(300) == 2
    assert tiny.last_line(tmp_path).startswith("sgpo: rollout server died: http://")

    # 4. Nothing more happens.
    run = tiny.train(tmp_path, arguments)
    assert run.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    logged = tiny.metrics(tmp_path)[-1]
    assert logged["sgpo/rollouts/total"] == 48 * 8 + 6 * 64
    row_of = rows_of(folder)
    for step in range(1, 7):
        assert sum(n for _, n in groups_of_step(tmp_path, step, row_of)) == 64


# By the prompt's index: 12 to 27 are the first phase, groups of 2.
BAD_DAYS = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    index = extra_info["index"]
    if index == 12 or (index == 13 and len(solution_str) % 2):
        raise RuntimeError("the judge is out")
    return float(len(solution_str) % 2 == 0)
"""


@pytest.mark.parametrize(
    "refill", [False, pytest.param(True, marks=pytest.mark.long)], ids=["verl's default", "refill"]
)
def test_a_reward_function_that_raises_costs_its_own_rollouts_only(folder, tmp_path, refill):
    more = {
        "sgpo.profile.path": profile(folder),
        "sgpo.profile.allow_mismatch": True,  # the profile was made with another reward function
        "reward.custom_reward_function.path": tiny.make_reward(tmp_path / "reward.py", BAD_DAYS),
        "sgpo.filter.unsolved_fraction": 0.0,
        "sgpo.batch.rollouts": 32,  # one pass over the first phase: 16 groups of 2
        "trainer.total_training_steps": 3,
        "trainer.save_freq": -1,
        "trainer.v1.sampler.sync_refill_failed_groups": refill,
    }
    run = tiny.train(tmp_path, overrides(folder, **more))
    assert run.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    groups = groups_of_step(tmp_path, 1, rows_of(folder))
    logged = tiny.metrics(tmp_path)[0]
    assert 12 not in dict(groups)  # every rollout of it failed
    assert {n for row, n in groups if row != 13} == {2}
    of_13 = sum(n for row, n in groups if row == 13)
    assert of_13 <= 2  # those with an even answer
    assert sum(n for _, n in groups) == logged["sgpo/rollouts/generated"] == (30 if refill else 28) + of_13
    assert logged["sgpo/rollouts/padding"] < 2  # two updates of whole mini-batches


def test_a_reward_that_is_no_number_ends_the_run_and_names_the_prompt(folder, tmp_path):
    source = "def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):\n    return float('nan')\n"
    more = {
        "sgpo.profile.path": profile(folder),
        "sgpo.profile.allow_mismatch": True,
        "reward.custom_reward_function.path": tiny.make_reward(tmp_path / "reward.py", source),
    }
    run = tiny.train(tmp_path, overrides(folder, **more))
    assert run.returncode == 2
    assert tiny.last_line(tmp_path).startswith("sgpo: reward function: NaN for a rollout of prompt sums:")
