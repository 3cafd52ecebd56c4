#!/usr/bin/env python3
"""How far the model behind `sgpo simulate` agrees with real training of a small model: the table of docs/simulate.md.

    python docs/benchmarks/simulate.py [SEEDS]        about ten seconds for 3 seeds

REAL is what one-process RL on a 0.6M-parameter model needed (sorting digits; 2,048 prompts: 35% trivial, 35% never solvable,
30% in between; 64 rollouts per step; medians over its seeds): FLOPs to a held-out accuracy of 0.80 and 0.84.
"""

import math
import sys

import numpy as np

from sgpo_verl.coins import synthetic
from sgpo_verl.config import load_settings
from sgpo_verl.report.headline import first_reach
from sgpo_verl.schedule import RunNumbers
from sgpo_verl.simulate import simulate

GRPO, PRUNE = {"method": "prune", "prune": False}, {"method": "prune"}
# groups of one size, prompts by the posterior, no profile
SELECT = {"method": "bayes", "allocation": "uniform", "advantage": "grpo"}
# name: settings, rollouts per step, group size, steps, prompts, GFLOP to 0.80 and 0.84
REAL = {
    "stock GRPO, n = 8": (GRPO, 64, 8, 160, 2048, 355, 521),
    "the same, pruned": (PRUNE, 64, 8, 160, 2048, 166, 198),
    "stock GRPO, 128 rollouts per step": (GRPO, 128, 8, 80, 2048, 372, 462),
    "pruned, 256 rollouts per step": (PRUNE, 256, 8, 60, 2048, 247, 304),
    "dynamic sampling": ({"method": "greso", "curriculum": "shuffle"}, 64, 8, 160, 2048, 273, 346),
    "sGPO, 1,024 prompts, profile included": ({"method": "paper"}, 64, 8, 160, 1024, 332, 469),
    "the same, pruned ": ({"method": "paper", "prune": True}, 64, 8, 160, 1024, 193, 247),
    "select, n = 8": ({**SELECT, "posterior": {"temperature": 0.3}}, 64, 8, 160, 2048, 164, 208),
    "select, n = 4": (SELECT, 64, 4, 160, 2048, 80, 132),
    "select, n = 2": (SELECT, 64, 2, 160, 2048, 87, 165),
    "select, n = 4, posterior advantage": ({**SELECT, "advantage": "posterior", "prune": False}, 64, 4, 160, 2048, 310, 446),
}  # fmt: skip


def flops_to(name: str, seed: int) -> list[float]:
    node, rollouts, n, steps, prompts, *_ = REAL[name]
    numbers = RunNumbers(rollouts // n, n, rollouts // n, total_epochs=steps, total_training_steps=steps)
    evals = simulate(synthetic(prompts, seed), load_settings(node), numbers, seed=seed).evals
    reaches = [first_reach(evals, accuracy) for accuracy in (0.80, 0.84)]
    return [reach.cost["total_flops"] if reach else math.inf for reach in reaches]


def main(seeds: int) -> None:
    print("| run | real, to 0.80 | model | real, to 0.84 | model |\n|---|---|---|---|---|")
    base = None
    for name, (*_, at_80, at_84) in REAL.items():
        ours = np.median([flops_to(name, seed) for seed in range(seeds)], axis=0)
        base = ours if base is None else base
        real, model = (355 / at_80, 521 / at_84), base / ours
        cells = [f"{ratio:.2f}x" if ratio > 0 else "-" for pair in zip(real, model, strict=True) for ratio in pair]
        print(f"| {name.strip()} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
