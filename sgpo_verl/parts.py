"""The parts that a method is made of, each of which may be set on its own; and those that make no sense together."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgpo_verl.config import Settings

# What each method is made of; a part that is given, and not null, stands.
PARTS: dict[str, dict[str, Any]] = {
    "paper": {
        "filter": "profile",
        "allocation": "profile",
        "curriculum": "phases",
        "advantage": "grpo",
        "prune": False,
    },
    "prune": {"filter": "none", "allocation": "uniform", "curriculum": "shuffle", "advantage": "grpo", "prune": True},
    "greso": {"filter": "mixed", "allocation": "uniform", "curriculum": "greso", "advantage": "grpo", "prune": False},
    "aero": {"filter": "none", "allocation": "rescue", "curriculum": "shuffle", "advantage": "aero", "prune": False},
    "bayes": {
        "filter": "none",
        "allocation": "posterior",
        "curriculum": "posterior",
        "advantage": "rare",
        "prune": True,
    },
}
SWITCH = {
    "filter": "by",
    "curriculum": "order",
}  # parts with settings of their own; sgpo.filter=none sets sgpo.filter.by


def filled(node: Mapping[str, Any]) -> dict[str, Any]:
    """The ``sgpo:`` node with the parts that are not given; a text in place of a group of settings is its switch."""
    result = dict(node)
    for part, own in PARTS.get(str(result.get("method", "paper")), {}).items():
        given = result.get(part)
        if part not in SWITCH:
            result[part] = own if given is None else given
        elif given is None or isinstance(given, str):
            result[part] = {SWITCH[part]: given or own}
        elif isinstance(given, Mapping) and given.get(SWITCH[part]) is None:
            result[part] = {**given, SWITCH[part]: own}
    return result


def misfits(settings: "Settings") -> list[tuple[bool, str]]:
    """Combinations of parts that make no sense, and why."""
    by, order = settings.filter.by, settings.curriculum.order
    allocation, advantage = settings.allocation, settings.advantage
    return [
        (
            allocation == "posterior" and order != "posterior",
            f"allocation=posterior chooses prompts as it gives them rollouts: it needs curriculum=posterior, not {order}",
        ),
        (
            by == "mixed" and allocation != "uniform",
            f"filter=mixed fills a step up group by group, all of one size: it needs allocation=uniform, not {allocation}",
        ),
        (
            allocation in ("profile", "posterior") and advantage == "grpo" and settings.group_size.min < 2,
            f"group_size.min=1 with allocation={allocation} and advantage=grpo: a group of one is never mixed; use 2 or more",
        ),
        (
            order == "greso" and allocation == "profile",
            "curriculum=greso draws groups of one size: it needs allocation=uniform or rescue, not profile",
        ),
        (
            by == "mixed" and order == "phases",
            "filter=mixed draws until a step is full, phases count what they draw: use curriculum=shuffle or greso",
        ),
        (
            by == "mixed" and advantage != "grpo",
            f"filter=mixed drops the groups that advantage={advantage} is for: use filter=none, or advantage=grpo",
        ),
        (
            by == "mixed" and bool(settings.prune),
            "filter=mixed leaves no rows without advantage: prune has nothing to do; use one of the two",
        ),
        (
            settings.graded_rewards and advantage != "grpo",
            f"advantage={advantage} is of right and wrong answers: with graded_rewards=true use advantage=grpo",
        ),
        (
            settings.batch.unit == "prompts" and order != "phases",
            f"batch.unit=prompts needs steps of one group size: curriculum=phases, not {order}",
        ),
        (
            settings.curriculum.until != "epochs" and order != "phases",
            f"curriculum.until={settings.curriculum.until} ends a phase: it needs curriculum=phases, not {order}",
        ),
        (
            settings.curriculum.epochs is not None and not settings.needs_profile,
            "curriculum.epochs counts passes over what a profile leaves: without one set trainer.total_epochs",
        ),
        (
            allocation == "rescue" and order in ("phases", "posterior"),
            f"allocation=rescue gives every prompt the same to begin with: it needs curriculum=shuffle or greso, not {order}",
        ),
    ]
