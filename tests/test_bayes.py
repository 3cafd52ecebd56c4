"""The choice by belief: exact budgets, prompts that may teach, and with the posterior the same after a crash."""

import copy
import json
import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgpo_verl.allocation import alone, mixed
from sgpo_verl.config import GroupSizeSettings, PosteriorSettings
from sgpo_verl.errors import SgpoError
from sgpo_verl.methods.base import Outcome
from sgpo_verl.methods.bayes import Bayes
from sgpo_verl.methods.curriculum import Phase
from sgpo_verl.posterior import Posterior

SIZES = GroupSizeSettings(min=2, max=4)


def bayes(
    trials, successes, sizes=SIZES, tokens=None, group=4, sizes_M=None, seed: int = 0, gain=mixed, **settings
) -> Bayes:
    """Steps of 16 rollouts, 160 in all, over every prompt of a profile whose samples count in full."""
    settings = PosteriorSettings(**{"profile_weight": 1, **settings})
    tokens_P = np.zeros(len(trials)) if tokens is None else np.array(tokens)
    posterior = Posterior(np.array(trials), np.array(successes), tokens_P, settings)
    sizes_M = None if sizes_M is None else np.array(sizes_M, dtype=np.int32)
    phase = Phase(group, len(trials), 0, np.arange(len(trials), dtype=np.int32), sizes_M)
    return Bayes("bayes", phase, posterior, sizes, 16, 160, settings, gain, seed, {"profile": "f1"})


def unknown(prompts: int, **more) -> Bayes:
    return bayes([0] * prompts, [0] * prompts, **more)


def rollouts_of(method: Bayes, steps: int, rollouts: int = 16) -> Counter:
    """Rollouts of each prompt over some steps, nothing being learnt."""
    counted = Counter()
    for _ in range(steps):
        for prompt, size in method.next_groups(rollouts):
            counted[prompt] += size
    return counted


def train(method: Bayes, rate: dict[int, float], steps: int, rng: np.random.Generator) -> Counter:
    """Steps in which every prompt succeeds at a true rate; rollouts of each prompt."""
    counted = Counter()
    for _ in range(steps):
        groups = method.next_groups(16)
        wins = [int(rng.binomial(size, rate[prompt])) for prompt, size in groups]
        method.posterior.observe([Outcome(p, n, w, w / n) for (p, n), w in zip(groups, wins, strict=True)])
        for prompt, size in groups:
            counted[prompt] += size
    return counted


@given(
    st.integers(1, 40),
    st.lists(st.integers(1, 60), min_size=1, max_size=8),
    st.sampled_from(["chosen", "uniform", "profile"]),
    st.integers(0, 3),
)
def test_groups_sum_to_the_budget_and_prompts_of_a_step_are_distinct(prompts, budgets, allocation, seed):
    more = {"uniform": {"sizes": None}, "profile": {"sizes": None, "sizes_M": [2 + i % 3 for i in range(prompts)]}}
    method = unknown(prompts, seed=seed, **more.get(allocation, {}))
    for rollouts in budgets:
        groups = method.next_groups(rollouts)
        assert sum(n for _, n in groups) == rollouts
        assert len({prompt for prompt, _ in groups}) == len(groups)
        assert all(0 <= prompt < prompts and n >= 1 for prompt, n in groups)
        method.posterior.observe([Outcome(prompt, n, n // 2, 0.5) for prompt, n in groups])
    assert method.total == sum(budgets)


def test_groups_are_within_their_bounds_and_plain_numbers():
    groups = unknown(40).next_groups(16)
    assert {type(part) for pair in groups for part in pair} == {int}
    assert all(2 <= n <= 4 for _, n in groups)


def test_where_no_group_is_needed_the_best_prompts_get_a_rollout_each():
    trials, successes = [40] * 40, [20] * 16 + [0] * 12 + [40] * 12
    method = bayes(trials, successes, GroupSizeSettings(min=1, max=1), gain=alone, temperature=0)
    groups = method.next_groups(16)
    assert sorted(groups) == [
        (prompt, 1) for prompt in range(16)
    ]  # near one half; the others were never, or always, solved


def test_only_prompts_of_the_phase_are_drawn_by_their_position_in_the_plan():
    method = unknown(9)
    method.phase = Phase(4, 3, 0, np.array([8, 2, 5], dtype=np.int32))
    method.posterior.observe([Outcome(p, 100, 100 * (p in (0, 1)), 1.0) for p in range(9) if p != 5])
    # Of 8, 2 and 5, nothing speaks against 5 alone.
    drawn = rollouts_of(method, 100, rollouts=2)
    assert set(drawn) <= {8, 2, 5} and drawn[5] > 150


def test_after_evidence_it_prefers_pass_rates_near_one_half():
    # 0, 4, 8, ... 32 of 32 solved: Beta(1 + s, 33 - s), whose mean of p (1 - p) is highest at 16
    method = bayes([32] * 9, range(0, 33, 4), temperature=0)
    drawn = rollouts_of(method, 200, rollouts=4)
    assert drawn.total() == 800
    assert drawn[3] + drawn[4] + drawn[5] > 0.8 * 800
    assert drawn[0] + drawn[8] == 0


def test_without_evidence_all_are_drawn_alike():
    drawn = rollouts_of(unknown(8), 500)
    assert min(drawn.values()) > 0.9 * 1000 and max(drawn.values()) < 1.1 * 1000


def test_the_temperature_spreads_the_draws():
    cold, hot = (rollouts_of(bayes([99] * 9, range(0, 99, 11), temperature=t), 300, 4) for t in (0.0, 1.0))
    assert len(hot) > len(cold)
    assert hot[4] < cold[4]


def test_mastered_prompts_fade_and_return_when_the_policy_loses_them():
    method, rng = unknown(10), np.random.default_rng(0)
    rate = {p: 0.5 if p < 5 else 1.0 for p in range(10)}
    train(method, rate, 30, rng)
    mastered = {p for p in range(10) if p >= 5}
    counted = train(method, rate, 100, rng)
    faded = sum(counted[p] for p in mastered) / counted.total()
    assert 0 < faded < 0.35  # half of all prompts; never quite forgotten
    counted = train(method, dict.fromkeys(range(10), 0.5) | {p: 0.02 for p in range(5)}, 100, rng)
    assert sum(counted[p] for p in mastered) / counted.total() > 0.6


def test_evidence_that_fades_brings_a_prompt_back_after_one_lucky_group():
    # Unsolved 0 of 40, then 2 of 4: with memory 0.1 a = 1 + 2, b = 1 + 4 + 2; with memory 1 a = 3, b = 43
    def share(memory):
        method = bayes([40, 64, 64, 64], [0, 60, 60, 60], memory=memory, temperature=0)
        method.posterior.observe([Outcome(0, 4, 2, 0.5)])
        return rollouts_of(method, 200, rollouts=2)[0] / 400

    assert share(0.1) > 0.8 and share(1.0) < 0.5


def test_a_price_of_length_moves_rollouts_to_short_prompts():
    tokens = [100] * 10 + [1000] * 10
    free = rollouts_of(unknown(20, tokens=tokens), 100)
    priced = rollouts_of(unknown(20, tokens=tokens, length_price=0.1), 100)
    short_free, short_priced = (sum(n for p, n in drawn.items() if p < 10) / 1600 for drawn in (free, priced))
    assert short_free == pytest.approx(0.5, abs=0.05)
    assert short_priced > 0.9


def test_a_length_that_is_not_known_is_taken_for_the_mean():
    method = unknown(4, tokens=[100, 300, 0, 200], length_price=0.1)
    # the mean of 100, 300 and 200 is 200
    assert method._price(np.arange(4)) == pytest.approx([0.05, 0.15, 0.1, 0.1])
    assert unknown(2, length_price=0.1)._price(np.arange(2)) == pytest.approx([0.1, 0.1])
    assert unknown(2, tokens=[5, 6])._price(np.arange(2)) is None


def test_with_a_uniform_allocation_groups_are_as_stock_and_prompts_are_chosen():
    # the 4 that are near one half of 12
    method = bayes([64] * 12, [0] * 4 + [32] * 4 + [64] * 4, sizes=None, group=4, temperature=0)
    for _ in range(20):
        groups = method.next_groups(16)
        assert sorted(groups) == [(4, 4), (5, 4), (6, 4), (7, 4)]


def test_a_uniform_allocation_grows_where_there_are_fewer_prompts_than_groups():
    groups = unknown(3, sizes=None, group=4).next_groups(16)
    assert sorted(prompt for prompt, _ in groups) == [0, 1, 2] and [n for _, n in groups] == [6, 5, 5]
    # sizes of their own, 2 + 3 + 4 = 9: the other 7 are dealt out, too
    groups = unknown(3, sizes=None, sizes_M=[2, 3, 4]).next_groups(16)
    assert sorted(n - 2 - prompt for prompt, n in groups) == [2, 2, 3]


def test_with_the_profiles_allocation_each_prompt_has_its_own_size():
    wanted = [2, 8, 4, 2, 2, 2, 4, 4]
    method = unknown(8, sizes=None, sizes_M=wanted)
    for _ in range(50):
        *whole, last = method.next_groups(12)
        assert all(n == wanted[prompt] for prompt, n in whole)
        assert last[1] <= wanted[last[0]]  # what is left of the step


def test_the_same_seed_chooses_the_same_and_another_differs():
    assert [unknown(40).next_groups(16) for _ in range(2)] == [unknown(40).next_groups(16)] * 2
    assert unknown(40, seed=1).next_groups(16) != unknown(40).next_groups(16)
    method = unknown(40)
    assert method.next_groups(16) != method.next_groups(16)
    assert method.more_groups([3] * 5) != method.more_groups([3] * 5)


def test_a_refill_is_another_draw_and_not_paid_from_the_budget():
    method = unknown(40)
    method.next_groups(16)
    assert [n for _, n in method.more_groups([2, 4])] == [2, 4]
    assert (method.total, method.draws, method.step_rollouts()) == (16, 2, 16)
    assert method.metrics() == {"curriculum/phase": 0, "curriculum/progress": 0.1}  # 16 of 160


def test_progress_stops_at_one():
    method = unknown(10)
    method.next_groups(400)
    assert method.metrics()["curriculum/progress"] == 1.0


wins = st.lists(st.integers(0, 2), min_size=8, max_size=8)


@given(st.lists(wins, max_size=8), st.lists(wins, min_size=10, max_size=10), st.booleans(), st.floats(0, 0.2))
def test_a_resumed_method_draws_what_the_old_one_would_have_drawn(before, after, chosen, length_price):
    def made():
        return unknown(20, sizes=SIZES if chosen else None, length_price=length_price)

    def step(method, wins):
        groups = method.next_groups(16)
        seen = [Outcome(p, n, min(w, n), 0.5, 10.0 + p) for (p, n), w in zip(groups, wins, strict=False)]
        method.observe(seen)
        method.posterior.observe(seen)
        return groups, method.metrics(), method.posterior.metrics()

    old = made()
    for each in before:
        step(old, each)
    state = json.loads(json.dumps(old.state_dict()))
    believed = pickle.loads(pickle.dumps(copy.deepcopy(old.posterior.state_dict())))
    new = made()
    new.load_state_dict(state)
    new.posterior.load_state_dict(believed)
    assert new.state_dict() == old.state_dict()
    assert [step(new, each) for each in after] == [step(old, each) for each in after]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "greso"}, r"written by sgpo\.method='greso', this run is 'bayes'"),
        ({"fingerprint": {"profile": "f2"}}, r"profile: checkpoint 'f2', run 'f1'"),
        ({"fingerprint": 7}, "fingerprint=7"),
        ({"draws": -1}, "draws=-1"),
        ({"draws": 1.5}, r"draws=1\.5"),
        ({"total": True}, "total=True"),
        ({"total": 2**63}, "total=9223372036854775808"),
    ],
)
def test_a_state_that_is_not_of_this_run_is_refused_and_changes_nothing(change, message):
    other, method = unknown(10), unknown(10)
    other.next_groups(16)
    before = method.state_dict()
    with pytest.raises(SgpoError, match=f"checkpoint: .*{message}"):
        method.load_state_dict(other.state_dict() | change)
    assert method.state_dict() == before


@pytest.mark.parametrize("missing", ["fingerprint", "draws", "total"])
def test_an_incomplete_state_is_refused_by_what_it_lacks(missing):
    state = {key: value for key, value in unknown(3).state_dict().items() if key != missing}
    with pytest.raises(SgpoError, match=f"checkpoint: lacks {missing} in its sgpo state"):
        unknown(3).load_state_dict(state)
