"""The async trainer modes, for real: groups of different sizes in flight, killed, resumed."""

import pytest
import tiny
from paper_run import GROUP_SIZE, UNSOLVED, groups_of_step, overrides, profile, rows_of

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def row_of(folder):
    return rows_of(folder)


def check_steps(run, steps, row_of):
    """Every step: exactly the baseline's rollouts, whole groups of their planned sizes. Returns the uids trained on."""
    uids = []
    for step in steps:
        groups = groups_of_step(run, step, row_of)
        assert sum(n for _, n in groups) == 8 * 8
        for row, n in groups:
            assert n == GROUP_SIZE[row] if row not in UNSOLVED else n in (2, 4, 8)
        uids += tiny.dumped_groups(run, step)
    return uids


def check_counts(lines):
    assert [m["sgpo/rollouts/generated"] for m in lines] == [64] * len(lines)
    assert [m["sgpo/rollouts/padding"] for m in lines] == [0] * len(lines)
    assert [m["sgpo/rollouts/total"] for m in lines] == [48 * 8 + 64 * step for step in range(1, len(lines) + 1)]


def test_colocate_async_goes_on_after_a_kill_with_what_was_in_flight(folder, tmp_path, row_of):
    more = {
        "trainer.v1.trainer_mode": "sgpo_colocate_async",
        "trainer.v1.colocate_async.num_warmup_batches": 1.5,
        "trainer.total_training_steps": 6,
        "trainer.save_freq": 2,
        "sgpo.profile.path": profile(folder),
    }
    first = tiny.start(tmp_path, overrides(folder, **more))
    tiny.wait_until(lambda: len(tiny.metrics(tmp_path)) == 3, first)
    tiny.kill_all(first)
    lines = tiny.metrics(tmp_path)[:2]
    of_two = check_steps(tmp_path, (1, 2), row_of)

    second = tiny.train(tmp_path, overrides(folder, **more))
    assert second.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    lines += tiny.metrics(tmp_path)
    check_counts(lines)
    uids = of_two + check_steps(tmp_path, range(3, 7), row_of)
    assert len(uids) == len(set(uids))  # nothing is trained on twice
    # A batch and a half is drawn ahead, each batch in its phase: sizes grow as the plan says, at most two steps early.
    sizes = [m["sgpo/group/size_mean"] for m in lines]
    assert sizes == sorted(sizes) and sizes[0] < 4 and sizes[-1] > 4
    assert [m["training/global_step"] for m in lines] == [1, 2, 3, 4, 5, 6]


def test_separate_async_updates_as_often_as_the_baseline_and_leaves_rows_out(folder, tmp_path, row_of, monkeypatch):
    monkeypatch.setenv("VERL_LOGGING_LEVEL", "WARN")  # at INFO, verl 0.9.1 fails without hybrid replicas
    more = {
        "trainer.v1.trainer_mode": "sgpo_separate_async",
        "trainer.v1.separate_async.parameter_sync_step": 2,
        "trainer.total_training_steps": 3,
        "trainer.save_freq": -1,
        "actor_rollout_ref.hybrid_engine": False,
        "actor_rollout_ref.rollout.nnodes": 1,
        "actor_rollout_ref.rollout.n_gpus_per_node": 1,
        "ray_kwargs.ray_init.num_gpus": 2,
        "sgpo.prune": True,
        "sgpo.profile.path": profile(folder),
    }
    process = tiny.train(tmp_path, overrides(folder, **more))
    assert process.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    lines = tiny.metrics(tmp_path)
    assert [m["sgpo/rollouts/generated"] for m in lines] == [64] * 3
    assert [m["sgpo/rollouts/total"] for m in lines] == [48 * 8 + 64 * step for step in (1, 2, 3)]
    uids = check_steps(tmp_path, (1, 2, 3), row_of)
    assert len(uids) == len(set(uids))
    for step, logged in enumerate(lines, start=1):
        groups = tiny.dumped_groups(tmp_path, step).values()
        mixed = [rows for rows in groups if len({row["score"] for row in rows}) > 1]
        assert logged["sgpo/rollouts/trained"] == sum(len(rows) for rows in mixed)
        assert logged["sgpo/rollouts/padding"] < 2  # one rank: no row is padded but to have one for each update
        scores = [row["score"] for rows in groups for row in rows]
        assert logged["critic/score/mean"] == pytest.approx(sum(scores) / 64)  # of all that was sampled
    # cosine over 3 steps x 2 updates, and the schedule is where six updates leave it
    assert lines[-1]["actor/lr"] == pytest.approx(0, abs=1e-9)
