"""A plan for people: a table in the terminal, a picture in a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from sgpo_verl.cost import ModelShape, shape_from_path
from sgpo_verl.errors import SgpoError
from sgpo_verl.forecast import Forecast, chooses_on_the_way, forecast
from sgpo_verl.hub import model_folder
from sgpo_verl.methods.paper import Class
from sgpo_verl.plan import Plan, ProfiledPlan
from sgpo_verl.profile import Profile
from sgpo_verl.report import units
from sgpo_verl.views import check_picture, new_table, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    Class.TRIVIAL: "#9aa5b1",
    Class.LEARNABLE: "#0072b2",
    Class.UNSOLVED: "#d55e00",
}  # safe for colour-blind eyes; of the classes that have a pass rate
PROFILE = "#e69f00"


ON_THE_WAY = "chooses by what training shows: `sgpo simulate --profile` plays it through"


def shape_of(config: Mapping[str, Any], profile: Profile) -> ModelShape | None:
    """The model's shape: of the training command's model, else of the one that was profiled; None if neither is here.

    None as well if the profile has no lengths, without which there are no FLOPs.
    """
    if not profile.has_lengths:
        return None
    model = config["actor_rollout_ref"].get("model") or {}
    for path in (model.get("path"), profile.metadata.model.get("path", "")):
        if path and not isinstance(path, str):
            raise SgpoError(f"actor_rollout_ref.model.path={path!r}: must be a folder or a name on a hub")
        if path and (folder := model_folder(path)):
            return shape_from_path(folder)
    return None


def show(made: ProfiledPlan, shape: ModelShape | None) -> None:
    """Classes, histogram, phases and forecast, as tables."""
    console = Console(highlight=False)
    on_the_way = chooses_on_the_way(made.plan.settings)
    tables = [_classes(made)] if made.plan.settings.filter.by == "profile" else []  # else a class decides nothing
    tables.append(_histogram(made))
    if not on_the_way:
        tables += [_phases(made.plan), _forecasts(made, shape)]
    for table in tables:
        console.print(table)
        console.print()
    if on_the_way:
        console.print(f"{made.plan.settings.method} {ON_THE_WAY}", style="yellow")
        return
    prompts, batch = len(made.profile), made.plan.numbers.train_batch_size
    if prompts < batch:
        console.print(f"Stock GRPO would not start: {prompts} prompts do not fill one step of {batch}.", style="yellow")
    else:
        steps = made.plan.numbers.total_training_steps
        length = (
            "The runs differ in length: for the same number of steps set trainer.total_training_steps."
            if steps is None
            else f"Both are set to {steps} steps (trainer.total_training_steps)."
        )
        console.print(
            f"{length} The forecast is of whole runs; what it takes to reach the same accuracy, only training shows.",
            style="yellow",
        )
    if not made.profile.has_lengths:
        console.print("No tokens and FLOPs: this profile has no prompt and response lengths.", style="yellow")
    elif shape is None:
        console.print("FLOPs need the model: add actor_rollout_ref.model.path=<local folder>", style="yellow")


def _classes(made: ProfiledPlan) -> Table:
    table = new_table("prompts", "class", "prompts", "share", "what happens")
    drawn = made.plan.phases[0].unsolved
    settings = made.plan.settings.filter
    happens = {
        Class.TRIVIAL: f"removed (pass rate above {settings.max_pass_rate:g})",
        Class.LEARNABLE: "trained on",
        Class.UNSOLVED: f"{drawn} drawn into each phase",
        Class.FAILED: "left out (could not be profiled)",
    }
    for kind in Class:
        count = int((made.class_P == kind).sum())
        if kind == Class.FAILED and not count:
            continue
        table.add_row(kind.name.lower(), str(count), f"{count / len(made.class_P):.0%}", happens[kind])
    table.columns[-1].justify = "left"
    return table


def pass_rate_bins(made: ProfiledPlan) -> tuple[np.ndarray, np.ndarray]:
    """(edges, counts per class and bin (3, B)) of the profiled pass rates; one bin per possible rate if there are few."""
    counts = made.profile.table
    bins = min(int(counts["trials"].max()), 20) + 1
    edges = (np.arange(bins + 1) - 0.5) / (bins - 1)
    rate_P = (counts["successes"] / counts["trials"].clip(lower=1)).to_numpy()
    return edges, np.array([np.histogram(rate_P[made.class_P == kind], edges)[0] for kind in COLOURS])


def _histogram(made: ProfiledPlan) -> Table:
    table = new_table("pass rates", "rate", "prompts", "")
    table.columns[-1].justify = "left"
    edges, counts = pass_rate_bins(made)
    longest = counts.sum(axis=0).max()
    for i, total in enumerate(counts.sum(axis=0)):
        bar = "█" * round(40 * total / longest) or ("▏" if total else "")
        colour = COLOURS[Class(int(counts[:, i].argmax()))]
        table.add_row(f"{(edges[i] + edges[i + 1]) / 2:.3g}", str(total), f"[{colour}]{bar}[/]")
    return table


def _phases(plan: Plan) -> Table:
    table = new_table("phases", "group size", "learnable", "unsolved", "steps", "rollouts per step", "prompts per step")
    for phase, steps, rollouts in zip(plan.phases, plan.steps, plan.rollouts, strict=True):
        row = (phase.group_size, phase.learnable, phase.unsolved, steps, rollouts, rollouts // phase.group_size)
        table.add_row(*map(str, row))
    return table


def _forecasts(made: ProfiledPlan, shape: ModelShape | None) -> Table:
    stock, ours = forecast(made, shape)
    assert ours is not None  # it is not shown for such a plan
    table = new_table("forecast", "", "stock GRPO", _name(made.plan), "ratio")
    rows: list[tuple[str, str]] = [("training steps", "steps"), ("rollouts, profile included", "rollouts")]
    lengths = made.profile.has_lengths
    if lengths:
        rows += [("tokens generated in training", "generated_tokens"), ("tokens trained on", "trained_tokens")]
    if lengths and shape is not None:
        rows += [("FLOPs of the profile", "flops_profile"), ("FLOPs, profile included", "flops")]
        rows += [("FLOPs per rollout in a mixed group", "flops_per_teaching_rollout")]
    cells = [
        (label, _number(a), _number(b), f"{a / b:.2f}x" if a and b else "")
        for label, a, b in ((label, getattr(stock, name), getattr(ours, name)) for label, name in rows)
    ]
    cells.append(("groups expected to be mixed", f"{stock.mixed:.0%}", f"{ours.mixed:.0%}", ""))
    for label, theirs, own, ratio in cells:
        table.add_row(label, *((theirs, own, ratio) if stock.steps else ("", own, "")))  # it could not start
    return table


def _name(plan: Plan) -> str:
    name = "sGPO" if plan.settings.method == "paper" else plan.settings.method
    return f"{name} + prune" if plan.settings.prune and name != "prune" else name


def _number(value: float) -> str:
    return f"{value:,.0f}" if value < 1e6 else f"{value:.3g}"


def draw(made: ProfiledPlan, shape: ModelShape | None, path: Path) -> None:
    """The histogram of pass rates by class, the phases, and the forecast, as one PNG. Raises SgpoError for a bad path."""
    from matplotlib.figure import Figure

    check_picture(path)
    if chooses_on_the_way(made.plan.settings):
        raise SgpoError(f"--plot {path}: {made.plan.settings.method} {ON_THE_WAY}")
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    rates, phases, cost = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    _draw_rates(rates, made)
    _draw_phases(phases, made.plan)
    stock, ours = forecast(made, shape)
    assert ours is not None, "what chooses on the way was refused above"
    _draw_forecast(cost, _name(made.plan), stock, ours)
    for axes in (rates, phases, cost):
        axes.spines[["top", "right"]].set_visible(False)
    save_picture(figure, path)


def _draw_rates(axes: "Axes", made: ProfiledPlan) -> None:
    edges, counts = pass_rate_bins(made)
    below = np.zeros(counts.shape[1])
    for kind in COLOURS:
        label = f"{kind.name.lower()} ({counts[kind].sum()})"
        axes.bar(
            edges[:-1], counts[kind], np.diff(edges) * 0.9, bottom=below, align="edge", color=COLOURS[kind], label=label
        )
        below += counts[kind]
    axes.set(title=f"pass rates of {len(made.class_P)} prompts", xlabel="pass rate in the profile", ylabel="prompts")
    axes.margins(y=0.2)
    axes.locator_params(axis="y", integer=True)
    axes.legend(frameon=False, ncols=3, fontsize=8, loc="upper center")


def _draw_phases(axes: "Axes", plan: Plan) -> None:
    names = [f"G = {p.group_size}" for p in plan.phases]
    bars = axes.bar(names, plan.steps, color=COLOURS[Class.LEARNABLE])
    labels = [f"{s} steps\n{len(p.prompts_M)} prompts" for s, p in zip(plan.steps, plan.phases, strict=True)]
    axes.bar_label(bars, labels, fontsize=8)
    axes.margins(y=0.2)
    axes.locator_params(axis="y", integer=True)
    axes.set(title="phases, easy to hard", ylabel="training steps")


def _draw_forecast(axes: "Axes", name: str, stock: Forecast, ours: Forecast) -> None:
    what = "flops" if stock.flops else "rollouts"
    a, b = getattr(stock, what), getattr(ours, what)
    size, prefix = units.scale(max(a, b), units.FLOP_PREFIXES) if what == "flops" else (1.0, "")
    colours = [COLOURS[Class.TRIVIAL], COLOURS[Class.LEARNABLE]]
    bars = axes.bar(["stock GRPO", name], [a / size, b / size], color=colours)
    if what == "flops":
        labels = [units.flops(a), f"{units.flops(b)}\nprofile {ours.flops_profile / b:.0%} of it"]
        axes.bar([name], [ours.flops_profile / size], color=PROFILE, label="profile")
        axes.legend(frameon=False, fontsize=8, loc="upper right")
    else:
        labels = [_number(a), _number(b)]
    axes.bar_label(bars, labels, fontsize=8)
    axes.margins(y=0.2)
    axes.set(
        title=f"forecast of the whole run: {a / b:.2f}x" if a and b else "forecast",
        ylabel=f"{prefix}FLOP" if what == "flops" else "rollouts",
    )
