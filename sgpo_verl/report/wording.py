"""The comparison in words and cells, the same for the terminal and the page."""

import math
from collections.abc import Callable

from sgpo_verl.report import units
from sgpo_verl.report.headline import Rule, Spread
from sgpo_verl.report.methodrow import MethodRow, ToTarget

MEASURE_FORMATS = {
    "total_flops": units.flops,
    "total_trained_tokens": units.count,
    "total_rollouts": units.count,
    "total_seconds": units.duration,
}
# Ratios nearer to 1 than this are called equal: evaluations are steps apart, so finer differences are not resolved.
EQUAL = 0.05


def ratio_text(way: ToTarget, measure: str) -> tuple[str, str]:
    """The ratio and its range over seeds: ("2.61×", "2.30–2.90"), ("not reached", "") or ("–", "")."""
    ratio = way.ratio[measure]
    if ratio is None:
        return "not reached", ""
    middle, seeds = range_text(ratio, "{:.2f}".format)
    return (middle if middle == "–" else f"{middle}×"), seeds


def sides_text(way: ToTarget, measure: str) -> str:
    """The two sides of the ratio, method / baseline: "146 / 222 PFLOP"."""
    if not way.compared:
        return ""
    show = MEASURE_FORMATS[measure]
    return units.side_by_side(show(way.cost[measure]), show(way.baseline_cost[measure]))


def reached_text(way: ToTarget) -> str:
    """What else to know of a method's way to the target: seeds that did not get there, or not for sure."""
    remarks = []
    if 0 < way.reached < way.compared:
        remarks.append(f"{way.reached} of {way.compared} seeds")
    if way.at_end:
        remarks.append("at the end" if way.at_end == way.reached else f"{way.at_end} at the end")
    return ", ".join(remarks)


def accuracy_text(accuracy: Spread) -> tuple[str, str]:
    return range_text(accuracy, "{:.3f}".format)


def range_text(value: Spread, show: Callable[[float], str]) -> tuple[str, str]:
    """(middle, "low–high"); no range where the seeds do not differ as shown, "–" where nothing is known."""
    if math.isnan(value.middle):
        return "–", ""
    low, high = show(value.low), show(value.high)
    return show(value.middle), f"{low}–{high}" if low != high else ""


def rule_of(own: ToTarget) -> Rule:
    """The rule that the finding goes by: HELD where the baseline holds its own end with every seed, else SMOOTHED."""
    return Rule.HELD if own.reached == own.compared else Rule.SMOOTHED


def finding(rows: tuple[MethodRow, ...], baseline: str, target: Spread, smoothed_target: float) -> str:
    """The result in words, from FLOPs: the cheapest method first, then the others, those that never got there last."""
    if not baseline:
        return "No complete stock GRPO run is among these, so there is no target to compare costs at."
    own = next(row for row in rows if row.label == baseline)
    rule = rule_of(own.held)
    value = target.middle if rule is Rule.HELD else smoothed_target
    goal = f"{baseline}'s final accuracy ({value:.3f})"
    lead = "" if rule is Rule.HELD else _not_held(own.held, baseline)
    others = [(row.label, row.by(rule)) for row in rows if row.label != baseline and row.by(rule).compared]
    if own.by(rule).baseline_cost["total_flops"] == 0:
        return (
            f"{goal} is no higher than where training began, so there is nothing to reach: the baseline did not learn."
        )
    if not others:
        return f"{baseline} ends at {value:.3f}; no other method of known cost is here to compare."
    few = min(way.compared for _, way in others) < 3
    return lead + _ranking(others, baseline, goal) + (" Fewer than 3 seeds: a difference may be luck." if few else "")


def _not_held(own: ToTarget, baseline: str) -> str:
    seeds = "" if own.compared == 1 else f" with {own.compared - own.reached} of {own.compared} seeds"
    return f"{baseline} does not hold its own end at two evaluations in a row{seeds}, so this is by smoothed curves. "


def _ranking(others: list[tuple[str, ToTarget]], baseline: str, goal: str) -> str:
    ranked = sorted(others, key=lambda item: _rank(item[1]))
    label, way = ranked[0]
    best = way.ratio["total_flops"]
    if best is None:
        return f"No method reached {goal}: {'; '.join(_claim(*item) for item in ranked)}."
    if math.isnan(best.middle):
        return f"What the methods spent to reach {goal} is unknown."
    lead = "" if best.middle > 1 + EQUAL else "No method was cheaper. "
    lead += f"{label} reached {goal} with {_sides(way, baseline)}: {_claim('', way)}."
    return lead + (f" {'; '.join(_claim(*item) for item in ranked[1:])}." if ranked[1:] else "")


def _rank(way: ToTarget) -> float:
    ratio = way.ratio["total_flops"]
    return 1.0 if ratio is None else 0.0 if math.isnan(ratio.middle) else -ratio.middle


def _sides(way: ToTarget, baseline: str) -> str:
    own, other = units.flops(way.cost["total_flops"]), units.flops(way.baseline_cost["total_flops"])
    return f"{own} where {baseline} took {other}"


def _claim(label: str, way: ToTarget) -> str:
    """ "sGPO (paper): 2.6× fewer FLOPs (ratio 2.30–2.90 over seeds)"; without a label, from "2.6×" on."""
    ratio = way.ratio["total_flops"]
    if ratio is None:
        got = f"reached it in only {way.reached} of {way.compared} seeds" if way.reached else "never got there"
        return f"{label} {got}"
    if math.isnan(ratio.middle):
        return f"{label}: cost unknown"
    if abs(ratio.middle - 1) <= EQUAL:
        words = "about as many FLOPs"
    elif ratio.middle > 1:
        words = f"{ratio.middle:.2f}× fewer FLOPs"
    else:
        words = f"{1 / ratio.middle:.2f}× more FLOPs"
    remarks = [f"ratio {ratio.low:.2f}–{ratio.high:.2f} over seeds"] if ratio.high - ratio.low >= 0.005 else []
    remarks += [f"reached by {way.reached} of {way.compared} seeds"] if way.reached < way.compared else []
    remarks += ["the seeds disagree"] if ratio.low < 1 - EQUAL and ratio.high > 1 + EQUAL else []
    return (f"{label}: " if label else "") + words + (f" ({', '.join(remarks)})" if remarks else "")
