"""What counts as a success."""

import math
from collections.abc import Mapping
from typing import Any

from sgpo_verl.config import Settings
from sgpo_verl.errors import SgpoError


class BadReward(SgpoError):
    """The reward function returned something that is no reward."""


def succeeded(score: float, info: Mapping[str, Any], settings: Settings) -> bool:
    """Whether a rollout succeeded: the reward function's own ``acc`` if it returns one, else its score, >= threshold."""
    accuracy = info.get("acc")
    return float(score if accuracy is None else accuracy) >= settings.success_threshold


def check_score(score: Any, info: Mapping[str, Any], settings: Settings, prompt: str) -> float:
    """The score as a float. Raises BadReward naming the prompt if it is no number, NaN, or graded and not declared so."""
    number = _number(score, "", prompt)
    accuracy = info.get("acc")
    value = number if accuracy is None else _number(accuracy, "acc=", prompt)
    if not settings.graded_rewards and value not in (0.0, 1.0):
        raise BadReward(
            f"reward function: returned {value} for prompt {prompt}, neither 0 nor 1; set sgpo.graded_rewards=true "
            f"if that is meant (success is then a score of at least sgpo.success_threshold={settings.success_threshold})"
        )
    return number


def _number(value: Any, name: str, prompt: str) -> float:
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadReward(f"reward function: returned {name}{value!r} for prompt {prompt}; it must be a finite number")
    return number
