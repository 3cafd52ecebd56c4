"""Group-relative advantages, against values worked out by hand and a reference written out loop by loop."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgpo_verl.advantage import EPSILON, grpo


def literal_grpo(rewards: list[float], groups: list, normalize: bool) -> list[float]:
    """The formula, one rollout at a time."""
    advantages = []
    for reward, group in zip(rewards, groups, strict=True):
        mine = [r for r, g in zip(rewards, groups, strict=True) if g == group]
        mean = math.fsum(mine) / len(mine)
        if len(mine) == 1 or len(set(mine)) == 1:
            advantages.append(0.0)
            continue
        std = math.sqrt(math.fsum((r - mean) ** 2 for r in mine) / (len(mine) - 1))
        advantages.append((reward - mean) / (std + EPSILON) if normalize else reward - mean)
    return advantages


def test_a_mixed_pair():
    # mean 1/2, std with G - 1: sqrt((1/4 + 1/4) / 1) = 0.70711; 0.5 / 0.707108 = 0.707106
    assert grpo([1, 0], ["a", "a"]) == pytest.approx([0.7071058, -0.7071058], abs=1e-7)


def test_one_success_in_four():
    # mean 1/4, std sqrt((9/16 + 3/16) / 3) = 1/2: 0.75 / 0.500001 and -0.25 / 0.500001
    assert grpo([0, 1, 0, 0], [7, 7, 7, 7]) == pytest.approx([-0.499999, 1.499997, -0.499999, -0.499999], abs=1e-6)


def test_without_the_standard_deviation_it_is_the_centred_reward():
    assert grpo([0, 1, 0, 0], [7, 7, 7, 7], normalize_by_std=False).tolist() == [-0.25, 0.75, -0.25, -0.25]


def test_groups_of_different_size_in_any_order():
    rewards, groups = [1, 1, 0, 0, 1, 0], ["b", "a", "b", "a", "a", "c"]
    # b: 1, 0 -> +-1/2; a: 1, 0, 1 -> 1/3, -2/3, 1/3; c alone
    expected = [1 / 2, 1 / 3, -1 / 2, -2 / 3, 1 / 3, 0]
    assert grpo(rewards, groups, normalize_by_std=False) == pytest.approx(expected)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, -3.7, 1e-8, 1e8])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_groups_of_one_and_groups_of_equal_rewards_get_exactly_zero(size, reward, normalize):
    assert grpo([reward] * size, ["a"] * size, normalize).tolist() == [0.0] * size


def test_no_rollouts():
    assert grpo([], []).shape == (0,)


@pytest.mark.parametrize(
    "labels",
    [
        ["x", "x", "y", "y"],
        [9, 9, 1, 1],
        np.array(["u-1", "u-1", "u-0", "u-0"], dtype=object),
        np.array([1, 1, "y", "y"], dtype=object),
        np.array([None, None, "y", "y"], dtype=object),
        [("a", 1), ("a", 1), ("b", 1), ("b", 1)],
    ],
    ids=repr,
)
def test_any_labels_make_groups(labels):
    assert grpo([1, 0, 1, 0], labels, normalize_by_std=False).tolist() == [0.5, -0.5, 0.5, -0.5]


@pytest.mark.parametrize("labels", [["a"], ["a", "a", "a"]])
def test_labels_that_do_not_match_the_rewards_are_an_error(labels):
    with pytest.raises((ValueError, IndexError)):
        grpo([1.0, 0.0], labels)


# Scores as reward functions return them: a few steps of a hundredth
batches = st.lists(st.tuples(st.integers(-100, 100).map(lambda i: i / 100), st.integers(0, 4)), min_size=1, max_size=40)


@given(batches, st.booleans())
def test_it_is_the_literal_formula(batch, normalize):
    rewards, groups = map(list, zip(*batch, strict=True))
    assert grpo(rewards, groups, normalize) == pytest.approx(literal_grpo(rewards, groups, normalize), abs=1e-9)


@given(batches, st.booleans(), st.integers(0, 99))
def test_neither_the_order_of_rows_nor_the_names_of_groups_matter(batch, normalize, seed):
    rewards, groups = map(np.array, zip(*batch, strict=True))
    rng = np.random.default_rng(seed)
    names, order = rng.permutation(["p", "q", "r", "s", "t"]), rng.permutation(len(batch))
    moved = grpo(rewards[order], names[groups[order]], normalize)
    assert moved == pytest.approx(grpo(rewards, groups, normalize)[order], abs=1e-9)


@given(batches, st.booleans())
def test_advantages_of_a_group_sum_to_zero_and_rank_like_its_rewards(batch, normalize):
    rewards, groups = map(np.array, zip(*batch, strict=True))
    advantages = grpo(rewards, groups, normalize)
    for group in set(groups.tolist()):
        mine = groups == group
        assert advantages[mine].sum() == pytest.approx(0, abs=1e-8)
        assert (
            np.sign(np.subtract.outer(rewards[mine], rewards[mine]))
            * np.subtract.outer(advantages[mine], advantages[mine])
            >= 0
        ).all()
