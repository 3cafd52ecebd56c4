"""AERO's rules, value by value."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgpo_verl.advantage import grpo
from sgpo_verl.config import AeroSettings
from sgpo_verl.methods.aero import advantages, kept, more

SETTINGS = AeroSettings()  # explore 8, by 2 up to 16, keep 4


def group(size: int, wins: int) -> np.ndarray:
    return np.array([1] * wins + [0] * (size - wins), dtype=np.int64)


def rescued(first_success: int, settings: AeroSettings = SETTINGS) -> int:
    """Rollouts in all of a prompt whose ``first_success``-th rollout is its first correct one."""
    sampled = settings.explore
    while added := more(sampled, int(sampled >= first_success), settings):
        sampled += added
    return sampled


@pytest.mark.parametrize(
    ("sampled", "successes", "added"),
    [(8, 0, 2), (10, 0, 2), (14, 0, 2), (16, 0, 0), (18, 0, 0), (8, 1, 0), (8, 8, 0), (10, 1, 0)],
)
def test_a_prompt_gets_more_rollouts_while_none_is_correct(sampled, successes, added):
    assert more(sampled, successes, SETTINGS) == added


@pytest.mark.parametrize(
    ("first_success", "rollouts"), [(1, 8), (8, 8), (9, 10), (10, 10), (11, 12), (16, 16), (99, 16)]
)
def test_rescue_ends_with_the_wave_of_the_first_success_or_at_the_most(first_success, rollouts):
    assert rescued(first_success) == rollouts


def test_the_last_wave_is_what_is_left():
    assert more(14, 0, AeroSettings(most=15)) == 1  # 8, 10, 12, 14, 15
    assert rescued(99, AeroSettings(most=15)) == 15
    assert more(8, 0, AeroSettings(wave=100)) == 8


def test_without_room_for_a_wave_there_is_none():
    assert more(8, 0, AeroSettings(most=8)) == 0


@pytest.mark.parametrize(
    ("size", "wins", "correct", "wrong"),
    [
        (8, 8, 4, 0),  # all correct: 4 of them
        (16, 0, 0, 4),  # all wrong after its rescue: 4 of them
        (3, 0, 0, 3),  # fewer than 4: all
        (1, 1, 1, 0),
        (8, 1, 1, 1),  # below one half: as many wrong ones as correct ones
        (8, 3, 3, 3),
        (16, 1, 1, 1),
        (7, 3, 3, 3),  # 3/7 < 1/2
        (8, 4, 4, 4),  # one half and more: all
        (8, 7, 7, 1),
        (7, 4, 4, 3),
        (2, 1, 1, 1),
    ],
)
def test_which_rollouts_of_a_group_are_kept(size, wins, correct, wrong):
    success_G = group(size, wins)
    for seed in range(5):
        keep_G = kept(success_G, SETTINGS, np.random.default_rng(seed))
        assert (keep_G.dtype, keep_G.shape) == (bool, (size,))
        assert (int(keep_G[success_G == 1].sum()), int(keep_G[success_G == 0].sum())) == (correct, wrong)


@pytest.mark.parametrize(("size", "wins", "each"), [(8, 8, 1 / 2), (16, 0, 1 / 4), (8, 2, 2 / 6)])
def test_those_that_are_kept_are_drawn_fairly(size, wins, each):
    # 4 of 8, 4 of 16, 2 of 6 wrong ones. Of 4000 draws four deviations are at most 4 x sqrt(1/4 / 4000) = 0.032
    rng, success_G = np.random.default_rng(0), group(size, wins)
    drawn = np.mean([kept(success_G, SETTINGS, rng) for _ in range(4000)], axis=0)
    chosen_among = np.arange(size) >= (wins if wins < size else 0)
    assert drawn[chosen_among] == pytest.approx(each, abs=0.032)
    assert drawn[~chosen_among].tolist() == [1.0] * (~chosen_among).sum()


def test_the_same_seed_keeps_the_same():
    def three(seed):
        rng = np.random.default_rng(seed)
        return [kept(group(16, 0), SETTINGS, rng).tolist() for _ in range(3)]

    assert three(5) == three(5) != three(6)


def first(size: int, count: int) -> np.ndarray:
    return np.arange(size) < count


def test_all_wrong_after_rescue_is_measured_against_the_posterior_mean():
    # u = (0 + 1) / (16 + 2) = 1/18; (0 - 1/18) / sqrt(1/18 x 17/18) = -1 / sqrt(17) = -0.242536
    success_G = group(16, 0)
    found = advantages(success_G.astype(float), success_G, first(16, 4))
    assert found == pytest.approx([-0.24253562503633297] * 4 + [0] * 12)


def test_all_correct_is_measured_against_the_posterior_mean():
    # u = (8 + 1) / (8 + 2) = 9/10; (1 - 9/10) / sqrt(9/10 x 1/10) = 0.1 / 0.3
    success_G = group(8, 8)
    assert advantages(success_G.astype(float), success_G, first(8, 4)) == pytest.approx([1 / 3] * 4 + [0] * 4)


def test_without_the_standard_deviation_a_group_of_equals_has_the_difference_to_the_posterior_mean():
    found = advantages(np.zeros(16), group(16, 0), first(16, 1), normalize_by_std=False)
    assert found == pytest.approx([-1 / 18] + [0] * 15)
    found = advantages(np.ones(8), group(8, 8), first(8, 1), normalize_by_std=False)
    assert found == pytest.approx([1 / 10] + [0] * 7)


def test_after_rejection_it_is_grpo_among_those_that_are_kept():
    # of 8, 2 correct: kept with 2 wrong ones, mean 1/2, std sqrt(4 x 1/4 / 3) = 0.57735: +-0.866024
    keep_G = np.array([1, 1, 0, 0, 1, 0, 1, 0], dtype=bool)
    found = advantages(group(8, 2).astype(float), group(8, 2), keep_G)
    assert found == pytest.approx([0.8660239, 0.8660239, 0, 0, -0.8660239, 0, -0.8660239, 0], abs=1e-7)
    without = advantages(group(8, 2).astype(float), group(8, 2), keep_G, normalize_by_std=False)
    assert without.tolist() == [0.5, 0.5, 0, 0, -0.5, 0, -0.5, 0]


def test_a_group_that_is_kept_whole_has_grpos_advantages():
    # of 4, 3 correct: mean 3/4
    found = advantages(group(4, 3).astype(float), group(4, 3), np.ones(4, dtype=bool), normalize_by_std=False)
    assert found.tolist() == [0.25, 0.25, 0.25, -0.75]


def test_rewards_and_not_successes_make_the_advantage_of_a_mixed_group():
    # rewards +1 and -1: mean 0
    success_G = group(2, 1)
    assert advantages(np.array([1.0, -1.0]), success_G, success_G >= 0, normalize_by_std=False).tolist() == [1.0, -1.0]


@given(st.integers(1, 32).flatmap(lambda n: st.lists(st.integers(0, 1), min_size=n, max_size=n)), st.booleans())
def test_what_is_not_kept_has_no_advantage_and_what_is_kept_has_one(successes, normalize):
    success_G = np.array(successes)
    keep_G = kept(success_G, SETTINGS, np.random.default_rng(0))
    found = advantages(success_G.astype(float), success_G, keep_G, normalize)
    assert (found[~keep_G] == 0).all() and (found[keep_G] != 0).all()
    assert (np.sign(found[keep_G]) == np.where(success_G[keep_G] == 1, 1, -1)).all()
    if 0 < success_G.sum() < len(success_G):
        alone = grpo(success_G[keep_G], ["g"] * int(keep_G.sum()), normalize)
        assert found[keep_G].tolist() == alone.tolist()
