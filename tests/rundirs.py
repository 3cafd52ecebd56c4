"""Run directories as verl and we leave them on disk, with made-up numbers: what the tests of the report read."""

import json
import os
from pathlib import Path

import yaml

METRIC = "val-core/toy/acc/mean@4"
# Costs that are easy to follow: per token 2 FLOPs forward, no attention.
SHAPE = {"parameters": 1, "attention": 0}


def config(**changes) -> dict:
    """A composed config as Hydra writes it, interpolations unresolved. changes: keys, a dot written as a double
    underscore: ``algorithm__filter_groups__enable=True``."""
    tree = {
        "data": {"train_batch_size": 4, "seed": None},
        "actor_rollout_ref": {
            "model": {"path": "${oc.env:SGPO_TEST_MODEL,toy/model}"},
            "actor": {"ppo_mini_batch_size": "${data.train_batch_size}", "ppo_epochs": 1, "use_kl_loss": False},
            "rollout": {"n": 8},
        },
        "algorithm": {"use_kl_in_reward": False, "rollout_correction": {"bypass_mode": False}},
        "trainer": {"total_training_steps": None, "rollout_data_dir": None, "logger": "${unknown.resolver:1}"},
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def stock_step(step: int, accuracy: float | None = None, **more: float) -> dict:
    """A training step of stock verl: 4 groups x 8 rollouts, prompts of 10 tokens, responses of 20, 30 s."""
    data = {
        "training/global_step": step,
        "prompt_length/mean": 10.0,
        "response_length/mean": 20.0,
        "perf/total_num_tokens": 960,
        "timing_s/step": 30.0,
    } | more
    return {"step": step, "data": data | ({} if accuracy is None else {METRIC: accuracy})}


def sgpo_step(step: int, accuracy: float | None = None, flops: float = 3000.0, **more: float) -> dict:
    """A training step of ours: 16 rollouts, 480 trained tokens, ``flops`` each; profile: 1000, 32 rollouts, 20 s."""
    data = {
        "training/global_step": step,
        "timing_s/step": 15.0,
        "sgpo/rollouts/generated": 16,
        "sgpo/rollouts/trained": 16,
        "sgpo/rollouts/padding": 0,
        "sgpo/tokens/generated": 400,
        "sgpo/tokens/trained": 480,
        "sgpo/group/size_mean": 4.0,
        "sgpo/group/frac_mixed": 0.75,
        "sgpo/curriculum/phase": 0 if step < 3 else 1,
        "sgpo/seconds/plugin": 0.15,
        "sgpo/flops/profile": 1000.0,
        "sgpo/flops/total": 1000.0 + flops * step,
        "sgpo/rollouts/profile": 32,
        "sgpo/rollouts/total": 32 + 16 * step,
        "sgpo/tokens/total_trained": 480 * step,
        "sgpo/seconds/profile": 20.0,
    } | more
    return {"step": step, "data": data | ({} if accuracy is None else {METRIC: accuracy})}


def validation(step: int, accuracy: float) -> dict:
    """The line that verl logs before training: validation and nothing else."""
    return {"step": step, "data": {METRIC: accuracy}}


def write_log(path: Path, rows: list[dict], age_s: float = 0.0) -> Path:
    """A log in verl's form; ``age_s`` makes it older than now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))
    then = path.stat().st_mtime - age_s
    os.utime(path, (then, then))
    return path


def write_run(directory: Path, rows: list[dict], settings: dict | None = None, facts: dict | None = None) -> Path:
    """A run directory. facts: run.json; without, one with SHAPE."""
    write_log(directory / "metrics.jsonl", rows)
    (directory / ".hydra").mkdir(exist_ok=True)
    (directory / ".hydra" / "config.yaml").write_text(yaml.safe_dump(settings or config()))
    facts = {"model_shape": SHAPE} if facts is None else facts
    if facts:
        (directory / "run.json").write_text(json.dumps(facts))
    return directory


def stock_run(directory: Path, accuracies: list[float], seed: int | None = None, settings: dict | None = None) -> Path:
    """Stock verl, evaluated before training and at every step."""
    rows = [validation(0, accuracies[0]), *(stock_step(i, a) for i, a in enumerate(accuracies[1:], 1))]
    return write_run(directory, rows, settings, {"model_shape": SHAPE} | ({} if seed is None else {"seed": seed}))


def sgpo_run(
    directory: Path, accuracies: list[float], seed: int | None = None, method: str = "paper", flops: float = 3000.0
) -> Path:
    """Ours, evaluated before training and at every step."""
    rows = [validation(0, accuracies[0]), *(sgpo_step(i, a, flops) for i, a in enumerate(accuracies[1:], 1))]
    return write_run(directory, rows, config(sgpo__method=method), {} if seed is None else {"seed": seed})
