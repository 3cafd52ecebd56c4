"""The estimator against verl's own, on batches that both understand, and on those that only ours does."""

import numpy as np
import torch
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

from sgpo_verl.binding.estimator import compute_sgpo_advantage, last_output_rows, rows_are


def batch(scores, width=3):
    """Outcome rewards at the last of ``width`` tokens, and a full mask."""
    rewards = torch.zeros(len(scores), width)
    rewards[:, -1] = torch.tensor(scores)
    return rewards, torch.ones(len(scores), width)


def test_agrees_with_verls_grpo_on_ragged_groups():
    rng = np.random.default_rng(0)
    index = np.repeat(np.array([f"u{i}" for i in range(40)], dtype=object), rng.integers(2, 9, 40))
    rewards, mask = batch(rng.integers(0, 2, len(index)).astype(float).tolist())
    mask[:, 2] = torch.from_numpy(rng.integers(0, 2, len(index)).astype(np.float32))
    for normalize in (True, False):
        theirs, _ = compute_grpo_outcome_advantage(rewards.clone(), mask, index, norm_adv_by_std_in_grpo=normalize)
        ours, returns = compute_sgpo_advantage(
            rewards, mask, index, config=AlgoConfig(norm_adv_by_std_in_grpo=normalize)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        assert ours.dtype == theirs.dtype and returns is ours


def test_a_group_of_one_gets_zero_where_verl_gives_its_raw_reward():
    rewards, mask = batch([1.0, 1.0, 0.0])
    index = np.array(["alone", "pair", "pair"], dtype=object)
    ours, _ = compute_sgpo_advantage(rewards, mask, index)
    # pair: mean 0.5, std sqrt(0.5): +-0.5 / 0.7071 = +-0.7071
    torch.testing.assert_close(ours[:, 0], torch.tensor([0.0, 0.70711, -0.70711]), rtol=1e-4, atol=1e-4)


def test_padding_rows_get_zero_and_change_nothing():
    rewards, mask = batch([1.0, 0.0, 0.0, 0.0])
    mask[2:] = 0
    index = np.array(["a", "a", "pad7", "pad7"], dtype=object)
    ours, _ = compute_sgpo_advantage(rewards, mask, index)
    alone, _ = compute_sgpo_advantage(rewards[:2], mask[:2], index[:2])
    torch.testing.assert_close(ours[:2], alone)
    assert not ours[2:].any()


def test_last_output_rows():
    # session a_0 has outputs 0, 1 (rows 0, 2) and a_1 only output 0 (row 1); the last of a session speaks for it
    assert last_output_rows(["a_0_0", "a_1_0", "a_0_1"]).tolist() == [2, 1, 2]


def test_the_last_output_of_a_session_speaks_for_all_of_them():
    # Two sessions: the first with two outputs (scores 0 then 1), the second with one (score 0). Without the rule the
    # group would be {0, 1, 0}; with it {1, 0}: +-0.7071, and both rows of the first session get +0.7071.
    rewards, mask = batch([0.0, 1.0, 0.0])
    index = np.array(["a", "a", "a"], dtype=object)
    with rows_are(["a_0_0", "a_0_1", "a_1_0"]):
        ours, _ = compute_sgpo_advantage(rewards, mask, index)
    torch.testing.assert_close(ours[:, 0], torch.tensor([0.70711, 0.70711, -0.70711]), rtol=1e-4, atol=1e-4)
