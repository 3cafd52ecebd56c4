"""The curriculum in progress: exact budgets, every prompt in its turn, and the same after a crash."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgpo_verl.config import CurriculumSettings, FilterSettings
from sgpo_verl.methods.base import Outcome, pack, split
from sgpo_verl.methods.curriculum import Curriculum, Phase
from sgpo_verl.methods.paper import Class, phases

TRIVIAL, LEARNABLE, UNSOLVED, FAILED = Class


def make_phases(unsolved: int, seed: int = 0, fraction: float = 0.1):
    """Two prompts of group size 2, one of 8, a trivial one, then ``unsolved`` unsolved ones (positions 4, 5, ...)."""
    class_P = np.array([LEARNABLE, LEARNABLE, LEARNABLE, TRIVIAL] + [UNSOLVED] * unsolved)
    size_P = np.array([8, 2, 2, 2] + [8] * unsolved)
    return phases(class_P, size_P, FilterSettings(unsolved_fraction=fraction), seed)


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


def paper(seed: int = 0, budgets=(24, 48), **curriculum) -> Curriculum:
    """Phase 0: prompts 1, 2 and 5 unsolved ones in groups of 2; phase 1: prompt 0 and 5 unsolved ones in groups of 8."""
    settings = CurriculumSettings(**curriculum)
    return Curriculum("paper", make_phases(10, seed, 0.5), budgets, [1, 1], settings, seed, {"profile": "f1"})


def outcomes(groups, reward: float = 0.5) -> list[Outcome]:
    return [Outcome(prompt, size, size // 2, reward) for prompt, size in groups]


@given(st.integers(0, 5), st.lists(st.integers(8, 40), min_size=1, max_size=20))
def test_groups_sum_to_the_budget_and_phases_follow_in_order(seed, budgets):
    method, seen, spent = paper(seed), [], Counter()
    for rollouts in budgets:
        groups = method.next_groups(rollouts)
        expected = method.phases[method.phase].group_size
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
    method = Curriculum("paper", [easy, hard], [1, 1], [8, 16], CurriculumSettings(), 0, {})
    assert method.step_rollouts() == 8
    method.next_groups(8)
    assert method.step_rollouts() == 16
    ((prompt, size),) = method.more_groups([2])
    assert size == 2 and prompt in {0, 1, 2, 3}
    assert method.metrics() == {"curriculum/phase": 0, "curriculum/progress": 8 / 24}
    assert [n for _, n in method.next_groups(8)] == [8]


# --- one phase of prompts with group sizes of their own, and the order of the data -----------------------------------


@pytest.mark.parametrize(
    ("sizes", "rollouts", "expected"),
    [
        ([2, 8, 4], 14, [2, 8, 4]),
        ([2, 8, 4], 12, [2, 8, 2]),  # what is left is the next one's
        ([2, 8, 4], 11, [2, 9]),  # one is left: no group of its own
        ([2, 8, 4], 10, [2, 8]),
        ([2, 8, 4], 2, [2]),
        ([8], 4, [4]),
        ([8, 2], 1, [1]),
        ([2, 4], 9, [3, 6]),  # nobody is left: 3 more, from the last one on
        ([2], 7, [7]),
    ],
)
def test_pack(sizes, rollouts, expected):
    assert pack(sizes, rollouts) == expected


@given(st.lists(st.integers(1, 16), min_size=1, max_size=20), st.integers(1, 100))
def test_packing_is_exact_and_gives_all_but_the_last_what_they_want(sizes, rollouts):
    found = pack(sizes, rollouts)
    assert sum(found) == rollouts and len(found) <= len(sizes) and min(found) >= 1
    if rollouts <= sum(sizes):
        assert found[:-1] == sizes[: len(found) - 1]
        assert found[-1] <= sizes[len(found) - 1] + 1
    else:
        more = [n - wanted for n, wanted in zip(found, sizes, strict=True)]
        assert min(more) >= 0 and max(more) - min(more) <= 1


SIZES_M = np.array([2, 8, 4, 2, 2], dtype=np.int32)


def own_sizes(shuffle: bool = True, seed: int = 0) -> Curriculum:
    """Prompts 10, 11, ... with these group sizes, 18 rollouts a pass; 10 steps of 12 rollouts."""
    phase = Phase(4, 5, 0, np.arange(10, 15, dtype=np.int32), SIZES_M)
    return Curriculum("paper", [phase], [10], [12], CurriculumSettings(), seed, {}, shuffle)


def test_prompts_of_one_phase_keep_their_own_group_sizes():
    method = own_sizes(shuffle=False)
    assert method.next_groups(12) == [(10, 2), (11, 8), (12, 2)]  # 4 were wanted, 2 are left
    assert method.next_groups(12) == [(13, 2), (14, 2), (10, 2), (11, 6)]
    assert method.next_groups(3) == [(12, 3)]
    assert method.next_groups(3) == [(13, 3)]  # 2 and one over
    assert method.more_groups([2]) == [(14, 2)]
    assert method.metrics()["curriculum/progress"] == 30 / 120


@given(st.lists(st.integers(1, 40), min_size=1, max_size=10), st.integers(0, 3))
def test_with_sizes_of_their_own_every_prompt_has_its_turn_and_the_budget_is_exact(budgets, seed):
    method, drawn = own_sizes(seed=seed), []
    for rollouts in budgets:
        groups = method.next_groups(rollouts)
        assert sum(n for _, n in groups) == rollouts
        assert all(n == SIZES_M[prompt - 10] for prompt, n in groups[:-1])
        drawn += [prompt for prompt, _ in groups]
    for i in range(0, len(drawn), 5):
        turn = drawn[i : i + 5]
        assert len(set(turn)) == len(turn)


@given(st.integers(0, 8), st.booleans())
def test_with_sizes_of_their_own_a_resumed_method_draws_the_same(steps, shuffle):
    old, new = own_sizes(shuffle), own_sizes(shuffle)
    for _ in range(steps):
        old.observe(outcomes(old.next_groups(12)))
    new.load_state_dict(json.loads(json.dumps(old.state_dict())))
    assert [new.next_groups(12) for _ in range(10)] == [old.next_groups(12) for _ in range(10)]


def test_without_shuffling_every_pass_is_in_the_order_of_the_data():
    # Clusters lie one after another in a phase; the data's order is that of the positions.
    phase = Phase(2, 3, 2, np.array([1, 4, 3, 0, 2], dtype=np.int32))
    method = Curriculum("prune", [phase], [1], [8], CurriculumSettings(), 0, {}, shuffle=False)
    drawn = [prompt for _ in range(5) for prompt, _ in method.next_groups(8)]
    assert drawn == [0, 1, 2, 3, 4] * 4


def test_without_shuffling_a_size_stays_with_its_prompt():
    phase = Phase(4, 3, 0, np.array([2, 0, 1], dtype=np.int32), np.array([2, 8, 4], dtype=np.int32))
    method = Curriculum("paper", [phase], [1], [14], CurriculumSettings(), 0, {}, shuffle=False)
    assert method.next_groups(14) == [(0, 8), (1, 4), (2, 2)]
