"""A simulation for people: two tables in the terminal, accuracy against FLOPs in a picture."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sgpo_verl import coins, simulate
from sgpo_verl.contenders import Contender, contenders
from sgpo_verl.cost import ModelShape
from sgpo_verl.errors import SgpoError
from sgpo_verl.plan_view import shape_of
from sgpo_verl.profile import Profile, load_profile
from sgpo_verl.report import units
from sgpo_verl.report.headline import Spread, final_accuracy, first_reach, median_ratio, spread
from sgpo_verl.report.palette import GRID, INK, MUTED, SERIES
from sgpo_verl.report.wording import range_text
from sgpo_verl.simulate import Course
from sgpo_verl.views import check_picture, new_table, save_picture

DISCLAIMER = "This is a model of learning, not a training run: it ranks ideas, it promises nothing."
PROMPTS, SEEDS = 2048, 3
LIMITS = {"prompts": 10_000_000, "steps": 1_000_000, "seeds": 1000}
LONGEST = 2  # the picture ends here, in GRPO's FLOPs: longer tails would take its place
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)))  # where there are more methods than colours


@dataclass(frozen=True)
class Row:
    """One method over its seeds. cost, baseline_cost: FLOPs to what the baseline ends with, medians; infinite: not reached.

    ratio: baseline cost / cost (None: half of the seeds or more never got there). reached: seeds that did.
    """

    label: str
    courses: list[Course]
    cost: float
    baseline_cost: float
    ratio: Spread | None
    reached: int

    @property
    def accuracy(self) -> Spread:
        return spread([final_accuracy(course.evals) for course in self.courses])


def run(
    arguments: Sequence[str],
    compare: Sequence[str] = (),
    profile: Path | None = None,
    prompts: int | None = None,
    steps: int | None = None,
    seeds: int = SEEDS,
    plot: Path | None = None,
) -> None:
    """``sgpo simulate``. Raises SgpoError naming the option, the key or the method whose value makes no sense."""
    for name, value in (("prompts", prompts), ("steps", steps), ("seeds", seeds)):
        if value is not None and not 1 <= value <= LIMITS[name]:
            raise SgpoError(f"--{name} {value}: must be from 1 to {LIMITS[name]}")
    if profile is not None and prompts is not None:
        raise SgpoError(f"--prompts {prompts}: a profile has its own prompts; use one of --prompts and --profile")
    if plot is not None:
        check_picture(plot)
    loaded = load_profile(profile) if profile is not None else None
    count = len(loaded) if loaded is not None else prompts or PROMPTS
    field = contenders(arguments, compare, steps)
    for contender in field:
        if contender.numbers.train_batch_size > count:
            raise SgpoError(
                f"{contender.label}: {count} prompts do not fill a step of data.train_batch_size="
                f"{contender.numbers.train_batch_size}: lower it, or take more prompts (--prompts)"
            )
    shape = (shape_of(field[0].config, loaded) if loaded is not None else None) or simulate.NOMINAL
    rows = rows_of(field, loaded, count, seeds, shape)
    show(rows, f"{profile}: {count:,} prompts" if profile else _pool(count), shape)
    if plot is not None:
        draw(rows, plot)
        print(f"picture: {plot}")


def _pool(count: int) -> str:
    trivial, hopeless = coins.TRIVIAL, coins.HOPELESS
    between = 1 - trivial - hopeless
    return (
        f"{count:,} synthetic prompts: {trivial:.0%} trivial, {hopeless:.0%} never solvable, {between:.0%} in between"
    )


def rows_of(
    field: Sequence[Contender], profile: Profile | None, prompts: int, seeds: int, shape: ModelShape
) -> list[Row]:
    """Every contender on the same coins, seed by seed; the first one is the baseline."""
    courses: list[list[Course]] = [[] for _ in field]
    for seed in range(seeds):
        pool = coins.from_profile(profile, seed) if profile is not None else coins.synthetic(prompts, seed)
        if not pool.learnable_P.any():
            raise SgpoError(
                f"none of the {len(pool)} prompts has a pass rate above 0 and up to {coins.LEARNABLE:g} to learn from: "
                "take more prompts, or another profile"
            )
        for contender, done in zip(field, courses, strict=True):
            settings, numbers = contender.settings, contender.numbers
            try:
                done.append(simulate.simulate(pool, settings, numbers, shape, None, contender.normalize_by_std, seed))
            except SgpoError as error:
                raise SgpoError(f"{contender.label}: {error}") from None
    return [_row(contender.label, done, courses[0]) for contender, done in zip(field, courses, strict=True)]


def _row(label: str, courses: list[Course], baselines: list[Course]) -> Row:
    costs, baseline_costs, ratios = [], [], []
    for course, baseline in zip(courses, baselines, strict=True):
        target = final_accuracy(baseline.evals)
        cost, own = (
            reach.cost["total_flops"] if (reach := first_reach(evals, target)) else math.inf
            for evals in (course.evals, baseline.evals)
        )
        costs.append(cost)
        baseline_costs.append(own)
        nothing_learned = own == 0 or not math.isfinite(own)
        ratios.append(math.nan if nothing_learned else 0.0 if math.isinf(cost) else own / cost)
    reached = sum(ratio > 0 for ratio in ratios)
    return Row(label, courses, float(np.median(costs)), float(np.median(baseline_costs)), median_ratio(ratios), reached)


def show(rows: Sequence[Row], pool: str, shape: ModelShape) -> None:
    """What was sampled, and what it came to."""
    console = Console(highlight=False)
    seeds = len(rows[0].courses)
    console.print(
        f"{pool}; {seeds} seed{'s' * (seeds > 1)}; FLOPs of a model of {shape.parameters:.3g} parameters", markup=False
    )
    console.print()
    for table in (_sampled(rows), _came_to(rows)):
        console.print(table)
        console.print()
    console.print(DISCLAIMER)


def _cell(row: Row, of: Callable[[Course], float], show_value: Callable[[float], str]) -> str:
    return _text(spread([of(course) for course in row.courses]), show_value)


def _text(value: Spread, show_value: Callable[[float], str]) -> str:
    """ "37.3 PFLOP (37.2–37.9)": the middle and the range, a unit that all share named once."""
    middle, seeds = range_text(value, show_value)
    unit = middle.partition(" ")[2]
    if unit and seeds.count(f" {unit}") == 2:
        seeds = seeds.replace(f" {unit}", "")
    return f"{middle} ({seeds})" if seeds else middle


def _sampled(rows: Sequence[Row]) -> Table:
    table = new_table(
        "what was sampled",
        *(
            "method",
            "steps",
            "rollouts",
            "of the profile",
            "mixed groups",
            "teaching per rollout",
            "signal per rollout",
        ),
    )
    for row in rows:
        table.add_row(
            Text(row.label),
            _cell(row, lambda c: c.steps, "{:,.0f}".format),
            _cell(row, lambda c: c.rollouts, units.count),
            _cell(row, lambda c: c.profile_rollouts, units.count),
            _cell(row, lambda c: c.mixed / max(1, c.groups), "{:.0%}".format),
            _cell(row, lambda c: c.teaching / max(1, c.rollouts), "{:.2f}".format),
            _cell(row, lambda c: c.signal / max(1, c.rollouts), "{:.3f}".format),
        )
    return table


def _came_to(rows: Sequence[Row]) -> Table:
    table = new_table(
        "what it came to",
        *("method", "pass rate at the end", "FLOPs", "to GRPO's end: GRPO / method", "ratio", "seeds"),
    )
    for row in rows:
        sides = units.side_by_side(units.flops(row.baseline_cost), units.flops(row.cost))
        flops = _cell(row, lambda c: c.flops, units.flops)
        table.add_row(Text(row.label), _text(row.accuracy, "{:.3f}".format), flops, sides, *_ratio(row))
    return table


def _ratio(row: Row) -> tuple[str, str]:
    """The ratio and its range, and how many seeds got there."""
    ratio = "not reached" if row.ratio is None else _text(row.ratio, "{:.2f}x".format)
    return ratio, f"{row.reached} of {len(row.courses)}"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Accuracy against FLOPs: the median over seeds, their range shaded. Raises SgpoError for a bad path."""
    from matplotlib.figure import Figure

    check_picture(path)
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    axes = figure.add_subplot()
    largest = max(course.flops for row in rows for course in row.courses)
    size, prefix = units.scale(largest, units.FLOP_PREFIXES)
    for i, row in enumerate(rows):
        flops_SE, accuracy_SE = (
            np.array([course.evals[name].to_numpy() for course in row.courses]) for name in ("total_flops", "accuracy")
        )
        colour, dashes = SERIES[i % len(SERIES)][0], DASHES[i // len(SERIES) % len(DASHES)]
        x_E = np.median(flops_SE, axis=0) / size
        axes.fill_between(x_E, accuracy_SE.min(axis=0), accuracy_SE.max(axis=0), color=colour, alpha=0.15, linewidth=0)
        axes.plot(x_E, np.median(accuracy_SE, axis=0), color=colour, linewidth=2, linestyle=dashes, label=row.label)
    target = rows[0].accuracy.middle
    axes.axhline(target, color=MUTED[0], linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    place: dict[str, Any] = {
        "xycoords": ("axes fraction", "data"),
        "xytext": (-2, 3),
        "textcoords": "offset points",
        "ha": "right",
    }
    axes.annotate(f"where GRPO ends: {target:.3f}", (1, target), color=MUTED[0], fontsize=9, **place)
    most = min(largest, LONGEST * max(course.flops for course in rows[0].courses)) / size
    axes.set_xlim(0, most * 1.02)
    axes.set_xlabel(f"compute, profile included ({prefix}FLOP)", color=INK[0])
    axes.set_ylabel("true pass rate of learnable prompts", color=INK[0])
    cut = f"; cut at {LONGEST} times GRPO's compute" if most < largest / size else ""
    axes.set_title(f"a model of learning, not a training run{cut}", fontsize=10, color=MUTED[0], loc="left")
    axes.tick_params(colors=MUTED[0], length=0, pad=6)
    axes.grid(color=GRID[0], linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED[0])
    for text in figure.legend(loc="outside right upper", frameon=False, fontsize=9).get_texts():
        text.set_parse_math(False)
    save_picture(figure, path)
