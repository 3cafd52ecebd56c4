"""Group-relative advantages, against values worked out by hand and a reference written out loop by loop."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgpo_verl.advantage import EPSILON, grpo, posterior, rare


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


# --- the posterior's -----------------------------------------------------------------------------------------------


def against(successes: list[int], a: float, b: float, normalize: bool = False) -> np.ndarray:
    """The advantages of one group, of a prior Beta(a, b)."""
    count = len(successes)
    return posterior(successes, np.zeros(count), np.full(count, a), np.full(count, b), normalize)


@pytest.mark.parametrize(
    ("successes", "a", "b", "expected"),
    [
        ([1, 0], 1, 1, [2 / 3, -2 / 3]),  # baselines (1 + 0) / 3 and (1 + 1) / 3
        ([1, 1], 1, 1, [1 / 3, 1 / 3]),
        ([0, 0], 1, 1, [-1 / 3, -1 / 3]),
        ([1], 1, 3, [3 / 4]),  # a group of one: against the prior alone
        ([0], 1, 3, [-1 / 4]),
        ([1, 0, 0, 0], 2, 2, [5 / 7, -3 / 7, -3 / 7, -3 / 7]),  # 2 / 7 and 3 / 7
        ([0, 0], 1e-9, 1e9, [0, 0]),  # what the prior expected just so
    ],
)
def test_against_what_was_expected_without_the_rollout_itself(successes, a, b, expected):
    assert against(successes, a, b) == pytest.approx(expected, abs=1e-15)


def test_the_deviation_is_the_priors():
    # m = 1/4: sqrt(1/4 x 3/4) = 0.4330127; baselines 1 / 5 and 2 / 5
    found = against([1, 0], 1, 3, normalize=True)
    assert found == pytest.approx([0.8 / 0.4330127018922193, -0.4 / 0.4330127018922193])


def test_every_prompt_has_its_own_prior_and_rows_may_come_in_any_order():
    successes, groups = [1, 1, 0, 0], ["y", "x", "x", "y"]
    found = posterior(successes, groups, np.array([1, 2, 2, 1]), np.array([1, 1, 1, 1]), normalize_by_std=False)
    # y: (1 + 0) / 3, (1 + 1) / 3; x: (2 + 0) / 4, (2 + 1) / 4
    assert found == pytest.approx([2 / 3, 1 / 2, -3 / 4, -2 / 3])


def test_a_posterior_of_no_rollouts():
    assert posterior([], [], np.array([]), np.array([])).shape == (0,)


def softmax_policy(p: float, correct: tuple[int, ...]) -> np.ndarray:
    """Probabilities of three actions, those in ``correct`` p in all, split 2 : 1 where a side has two."""
    pi = np.empty(3)
    for side, mass in ((list(correct), p), ([k for k in range(3) if k not in correct], 1 - p)):
        pi[side] = mass * np.array([2 / 3, 1 / 3] if len(side) == 2 else [1.0])
    return pi


def expected_gradient(pi, correct, size, advantages) -> tuple[np.ndarray, float]:
    """(mean, variance summed over components) of 1/G sum of A_i grad log pi(a_i), over all groups that can be sampled.

    Of a softmax, grad log pi(a) = e_a - pi.
    """
    mean, square = np.zeros(3), 0.0
    for actions in itertools.product(range(3), repeat=size):
        advantages_G = advantages(np.array([float(k in correct) for k in actions]))
        gradient = advantages_G @ (np.eye(3)[list(actions)] - pi) / size
        probability = float(np.prod(pi[list(actions)]))
        mean, square = mean + probability * gradient, square + probability * gradient @ gradient
    return mean, square - mean @ mean


def true_gradient(pi, correct) -> np.ndarray:
    """Of the pass rate: d/dtheta_k of sum of pi over ``correct`` = pi_k ([k correct] - pass rate)."""
    is_correct = np.isin(np.arange(3), correct)
    return pi * (is_correct - pi[is_correct].sum())


PRIORS = [(1.0, 1.0), (0.5, 3.5), (3.0, 1.0), (1e-3, 1e-3), (40.0, 2.0)]
each_policy = pytest.mark.parametrize("correct", [(0,), (0, 2)], ids=["one correct", "two correct"])
each_rate = pytest.mark.parametrize("p", [0.05, 0.25, 0.5, 0.9])
each_size = pytest.mark.parametrize("size", [1, 2, 3])


@each_policy
@each_rate
@each_size
@pytest.mark.parametrize(("a", "b"), PRIORS)
def test_the_posteriors_gradient_is_unbiased_whatever_the_prior(correct, p, size, a, b):
    pi = softmax_policy(p, correct)
    truth, m = true_gradient(pi, correct), a / (a + b)
    mean, _ = expected_gradient(pi, correct, size, lambda s: against(s, a, b))
    assert mean == pytest.approx(truth, abs=1e-12)
    mean, _ = expected_gradient(pi, correct, size, lambda s: against(s, a, b, normalize=True))
    assert mean == pytest.approx(truth / math.sqrt(m * (1 - m)), abs=1e-12 / math.sqrt(m * (1 - m)))


@each_policy
@each_rate
def test_grpos_gradient_is_scaled_by_its_own_mean_and_deviation(correct, p):
    # The group's mean holds the rollout itself: (G - 1) / G. Divided by the deviation of a pair, 0.7071 for every p,
    # where the pass rate's own would be 1 / sqrt(p (1 - p)). So the check above can fail.
    pi = softmax_policy(p, correct)
    truth = true_gradient(pi, correct)
    for size in (2, 3):
        mean, _ = expected_gradient(pi, correct, size, lambda s: grpo(s, np.zeros(len(s)), normalize_by_std=False))
        assert mean == pytest.approx(truth * (size - 1) / size, abs=1e-12)
    mean, _ = expected_gradient(pi, correct, 2, lambda s: grpo(s, np.zeros(2)))
    assert mean == pytest.approx(truth / (math.sqrt(2) * (1 + math.sqrt(2) * EPSILON)), abs=1e-12)


@each_policy
@pytest.mark.parametrize("p", [0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95])
@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("strength", [0.5, 4.0, 100.0])
def test_a_prior_that_is_right_makes_the_gradient_less_noisy(correct, p, size, strength):
    # Both are unbiased: the mean of the others alone, and that mean drawn towards the pass rate.
    pi = softmax_policy(p, correct)
    a, b = strength * p, strength * (1 - p)
    _, ours = expected_gradient(pi, correct, size, lambda s: against(s, a, b))
    others = size / (size - 1)
    _, without = expected_gradient(pi, correct, size, lambda s: others * grpo(s, np.zeros(size), False))
    assert ours < without


def test_a_prior_that_is_wrong_makes_it_noisier():
    pi = softmax_policy(0.5, (0,))
    _, ours = expected_gradient(pi, (0,), 3, lambda s: against(s, 99.0, 1.0))
    _, without = expected_gradient(pi, (0,), 3, lambda s: 1.5 * grpo(s, np.zeros(3), False))
    assert ours > without


# --- the rare outcome's --------------------------------------------------------------------------------------------


def rarely(successes: list[int], a: float, b: float, normalize: bool = False) -> np.ndarray:
    """The advantages of one group, of a prior Beta(a, b)."""
    count = len(successes)
    return rare(successes, np.zeros(count), np.full(count, a), np.full(count, b), normalize)


@pytest.mark.parametrize(
    ("successes", "a", "b", "expected"),
    [
        ([1], 1, 3, [1]),  # mostly failed: a success is news
        ([0], 1, 3, [0]),
        ([1], 3, 1, [0]),  # mostly solved: a failure is
        ([0], 3, 1, [-1]),
        ([1], 1, 1, [1]),  # at one half, successes
        ([0], 1, 1, [0]),
        ([1, 0], 1, 1, [1, -1]),  # given the other: (1 + 0) / 3 and (1 + 1) / 3
        ([1, 1, 0], 2, 1, [0, 0, -1]),  # (2 + 1) / 5, twice, and (2 + 2) / 5
    ],
)
def test_only_the_outcome_that_was_not_expected_has_an_advantage(successes, a, b, expected):
    assert rarely(successes, a, b).tolist() == expected


def test_it_is_scaled_by_what_was_expected_and_never_above_a_bound():
    # m = 1/4: 1 / sqrt(1/4 x 3/4); m = 1/100: m (1 - m) is below 1/20
    assert rarely([1], 1, 3, normalize=True) == pytest.approx([2.309401076758503])
    assert rarely([1], 1, 99, normalize=True) == pytest.approx([4.47213595499958])
    assert rarely([0], 99, 1, normalize=True) == pytest.approx([-4.47213595499958])


def test_a_rare_outcome_of_no_rollouts():
    assert rare([], [], np.array([]), np.array([])).shape == (0,)


@each_policy
@each_rate
@each_size
@pytest.mark.parametrize(("a", "b"), PRIORS)
def test_the_rare_outcomes_gradient_is_unbiased_whatever_the_prior(correct, p, size, a, b):
    pi = softmax_policy(p, correct)
    mean, _ = expected_gradient(pi, correct, size, lambda s: rarely(s, a, b))
    assert mean == pytest.approx(true_gradient(pi, correct), abs=1e-12)


@each_policy
@pytest.mark.parametrize("p", [0.05, 0.1, 0.2, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_at_equal_cost_rare_outcomes_are_less_noisy_than_groups_where_outcomes_are_uneven(correct, p, size):
    # 2 per generated row, 8 more per trained one; the variance of a mean over what a cost of 1 buys
    pi = softmax_policy(p, correct)
    _, alone = expected_gradient(pi, correct, 1, lambda s: rarely(s, p, 1 - p))
    ours = alone * (2 + 8 * min(p, 1 - p))
    unbiased = size / (size - 1)
    _, grouped = expected_gradient(pi, correct, size, lambda s: unbiased * grpo(s, np.zeros(size), False))
    pruned = grouped * size * (2 + 8 * (1 - p**size - (1 - p) ** size))
    assert ours < pruned


groups_of_two_outcomes = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4)), min_size=1, max_size=40)
evidence = st.lists(st.floats(0.01, 50), min_size=5, max_size=5)


@given(groups_of_two_outcomes, evidence, evidence)
def test_a_posteriors_advantages_have_the_sign_of_the_outcome_and_depend_on_the_others(rows, a, b):
    successes, groups = map(list, zip(*rows, strict=True))
    a_N, b_N = np.array(a)[groups], np.array(b)[groups]
    found = posterior(successes, groups, a_N, b_N, normalize_by_std=False)
    assert (np.sign(found) == np.where(np.array(successes) == 1, 1, -1)).all()
    for i, (success, group) in enumerate(rows):
        others = [s for j, (s, g) in enumerate(rows) if g == group and j != i]
        baseline = (a[group] + sum(others)) / (a[group] + b[group] + len(others))
        assert found[i] == pytest.approx(success - baseline)
