"""Rollouts where one more teaches most: against every possible allocation, and exact to the last rollout."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgpo_verl.allocation import allocate, alone, mixed


def sizes_of(p, rollouts, least=2, most=8, weight=None, price=None) -> list[int]:
    """Rollouts of each prompt, 0 for none."""
    given = [None if x is None else np.array(x, dtype=float) for x in (weight, price)]
    places, sizes = allocate(np.array(p, dtype=float), rollouts, least, most, *given)
    assert len(set(places.tolist())) == len(places) == len(sizes)
    found = np.zeros(len(p), dtype=int)
    found[places] = sizes
    return found.tolist()


def value(p, sizes, weight=None, price=None) -> float:
    """sum of weight x f(n) - price x n, written out."""
    weight, price = weight or [1] * len(p), price or [0] * len(p)
    return sum(
        w * (1 - q**n - (1 - q) ** n) - c * n if n else 0 for q, n, w, c in zip(p, sizes, weight, price, strict=True)
    )


def best(p, rollouts, most, weight, price) -> float | None:
    """Of all allocations of sizes 0 or 2..most that sum to ``rollouts``; None if there is none."""
    every = itertools.product([0, *range(2, most + 1)], repeat=len(p))
    return max((value(p, sizes, weight, price) for sizes in every if sum(sizes) == rollouts), default=None)


def test_the_probability_of_a_mixed_group():
    # 1/2: 1 - 2/4, 1 - 2/8; 1/4, n = 2: 1 - 1/16 - 9/16
    assert mixed(np.array([0.5, 0.5, 0.25, 0.0, 1.0]), np.array([2, 3, 2, 4, 4])).tolist() == [0.5, 0.75, 0.375, 0, 0]


def test_a_group_of_one_is_never_mixed():
    assert mixed(np.array([0.0, 0.3, 0.5, 1.0]), 1) == pytest.approx([0] * 4)


def test_pairs_go_to_the_prompts_nearest_to_one_half():
    assert sizes_of([0.05, 0.5, 0.95, 0.4], 4) == [0, 2, 0, 2]


def test_the_best_prompt_comes_first():
    places, sizes = allocate(np.array([0.1, 0.5, 0.3, 0.9]), 6, 2, 2)
    assert (places.tolist(), sizes.tolist()) == ([1, 2, 0], [2, 2, 2])  # 0.1 before 0.9 at equal gain, in their order


def test_a_group_grows_where_one_more_gains_more_than_another_group():
    # per rollout p (1 - p): 0.25 and 0.0099; of a third one at 0.5: 3/4 - 1/2 = 0.25, a fourth 7/8 - 3/4 = 0.125
    assert sizes_of([0.5, 0.01], 4) == [4, 0]
    assert sizes_of([0.5, 0.4], 4) == [2, 2]  # 0.24 is more than 0.125


def test_nothing_grows_beyond_the_most_while_others_have_room():
    assert sizes_of([0.5, 0.01], 8, most=4) == [4, 4]


@pytest.mark.parametrize(
    ("p", "rollouts", "least", "most", "expected"),
    [
        ([0.5], 8, 2, 4, [8]),  # nobody else is there
        ([0.5, 0.4], 9, 2, 4, [5, 4]),  # both are at their most: dealt out one by one
        ([0.5, 0.4], 5, 2, 2, [3, 2]),  # one rollout is too few for a group
        ([0.5, 0.4], 1, 2, 4, [1, 0]),  # a step of less than a group
        ([0.4, 0.5], 3, 4, 4, [0, 3]),
        ([0.0, 1.0], 4, 2, 4, [2, 2]),  # nothing teaches: spent all the same
    ],
)
def test_what_fits_nowhere_is_spent_too(p, rollouts, least, most, expected):
    assert sizes_of(p, rollouts, least, most) == expected


def test_an_odd_rollout_opens_a_group_if_that_is_worth_another_groups_last():
    # 5 over [0.5, 0.5, 0.5], most 3: [3, 2] = 0.75 + 0.5 = 1.25
    assert sorted(sizes_of([0.5, 0.5, 0.5], 5, most=3)) == [0, 2, 3]
    # 5 over [0.5, 0.4], most 4: after [2, 2], a third of 0.5 gains 0.25 and one of 0.4 0.24
    assert sizes_of([0.5, 0.4], 5, most=4) == [3, 2]
    # 5 over [0.5, 0.2], most 4: after [3, 0] (0.75), the pair of 0.2 gains 0.32, two more of 0.5 0.125 + 0 (at its most)
    assert sizes_of([0.5, 0.2], 5, most=4) == [3, 2]


def test_weights_choose_between_equal_pass_rates():
    assert sizes_of([0.3, 0.3, 0.3], 2, weight=[1, 1.1, 1]) == [0, 2, 0]


def test_a_price_makes_an_expensive_prompt_wait():
    # per rollout 0.25 - 0.2 = 0.05 and 0.09 - 0 = 0.09
    assert sizes_of([0.5, 0.1], 2, price=[0.2, 0]) == [0, 2]
    assert sizes_of([0.5, 0.1], 2, price=[0.1, 0]) == [2, 0]


# Whole hundredths and tenths: many ties, and both ends
problems = st.integers(1, 5).flatmap(
    lambda m: st.tuples(
        st.lists(st.integers(0, 100).map(lambda i: i / 100), min_size=m, max_size=m),
        st.integers(2, 14),
        st.integers(2, 5),
        st.lists(st.integers(1, 30).map(lambda i: i / 10), min_size=m, max_size=m),
        st.lists(st.integers(0, 5).map(lambda i: i / 10), min_size=m, max_size=m),
    )
)


@settings(deadline=None, max_examples=300)
@given(problems)
def test_no_allocation_is_better(problem):
    p, rollouts, most, weight, price = problem
    found = sizes_of(p, rollouts, 2, most, weight, price)
    assert sum(found) == rollouts
    expected = best(p, rollouts, most, weight, price)
    if expected is not None:
        assert set(found) <= {0, *range(2, most + 1)}
        assert value(p, found, weight, price) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=4), st.integers(2, 12))
def test_no_allocation_is_better_for_any_pass_rates(p, rollouts):
    expected = best(p, rollouts, 5, None, None)
    if expected is not None:
        assert value(p, sizes_of(p, rollouts, most=5)) == pytest.approx(expected, abs=1e-9)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(0, 100).map(lambda i: i / 100), min_size=1, max_size=5), st.integers(1, 12), st.integers(1, 4)
)
def test_no_allocation_is_better_where_no_group_is_needed(p, rollouts, most):
    places, sizes = allocate(np.array(p), rollouts, 1, most, gain=alone)
    found = np.zeros(len(p), dtype=int)
    found[places] = sizes
    assert found.sum() == rollouts
    every = [n for n in itertools.product(range(most + 1), repeat=len(p)) if sum(n) == rollouts]
    if every:
        worth = [sum(alone(np.array(p), np.array(n))) for n in every]
        assert sum(alone(np.array(p), found)) == pytest.approx(max(worth), abs=1e-12)


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=30),
    st.integers(1, 200),
    st.integers(1, 9),
    st.integers(0, 8),
    st.integers(0, 9),
)
def test_the_budget_is_spent_exactly_on_distinct_prompts(p, rollouts, least, more, seed):
    rng = np.random.default_rng(seed)
    weight, price = np.exp(rng.normal(size=len(p))), rng.random(len(p))
    places, sizes = allocate(np.array(p), rollouts, least, least + more, weight, price)
    assert int(sizes.sum()) == rollouts
    assert len(set(places.tolist())) == len(places)
    assert sizes.min() >= min(least, rollouts)
    room = len(p) * (least + more) >= rollouts
    assert not room or more < least - 1 or sizes.max() <= least + more


def test_a_million_prompts_take_no_longer_than_a_glance():
    p_M = np.random.default_rng(0).beta(1, 1, 1_000_000)
    began = time.perf_counter()
    places, sizes = allocate(p_M, 4096, 2, 8, np.ones_like(p_M), np.zeros_like(p_M))
    assert time.perf_counter() - began < 10  # a tenth of a second
    # A third rollout gains as much as each of the first two: 1364 groups of 3, and two pairs
    assert np.bincount(sizes).tolist() == [0, 0, 2, 1364]
    assert len(set(places.tolist())) == 1366
    assert np.abs(p_M[places] - 0.5).max() < 0.001  # 1366 of a million, evenly spread
