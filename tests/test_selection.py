"""A step's rollouts: their advantages, which count and which are trained on; every rule by literal values."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgpo_verl import advantage
from sgpo_verl.config import load_settings
from sgpo_verl.methods.base import Outcome
from sgpo_verl.selection import Sampled, Selection, keep_probability, outcomes_of, select


def sampled(*groups: list[float], mixed_up: bool = False, **beliefs) -> Sampled:
    """Groups of rewards of 0 and 1, of the prompts 10, 11, ...; mixed_up: the first rows of all groups, then the second..."""
    rows = [(j, i, r) for i, rewards in enumerate(groups) for j, r in enumerate(rewards)]
    rows = sorted(rows) if mixed_up else rows
    rewards_N = np.array([float(r) for *_, r in rows])
    labels_N = np.array([f"uid-{i}" for _, i, _ in rows], dtype=object)
    prompt_N = np.array([10 + i for _, i, _ in rows])
    believed = {name: np.array([values[i] for _, i, _ in rows], dtype=float) for name, values in beliefs.items()}
    return Sampled(rewards_N, (rewards_N >= 0.5).astype(int), labels_N, prompt_N, np.ones(len(rows)), **believed)


def selected(step: Sampled, seeds=(0, 1, 0), normalize_by_std: bool = False, **settings) -> Selection:
    return select(step, load_settings(settings), list(seeds), normalize_by_std)


def same(a: Selection, b: Selection) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("advantages_N", "counts_N", "trained_N"))


# --- what became of each group -------------------------------------------------------------------------------------


def test_outcomes_of_groups_in_any_order():
    step = Sampled(
        rewards_N=np.array([1.0, 0.0, 0.25, 0.0, 0.75, 0.0]),
        successes_N=np.array([1, 0, 0, 0, 1, 0]),
        group_N=np.array(["b", "a", "b", "a", "b", "c"], dtype=object),
        prompt_N=np.array([7, 3, 7, 3, 7, 3]),
        tokens_N=np.array([10, 20, 30, 40, 80, 6]),
    )
    assert outcomes_of(step) == [
        Outcome(7, 3, 2, 2 / 3, 40.0, False),  # (1 + 0.25 + 0.75) / 3; (10 + 30 + 80) / 3
        Outcome(3, 2, 0, 0.0, 30.0, True),
        Outcome(3, 1, 0, 0.0, 6.0, True),  # the same prompt in another group
    ]


@pytest.mark.parametrize(
    ("rewards", "successes", "equal"),
    [
        ([1.0, 1.0], [1, 1], True),
        ([1.0, 0.9], [1, 1], False),  # both succeed, and differ
        ([0.3, 0.3], [1, 0], True),  # acc says otherwise than the score
        ([0.1, 0.1, 0.1], [0, 0, 0], True),  # the mean of three is not 0.1 to the last bit
    ],
)
def test_a_group_is_equal_by_its_rewards_not_by_its_successes(rewards, successes, equal):
    count = len(rewards)
    step = Sampled(np.array(rewards), np.array(successes), np.zeros(count), np.zeros(count, int), np.ones(count))
    (made,) = outcomes_of(step)
    assert (made.equal, made.zero_variance, made.successes) == (equal, equal, sum(successes))


def test_outcomes_are_plain_numbers():
    (made,) = outcomes_of(sampled([1, 0]))
    assert [type(value) for value in vars(made).values()] == [int, int, int, float, float, bool]


def test_no_rollouts_have_no_outcomes():
    assert outcomes_of(sampled()) == []


# --- which rows are trained on -------------------------------------------------------------------------------------


def test_as_stock_all_rows_count_and_are_trained_on():
    made = selected(sampled([1, 0], [1, 1], [0, 0, 0, 1]), method="paper")
    assert made.advantages_N.tolist() == [0.5, -0.5, 0, 0, -0.25, -0.25, -0.25, 0.75]
    assert made.counts_N.all() and made.trained_N.all()


def test_prune_leaves_out_rows_without_advantage_and_they_still_count():
    made = selected(sampled([1, 0], [1, 1], [0, 0, 0, 1], [0]), method="prune")
    assert made.advantages_N.tolist() == [0.5, -0.5, 0, 0, -0.25, -0.25, -0.25, 0.75, 0]
    assert made.trained_N.tolist() == [True, True, False, False, True, True, True, True, False]
    assert made.counts_N.all()


def test_prune_may_leave_nothing():
    made = selected(sampled([1, 1], [0, 0]), method="prune")
    assert not made.trained_N.any() and made.counts_N.all()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("method", ["paper", "prune", "greso"])
def test_advantages_are_grpos_unless_said_otherwise(method, normalize):
    step = sampled([1, 0], [1, 1, 0], [0, 0], mixed_up=True)
    expected = advantage.grpo(step.rewards_N, step.group_N, normalize)
    assert selected(step, normalize_by_std=normalize, method=method).advantages_N.tolist() == expected.tolist()


def test_aero_rejected_rows_neither_count_nor_are_trained_on():
    # 1 of 4: one wrong one is kept, mean 1/2; 3 of 4: all kept, mean 3/4; all correct: 4 of 5, against 6/7
    made = selected(sampled([1, 0, 0, 0], [1, 1, 0, 1], [1] * 5), method="aero")
    rejected, kept_whole, easy = np.split(made.counts_N, [4, 8])
    assert rejected[0] and rejected.sum() == 2
    assert kept_whole.all() and easy.sum() == 4
    assert made.trained_N.tolist() == made.counts_N.tolist()
    assert made.advantages_N[:4].tolist() == np.where(rejected, [0.5, -0.5, -0.5, -0.5], 0).tolist()
    assert made.advantages_N[4:8].tolist() == [0.25, 0.25, -0.75, 0.25]
    assert made.advantages_N[8:] == pytest.approx(np.where(easy, 1 / 7, 0))


def test_aero_is_by_group_and_not_by_the_order_of_rows():
    groups = [[1, 0, 0, 0], [1, 1, 0, 1], [0] * 6]
    made = selected(sampled(*groups, mixed_up=True), method="aero")
    step = sampled(*groups, mixed_up=True)
    kept = {label: (made.counts_N & (step.group_N == label)).sum() for label in ("uid-0", "uid-1", "uid-2")}
    assert kept == {"uid-0": 2, "uid-1": 4, "uid-2": 4}


def test_a_posteriors_advantages_teach_from_groups_of_equal_outcomes():
    # (a, b) = (1, 1): baseline (1 + 1) / (2 + 1) = 2/3 for either of two successes, 1/3 for either of two failures
    step = sampled([1, 1], [0, 0], a_N=[1, 1], b_N=[1, 1])
    made = selected(step, method="bayes", advantage="posterior")
    assert made.advantages_N == pytest.approx([1 / 3, 1 / 3, -1 / 3, -1 / 3])
    assert made.trained_N.all()  # with prune: none is zero


def test_a_posteriors_advantages_are_of_successes_and_not_of_rewards():
    step = sampled([1, 0], a_N=[1], b_N=[3])
    step = Sampled(step.rewards_N * 5 - 2, *list(vars(step).values())[1:])
    # baselines (1 + 1 - 1) / 5 and (1 + 1 - 0) / 5; with m = 1/4: sqrt(3/16)
    made = selected(step, method="paper", advantage="posterior", normalize_by_std=True)
    assert made.advantages_N == pytest.approx([0.8 / np.sqrt(3 / 16), -0.4 / np.sqrt(3 / 16)])


@pytest.mark.parametrize("prune", [False, True])
def test_a_fraction_is_drawn_in_proportion_to_the_advantage_and_weighted_by_the_inverse(prune):
    # |A| = 1/4 x 3, 3/4, 0 x 4; half of 8 rows: l = 4 / 1.5 > 1 / 0.75: the last is certain; of the rest, 3 of 3/4: all
    step = sampled([0, 0, 0, 1], [1, 1, 1, 1])
    made = selected(step, method="paper", train_fraction=0.5, prune=prune)
    assert made.trained_N.tolist() == [True] * 4 + [False] * 4
    assert made.advantages_N.tolist() == [-0.25, -0.25, -0.25, 0.75, 0, 0, 0, 0]
    assert made.counts_N.all()
    # a quarter: 2 rows; 0.75 x 2 / 1.5 = 1 and 0.25 x 2 / 1.5 = 1/3: weighted by 3
    made = selected(step, method="paper", train_fraction=0.25, prune=prune)
    assert made.advantages_N == pytest.approx([-0.75, -0.75, -0.75, 0.75, 0, 0, 0, 0])
    assert made.trained_N[3] and not made.trained_N[4:].any() and made.counts_N.all()


def test_a_fraction_of_a_step_without_signal_is_nothing():
    made = selected(sampled([1, 1], [0, 0]), method="paper", train_fraction=0.5)
    assert not made.trained_N.any() and made.advantages_N.tolist() == [0] * 4


def test_a_fraction_is_of_the_rows_that_count():
    # 2 of 8 rows of each group are kept, all |A| = 1/2; half of them, 2, are trained on in expectation
    step = sampled([1] + [0] * 7, [0] * 7 + [1])
    made = [selected(step, seeds=(0, 1, i), method="aero", train_fraction=0.5) for i in range(2000)]
    assert all(m.counts_N.sum() == 4 and (m.trained_N <= m.counts_N).all() for m in made)
    assert np.mean([m.trained_N.sum() for m in made]) == pytest.approx(2, abs=0.1)  # four deviations: 4 / sqrt(2000)
    assert all(np.abs(m.advantages_N[m.counts_N]).tolist() == [1, 1, 1, 1] for m in made)  # 1/2 over 1/2


@pytest.mark.parametrize(
    ("groups", "fraction", "settings"),
    [
        ([[0, 0, 0, 1], [1, 0, 1], [1, 1]], 0.3, {}),
        ([[0, 0, 0, 1], [1, 0, 1], [1, 1]], 0.6, {"prune": True}),
        ([[1, 0], [1, 0], [0, 0, 0, 0, 0, 1]], 0.5, {}),
        ([[1, 1, 1], [0, 1]], 0.4, {"advantage": "posterior"}),
    ],
)
def test_the_expected_advantage_of_a_fraction_is_the_whole_advantage(groups, fraction, settings):
    beliefs = {"a_N": [1.0, 2.0, 3.0], "b_N": [2.0, 1.0, 1.0]} if "advantage" in settings else {}
    step = sampled(*groups, **beliefs)
    whole_N = selected(step, method="paper", **settings).advantages_N
    weighted_N = selected(step, method="paper", train_fraction=fraction, **settings).advantages_N
    chance_N = keep_probability(np.abs(whole_N), fraction * len(whole_N))
    expected_N, total = np.zeros(len(whole_N)), 0.0
    for mask in itertools.product([0, 1], repeat=len(whole_N)):
        kept_N = np.array(mask)
        probability = float(np.prod(np.where(kept_N, chance_N, 1 - chance_N)))
        expected_N += probability * kept_N * weighted_N
        total += probability
    assert total == pytest.approx(1)
    assert expected_N == pytest.approx(whole_N, abs=1e-12)
    # and select draws with these probabilities: four deviations of 2000 draws are at most 2 / sqrt(2000) = 0.045
    drawn = [
        selected(step, (0, 1, i), method="paper", train_fraction=fraction, **settings).trained_N for i in range(2000)
    ]
    assert np.mean(drawn, axis=0) == pytest.approx(chance_N, abs=0.045)


SETTINGS = [
    {"method": "paper"},
    {"method": "prune"},
    {"method": "aero"},
    {"method": "aero", "train_fraction": 0.5},
    {"method": "prune", "train_fraction": 0.3},
    {"method": "bayes", "advantage": "posterior", "train_fraction": 0.3},
]
steps = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=9), min_size=1, max_size=6)


@given(steps, st.sampled_from(SETTINGS), st.integers(0, 9))
def test_the_same_seeds_choose_the_same_and_what_is_trained_on_counts(groups, settings, seed):
    beliefs = {"a_N": [1.5] * 6, "b_N": [2.5] * 6}
    step = sampled(*groups, **beliefs)
    made = selected(step, (seed, 1, 77), **settings)
    assert same(made, selected(sampled(*groups, **beliefs), (seed, 1, 77), **settings))
    assert (made.trained_N <= made.counts_N).all()
    assert np.isfinite(made.advantages_N).all()
    assert (made.advantages_N[~made.counts_N] == 0).all()
    if settings["method"] == "prune" or "train_fraction" in settings:
        assert (made.advantages_N[made.trained_N] != 0).all()


@pytest.mark.parametrize("settings", [{"method": "aero"}, {"method": "paper", "train_fraction": 0.5}])
def test_another_step_makes_another_choice(settings):
    step = sampled(*[[1] + [0] * 7] * 8)
    choices = {tuple(selected(step, (0, 1, drawn), **settings).trained_N.tolist()) for drawn in range(5)}
    assert len(choices) == 5


def test_nothing_is_selected_of_no_rollouts():
    for settings in SETTINGS:
        made = selected(sampled(a_N=[], b_N=[]), **settings)
        assert made.advantages_N.shape == made.counts_N.shape == made.trained_N.shape == (0,)


# --- probabilities -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "expected", "probabilities"),
    [
        ([4, 1, 1, 0], 2, [1, 1 / 2, 1 / 2, 0]),  # 4 is certain; 1 is left for a sum of 2
        ([1, 4, 0, 1], 2, [1 / 2, 1, 0, 1 / 2]),
        ([3, 1], 1, [3 / 4, 1 / 4]),
        ([3, 1], 2, [1, 1]),
        ([3, 1], 1.5, [1, 1 / 2]),
        ([2, 2, 2, 2], 1, [1 / 4] * 4),
        ([0.1, 0.1, 0.1], 3, [1, 1, 1]),
        ([10, 5, 1, 1, 1, 1], 3, [1, 1, 1 / 4, 1 / 4, 1 / 4, 1 / 4]),
        ([5, 0, 0], 2, [1, 0, 0]),  # fewer have a size than are expected
        ([0, 0], 1, [0, 0]),
        ([], 0, []),
    ],
)
def test_the_probability_of_being_kept(sizes, expected, probabilities):
    assert keep_probability(np.array(sizes, dtype=float), expected) == pytest.approx(probabilities)


# Advantages: some alike, some zero, of different orders of magnitude
magnitudes = st.lists(st.sampled_from([0.0, 0.0, 1e-6, 0.1, 0.25, 1 / 3, 0.5, 1.0, 2.5, 1e3]), min_size=1, max_size=30)


@given(magnitudes, st.floats(0.01, 1))
def test_probabilities_sum_to_what_is_expected_and_grow_with_the_size(sizes, fraction):
    size_N, expected = np.array(sizes), fraction * len(sizes)
    chance_N = keep_probability(size_N, expected)
    assert ((chance_N >= 0) & (chance_N <= 1)).all()
    assert ((chance_N > 0) == (size_N > 0)).all()
    assert chance_N.sum() == pytest.approx(min(expected, np.count_nonzero(size_N)))
    assert (np.diff(chance_N[np.argsort(size_N, kind="stable")]) >= -1e-12).all()
    uncertain_N = (size_N > 0) & (chance_N < 1)
    scale = (chance_N[uncertain_N] / size_N[uncertain_N]).tolist()
    assert scale == pytest.approx(scale[:1] * len(scale))  # in proportion
    assert not scale or (size_N[chance_N == 1] * scale[0] >= 1 - 1e-9).all()  # the certain ones would be above 1


# --- speed ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def million():
    """A million rollouts in groups of 8, labelled by texts, in mixed order."""
    rng = np.random.default_rng(0)
    labels = np.array([f"{i:08x}-uid" for i in range(125_000)], dtype=object)
    group_N = np.repeat(labels, 8)[rng.permutation(1_000_000)]
    return rng.integers(0, 2, 1_000_000).astype(float), group_N


@pytest.mark.parametrize("rule", ["grpo", "posterior"])
def test_advantages_of_a_million_rollouts_take_less_than_a_second(million, rule):
    rewards_N, group_N = million
    ones_N = np.ones(len(rewards_N))
    seconds = []
    for _ in range(3):  # of this process, the best of three: a busy machine is no failure
        began = time.process_time()
        if rule == "grpo":
            found = advantage.grpo(rewards_N, group_N)
        else:
            found = advantage.posterior(rewards_N, group_N, ones_N, ones_N)
        seconds.append(time.process_time() - began)
    assert np.isfinite(found).all() and found.std() > 0.5
    assert min(seconds) < 1
