"""Training steps of verl's Megatron engine on the rows and advantages that we send it, against the formula.

``megatron_step.py`` runs them without a GPU, on megatron-core's own model, schedules, DDP and optimizer, in as many processes
as the layout wants (gloo); ``megatron_cpu.py`` says what stands in for CUDA.
"""

import subprocess
import sys
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Layout:
    """interleaved: two parts of the model in each of the pipeline's stages."""

    tensor: int = 1
    pipeline: int = 1
    interleaved: bool = False
    ranks: int = 1  # data-parallel

    @property
    def processes(self) -> int:
        return self.tensor * self.pipeline * self.ranks

    @property
    def settings(self) -> dict[str, object]:
        return {
            "trainer.n_gpus_per_node": self.processes,
            f"{MEGATRON}.tensor_model_parallel_size": self.tensor,
            f"{MEGATRON}.pipeline_model_parallel_size": self.pipeline,
            f"{MEGATRON}.virtual_pipeline_model_parallel_size": 2 if self.interleaved else None,
        }


LAYOUTS = {
    "one process": Layout(),
    "TP 2, PP 2": Layout(tensor=2, pipeline=2),
    "PP 2 interleaved, DP 2": Layout(pipeline=2, interleaved=True, ranks=2),
    "TP 2, PP 2, DP 2": Layout(tensor=2, pipeline=2, ranks=2),  # as recipes/math_7b_megatron_grpo.yaml
}


def arguments(folder: Path, layout: Layout) -> list[str]:
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
        **layout.settings,
        f"{MEGATRON}.dtype": "float32",
        f"++{MEGATRON}.override_transformer_config.use_cpu_initialization": True,
        **{f"+actor_rollout_ref.actor.optim.override_optimizer_config.{name}": v for name, v in OPTIMIZER.items()},
    }
    return tiny.overrides(folder, **more)


@dataclass
class Done:
    """What was done, by (name of the case, loss_agg_mode); from these weights of the model in this folder."""

    layout: Layout
    model: Path
    cases: dict[tuple[str, str], dict]
    start: dict[str, torch.Tensor]


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.long if LAYOUTS[name].processes > 4 else ()) for name in LAYOUTS],
)
def done(request, folder, tmp_path_factory) -> Done:
    layout, place = LAYOUTS[request.param], tmp_path_factory.mktemp("megatron")
    # a part of the model for each stage; mbridge cuts no model whose embeddings are tied
    model = folder / "model" if layout.pipeline == 1 else tiny.make_model(place / "model", layers=4, tied=False)
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
    asked = [*arguments(folder, layout), f"actor_rollout_ref.model.path={model}"]
    torch.save({"arguments": asked, "cases": cases}, place / "spec")
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(layout.processes),
    ]
    script = Path(__file__).with_name("megatron_step.py")
    with (place / "log").open("w") as log:
        ended = subprocess.run(
            [*torchrun, str(script), str(place / "spec"), str(place / "out")], stdout=log, stderr=log, timeout=2000
        ).returncode
    assert ended == 0, (place / "log").read_text()[-3000:]
    result = torch.load(place / "out", weights_only=False)
    return Done(layout, model, {(c["name"], c["mode"]): c for c in result["cases"]}, result["start"])


def distance(a: dict, b: dict) -> float:
    """Largest difference of any weight."""
    return max((a[name].float() - b[name].float()).abs().max().item() for name in a)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mode", rig.MODES)
def test_a_step_on_ragged_groups_is_the_formulas(done, mode, name):
    case = done.cases[name, mode]
    expected = rig_formula.step(case, done.layout.ranks, done.start, done.model)
    assert expected.keys() == done.start.keys() == case["weights"].keys()
    assert distance(expected, done.start) > 1e-4
    assert distance(case["weights"], expected) < 1e-3 * distance(expected, done.start)


def test_micro_batches_are_several_and_rows_are_left_out(done):
    at_once = done.layout.pipeline if done.layout.interleaved else 1  # micro-batches of an update are a multiple of it
    for (name, _), case in done.cases.items():
        assert all(number % at_once == 0 for number in case["micro_batches"])
        assert min(case["micro_batches"]) > 1 or name != "ragged"
    pruned = done.cases["pruned", "token-mean"]
    mixed = 2 + 4 + 8  # rows of the groups with a success and a failure
    assert len(pruned["keys"]) == mixed + -mixed % (done.layout.ranks * at_once)
    assert len(pruned["counted"]) == 32
    assert len(done.cases["rejected", "token-mean"]["counted"]) == 16  # test_steps.py says which


def test_leaving_out_rows_without_advantage_leaves_the_gradient(done):
    for mode in ("token-mean", "seq-mean-token-mean"):  # one update
        pruned, whole = done.cases["pruned", mode]["weights"], done.cases["ragged", mode]["weights"]
        assert distance(pruned, whole) < 1e-3 * distance(whole, done.start)
