"""Training steps of verl's Megatron engine on the rows and advantages that we send it, against the formula.

``megatron_step.py`` runs them without a GPU, on megatron-core's own model, schedule, DDP and optimizer; ``megatron_cpu.py``
says what stands in for CUDA.
"""

import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import megatron_plain
import pytest
import rig
import rig_formula
import tiny
import torch
from megatron_plain import MEGATRON

pytestmark = pytest.mark.skipif(
    not find_spec("mbridge"),
    reason="mbridge, which brings megatron-core, is not installed (pip install 'sgpo-verl[megatron]')",
)

# Megatron's distributed optimizer knows no plain SGD. Adam without momentum and with a huge epsilon is one: rate x g / (|g| +
# epsilon) = g x rate / epsilon.
EPSILON = 1e6
OPTIMIZER = {"adam_beta1": 0.0, "adam_beta2": 0.999, "adam_eps": EPSILON}
CASES = {
    "ragged": ([2, 2, 4, 8, 16], [1, 2, 1, 3, 0], {}),
    "pruned": ([2, 2, 4, 8, 16], [1, 2, 1, 3, 0], {"prune": True}),
    "rejected": ([2, 2, 4, 8, 16], [1, 2, 1, 3, 0], {"advantage": "aero"}),
}


def arguments(folder: Path) -> list[str]:
    more = {
        "model_engine": "megatron",
        "+runtime": None,
        "algorithm.adv_estimator": None,
        "+sgpo": "prune",
        "actor_rollout_ref.actor.optim.lr": rig.LEARNING_RATE * EPSILON,
        "actor_rollout_ref.actor.optim.weight_decay": 0,
        "actor_rollout_ref.actor.optim.clip_grad": 0,
        "actor_rollout_ref.actor.optim.total_training_steps": 1000,
        "actor_rollout_ref.actor.loss_scale_factor": rig.HORIZON,
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 4,
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 4,
        **megatron_plain.SETTINGS,
        f"{MEGATRON}.dtype": "float32",
        f"++{MEGATRON}.override_transformer_config.use_cpu_initialization": True,
        **{f"+actor_rollout_ref.actor.optim.override_optimizer_config.{name}": v for name, v in OPTIMIZER.items()},
    }
    return tiny.overrides(folder, **more)


@pytest.fixture(scope="module")
def done(folder, tmp_path_factory):
    """(what was done, by case; the weights before)."""
    place = tmp_path_factory.mktemp("megatron")
    cases = [
        {
            "name": name,
            "rows": rig.rollouts(sizes, correct),
            "settings": {"method": "paper", **settings},
            "updates": updates,
            "mode": mode,
            "dynamic": number % 2 == 0,
            "kl": False,
        }
        for name, (sizes, correct, settings) in CASES.items()
        for number, (mode, updates) in enumerate(zip(rig.MODES, (1, 2, 2, 1, 2), strict=True))
    ]
    torch.save({"arguments": arguments(folder), "cases": cases}, place / "spec")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    one_process = {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    command = [
        sys.executable,
        str(Path(__file__).with_name("megatron_step.py")),
        str(place / "spec"),
        str(place / "out"),
    ]
    with (place / "log").open("w") as log:
        ended = subprocess.run(
            command, env={**os.environ, **one_process}, stdout=log, stderr=log, timeout=2000
        ).returncode
    assert ended == 0, (place / "log").read_text()[-3000:]
    result = torch.load(place / "out", weights_only=False)
    return {(c["name"], c["mode"]): c for c in result["cases"]}, result["start"]


def distance(a: dict, b: dict) -> float:
    """Largest difference of any weight."""
    return max((a[name].float() - b[name].float()).abs().max().item() for name in a)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mode", rig.MODES)
def test_a_step_on_ragged_groups_is_the_formulas(done, folder, mode, name):
    cases, start = done
    case = cases[name, mode]
    expected = rig_formula.step(case, 1, start, folder / "model")
    assert expected.keys() == start.keys() == case["weights"].keys()
    assert distance(expected, start) > 1e-4
    assert distance(case["weights"], expected) < 1e-3 * distance(expected, start)


def test_micro_batches_are_several_and_rows_are_left_out(done):
    cases, _ = done
    assert all(min(case["micro_batches"]) > 1 for (name, _), case in cases.items() if name == "ragged")
    assert len(cases["pruned", "token-mean"]["keys"]) == 2 + 4 + 8  # the groups with a success and a failure
    assert len(cases["pruned", "token-mean"]["counted"]) == 32
    assert len(cases["rejected", "token-mean"]["counted"]) == 16  # test_steps.py says which


def test_leaving_out_rows_without_advantage_leaves_the_gradient(done):
    cases, start = done
    for mode in ("token-mean", "seq-mean-token-mean"):  # one update
        pruned, whole = cases["pruned", mode]["weights"], cases["ragged", mode]["weights"]
        assert distance(pruned, whole) < 1e-3 * distance(whole, start)
