"""What is believed of every prompt: the update, formula by formula, and the same after a crash."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgpo_verl.config import PosteriorSettings
from sgpo_verl.errors import SgpoError
from sgpo_verl.methods.base import Outcome
from sgpo_verl.posterior import Posterior


def posterior(trials=(8, 8, 0), wins=(6, 0, 0), tokens=(30, 0, 0), **settings) -> Posterior:
    return Posterior(np.array(trials), np.array(wins), np.array(tokens), PosteriorSettings(**settings))


def believed(made: Posterior) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for a, b in zip(made.a_P, made.b_P, strict=True)]


def test_it_begins_with_the_prior_and_the_weighted_profile():
    # 6 of 8 at weight 1/2: 1 + 3 and 1 + 1; 0 of 8: 1 and 1 + 4; not sampled: 1 and 1
    assert believed(posterior()) == [(4, 2), (1, 5), (1, 1)]
    # weight 1/4, prior (2, 3): 2 + 1.5 and 3 + 0.5; 2 and 3 + 2; 2 and 3
    assert believed(posterior(successes=2, failures=3, profile_weight=0.25)) == [(3.5, 3.5), (2, 5), (2, 3)]


def test_a_profile_of_no_weight_says_nothing():
    assert believed(posterior(profile_weight=0)) == [(1, 1)] * 3


def test_a_group_moves_its_prompt_alone():
    made = posterior(memory=0.5)
    made.observe([Outcome(0, 4, 1, 0.25)])
    # a: 1 + 0.5 (4 - 1) + 1 = 3.5; b: 1 + 0.5 (2 - 1) + 3 = 4.5
    assert believed(made) == [(3.5, 4.5), (1, 5), (1, 1)]


def test_the_prior_itself_does_not_fade():
    made = posterior(memory=0)
    made.observe([Outcome(0, 2, 0, 0.0)])
    assert believed(made)[0] == (1, 3)  # 1 + 0 + 0, 1 + 0 + 2


def test_several_groups_of_a_prompt_count_one_after_another():
    made = posterior(memory=0.5)
    made.observe([Outcome(2, 2, 2, 1.0), Outcome(2, 2, 0, 0.0)])
    # a: 1 + 0 + 2 = 3, then 1 + 0.5 x 2 + 0 = 2; b: 1 + 0 + 0 = 1, then 1 + 0 + 2 = 3
    assert believed(made)[2] == (2, 3)


def test_with_full_memory_evidence_adds_up():
    made = posterior(memory=1)
    for _ in range(3):
        made.observe([Outcome(2, 4, 3, 0.75)])
    assert believed(made)[2] == (10, 4)  # 1 + 9, 1 + 3


def test_evidence_settles_where_the_pass_rate_is():
    made = posterior(memory=0.5)
    for _ in range(60):
        made.observe([Outcome(2, 4, 1, 0.25)])
    # a - 1 = (a - 1) / 2 + 1: 2 more; b - 1 = (b - 1) / 2 + 3: 6 more
    assert believed(made)[2] == pytest.approx((3, 7), abs=1e-5)


def test_lengths_are_averaged_with_the_same_memory():
    made = posterior(memory=0.75)
    made.observe([Outcome(0, 2, 1, 0.5, tokens=50.0), Outcome(1, 2, 1, 0.5, tokens=12.0), Outcome(2, 2, 1, 0.5)])
    # 0.75 x 30 + 0.25 x 50 = 35; the first length of a prompt stands; none said: not known
    assert made.tokens_P.tolist() == [35, 12, 0]


def test_an_advantages_prior_is_scaled_down_to_the_strength():
    made = posterior(strength=3)
    a_G, b_G = made.believed(np.array([0, 2, 0]))
    # (4, 2) holds 6: halved; (1, 1) holds 2: as it is
    assert (a_G.tolist(), b_G.tolist()) == ([2, 1, 2], [1, 1, 1])
    assert a_G.dtype == np.float64
    assert believed(made)[0] == (4, 2)


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_scaling_keeps_the_mean_and_never_adds_evidence(successes, failures, strength):
    made = posterior((0,), (0,), (0,), successes=successes, failures=failures, strength=strength)
    (a,), (b,) = made.believed(np.array([0]))
    assert a / (a + b) == pytest.approx(successes / (successes + failures), rel=1e-5)
    assert a + b == pytest.approx(min(strength, successes + failures), rel=1e-5)


groups = st.lists(
    st.integers(1, 8).flatmap(lambda n: st.tuples(st.integers(0, 2), st.just(n), st.integers(0, n), st.floats(0, 99)))
)


@given(groups, st.floats(0, 1))
def test_it_is_the_literal_formula_and_never_below_the_prior(drawn, memory):
    made, expected = posterior(memory=memory), [[4.0, 2.0], [1.0, 5.0], [1.0, 1.0]]
    for prompt, size, wins, tokens in drawn:
        made.observe([Outcome(prompt, size, wins, wins / size, tokens)])
        a, b = expected[prompt]
        expected[prompt] = [1 + memory * (a - 1) + wins, 1 + memory * (b - 1) + size - wins]
    assert np.array(believed(made)) == pytest.approx(np.array(expected), rel=1e-4)
    assert min(made.a_P.min(), made.b_P.min()) >= 1 - 1e-6


def test_draws_are_of_the_beta_distribution_and_of_the_generator_alone():
    made = posterior(memory=1)
    made.observe([Outcome(0, 2, 1, 0.5)])  # Beta(5, 3)
    p_M = made.draw(np.zeros(20_000, dtype=np.int32), np.random.default_rng(0))
    # mean 5/8, variance 5 x 3 / (8^2 x 9) = 0.02604
    assert p_M.mean() == pytest.approx(0.625, abs=0.005)
    assert p_M.var() == pytest.approx(0.02604, rel=0.05)
    again = made.draw(np.zeros(20_000, dtype=np.int32), np.random.default_rng(0))
    assert again.tolist() == p_M.tolist()


def test_metrics_are_the_mean_belief_and_the_evidence_beyond_the_prior():
    # means 4/6, 1/6, 1/2; evidence 4, 4, 0
    expected = {"posterior/pass_rate": (4 / 6 + 1 / 6 + 1 / 2) / 3, "posterior/evidence": 8 / 3}
    assert posterior().metrics() == pytest.approx(expected)


def test_the_profile_is_not_changed():
    trials_P, successes_P, tokens_P = np.array([8]), np.array([4]), np.array([9.0], dtype=np.float32)
    made = Posterior(trials_P, successes_P, tokens_P, PosteriorSettings())
    made.observe([Outcome(0, 2, 2, 1.0, 5.0)])
    assert (trials_P.tolist(), successes_P.tolist(), tokens_P.tolist()) == ([8], [4], [9.0])


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


@given(groups, groups)
def test_a_resumed_posterior_believes_and_draws_the_same(before, after):
    old, new = posterior(), posterior(wins=(1, 1, 0))
    for prompt, size, wins, tokens in before:
        old.observe([Outcome(prompt, size, wins, wins / size, tokens)])
    saved = old.state_dict()
    at_save = copy.deepcopy(saved)
    new.load_state_dict(pickle.loads(pickle.dumps(saved)))
    assert same(new.state_dict(), at_save)
    for made in (old, new):
        made.observe([Outcome(prompt, size, wins, wins / size, tokens) for prompt, size, wins, tokens in after])
    assert same(new.state_dict(), old.state_dict()) and new.metrics() == old.metrics()
    everyone = np.arange(3)
    draws = [made.draw(everyone, np.random.default_rng(3)).tolist() for made in (old, new)]
    assert draws[0] == draws[1]
    assert same(saved, at_save)  # a state that was handed out is not written to any more


NAN = np.array([1, np.nan, 1], dtype=np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a_P": np.ones(2, dtype=np.float32)}, r"a_P is no float32 of shape \(3,\)"),
        ({"b_P": np.ones(3)}, "b_P is no float32"),
        ({"b_P": [1.0, 1.0, 1.0]}, "b_P is no float32"),
        ({"tokens_P": None}, "tokens_P is no float32"),
        ({"a_P": NAN}, "a_P is not within"),
        ({"b_P": np.zeros(3, dtype=np.float32)}, "b_P is not within"),
        ({"a_P": np.full(3, np.inf, dtype=np.float32)}, "a_P is not within"),
        ({"tokens_P": -NAN}, "tokens_P is not within"),
    ],
)
def test_a_state_that_cannot_be_is_refused_and_changes_nothing(change, message):
    made, other = posterior(), posterior(wins=(1, 2, 0))
    before = made.state_dict()
    with pytest.raises(SgpoError, match=f"checkpoint: its sgpo state cannot be .{message}"):
        made.load_state_dict(other.state_dict() | change)
    assert same(made.state_dict(), before)


@pytest.mark.parametrize("missing", ["a_P", "b_P", "tokens_P"])
def test_an_incomplete_state_is_refused_by_what_it_lacks(missing):
    state = {key: value for key, value in posterior().state_dict().items() if key != missing}
    with pytest.raises(SgpoError, match=f"checkpoint: .*{missing}"):
        posterior().load_state_dict(state)


@pytest.mark.parametrize("state", [None, [], "a_P", 3])
def test_a_state_that_is_no_mapping_is_refused(state):
    with pytest.raises(SgpoError, match="checkpoint: "):
        posterior().load_state_dict(state)


@pytest.mark.parametrize(
    ("trials", "tokens", "settings"),
    [
        (0, 0.0, {"successes": 1e-6, "failures": 1e-6}),
        (2**31 - 1, 2.0**100, {"profile_weight": 1}),  # the most that a profile may say
    ],
)
def test_what_it_may_believe_it_may_load(trials, tokens, settings):
    made = Posterior(np.array([trials]), np.array([0]), np.array([tokens]), PosteriorSettings(**settings))
    made.load_state_dict(made.state_dict())
    assert np.isfinite(list(made.metrics().values())).all()
