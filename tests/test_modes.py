"""The async trainer modes, for real: groups of different sizes in flight, dropped, rescued, killed, resumed."""

import itertools

import pytest
import tiny
import torch
from methods_run import GROUPS, STEPS, check_rescued, is_mixed, scores_of
from methods_run import overrides as method_overrides
from methods_run import trained as method_trained
from paper_run import GROUP_SIZE, UNSOLVED, groups_of_step, overrides, profile, rows_of

pytestmark = pytest.mark.stack

COLOCATE = {"trainer.v1.trainer_mode": "sgpo_colocate_async", "trainer.v1.colocate_async.num_warmup_batches": 1.5}
SEPARATE = {
    "trainer.v1.trainer_mode": "sgpo_separate_async",
    "trainer.v1.separate_async.parameter_sync_step": 2,
    "actor_rollout_ref.hybrid_engine": False,
    "actor_rollout_ref.rollout.nnodes": 1,
    "actor_rollout_ref.rollout.n_gpus_per_node": 1,
    "ray_kwargs.ray_init.num_gpus": 2,
}


@pytest.fixture(scope="module")
def row_of(folder):
    return rows_of(folder)


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setenv("VERL_LOGGING_LEVEL", "WARN")  # at INFO, verl 0.9.1 fails without hybrid replicas


def check_steps(run, steps, row_of):
    """Every step: exactly the baseline's rollouts, whole groups of their planned sizes, none trained on twice."""
    uids = []
    for step in steps:
        groups = groups_of_step(run, step, row_of)
        assert sum(n for _, n in groups) == 8 * 8
        for row, n in groups:
            assert n == GROUP_SIZE[row] if row not in UNSOLVED else n in (2, 4, 8)
        uids += tiny.dumped_groups(run, step)
    assert len(uids) == len(set(uids))


def check_totals(lines, profiled):
    assert [m["sgpo/rollouts/generated"] for m in lines] == [64] * len(lines)
    assert [m["sgpo/rollouts/total"] for m in lines] == [profiled + 64 * step for step in range(1, len(lines) + 1)]
    assert [m["training/global_step"] for m in lines] == list(range(1, len(lines) + 1))


@pytest.mark.long
def test_colocate_async_keeps_the_plan_with_a_batch_and_a_half_drawn_ahead(folder, tmp_path, row_of):
    more = {
        **COLOCATE,
        "trainer.total_training_steps": 6,
        "trainer.save_freq": -1,
        "sgpo.profile.path": profile(folder),
    }
    process = tiny.train(tmp_path, overrides(folder, **more))
    assert process.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    lines = tiny.metrics(tmp_path)
    check_totals(lines, profiled=48 * 8)
    assert [m["sgpo/rollouts/padding"] for m in lines] == [0] * 6
    check_steps(tmp_path, range(1, 7), row_of)
    # Each batch is drawn in its phase: sizes grow as the plan says, at most two steps early.
    sizes = [m["sgpo/group/size_mean"] for m in lines]
    assert sizes == sorted(sizes) and sizes[0] < 4 and sizes[-1] > 4


def test_bayes_goes_on_after_a_kill_with_its_beliefs_and_what_was_in_flight(folder, tmp_path, row_of):
    more = {"trainer.total_training_steps": 5, "trainer.save_freq": 2, **GROUPS}
    arguments = method_overrides(folder, tmp_path, "bayes", **COLOCATE, **more)
    first = tiny.start(tmp_path, arguments)
    tiny.wait_until((tmp_path / "rollouts" / "3.jsonl").exists, first)  # so that the dump of step 2 is whole
    tiny.kill_all(first)
    saved = int((tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").read_text())
    assert saved in (2, 4)
    lines = tiny.metrics(tmp_path)[:saved]

    second = tiny.train(tmp_path, arguments)
    assert second.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    resumed = tiny.metrics(tmp_path)
    assert [m["training/global_step"] for m in resumed] == list(range(saved + 1, 6))
    total = forgotten = 0
    for metrics in [*lines, *resumed]:
        step = metrics["training/global_step"]
        scores = scores_of(tmp_path, step)
        total += sum(map(len, scores))
        assert metrics["sgpo/rollouts/generated"] == sum(map(len, scores))
        assert metrics["sgpo/rollouts/total"] == total
        owed = 64 * step - total - forgotten  # what no choice of the finished groups makes up comes with the next step
        assert 0 <= owed < 4
        if step == saved:
            forgotten = owed  # by the kill
        assert {len(group) for group in scores} <= {2, 3, 4}
        mixed = sum(len(group) for group in scores if is_mixed(group))
        assert metrics["sgpo/rollouts/trained"] in (mixed, mixed + 1)  # two updates of equal size
    uids = [uid for step in range(1, 6) for uid in tiny.dumped_groups(tmp_path, step)]
    assert len(uids) == len(set(uids))  # nothing is trained on twice
    # Every step drew a batch, beside the batch and a half before the first; none was drawn to fill the window again.
    for step in (saved, 5):
        state = torch.load(tmp_path / f"checkpoints/global_step_{step}/data.pt", weights_only=False)
        assert state["method"]["total"] == 64 * (step + 1) + 32
        check_beliefs(state["posterior"], believed(tmp_path, step, row_of))


def believed(run, steps, row_of, memory=0.7):
    """Of every row, the (a, b) that its groups may have led to from Beta(1, 1), whatever their order within a step."""
    possible = {row: {(1.0, 1.0)} for row in row_of.values()}
    for step in range(1, steps + 1):
        seen = {}
        for rows in tiny.dumped_groups(run, step).values():
            wins = sum(row["score"] for row in rows)
            seen.setdefault(row_of[rows[0]["input"]], []).append((wins, len(rows) - wins))
        for row, groups in seen.items():
            ends = set()
            for start, order in itertools.product(possible[row], itertools.permutations(groups)):
                a, b = start
                for wins, losses in order:
                    a, b = 1 + memory * (a - 1) + wins, 1 + memory * (b - 1) + losses
                ends.add((a, b))
            possible[row] = ends
    return possible


def check_beliefs(posterior, possible):
    for row, ends in possible.items():
        found = float(posterior["a_P"][row]), float(posterior["b_P"][row])
        assert any(found == pytest.approx(end, abs=1e-4) for end in ends), (row, found, ends)


def check_greso(logged, steps):
    """Whole steps of mixed groups of 8, dropped ones paid for and replaced one by one."""
    total = 0
    for metrics, groups in zip(logged, steps, strict=True):
        assert [len(group) for group in groups] == [8] * 8
        assert all(map(is_mixed, groups))
        assert metrics["sgpo/rollouts/trained"] == 64
        dropped = metrics.get("training/filter_groups/evicted_samples", 0)
        assert metrics["sgpo/rollouts/generated"] == 64 + 8 * dropped
        assert metrics["sgpo/group/frac_mixed"] == pytest.approx(8 / (8 + dropped))
        total += metrics["sgpo/rollouts/generated"]
        assert metrics["sgpo/rollouts/total"] == total
    assert total > STEPS * 64  # half of the prompts have no signal


@pytest.mark.long
def test_greso_in_colocate_async_replaces_what_it_drops(folder, tmp_path):
    check_greso(*method_trained(folder, tmp_path, "greso", **COLOCATE))


@pytest.mark.long
def test_greso_in_separate_async_replaces_what_it_drops(folder, tmp_path, quiet):
    check_greso(*method_trained(folder, tmp_path, "greso", **SEPARATE))


@pytest.mark.long
def test_aero_in_colocate_async_counts_groups_and_rescues_them_whole(folder, tmp_path):
    more = {"actor_rollout_ref.rollout.n": 4, "sgpo.aero.explore": 4, "sgpo.aero.most": 9, "sgpo.aero.keep": 3}
    logged, steps = method_trained(folder, tmp_path, "aero", **COLOCATE, **more)
    total = 0
    for metrics, groups in zip(logged, steps, strict=True):
        assert len(groups) == 8  # data.train_batch_size
        assert metrics["sgpo/rollouts/trained"] == check_rescued(groups, explore=4, most=9, keep=3)
        assert metrics["sgpo/rollouts/generated"] == sum(map(len, groups))
        total += sum(map(len, groups))
        assert metrics["sgpo/rollouts/total"] == total
    assert any(len(scores) == 9 for groups in steps for scores in groups)


def test_separate_async_updates_as_often_as_the_baseline_and_leaves_rows_out(folder, tmp_path, row_of, quiet):
    more = {
        **SEPARATE,
        "trainer.total_training_steps": 3,
        "trainer.save_freq": -1,
        "sgpo.prune": True,
        "sgpo.profile.path": profile(folder),
    }
    process = tiny.train(tmp_path, overrides(folder, **more))
    assert process.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    lines = tiny.metrics(tmp_path)
    check_totals(lines, profiled=48 * 8)
    check_steps(tmp_path, (1, 2, 3), row_of)
    for step, logged in enumerate(lines, start=1):
        groups = tiny.dumped_groups(tmp_path, step).values()
        mixed = [rows for rows in groups if len({row["score"] for row in rows}) > 1]
        assert logged["sgpo/rollouts/trained"] == sum(len(rows) for rows in mixed)
        assert logged["sgpo/rollouts/padding"] < 2  # one rank: no row is padded but to have one for each update
        scores = [row["score"] for rows in groups for row in rows]
        assert logged["critic/score/mean"] == pytest.approx(sum(scores) / 64)  # of all that was sampled
    # cosine over 3 steps x 2 updates, and the schedule is where six updates leave it
    assert lines[-1]["actor/lr"] == pytest.approx(0, abs=1e-9)
