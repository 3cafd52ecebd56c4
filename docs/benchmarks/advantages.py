"""Time of the advantages beside verl's two GRPO estimators, on one ragged batch.

    VERL_PLATFORM=cpu python docs/benchmarks/advantages.py [ROLLOUTS]

Groups of 2, 4 and 8, 32 tokens, rewards 0 or 1, uids as verl makes them. Each estimator gets the same tensors; the best of
five runs counts, and only ratios within one call of this script mean anything.
"""

import sys
import time
import uuid

import numpy as np
import torch
from omegaconf import OmegaConf
from verl.trainer.ppo.core_algos import get_adv_estimator_fn

import sgpo_verl.binding.estimator  # noqa: F401 - registers "sgpo"

TOKENS, REPEATS = 32, 5


def batch(rollouts: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """(token_level_rewards, response_mask, uids) of at least so many rollouts in ragged groups."""
    rng = np.random.default_rng(0)
    sizes = rng.choice([2, 4, 8], size=rollouts // 4)
    uids = np.repeat(np.array([str(uuid.uuid4()) for _ in sizes], dtype=object), sizes)
    rewards, mask = torch.zeros(len(uids), TOKENS), torch.ones(len(uids), TOKENS)
    rewards[:, -1] = torch.from_numpy(rng.random(len(uids)) < 0.5).float()
    order = rng.permutation(len(uids))
    return rewards[order], mask, uids[order]


def seconds(name: str, rewards: torch.Tensor, mask: torch.Tensor, uids: np.ndarray) -> float:
    estimate, config = get_adv_estimator_fn(name), OmegaConf.create({"norm_adv_by_std_in_grpo": True})
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        estimate(token_level_rewards=rewards, response_mask=mask, index=uids, config=config)
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    given = batch(int(sys.argv[1]) if len(sys.argv) > 1 else 65536)
    took = {name: seconds(name, *given) for name in ("grpo", "grpo_vectorized", "sgpo")}
    print(f"{len(given[2])} rollouts in {len(set(given[2]))} groups")
    for name, best in took.items():
        print(f"{name:16} {best * 1e3:8.1f} ms   {best / took['sgpo']:5.1f} x sgpo's")


if __name__ == "__main__":
    main()
