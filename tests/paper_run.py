"""A small sGPO run of the real trainer, from a given profile; what other test files share of it."""

import pandas as pd
import tiny

# 48 prompts, successes of 8 trials: 12 trivial, 16 of G = 2, 8 of G = 4, 4 of G = 8, 8 unsolved (a quarter drawn: 2).
SUCCESSES = [8] * 12 + [4] * 16 + [2] * 8 + [1] * 4 + [0] * 8
GROUP_SIZE = {**dict.fromkeys(range(12, 28), 2), **dict.fromkeys(range(28, 36), 4), **dict.fromkeys(range(36, 40), 8)}
UNSOLVED = set(range(40, 48))
LEARNING_RATE = 1e-3


def overrides(folder, **more):
    settings = {
        "algorithm.adv_estimator": None,
        "+sgpo": "paper",
        "sgpo.filter.unsolved_fraction": 0.25,
        "trainer.total_training_steps": 12,
        "trainer.save_freq": 3,
        "actor_rollout_ref.actor.optim.lr_scheduler_type": "cosine",
        **more,
    }
    return tiny.overrides(folder, **settings)


def profile(folder):
    """The profile that the run is planned from."""
    return tiny.make_profile(folder, SUCCESSES, overrides(folder))


def rows_of(folder) -> dict[str, int]:
    """Prompt text -> row of train.parquet."""
    frame = pd.read_parquet(folder / "train.parquet")
    return {messages[0]["content"]: row for row, messages in enumerate(frame["prompt"])}


def groups_of_step(run, step, row_of) -> list[tuple[int, int]]:
    """[(row of the data, rollouts)] as verl dumped them, its padding rows aside."""
    groups = tiny.dumped_groups(run, step).items()
    return [(row_of[rows[0]["input"]], len(rows)) for uid, rows in groups if not uid.startswith("pad")]
