"""What counts as a success, and which rewards are refused."""

from decimal import Decimal

import numpy as np
import pytest

from sgpo_verl.config import load_settings
from sgpo_verl.errors import SgpoError
from sgpo_verl.rewards import check_score, succeeded

BINARY = load_settings({})
GRADED = load_settings({"graded_rewards": True, "success_threshold": 0.7})
NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("score", "info", "settings", "expected"),
    [
        (1.0, {}, BINARY, True),
        (0.5, {}, BINARY, True),  # at the threshold
        (0.0, {}, BINARY, False),
        (0.69, {}, GRADED, False),
        (0.7, {}, GRADED, True),
        (0.0, {"acc": True}, BINARY, True),  # acc decides where there is one
        (1.0, {"acc": 0}, BINARY, False),
        (1.0, {"acc": None}, BINARY, True),
        (1.0, {"acc": np.float32(0.0), "format": 1}, BINARY, False),
    ],
)
def test_success_is_acc_or_else_the_score_at_least_the_threshold(score, info, settings, expected):
    assert succeeded(score, info, settings) is expected


@pytest.mark.parametrize("score", [0, 1, 0.0, 1.0, True, np.float32(1), np.int64(0), np.bool_(True), Decimal(1)])
def test_zero_and_one_in_any_number_type_are_scores(score):
    checked = check_score(score, {}, BINARY, "gsm8k:17")
    assert (checked, type(checked)) == (float(score), float)


def test_a_graded_score_is_accepted_where_it_is_declared():
    assert check_score(0.25, {}, GRADED, "gsm8k:17") == 0.25
    assert check_score(-3, {}, GRADED, "gsm8k:17") == -3.0


def test_a_graded_score_beside_a_binary_acc_needs_no_declaration():
    assert check_score(0.25, {"acc": 1.0}, BINARY, "gsm8k:17") == 0.25


@pytest.mark.parametrize(("score", "info"), [(0.25, {}), (2, {}), (-1.0, {}), (1.0, {"acc": 0.3})])
def test_a_graded_score_that_was_not_declared_is_refused_with_the_way_out(score, info):
    with pytest.raises(SgpoError, match=r"prompt gsm8k:17, neither 0 nor 1; set sgpo\.graded_rewards=true"):
        check_score(score, info, BINARY, "gsm8k:17")


@pytest.mark.parametrize("settings", [BINARY, GRADED], ids=["binary", "graded"])
@pytest.mark.parametrize(
    "score",
    [None, "1", "", NAN, INFINITY, -INFINITY, {"score": 1}, [1.0], 1j, np.array([1.0, 0.0]), np.nan, 10**400],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_no_finite_number_is_refused_with_the_prompt(score, settings):
    with pytest.raises(SgpoError, match=r"reward function: returned .* for prompt gsm8k:17"):
        check_score(score, {}, settings, "gsm8k:17")


@pytest.mark.parametrize("settings", [BINARY, GRADED], ids=["binary", "graded"])
@pytest.mark.parametrize("accuracy", ["yes", [1], NAN, {"value": 1}], ids=repr)
def test_an_acc_that_is_no_number_is_refused_with_the_prompt(accuracy, settings):
    with pytest.raises(SgpoError, match=r"reward function: returned .* for prompt gsm8k:17"):
        check_score(1.0, {"acc": accuracy}, settings, "gsm8k:17")
