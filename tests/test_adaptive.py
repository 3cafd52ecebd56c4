"""Where adaptive profiling spends its samples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgpo_verl.adaptive import CAP, _Decision, class_of, class_of_rate, next_samples
from sgpo_verl.config import FilterSettings, GroupSizeSettings
from sgpo_verl.methods.paper import Class

RULES = (FilterSettings(), GroupSizeSettings())
DECISION = _Decision(*RULES)


def samples(trials, successes, budget, seed=0):
    return next_samples(np.array(trials), np.array(successes), budget, *RULES, seed).tolist()


def code(kind, size):
    return (int(kind) << 32) + size


def test_classes_of_counts_and_of_rates():
    found = class_of(np.array([8, 8, 8, 8, 8]), np.array([7, 4, 2, 1, 0]), *RULES).tolist()
    classes = [code(Class.TRIVIAL, 2), *(code(Class.LEARNABLE, g) for g in (2, 4, 8)), code(Class.UNSOLVED, 8)]
    assert found == classes
    # borders: above 3/4 trivial, above 1/4 two, above 1/8 four, down to 1/16 eight, below it unsolved
    rates = np.array([0.76, 0.75, 0.26, 0.25, 0.13, 0.125, 0.0626, 0.0624])
    expected = [0, 1, 1, 2, 2, 3, 3, 4]
    assert class_of_rate(rates, *RULES).tolist() == [classes[i] for i in expected]


def test_the_posterior_is_the_beta_distribution():
    # Beta(1, 1) after 1 success in 1 trial is Beta(2, 1): P(p < 1/2) = 1/4
    assert DECISION.posterior(1)[1, :480].sum() == pytest.approx(0.25, abs=1e-6)
    # after 0 of 4, Beta(1, 5): P(p < 1/4) = 1 - (3/4)^5
    assert DECISION.posterior(4)[0, :240].sum() == pytest.approx(1 - 0.75**5, abs=1e-4)


def test_how_likely_a_decision_is_right():
    # 4 of 4: trivial, right if p > 3/4 under Beta(5, 1): 1 - (3/4)^5
    assert DECISION.right(4)[4] == pytest.approx(1 - 0.75**5, abs=1e-4)
    # 0 of 4: unsolved, right if p < 1/16 under Beta(1, 5): 1 - (15/16)^5
    assert DECISION.right(4)[0] == pytest.approx(1 - (15 / 16) ** 5, abs=1e-4)


def test_the_gain_is_the_mean_over_what_may_come():
    # brute force for 2 of 3 and two more: predictive probabilities of Beta(3, 2) are (a)_j (b)_(2-j) C(2, j) / (a + b)_2
    predictive = [2 * 3 / 30, 2 * 3 * 2 / 30, 3 * 4 / 30]
    after = sum(p * DECISION.right(5)[2 + j] for j, p in enumerate(predictive))
    assert DECISION.gain(3, 2)[2] == pytest.approx(after - DECISION.right(3)[2], abs=1e-4)


def test_first_everyone_gets_half():
    assert samples([0, 0, 0], [0, 0, 0], 24) == [4, 4, 4]


def test_then_the_uncertain_and_not_the_certain():
    # 2 of 4 and 4 of 8 are far from any border, 3 of 4 sits on one; 12 samples left, half of them now, 4 to a prompt
    trials, successes = [4, 4, 8, 4], [2, 3, 4, 2]
    assert samples(trials, successes, 32) == [0, 4, 0, 0]


def test_prompts_that_cannot_change_the_plan_are_left_alone():
    gains = DECISION.gain(64, 4)
    assert gains[32] < 1e-6  # 32 of 64
    assert gains[16] > 1e-3  # 16 of 64, on the border of 1/4


def test_no_prompt_gets_more_than_its_cap():
    trials, successes = np.zeros(50, int), np.zeros(50, int)
    rng, rate = np.random.default_rng(0), np.full(50, 0.25)
    while (more := next_samples(trials, successes, 400, *RULES)).any():
        successes += rng.binomial(more, rate)
        trials += more
    assert trials.max() <= CAP * 8
    assert trials.sum() == 400


def test_a_function_of_counts_and_seed():
    rng = np.random.default_rng(0)
    trials = np.full(100, 4)
    successes = rng.binomial(4, rng.random(100))
    assert samples(trials, successes, 800) == samples(trials, successes, 800)
    assert samples(trials, successes, 800) != samples(trials, successes, 800, seed=1)


@given(st.data())
def test_the_budget_is_never_exceeded_and_rounds_end(data):
    rates = np.array(data.draw(st.lists(st.floats(0, 1), min_size=1, max_size=30)))
    budget = data.draw(st.integers(0, 12)) * len(rates) + data.draw(st.integers(0, 5))
    trials, successes, rng = np.zeros(len(rates), int), np.zeros(len(rates), int), np.random.default_rng(0)
    for _ in range(30):
        more = next_samples(trials, successes, budget, *RULES)
        assert (more >= 0).all()
        if not more.any():
            break
        successes += rng.binomial(more, rates)
        trials += more
        assert trials.sum() <= budget
    else:
        pytest.fail("more than 30 rounds")


def test_at_the_same_cost_more_classes_are_right():
    rng = np.random.default_rng(0)
    rate = rng.random(20_000)
    truth = class_of_rate(rate, *RULES)
    alike = (class_of(np.full(20_000, 8), rng.binomial(8, rate), *RULES) == truth).mean()
    trials, successes = np.zeros(20_000, int), np.zeros(20_000, int)
    rounds = 0
    while (more := next_samples(trials, successes, 160_000, *RULES)).any():
        successes += rng.binomial(more, rate)
        trials += more
        rounds += 1
    assert trials.sum() <= 160_000
    assert (class_of(trials, successes, *RULES) == truth).mean() > alike + 0.04  # 0.70 against 0.64
    assert rounds <= 6
