"""The recipes for GPUs, on a CPU: the recipe as it is, with a tiny model of its family, a small batch and two steps.

Data is what `sgpo data` writes, rewards are verl's own scores, a profile is made by the run itself. `make test` runs
one, `make test-all` every recipe that a CPU can (docs/verified.md says when that was).
"""

import math
import subprocess
import sys
from pathlib import Path

import gpu_check
import megatron_plain
import pandas as pd
import pytest
import qwen
import tiny

from sgpo_verl.data import prepare

pytestmark = pytest.mark.stack

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
NEEDS_A_GPU = ("sglang",)
EVERY = sorted(
    path.stem
    for path in RECIPES.glob("*.yaml")
    if not path.stem.startswith("arithmetic") and not any(word in path.stem for word in NEEDS_A_GPU)
)
SHORT = "math_1.5b_sgpo"  # two data sets, with scores of 0 and 1 and of -1 and 1
PROMPTS = 48
TRANSFORMER = f"{megatron_plain.MEGATRON}.override_transformer_config"
RECOMPUTING = ("granularity", "method", "num_layers")
NO_RECOMPUTING = [f"~{TRANSFORMER}.recompute_{what}" for what in RECOMPUTING]  # it asks for CUDA


def question(place: int) -> tuple[str, str]:
    """Answered by a digit that the tiny model says as often as any other."""
    return f"Question {place}: what is {place} modulo {qwen.DIGITS}, plus one?", str(place % qwen.DIGITS + 1)


def gsm8k(place: int) -> dict:
    text, answer = question(place)
    return {"question": text, "answer": f"It is so.\n#### {answer}"}


def math_row(place: int) -> dict:
    text, answer = question(place)
    return {"problem": text, "solution": f"It is $\\boxed{{{answer}}}$.", "answer": answer}


def dapo(place: int) -> dict:
    text, answer = question(place)
    return {
        "prompt": [{"role": "user", "content": f"End with Answer: $Answer.\n\n{text}"}],
        "reward_model": {"ground_truth": answer, "style": "rule"},
    }


ROWS = {"gsm8k": gsm8k, "math": math_row, "math500": math_row, "dapo": dapo, "aime2024": dapo}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where the runs are started: data/ as the recipes name it, and model/."""
    place = tmp_path_factory.mktemp("recipes")
    texts = []
    for name, row in ROWS.items():
        public = place / "public" / name / "data"
        public.mkdir(parents=True)
        for split in ("train", "test"):
            pd.DataFrame([row(i) for i in range(PROMPTS)]).to_parquet(public / f"{split}-00000-of-00001.parquet")
        prepare.run(name, str(public.parent), place / "data" / name)
        texts += [row["prompt"][0]["content"] for row in _rows(place / "data" / name)]
    qwen.make_model(place / "model", texts)
    return place


def _rows(folder: Path) -> list[dict]:
    return [row for file in folder.iterdir() for row in pd.read_parquet(file).to_dict("records")]


def overrides(name: str, place: Path, run: Path) -> list[str]:
    """All that keeps the recipe from running here as it is."""
    settings = {
        "+runtime": "cpu",
        "actor_rollout_ref.model.path": place / "model",
        "data.train_batch_size": 8,
        "actor_rollout_ref.actor.ppo_mini_batch_size": 2,
        "trainer.total_training_steps": 2,
        "trainer.val_before_train": False,
        "trainer.test_freq": -1,
        "trainer.save_freq": -1,
        "trainer.logger": "[file]",
        "trainer.rollout_data_dir": run / "rollouts",
        "run_dir": run,
    }
    if "async" in name:
        settings |= {"actor_rollout_ref.rollout.n_gpus_per_node": 1, "ray_kwargs.ray_init.num_gpus": 2}
    removed = []
    if "megatron" in name:  # TP 2, PP 2
        settings |= gpu_check.MEGATRON_ON_CPU | megatron_plain.SETTINGS
        settings |= {f"{megatron_plain.MEGATRON}.dtype": "float32", "trainer.n_gpus_per_node": 4}
        removed = gpu_check.NO_FSDP + NO_RECOMPUTING
    return [f"{key}={value}" for key, value in settings.items()] + removed


def train(name: str, place: Path, run: Path) -> subprocess.CompletedProcess:
    recipe = ["--config-dir", str(RECIPES), "--config-name", name]
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *recipe, *overrides(name, place, run)]
    environment = tiny.environment(run)
    if "megatron" in name:
        environment |= gpu_check.environment("megatron", True, run)
    del environment["VERL_FILE_LOGGER_PATH"]  # a recipe's log is in its run_dir
    with (run / "log").open("w") as log:
        return subprocess.run(command, cwd=place, env=environment, stdout=log, stderr=subprocess.STDOUT)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == SHORT else pytest.mark.long) for name in EVERY]
)
def test_a_recipe_trains_for_two_steps(place, tmp_path, name):
    if "megatron" in name:
        pytest.importorskip("mbridge", reason="it brings megatron-core: pip install 'sgpo-verl[megatron]'")
    done = train(name, place, tmp_path)
    assert done.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    lines = tiny.metrics(tmp_path)
    assert [line["training/global_step"] for line in lines] == [1, 2]
    sizes = []
    for step, line in enumerate(lines, start=1):
        groups = list(tiny.dumped_groups(tmp_path, step).values())
        assert sum(len(rows) for rows in groups) == 8 * 8
        sizes.append({len(rows) for rows in groups})
        right = sum(row["score"] > 0 for rows in groups for row in rows) / 64
        assert 0.05 < right < 0.6  # a quarter, by verl's own scores
        assert any(len({row["score"] for row in rows}) > 1 for rows in groups)
        assert 0 < line["actor/grad_norm"] < math.inf
        assert line["training/rollout_probs_diff_mean"] < 1e-3  # the weights, or the adapter, reached the servers
    if name.endswith("_sgpo"):
        assert set.union(*sizes) <= {2, 4, 8} and sizes != [{8}, {8}]
        assert lines[-1]["sgpo/rollouts/total"] == trained_on(name) * 8 + 2 * 64  # the profile's, and two steps'
        assert [line["sgpo/rollouts/padding"] for line in lines] == [0, 0]
    else:
        assert sizes == [{8}, {8}]


def trained_on(name: str) -> int:
    return PROMPTS if name.startswith("gsm8k") else 2 * PROMPTS
