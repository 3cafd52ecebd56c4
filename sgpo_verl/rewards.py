"""What counts as a success."""

import math
from collections.abc import Mapping
from typing import Any

from sgpo_verl.config import Settings
from sgpo_verl.errors import SgpoError


def succeeded(score: float, info: Mapping[str, Any], settings: Settings) -> bool:
    """Whether a rollout succeeded: the reward function's own ``acc`` if it returns one, else its score, >= threshold."""
    accuracy = info.get("acc")
    return float(score if accuracy is None else accuracy) >= settings.success_threshold


def check_score(score: Any, info: Mapping[str, Any], settings: Settings, prompt: str) -> float:
    """The score as a float. Raises SgpoError naming the prompt if it is no number, NaN, or graded and not declared so."""
    if isinstance(score, str) or not hasattr(score, "__float__") or math.isnan(float(score)):
        raise SgpoError(f"reward function: returned {score!r} for prompt {prompt}; it must return a number")
    value = info.get("acc")
    value = float(score if value is None else value)
    if not settings.graded_rewards and value not in (0.0, 1.0):
        raise SgpoError(
            f"reward function: returned {value} for prompt {prompt}, neither 0 nor 1; set sgpo.graded_rewards=true "
            f"if that is meant (success is then a score of at least sgpo.success_threshold={settings.success_threshold})"
        )
    return float(score)
