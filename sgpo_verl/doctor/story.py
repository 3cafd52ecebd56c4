"""What will happen, in words: from the profiling pass to the last step, and what it is forecast to cost."""

from collections.abc import Iterator, Mapping
from typing import Any

from sgpo_verl.checks.profile import planned
from sgpo_verl.config import Settings
from sgpo_verl.forecast import Forecast, chooses_on_the_way, forecast
from sgpo_verl.plan import ProfiledPlan
from sgpo_verl.plan_view import ON_THE_WAY, shape_of
from sgpo_verl.run_config import numbers_of, settings_of


def story(config: Mapping[str, Any]) -> Iterator[str]:
    """Sentences. The configuration has passed every check."""
    numbers = numbers_of(config)
    if "sgpo" not in config:
        yield f"stock GRPO: every prompt {numbers.rollout_n} times, {numbers.train_batch_size} prompts a step"
        return
    settings, made = settings_of(config), planned(config)
    if settings.needs_profile and made is None:
        yield f"first every prompt is sampled {settings.profile.n} times; the profile is kept beside the checkpoints"
    yield _drawn(settings)
    if settings.prune:
        yield "rollouts whose advantage is zero are neither scored nor trained on"
    if numbers.total_training_steps is not None:
        yield f"it ends after {numbers.total_training_steps} steps (trainer.total_training_steps)"
    elif made is not None:
        yield f"it ends after {made.plan.total_steps} steps, and the learning rate's schedule with it"
    elif settings.needs_profile:
        yield "how many steps there will be follows from the profile: `sgpo profile`, then `sgpo plan`, show it beforehand"
    if made is not None:
        yield from _cost(config, settings, made)


def _drawn(settings: Settings) -> str:
    f, g = settings.filter, settings.group_size
    order = {
        "phases": "in phases from small groups to large, easy to hard",
        "shuffle": "in random order",
        "greso": "in random order, those whose last groups taught nothing less often",
        "posterior": "where a rollout is expected to teach most",
        "custom": f"as {settings.curriculum.custom.name} decides",
    }[settings.curriculum.order]
    sizes = {
        "profile": f"about 1 / pass rate times ({g.min} to {g.max})",
        "uniform": "rollout.n times",
        "posterior": f"{g.min} to {g.max} times" if g.max > 1 else "once",
        "rescue": f"{settings.aero.explore} times, up to {settings.aero.most} while none succeeds",
    }[settings.allocation]
    kept = {
        "profile": f"prompts solved more often than {f.max_pass_rate:g} are removed; the others are drawn ",
        "mixed": "groups of equal rewards are replaced; prompts are drawn ",
        "none": "all prompts are drawn ",
    }[f.by]
    return f"{kept}{order}, each {sizes}"


def _cost(config: Mapping[str, Any], settings: Settings, made: ProfiledPlan) -> Iterator[str]:
    if chooses_on_the_way(settings):
        yield f"{settings.method} {ON_THE_WAY}"
        return
    stock, ours = forecast(made, shape_of(config, made.profile))
    assert ours is not None
    yield f"forecast, the profile included: {_words(ours)}; stock GRPO: {_words(stock)}"
    if stock.flops and ours.flops and stock.teaching_rollouts and ours.teaching_rollouts:
        per_lesson = f"{ours.flops_per_teaching_rollout:.3g}, stock GRPO's {stock.flops_per_teaching_rollout:.3g}"
        yield f"FLOPs per rollout in a group that teaches: {per_lesson} (`sgpo plan` shows more)"


def _words(run: Forecast) -> str:
    flops = f", {run.flops:.3g} FLOPs" if run.flops else ""
    return f"{run.steps} steps, {run.rollouts} rollouts{flops}, {run.mixed:.0%} of groups teach"
