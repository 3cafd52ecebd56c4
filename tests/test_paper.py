"""sGPO's rules, value by value."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgpo_verl.config import FilterSettings, GroupSizeSettings
from sgpo_verl.errors import SgpoError
from sgpo_verl.methods.paper import Class, classify, group_size, phases

TRIVIAL, LEARNABLE, UNSOLVED, FAILED = Class


def classes(trials: int, successes: list[int], **settings) -> list[int]:
    trials_P = np.full(len(successes), trials, dtype=np.int32)
    return classify(trials_P, np.array(successes, dtype=np.int32), FilterSettings(**settings)).tolist()


def sizes(trials: int, successes: list[int], **settings) -> list[int]:
    trials_P = np.full(len(successes), trials, dtype=np.int32)
    return group_size(trials_P, np.array(successes, dtype=np.int32), GroupSizeSettings(**settings)).tolist()


def test_classes_for_eight_samples():
    # p = 0 unsolved; 1/8 .. 6/8 = 0.75 learnable; 7/8 and 8/8 above 0.75 trivial
    assert classes(8, [0, 1, 2, 3, 4, 5, 6, 7, 8]) == [UNSOLVED, *[LEARNABLE] * 6, TRIVIAL, TRIVIAL]


def test_a_prompt_without_trials_failed_and_is_not_unsolved():
    found = classify(np.array([0, 8, 0, 8]), np.array([0, 0, 0, 4]), FilterSettings())
    assert found.tolist() == [FAILED, UNSOLVED, FAILED, LEARNABLE]
    assert found.dtype == np.int8


@pytest.mark.parametrize("rounding", ["floor", "nearest", "ceil", "none"])
def test_group_sizes_exist_for_prompts_without_trials_too(rounding):
    assert sizes(0, [0], rounding=rounding) == [8]


def test_group_sizes_for_eight_samples():
    # p in (1/4, 3/4] -> 2, (1/8, 1/4] -> 4, (0, 1/8] -> 8
    assert sizes(8, [1, 2, 3, 4, 5, 6]) == [8, 4, 2, 2, 2, 2]
    assert sizes(8, [0]) == [8]


@pytest.mark.parametrize(
    ("trials", "by_successes"),
    [
        (4, {1: 4, 2: 2, 3: 2}),
        (5, {1: 4, 2: 2, 3: 2}),  # 5/1 = 5 -> 4; 5/2 = 2.5 -> 2; 5/3 = 1.67 -> 1, clipped to 2
        (16, {1: 8, 2: 8, 3: 4, 4: 4, 5: 2, 12: 2}),  # 16/1 = 16, clipped to 8; 16/3 = 5.3 -> 4; 16/5 = 3.2 -> 2
        (1, {1: 2}),
    ],
)
def test_group_sizes_for_other_numbers_of_samples(trials, by_successes):
    assert sizes(trials, list(by_successes)) == list(by_successes.values())


@pytest.mark.parametrize(
    ("rounding", "expected"),
    # 16 / successes = 16, 8, 5.33, 4, 3.2, 2.67, 2.29, 2; halfway between 2 and 4 in log2 is 2.83, between 4 and 8 5.66
    [
        ("floor", [16, 8, 4, 4, 2, 2, 2, 2]),
        ("ceil", [16, 8, 8, 4, 4, 4, 4, 2]),
        ("nearest", [16, 8, 4, 4, 4, 2, 2, 2]),
        ("none", [16, 8, 6, 4, 4, 3, 3, 2]),
    ],
)
def test_roundings(rounding, expected):
    assert sizes(16, [1, 2, 3, 4, 5, 6, 7, 8], rounding=rounding, min=1, max=64) == expected


def test_bounds_of_the_group_size_need_not_be_powers_of_two():
    assert sizes(8, [1, 2, 4, 6], min=3, max=5) == [5, 4, 3, 3]
    assert sizes(8, [0, 8], min=1, max=6) == [6, 1]


@pytest.mark.parametrize(
    ("trials", "limit", "last_learnable"),
    [(10, 0.7, 7), (10, 0.1, 1), (100, 0.29, 29), (1000, 0.001, 1), (3, 2 / 3, 1), (8, 1.0, 8), (8, 1e-20, 0)],
    # 0.7 x 10 = 7.000000000000001 and 0.29 x 100 = 28.999999999999996 in floats; 2 / 3 is written 0.6666666666666666 < 2/3
)
def test_the_limit_of_the_pass_rate_is_exact_as_written(trials, limit, last_learnable):
    successes = list(range(1, trials + 1))
    expected = [LEARNABLE if s <= last_learnable else TRIVIAL for s in successes]
    assert classes(trials, successes, max_pass_rate=limit) == expected


def test_a_limit_of_many_digits_is_exact_for_many_samples():
    # 0.6666666666666666 x 2,000,000,000 = 1,333,333,333.3
    limit = 0.6666666666666666
    assert classes(2_000_000_000, [1, 1_333_333_333, 1_333_333_334], max_pass_rate=limit) == [LEARNABLE] * 2 + [TRIVIAL]


counts = st.integers(1, 64).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(0, n), min_size=1)))


@given(counts, st.floats(0, 1))
def test_every_prompt_has_one_class_and_unsolved_means_no_success(counts, limit):
    trials, successes = counts
    found = classes(trials, successes, max_pass_rate=limit)
    assert set(found) <= set(Class)
    assert [c == UNSOLVED for c in found] == [s == 0 for s in successes]
    top = max((s for s, c in zip(successes, found, strict=True) if c == LEARNABLE), default=0)
    assert all(s > top for s, c in zip(successes, found, strict=True) if c == TRIVIAL)


@given(counts, st.integers(0, 4), st.integers(0, 4), st.sampled_from(["floor", "nearest", "ceil", "none"]))
def test_group_sizes_are_in_bounds_and_fall_as_the_pass_rate_rises(counts, low, more, rounding):
    trials, successes = counts
    smallest, largest = 2**low, 2 ** (low + more)
    found = sizes(trials, sorted(successes), rounding=rounding, min=smallest, max=largest)
    assert all(smallest <= size <= largest for size in found)
    assert found == sorted(found, reverse=True)
    assert rounding == "none" or all(size & (size - 1) == 0 for size in found)


def make_phases(unsolved: int, seed: int = 0, fraction: float = 0.1):
    """Two prompts of group size 2, one of 8, a trivial one, then ``unsolved`` unsolved ones (positions 4, 5, ...)."""
    class_P = np.array([LEARNABLE, LEARNABLE, LEARNABLE, TRIVIAL] + [UNSOLVED] * unsolved)
    size_P = np.array([8, 2, 2, 2] + [8] * unsolved)
    return phases(class_P, size_P, FilterSettings(unsolved_fraction=fraction), seed)


def test_phases_go_from_small_groups_to_large_and_share_in_the_unsolved():
    easy, hard = make_phases(unsolved=20)  # 10% of 20 = 2
    assert (easy.group_size, easy.learnable, easy.unsolved, easy.rollouts_per_pass) == (2, 2, 2, 8)
    assert (hard.group_size, hard.learnable, hard.unsolved, hard.rollouts_per_pass) == (8, 1, 2, 24)
    assert easy.prompts_M[:2].tolist() == [1, 2]
    assert hard.prompts_M[:1].tolist() == [0]
    assert all(4 <= p < 24 for p in [*easy.prompts_M[2:], *hard.prompts_M[1:]])


def test_the_unsolved_sample_is_a_function_of_the_seed_and_redrawn_per_phase():
    def drawn(seed):
        return [p.prompts_M[p.learnable :].tolist() for p in make_phases(unsolved=100, seed=seed)]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
    assert drawn(3)[0] != drawn(3)[1]
    assert all(len(set(sample)) == 10 for sample in drawn(3))


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 0), (0.1, 1), (0.5, 5), (1.0, 10)])
def test_the_share_of_unsolved_prompts(fraction, expected):
    assert [p.unsolved for p in make_phases(unsolved=10, fraction=fraction)] == [expected, expected]


def test_failed_prompts_are_in_no_phase_even_if_all_unsolved_ones_are():
    class_P = np.array([FAILED, LEARNABLE, FAILED, UNSOLVED, UNSOLVED])
    (phase,) = phases(class_P, np.array([8, 2, 2, 8, 8]), FilterSettings(unsolved_fraction=1.0), 0)
    assert phase.prompts_M.tolist() == [1, 3, 4]
    assert phase.prompts_M.dtype == np.int32


def test_nothing_learnable_says_how_many_could_not_be_profiled():
    with pytest.raises(
        SgpoError, match=r"of 3, 1 are trivial .* and 1 were never solved, 1 could not be profiled; use"
    ):
        phases(np.array([TRIVIAL, UNSOLVED, FAILED]), np.array([2, 8, 8]), FilterSettings(), 0)


def test_nothing_learnable_is_refused_with_the_counts_and_the_way_out():
    with pytest.raises(SgpoError, match=r"of 3, 1 are trivial .*max_pass_rate=0\.75\) and 2 were never solved; use"):
        phases(np.array([TRIVIAL, UNSOLVED, UNSOLVED]), np.array([2, 8, 8]), FilterSettings(), 0)
