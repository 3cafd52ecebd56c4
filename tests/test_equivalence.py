"""With all groups equal, nothing filtered and one phase, a run is stock GRPO's: the same rollouts, losses and weights.

Rollouts are seeded by prompt, session and step, so two runs sample the same as long as their weights are the same. Stock verl
reads the prompts from a file in the order that our curriculum deals them. Rows arrive in any order, so sums differ in
their last bits; single steps on rows in the same order are compared bit for bit in test_steps.py.
"""

import pandas as pd
import pytest
import tiny
from paper_run import overrides, profile
from safetensors.torch import load_file

from sgpo_verl.config import load_settings
from sgpo_verl.plan import make_plan
from sgpo_verl.profile import load_profile
from sgpo_verl.schedule import RunNumbers

pytestmark = pytest.mark.stack

SEEDED = """
from zlib import crc32
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

class Seeded(SingleTurnAgentLoop):
    async def run(self, sampling_params, **kwargs):
        name = f"{kwargs['extra_info']['index']} {kwargs['session_id']} {kwargs['global_steps']}"
        return await super().run({**sampling_params, "seed": crc32(name.encode())}, **kwargs)
"""
EQUAL = {"filter": {"max_pass_rate": 1.0, "unsolved_fraction": 1.0}, "group_size": {"min": 8, "max": 8}}
STEPS = 5


@pytest.fixture(scope="module")
def runs(folder, tmp_path_factory):
    """(stock GRPO's run folder, ours)."""
    place = tmp_path_factory.mktemp("equal")
    (place / "seeded.py").write_text(SEEDED)
    (place / "agents.yaml").write_text("- name: seeded\n  _target_: seeded.Seeded\n")
    data = tiny.make_data(place / "train.parquet", 48, agent_name="seeded")
    both = {
        "data.train_files": data,
        "trainer.total_training_steps": STEPS,
        "trainer.save_freq": STEPS,
        "actor_rollout_ref.actor.checkpoint.save_contents": "[model,optimizer,extra,hf_model]",
        "actor_rollout_ref.rollout.agent.agent_loop_config_path": place / "agents.yaml",
        "actor_rollout_ref.actor.ppo_mini_batch_size": 8,
        "actor_rollout_ref.actor.loss_agg_mode": "seq-mean-token-mean",
        "actor_rollout_ref.actor.use_kl_loss": True,
        "actor_rollout_ref.actor.kl_loss_coef": 0.1,
        "actor_rollout_ref.actor.optim.optimizer": "SGD",
        "actor_rollout_ref.actor.optim.lr": 0.3,
    }
    settings = {f"sgpo.{group}.{name}": value for group, node in EQUAL.items() for name, value in node.items()}
    made = profile(folder)
    plan = make_plan(load_profile(made), load_settings(EQUAL), RunNumbers(8, 8, 8, total_training_steps=STEPS)).plan
    method = plan.start()[0]
    order = [position for _ in range(STEPS) for position, _ in method.next_groups(64)]
    stock_data = place / "in_our_order.parquet"
    pd.read_parquet(data).iloc[order].to_parquet(stock_data)
    stock = both | {
        "+sgpo": None,
        "sgpo.filter.unsolved_fraction": None,
        "algorithm.adv_estimator": "grpo",
        "data.train_files": stock_data,
        "data.shuffle": False,
    }
    ours = both | settings | {"sgpo.profile.path": made, "sgpo.profile.allow_mismatch": True}
    folders = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(place))
        for name, more in (("stock", stock), ("ours", ours)):
            run = tiny.train(place / name, overrides(folder, **more))
            assert run.returncode == 0, (place / name / "log").read_text()[-3000:]
            folders.append(place / name)
    assert len(set(order)) == 8 * STEPS
    return folders


def answers(run, step):
    rows = (row for rows in tiny.dumped_groups(run, step).values() for row in rows)
    return sorted((row["input"], row["output"], row["score"]) for row in rows)


def test_every_step_samples_the_same_answers(runs):
    stock, ours = runs
    for step in range(1, STEPS + 1):
        assert answers(stock, step) == answers(ours, step)
        assert len(answers(ours, step)) == 64


@pytest.mark.parametrize(
    "key", ["actor/pg_loss", "actor/kl_loss", "actor/grad_norm", "critic/advantages/max", "actor/lr"]
)
def test_every_step_computes_the_same(runs, key):
    stock, ours = ([m[key] for m in tiny.metrics(run)] for run in runs)
    assert ours == pytest.approx(stock, rel=1e-3, abs=1e-6)
    assert any(stock)


def test_the_weights_end_up_the_same(runs, folder):
    place = f"checkpoints/global_step_{STEPS}/actor/huggingface/model.safetensors"
    start, stock, ours = (
        load_file(path) for path in (folder / "model/model.safetensors", runs[0] / place, runs[1] / place)
    )
    moved = max((stock[name] - start[name]).abs().max().item() for name in start)
    apart = max((stock[name] - ours[name]).abs().max().item() for name in start)
    assert apart < 1e-3 * moved
    assert moved > 1e-3
