"""Values of verl's own settings that verl reads late: once models are loaded, at the first step, or at the first validation.

trainer.save_freq=null: must be an integer, -1 for never
"""

from collections.abc import Callable, Mapping
from typing import Any

from sgpo_verl.errors import SgpoError
from sgpo_verl.run_config import is_count

ROLLOUT = "actor_rollout_ref.rollout"


def _is_integer(value: Any) -> bool:
    return type(value) is int


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 < value <= 1


def _is_temperature(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_rate(value: Any) -> bool:
    return _is_number(value) and value >= 0


# Every key, what its value must be, and whether a value is that.
RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "actor_rollout_ref.actor.optim.lr": ("a number, 0 or more", _is_rate),
    f"{ROLLOUT}.temperature": ("a number above 0, by which the log-probs divide", _is_temperature),
    f"{ROLLOUT}.top_p": ("a number above 0, 1 at most", _is_share),
    f"{ROLLOUT}.gpu_memory_utilization": ("a share above 0, 1 at most", _is_share),
    f"{ROLLOUT}.val_kwargs.n": ("a positive integer", is_count),
    f"{ROLLOUT}.val_kwargs.temperature": ("a number, 0 or more", _is_rate),
    f"{ROLLOUT}.val_kwargs.top_p": ("a number above 0, 1 at most", _is_share),
    "reward.num_workers": ("a positive integer", is_count),
    "trainer.save_freq": ("an integer, -1 for never", _is_integer),
    "trainer.test_freq": ("an integer, -1 for never", _is_integer),
}


def check_values(config: Mapping[str, Any]) -> str:
    """How many there are, in words. Raises SgpoError naming the first key of ``RULES`` whose value verl cannot use; one that
    is not there is verl's default."""
    for key, (wanted, fits) in RULES.items():
        value: Any = config
        for part in key.split("."):
            value = value.get(part, _MISSING) if isinstance(value, Mapping) else _MISSING
        if value is not _MISSING and not fits(value):
            raise SgpoError(f"{key}={'null' if value is None else value}: must be {wanted}")
    return f"{len(RULES)} that verl reads late"


_MISSING = object()
