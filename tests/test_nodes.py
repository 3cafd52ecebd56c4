"""Two Ray nodes on this machine, a worker and a rollout server on each; one of them dies."""

import pytest
import tiny
from paper_run import groups_of_step, overrides, profile, rows_of
from ray.cluster_utils import Cluster

pytestmark = [pytest.mark.stack, pytest.mark.long]


@pytest.fixture
def two_nodes(tmp_path, monkeypatch):
    """Starts two nodes of one "GPU" each; every worker gets the run's environment from them."""
    for name, value in tiny.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    clusters = []

    def start():
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 16, "num_gpus": 1})
        clusters.append(cluster)
        return cluster, cluster.add_node(num_cpus=16, num_gpus=1)

    yield start
    for cluster in clusters:
        cluster.shutdown()


def test_a_run_on_two_nodes_says_which_worker_died_and_goes_on_with_another_node(folder, tmp_path, two_nodes):
    def arguments(cluster):
        more = {
            "sgpo.profile.path": profile(folder),
            "trainer.total_training_steps": 4,
            "trainer.save_freq": 2,
            "trainer.nnodes": 2,
            "trainer.n_gpus_per_node": 1,
            "+ray_kwargs.ray_init.address": cluster.address,
            "ray_kwargs.ray_init.num_cpus": "null",
            "ray_kwargs.ray_init.num_gpus": "null",
        }
        return overrides(folder, **more)

    cluster, second = two_nodes()
    run = tiny.start(tmp_path, arguments(cluster))
    tiny.wait_until(lambda: len(tiny.metrics(tmp_path)) >= 2, run)  # two steps before the next checkpoint
    cluster.remove_node(second, allow_graceful=False)
    assert run.wait(300) == 2
    said = tiny.last_line(tmp_path)
    assert "died" in said and "start the same command again to resume from the last checkpoint" in said
    cluster.shutdown()
    assert (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").read_text() == "2"

    cluster, _ = two_nodes()
    run = tiny.train(tmp_path, arguments(cluster))
    assert run.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    assert [m["training/global_step"] for m in tiny.metrics(tmp_path)] == [3, 4]
    assert tiny.metrics(tmp_path)[-1]["sgpo/rollouts/total"] == 48 * 8 + 4 * 64
    row_of = rows_of(folder)
    for step in range(1, 5):
        assert sum(n for _, n in groups_of_step(tmp_path, step, row_of)) == 64
