"""sGPO's rules, value by value, and the curriculum in progress."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgpo_verl.config import CurriculumSettings, FilterSettings, GroupSizeSettings
from sgpo_verl.errors import SgpoError
from sgpo_verl.methods import METHODS
from sgpo_verl.methods.base import Outcome
from sgpo_verl.methods.paper import Class, Paper, Phase, classify, group_size, phases, split

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


@pytest.mark.parametrize(
    ("rollouts", "size", "expected"),
    [(16, 8, [8, 8]), (17, 8, [9, 8]), (15, 8, [15]), (8, 8, [8]), (7, 2, [3, 2, 2]), (3, 1, [1, 1, 1]), (4, 8, [4])],
)
def test_split(rollouts, size, expected):
    assert split(rollouts, size) == expected


@given(st.integers(1, 64), st.integers(0, 500))
def test_split_is_exact_and_even_and_never_smaller_than_asked(size, more):
    found = split(size + more, size)
    assert sum(found) == size + more
    assert max(found) - min(found) <= 1
    assert min(found) >= size


def paper(seed: int = 0, budgets=(24, 48), **curriculum) -> Paper:
    """Phase 0: prompts 1, 2 and 5 unsolved ones in groups of 2; phase 1: prompt 0 and 5 unsolved ones in groups of 8."""
    settings = CurriculumSettings(**curriculum)
    return Paper(make_phases(10, seed, 0.5), budgets, settings, seed, {"profile": "f1"})


def outcomes(groups, reward: float = 0.5) -> list[Outcome]:
    return [Outcome(prompt, size, size // 2, reward) for prompt, size in groups]


def test_paper_is_the_method_that_its_name_says():
    assert METHODS[Paper.name] is Paper


@given(st.integers(0, 5), st.lists(st.integers(8, 40), min_size=1, max_size=20))
def test_groups_sum_to_the_budget_and_phases_follow_in_order(seed, budgets):
    method, seen, spent = paper(seed), [], Counter()
    for rollouts in budgets:
        expected = method.group_size()
        groups = method.next_groups(rollouts)
        assert sum(n for _, n in groups) == rollouts
        assert len(groups) == rollouts // expected
        seen.append(method.phase)
        spent[method.phase] += rollouts
        method.observe(outcomes(groups))
    assert seen == sorted(seen)
    assert spent[1] == 0 or spent[0] >= 24  # the second phase begins when the first one's budget is spent


# A pass over phase 0 takes 7 x 2 = 14 rollouts: it ends within its first pass, with it, or later.
@given(st.integers(0, 5), st.sampled_from([8, 14, 24]), st.lists(st.integers(8, 40), min_size=1, max_size=20))
def test_every_prompt_of_a_phase_is_drawn_once_before_any_is_drawn_again(seed, first, more):
    method, drawn = paper(seed, budgets=(first, 48)), {0: [], 1: []}
    for rollouts in [first, *more]:
        groups = method.next_groups(rollouts)
        drawn[method.phase] += [prompt for prompt, _ in groups]
    for number, phase in enumerate(method.phases):
        everyone = sorted(phase.prompts_M.tolist())
        length = len(everyone)
        passes = [drawn[number][i : i + length] for i in range(0, len(drawn[number]), length)]
        assert all(sorted(p) == everyone for p in passes[:-1])
        assert all(len(set(p)) == len(p) for p in passes[-1:])


def test_passes_differ_in_their_order():
    method = paper(budgets=(10_000, 1))
    passes = [tuple(prompt for prompt, _ in method.next_groups(14)) for _ in range(10)]
    assert len(set(passes)) > 1


rewards = st.lists(st.floats(0, 1), min_size=30, max_size=30)


@given(st.sampled_from(["epochs", "plateau"]), st.integers(0, 20), rewards)
def test_a_resumed_method_draws_what_the_old_one_would_have_drawn(until, steps_before, rewards):
    def step(method, reward):
        groups = method.next_groups(16)
        method.observe(outcomes(groups, reward))
        return groups, method.phase, method.metrics()

    old = paper(until=until, window=2, budgets=(160, 160))
    for reward in rewards[:steps_before]:
        step(old, reward)
    new = paper(until=until, window=2, budgets=(160, 160))
    new.load_state_dict(json.loads(json.dumps(old.state_dict())))
    assert new.state_dict() == old.state_dict()
    assert [step(new, r) for r in rewards[steps_before:][:10]] == [step(old, r) for r in rewards[steps_before:][:10]]


@pytest.mark.parametrize(
    ("rewards", "phase"),
    [
        ([0.3, 0.3, 0.3], 0),  # fewer than two windows of 2
        ([0.1, 0.2, 0.3, 0.4], 0),  # 0.35 - 0.15 = 0.2 gained
        ([0.1, 0.2, 0.3, 0.4, 0.3, 0.4], 1),  # 0.35 - 0.35 = 0
        ([0.5, 0.5, 0.52, 0.5], 0),  # 0.51 - 0.5 = 0.01, not less than min_gain
        ([0.5, 0.5, 0.4, 0.4], 1),
    ],
)
def test_a_plateau_of_the_mean_reward_ends_the_phase(rewards, phase):
    method = paper(until="plateau", window=2, min_gain=0.0099, budgets=(10_000, 10_000))
    for reward in rewards:
        method.observe(outcomes(method.next_groups(16), reward))
    method.next_groups(16)
    assert method.phase == phase


def test_rewards_of_the_phase_before_do_not_end_the_next_one():
    method = paper(until="plateau", window=1, budgets=(10_000, 10_000))
    for _ in range(2):
        method.observe(outcomes(method.next_groups(16), 0.5))
    method.next_groups(16)
    assert (method.phase, method.rewards) == (1, [])


def test_groups_weigh_by_their_size_in_the_mean_reward_of_a_step():
    method = paper()
    method.observe([Outcome(0, 2, 1, 0.0), Outcome(1, 6, 6, 1.0)])
    assert method.rewards == [0.75]  # (2 x 0 + 6 x 1) / 8


def test_progress_is_the_share_of_all_rollouts_and_stops_at_one():
    method = paper(budgets=(24, 48))
    assert method.metrics() == {"curriculum/phase": 0, "curriculum/progress": 0.0}
    method.next_groups(24)
    assert method.metrics() == {"curriculum/phase": 0, "curriculum/progress": 24 / 72}
    method.next_groups(100)
    assert method.metrics() == {"curriculum/phase": 1, "curriculum/progress": 1.0}


def test_a_refill_stays_in_its_phase_and_is_not_paid_from_the_budget():
    # Phase one: 4 prompts in groups of 2, budget 8 = one step of 8 rollouts; then groups of 8.
    easy, hard = Phase(2, 4, 0, np.arange(4)), Phase(8, 2, 0, np.arange(4, 6))
    method = Paper([easy, hard], [8, 16], CurriculumSettings(), 0, {})
    method.next_groups(8)
    assert (method.group_size(refill=True), method.group_size()) == (2, 8)
    ((prompt, size),) = method.next_groups(2, refill=True)
    assert size == 2 and prompt in {0, 1, 2, 3}
    assert method.metrics() == {"curriculum/phase": 0, "curriculum/progress": 8 / 24}
    assert [n for _, n in method.next_groups(8)] == [8]
