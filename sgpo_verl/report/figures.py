"""The report's figures: accuracy against what it cost, and what the groups looked like on the way.

Drawn once with matplotlib's object API. The SVG's colours are replaced by CSS variables, so that the page decides on
light or dark; the PNG keeps the light ones.
"""

import io
import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sgpo_verl.report import units
from sgpo_verl.report.comparison import Comparison
from sgpo_verl.report.headline import Rule, evaluations
from sgpo_verl.report.palette import BAND, GRID, INK, MARKERS, MUTED, PAGE, SERIES, themed
from sgpo_verl.report.runs import Run

Lines = dict[str, list[tuple[pd.Series, pd.Series]]]  # of every method, (x, y) of each seed

COST_AXES = {
    "total_flops": ("total compute ({}FLOP)", units.FLOP_PREFIXES),
    "total_rollouts": (
        "rollouts generated{}",
        {size: f" ({name})" if name else "" for size, name in units.COUNT_PREFIXES.items()},
    ),
    "total_seconds": ("wall-clock time ({})", units.TIME_UNITS),
}


MOST_NAMES = 4  # curves that are named where they end; more of them are named beside the axes


@dataclass(frozen=True)
class Picture:
    """One figure of the page. name: file stem. svg: inline markup without prolog. png: the file's bytes."""

    name: str
    title: str
    caption: str
    svg: str
    png: bytes


def pictures(comparison: Comparison) -> list[Picture]:
    """All figures that the runs have data for."""
    drawn = [accuracy_picture(comparison, measure) for measure in COST_AXES]
    drawn += [mixed_picture(comparison), group_size_picture(comparison)]
    return [picture for picture in drawn if picture]


def accuracy_picture(comparison: Comparison, measure: str) -> Picture | None:
    """Accuracy over one cumulative cost; curves begin at the profile's cost. None if no run's cost is known."""
    curves = {}
    for label, runs in _by_label(comparison).items():
        evals = [evaluations(run, comparison.metric).dropna(subset=measure) for run in runs]
        if known := [(e[measure], e["accuracy"]) for e in evals if len(e)]:
            curves[label] = known
    if not curves:
        return None
    largest = max(float(x.max()) for lines in curves.values() for x, _ in lines)
    name, sizes = COST_AXES[measure]
    size, unit = units.scale(largest, sizes)
    figure, axes = _axes(name.format(unit), "validation accuracy")
    ends = {}
    for label, lines in curves.items():
        scaled = [(x / size, y) for x, y in lines]
        ends[label] = _draw(axes, scaled, look_of(comparison, label), markers=True)
    beside = len(ends) > MOST_NAMES
    axes.set_xlim(0, largest / size * (1.03 if beside else 1.22))
    if comparison.baseline:
        target = comparison.target.middle if comparison.rule is Rule.HELD else comparison.smoothed_target
        axes.axhline(target, color=MUTED[0], linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        text = f"target {target:.3f}"
        side: dict[str, Any] = {"ha": "right" if beside else "left"}
        axes.annotate(text, (0.994 if beside else 0.006, target), xycoords=("axes fraction", "data"), xytext=(0, 3),
                      textcoords="offset points", color=MUTED[0], fontsize=9, **side)  # fmt: skip
    if beside:
        _legend(axes, ends, comparison)
    else:
        _label_ends(axes, ends, comparison)
    word = {"total_flops": "compute", "total_rollouts": "rollouts", "total_seconds": "wall-clock time"}[measure]
    caption = f"Higher and further left is better. A curve begins where its profile was paid for.{_seeds(comparison)}"
    return _picture(f"accuracy_{measure.removeprefix('total_')}", f"Accuracy against {word}", caption, figure)


def mixed_picture(comparison: Comparison) -> Picture | None:
    """Share of mixed groups over steps, smoothed; None if no run knows it."""
    lines = _per_step(comparison, "frac_mixed", 100.0)
    if not lines:
        return None
    window = max(1, max(len(run.table) for run in comparison.runs) // 20)
    figure, axes = _axes("training step", "mixed groups (% of groups)")
    ends = {}
    for label, seeds in lines.items():
        smooth = [(x, y.rolling(window, min_periods=1, center=True).mean()) for x, y in seeds]
        ends[label] = _draw(axes, smooth, look_of(comparison, label), markers=False)
    axes.set_ylim(0, 100)
    ends = _step_limits(axes, lines, ends)
    _label_ends(axes, ends, comparison)
    over = f" Mean over {window} steps." if window > 1 else ""
    caption = f"Only groups with both right and wrong answers teach.{over}{_seeds(comparison)}"
    return _picture("mixed_groups", "Share of mixed groups", caption, figure)


def group_size_picture(comparison: Comparison) -> Picture | None:
    """Mean group size over steps, curriculum phases of the first run that has them shaded and named."""
    lines = _per_step(comparison, "group_size", 1.0)
    if not lines:
        return None
    figure, axes = _axes("training step", "rollouts per prompt (mean)")
    ends = {label: _draw(axes, seeds, look_of(comparison, label), markers=False) for label, seeds in lines.items()}
    axes.set_ylim(0, axes.get_ylim()[1] * 1.12)
    ends = _step_limits(axes, lines, ends)
    phased = next((run for run in comparison.runs if run.table["phase"].nunique() > 1), None)
    if phased:
        _shade_phases(axes, phased.table["phase"].dropna())
    _label_ends(axes, ends, comparison)
    whose = f" Shaded: the phases of {phased.label}." if phased else ""
    return _picture("group_size", "Mean group size", f"Rollouts spent on a prompt.{whose}{_seeds(comparison)}", figure)


def _by_label(comparison: Comparison) -> dict[str, list[Run]]:
    return {row.label: [run for run in comparison.runs if run.label == row.label] for row in comparison.rows}


Dashes = Literal["-", "--", ":", "-."]
DASHES: tuple[Dashes, ...] = get_args(Dashes)


class Look(NamedTuple):
    """How a method is drawn, everywhere alike."""

    colour: str
    marker: str
    dashes: Dashes


def look_of(comparison: Comparison, label: str) -> Look:
    """The first look is the baseline's alone and stays unused without one; when the others run out, lines are dashed."""
    if label == comparison.baseline:
        return Look(SERIES[0][0], MARKERS[0], DASHES[0])
    others = [row.label for row in comparison.rows if row.label != comparison.baseline]
    again, look = divmod(others.index(label), len(SERIES) - 1)
    return Look(SERIES[look + 1][0], MARKERS[look + 1], DASHES[again % len(DASHES)])


def _per_step(comparison: Comparison, column: str, factor: float) -> Lines:
    lines = {}
    for label, runs in _by_label(comparison).items():
        known = [run.table[column].dropna() * factor for run in runs]
        if seeds := [(values.index.to_series(), values) for values in known if len(values)]:
            lines[label] = seeds
    return lines


def _axes(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    axes.set_xlabel(xlabel, color=INK[0], fontsize=11)
    axes.set_ylabel(ylabel, color=INK[0], fontsize=11)
    axes.tick_params(colors=MUTED[0], labelsize=10, length=0, pad=6)
    axes.grid(color=GRID[0], linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(MUTED[0])
    return figure, axes


def _draw(axes: Axes, lines: list[tuple[pd.Series, pd.Series]], look: Look, markers: bool) -> tuple[float, float]:
    """One method: the median of its seeds as a line, their range as a band. Returns the line's end (x, y)."""
    x = pd.concat([x for x, _ in lines], axis=1, join="inner").median(axis=1)
    seeds = pd.concat([y for _, y in lines], axis=1, join="inner")
    y = seeds.median(axis=1)
    if len(lines) > 1:
        axes.fill_between(x, seeds.min(axis=1), seeds.max(axis=1), color=look.colour, alpha=0.13, linewidth=0, zorder=2)
    dots: dict[str, Any] = {"marker": look.marker, "markersize": 4.5} if markers else {}
    axes.plot(x, y, color=look.colour, linestyle=look.dashes, linewidth=2.2, zorder=3, **dots)
    return (float(x.iloc[-1]), float(y.iloc[-1])) if len(x) else (np.nan, np.nan)


def _step_limits(axes: Axes, lines: Lines, ends: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Room for names right of the last step; returns the ends moved there, since lines over steps often coincide."""
    first = min(float(x.min()) for seeds in lines.values() for x, _ in seeds)
    last = max(float(x.max()) for seeds in lines.values() for x, _ in seeds)
    axes.set_xlim(first, first + max(last - first, 1.0) * 1.22)
    return {label: (last, y) for label, (_, y) in ends.items()}


def _label_ends(axes: Axes, ends: dict[str, tuple[float, float]], comparison: Comparison) -> None:
    """The method's name beside the end of its line; names that would overlap are moved apart vertically."""
    ends = {label: end for label, end in sorted(ends.items(), key=lambda item: item[1][1]) if not np.isnan(end[0])}
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    heights = _apart(
        np.array([(y - low) / (high - low) for _, y in ends.values()]),
        np.array([(x - left) / (right - left) for x, _ in ends.values()]),
    )
    # Below the lines (zorder 3): a name may sit on another method's curve, but hides none of it.
    halo: dict[str, Any] = {"facecolor": PAGE[0], "edgecolor": "none", "alpha": 0.75, "pad": 1}
    for (label, (x, _)), height in zip(ends.items(), heights, strict=True):
        colour = look_of(comparison, label).colour
        place: dict[str, Any] = {
            "xytext": (9, 0),
            "textcoords": "offset points",
            "va": "center",
            "annotation_clip": False,
        }
        style: dict[str, Any] = {
            "parse_math": False,
            "fontsize": 10,
            "fontweight": "bold",
            "color": colour,
            "bbox": halo,
            "zorder": 2.5,
        }
        axes.annotate(label, (x, low + height * (high - low)), **place, **style)


def _legend(axes: Axes, ends: dict[str, tuple[float, float]], comparison: Comparison) -> None:
    """Names right of the axes, the highest end first: beside so many curves they would hide each other."""
    order = sorted((label for label in ends if not np.isnan(ends[label][1])), key=lambda label: -ends[label][1])
    looks = [look_of(comparison, label) for label in order]
    handles = [Line2D([], [], color=c, marker=m, linestyle=d, markersize=4.5, linewidth=2.2) for c, m, d in looks]
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "frameon": False, "fontsize": 10}
    legend = axes.legend(handles, order, labelspacing=0.9, **place)
    for text, look in zip(legend.get_texts(), looks, strict=True):
        text.set(color=look.colour, fontweight="bold", parse_math=False)


def _apart(heights: np.ndarray, starts: np.ndarray, gap: float = 0.06, width: float = 0.2) -> np.ndarray:
    """Heights (ascending, shares of the axes) moved until labels less than ``width`` apart in x are ``gap`` apart."""
    for _ in range(100):
        for i in range(len(heights)):
            for j in range(i + 1, len(heights)):
                push = gap - (heights[j] - heights[i])
                if push > 0 and abs(starts[j] - starts[i]) < width:
                    heights[i] -= push / 2
                    heights[j] += push / 2
    return heights


def _shade_phases(axes: Axes, phase: pd.Series) -> None:
    starts = phase.index[phase.diff().fillna(1) != 0]
    ends = [*starts[1:], phase.index[-1]]
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if i % 2 == 0:
            axes.axvspan(start, end, color=BAND[0], zorder=0, linewidth=0)
        axes.annotate(f"phase {int(phase[start]) + 1}", ((start + end) / 2, 1), xycoords=("data", "axes fraction"),
                      xytext=(0, -12), textcoords="offset points", ha="center", fontsize=9, color=MUTED[0])  # fmt: skip


def _seeds(comparison: Comparison) -> str:
    several = any(len(runs) > 1 for runs in _by_label(comparison).values())
    return " Lines: the median over seeds; shaded: their range." if several else ""


def _picture(name: str, title: str, caption: str, figure: Figure) -> Picture:
    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(png, format="png", dpi=150, facecolor="white", transparent=False)
    # Text stays text; ids are salted by the figure's name, since all figures share one page.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(svg, format="svg", metadata={"Date": None}, transparent=True)
    return Picture(name, title, caption, _for_page(svg.getvalue(), title), png.getvalue())


def _for_page(svg: str, title: str) -> str:
    """SVG without prolog, metadata and fixed size, its colours as CSS variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', rf'\1 role="img" aria-label="{title}"', svg, count=1)
    return themed(svg)
