"""GRESO's rules, value by value, and its choice in progress: exact budgets, fair turns, the same after a crash."""

import copy
import json
import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgpo_verl.config import GresoSettings
from sgpo_verl.errors import SgpoError
from sgpo_verl.methods.base import Outcome
from sgpo_verl.methods.curriculum import Phase
from sgpo_verl.methods.greso import LONGEST, Greso, draw_probability, moved, next_run, refill

SETTINGS = GresoSettings()


def greso(prompts: int = 10, size: int = 2, seed: int = 0, shuffle: bool = True, order=None, **settings) -> Greso:
    """All of ``prompts`` prompts in groups of ``size``, a step of 8 rollouts, 80 rollouts in all."""
    prompts_M = np.arange(prompts, dtype=np.int32) if order is None else np.array(order, dtype=np.int32)
    phase = Phase(size, prompts, 0, prompts_M)
    return Greso("greso", phase, prompts, 8, 80, GresoSettings(**settings), seed, {"profile": "f1"}, shuffle)


def outcome(prompt: int, successes: int, size: int = 2) -> Outcome:
    return Outcome(prompt, size, successes, successes / size)


def test_the_probability_of_a_draw():
    # 0: always. Easy 0.5: 0.5, 0.5^2 = 0.25. Hard 0.9: 0.9, 0.9^3 = 0.729. 0.5^7 = 0.0078 < 0.01
    found = draw_probability(np.array([0, 1, 2, -1, -3, 7], dtype=np.int16), 0.5, 0.9, 0.01)
    assert found == pytest.approx([1, 0.5, 0.25, 0.9, 0.729, 0.01])


def test_the_longest_runs_are_drawn_as_often_as_exploration_asks():
    runs = np.array([LONGEST, -LONGEST], dtype=np.int16)
    assert draw_probability(runs, 0.95, 0.05, 0.01).tolist() == [0.01, 0.01]


@pytest.mark.parametrize(
    ("run", "made", "expected"),
    [
        (0, outcome(0, 2), 1),
        (3, outcome(0, 2), 4),
        (-3, outcome(0, 2), 1),  # too easy after too hard: begun anew
        (0, outcome(0, 0), -1),
        (-3, outcome(0, 0), -4),
        (3, outcome(0, 0), -1),
        (5, outcome(0, 1), 0),
        (-5, outcome(0, 1), 0),
        (LONGEST, outcome(0, 2), LONGEST),
        (-LONGEST, outcome(0, 0), -LONGEST),
        (2, Outcome(0, 4, 4, 0.98, equal=True), 3),
        (2, Outcome(0, 4, 4, 0.97, equal=True), 0),  # all equal, neither easy nor without success
        (2, Outcome(0, 4, 4, 0.99, equal=False), 0),  # all succeed, of different rewards: there is signal
        (-2, Outcome(0, 4, 0, 0.1, equal=True), -3),  # the authors' reward of 0.1 is no success either
        (-2, Outcome(0, 4, 0, 0.1, equal=False), 0),
        (0, outcome(0, 1, size=1), 1),  # a group of one has no variance
    ],
)
def test_runs_of_groups_without_signal(run, made, expected):
    assert next_run(run, made, 0.98) == expected


@pytest.mark.parametrize(
    ("p", "share", "target", "expected"),
    [
        (0.5, 0.26, 0.25, 0.49),
        (0.5, 0.25, 0.25, 0.49),  # at its target: down
        (0.5, 0.24, 0.25, 0.51),
        (0.055, 1.0, 0.25, 0.05),
        (0.05, 1.0, 0.25, 0.05),
        (0.945, 0.0, 0.25, 0.95),
        (0.95, 0.0, 0.25, 0.95),
    ],
)
def test_a_base_probability_moves_by_a_step_within_its_bounds(p, share, target, expected):
    assert moved(p, share, target, SETTINGS) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("missing", "zero_variance", "most", "expected"),
    [
        (100, 0.5, 256, 250),  # 1.25 x 100 / 0.5
        (10, 0.5, 256, 64),  # 25, but at least a quarter of 256
        (10, 1.0, 256, 256),  # no group had signal
        (100, 0.9, 256, 256),  # 1250
        (100, 0.25, 256, 167),  # 166.67, rounded up
        (1, 0.0, 16, 4),
        (1, 0.0, 1, 1),
        (0, 0.0, 3, 1),  # a quarter of 3, rounded up
    ],
)
def test_refill(missing, zero_variance, most, expected):
    assert refill(missing, zero_variance, most, SETTINGS) == expected


def test_the_least_refill_can_be_set():
    assert refill(1, 0.0, 256, GresoSettings(refill_min=10)) == 10
    assert refill(1, 0.0, 8, GresoSettings(refill_min=10)) == 8


@given(st.integers(0, 10**6), st.floats(0, 1), st.integers(1, 10**4), st.none() | st.integers(1, 10**5))
def test_a_refill_is_at_least_one_prompt_and_at_most_a_batch(missing, zero_variance, most, least):
    assert 1 <= refill(missing, zero_variance, most, GresoSettings(refill_min=least)) <= most


@given(st.integers(1, 30), st.integers(1, 4), st.lists(st.integers(4, 40), min_size=1, max_size=10), st.integers(0, 3))
def test_groups_sum_to_the_budget_whatever_came_of_those_before(prompts, size, budgets, seed):
    method = greso(prompts, size, seed, explore=0.3)
    for rollouts in budgets:
        groups = method.next_groups(rollouts)
        assert sum(n for _, n in groups) == rollouts and len(groups) == max(1, rollouts // size)
        assert all(0 <= prompt < prompts for prompt, _ in groups)
        method.observe([outcome(prompt, 2 * (prompt % 2)) for prompt, _ in groups])  # nothing but runs


def test_without_runs_every_prompt_is_drawn_once_in_a_pass_each_in_its_own_order():
    method = greso(prompts=10)
    passes = [[prompt for prompt, _ in method.next_groups(20)] for _ in range(5)]
    assert all(sorted(p) == list(range(10)) for p in passes)
    assert len(set(map(tuple, passes))) > 1


def test_without_shuffling_prompts_are_drawn_in_the_order_of_the_data():
    # as a profile's clusters list them: first those of small groups
    method = greso(prompts=4, shuffle=False, order=[2, 3, 0, 1])
    assert [prompt for prompt, _ in method.next_groups(16)] == [0, 1, 2, 3, 0, 1, 2, 3]


def test_a_mixed_group_ends_the_run_of_a_prompt():
    method = greso()
    for _ in range(3):
        method.observe([outcome(4, 0), outcome(5, 2)])
    assert (method.run_P[4], method.run_P[5]) == (-3, 3)
    method.observe([outcome(4, 1), outcome(5, 1)])
    assert not method.run_P.any()


@pytest.mark.parametrize(("wins", "base"), [(2, "p_easy"), (0, "p_hard")])
def test_a_prompt_is_drawn_as_often_as_its_run_says(wins, base):
    method = greso(prompts=20, step=0)
    for _ in range(3):
        method.observe([outcome(7, wins)])
    setattr(method, base, 0.6)
    drawn = Counter(prompt for _ in range(4000) for prompt, _ in method.next_groups(40))
    passes = method.turn / 20
    # 0.6^3 = 0.216, in about 4160 passes: two deviations are 2 x sqrt(0.216 x 0.784 / 4160) = 0.013
    assert passes > 4000
    assert drawn[7] / passes == pytest.approx(0.216, abs=0.02)
    assert all(abs(drawn[other] - passes) < 1.01 for other in range(20) if other != 7)
    # 19.216 of 20 turns are drawn
    assert method.metrics()["greso/frac_skipped"] == pytest.approx(1 - 19.216 / 20, abs=0.002)


def test_exploration_keeps_drawing_when_every_prompt_has_a_long_run():
    method = greso(prompts=3, explore=0.25)
    method.run_P[:] = [LONGEST, -LONGEST, LONGEST]
    drawn = Counter(prompt for _ in range(500) for prompt, _ in method.next_groups(8))
    assert sum(drawn.values()) / method.turn == pytest.approx(0.25, abs=0.02)
    assert set(drawn) == {0, 1, 2}


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_how_many_turns_are_looked_at_together_changes_nothing(monkeypatch, chunk):
    def drawn():
        method = greso(prompts=50)
        method.run_P[:] = np.arange(50) % 3 - 1
        return [(method.next_groups(n), method.turn) for n in (2, 8, 30, 200)]

    expected = drawn()  # four steps over four passes
    assert expected[-1][1] > 3 * 50
    monkeypatch.setattr("sgpo_verl.methods.greso.CHUNK", chunk)
    assert drawn() == expected


def test_base_probabilities_move_from_the_second_pass_on():
    method = greso(prompts=8)  # two steps of 4 groups are a pass
    for _ in range(2):
        method.observe([outcome(prompt, 1) for prompt, _ in method.next_groups(8)])
    assert (method.p_easy, method.p_hard) == (0.5, 0.5)
    method.observe([outcome(prompt, 1) for prompt, _ in method.next_groups(8)])
    assert (method.p_easy, method.p_hard) == (0.51, 0.51)


@pytest.mark.parametrize(
    ("wins", "p_easy", "p_hard"),
    [
        # of 12 groups, 1 easy (8.33%: its target of a third of 25%) and 2 hard (16.67%: two thirds)
        ([2] + [0] * 2 + [1] * 9, 0.49, 0.49),
        ([2] + [0] * 1 + [1] * 10, 0.49, 0.51),
        ([0] * 2 + [1] * 10, 0.51, 0.49),
        ([1] * 12, 0.51, 0.51),
    ],
)
def test_each_base_probability_follows_the_share_of_its_own_groups(wins, p_easy, p_hard):
    method = greso(prompts=12)
    method.next_groups(24)
    method.next_groups(24)
    method.observe([outcome(prompt, successes) for prompt, successes in enumerate(wins)])
    assert (method.p_easy, method.p_hard) == (p_easy, p_hard)


def test_a_step_without_groups_moves_nothing():
    method = greso()
    method.next_groups(40)
    before = method.state_dict()
    method.observe([])
    assert same(method.state_dict(), before)


def test_a_refill_is_not_paid_from_the_budget():
    method = greso()
    method.next_groups(8)
    assert [n for _, n in method.more_groups([4, 2])] == [4, 2]
    assert (method.total, method.drawn, method.step_rollouts()) == (8, 6, 8)
    assert method.metrics() == {
        "curriculum/phase": 0,
        "curriculum/progress": 0.1,  # 8 of 80
        "greso/p_easy": 0.5,
        "greso/p_hard": 0.5,
        "greso/frac_skipped": 0.0,
    }


def test_nothing_is_skipped_before_the_first_turn():
    assert greso().metrics()["greso/frac_skipped"] == 0.0


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


wins = st.lists(st.integers(0, 2), min_size=4, max_size=4)


@given(st.lists(wins, max_size=12), st.lists(wins, min_size=10, max_size=10), st.integers(0, 3))
def test_a_resumed_method_draws_what_the_old_one_would_have_drawn(before, after, seed):
    def step(method, wins):
        groups = method.next_groups(8)
        method.observe([outcome(prompt, w) for (prompt, _), w in zip(groups, wins, strict=True)])
        return groups, method.metrics()

    old = greso(seed=seed)
    for each in before:
        step(old, each)
    saved = old.state_dict()
    at_save = copy.deepcopy(saved)
    new = greso(seed=seed)
    new.load_state_dict(pickle.loads(pickle.dumps(saved)))
    assert same(new.state_dict(), at_save)
    assert [step(new, each) for each in after] == [step(old, each) for each in after]
    assert same(saved, at_save)  # a state that was handed out is not written to any more


def test_another_seed_draws_in_another_order():
    assert [p for p, _ in greso(seed=1).next_groups(20)] != [p for p, _ in greso(seed=2).next_groups(20)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "paper"}, r"written by sgpo\.method='paper', this run is 'greso'"),
        ({"fingerprint": {"profile": "f2"}}, r"profile: checkpoint 'f2', run 'f1'"),
        ({"fingerprint": None}, "fingerprint=None"),
        ({"turn": -1}, "turn=-1"),
        ({"turn": 2.0}, r"turn=2\.0"),
        ({"turn": True}, "turn=True"),
        ({"turn": 2**63}, "turn=9223372036854775808"),
        ({"drawn": 5}, "drawn=5 of turn=4"),
        ({"total": None}, "total=None"),
        ({"p_easy": 0.04}, r"p_easy=0\.04"),
        ({"p_hard": 0.96}, r"p_hard=0\.96"),
        ({"p_hard": float("nan")}, "p_hard=nan"),
        ({"p_easy": 1}, "p_easy=1"),
        ({"run_P": np.zeros(9, dtype=np.int16)}, r"run_P is no int16 of shape \(10,\)"),
        ({"run_P": np.zeros(10, dtype=np.int32)}, r"run_P is no int16 of shape \(10,\)"),
        ({"run_P": [0] * 10}, r"run_P is no int16 of shape \(10,\)"),
        ({"run_P": np.full(10, -(2**15), dtype=np.int16)}, r"run_P is not within \[-32767, 32767\]"),
    ],
)
def test_a_state_that_is_not_of_this_run_is_refused_and_changes_nothing(change, message):
    other, method = greso(seed=1), greso()
    other.next_groups(8)
    other.observe([outcome(0, 0)])
    before = method.state_dict()
    with pytest.raises(SgpoError, match=f"checkpoint: .*{message}"):
        method.load_state_dict(other.state_dict() | change)
    assert same(method.state_dict(), before)


@pytest.mark.parametrize("missing", ["fingerprint", "turn", "drawn", "total", "p_easy", "p_hard", "run_P"])
def test_an_incomplete_state_is_refused_by_what_it_lacks(missing):
    state = {key: value for key, value in greso().state_dict().items() if key != missing}
    with pytest.raises(SgpoError, match=f"checkpoint: lacks {missing} in its sgpo state"):
        greso().load_state_dict(state)


def test_the_state_is_json_but_for_its_array():
    state = greso().state_dict()
    assert state.pop("run_P").dtype == np.int16
    assert json.loads(json.dumps(state)) == state
