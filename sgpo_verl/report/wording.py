"""The comparison in words and cells, the same for the terminal and the page."""

import math
from collections.abc import Callable

from sgpo_verl.report import units
from sgpo_verl.report.headline import Spread
from sgpo_verl.report.methodrow import MethodRow

MEASURE_FORMATS = {
    "total_flops": units.flops,
    "total_trained_tokens": units.count,
    "total_rollouts": units.count,
    "total_seconds": units.duration,
}
# Ratios nearer to 1 than this are called equal: evaluations are steps apart, so finer differences are not resolved.
EQUAL = 0.05


def ratio_text(row: MethodRow, measure: str) -> tuple[str, str]:
    """The ratio and its range over seeds: ("2.61×", "2.30–2.90"), ("not reached", "") or ("–", "")."""
    ratio = row.ratio[measure]
    if ratio is None:
        return "not reached", ""
    middle, seeds = range_text(ratio, "{:.2f}".format)
    return (middle if middle == "–" else f"{middle}×"), seeds


def sides_text(row: MethodRow, measure: str) -> str:
    """The two sides of the ratio, method / baseline: "146 / 222 PFLOP"."""
    if not row.compared:
        return ""
    show = MEASURE_FORMATS[measure]
    return units.side_by_side(show(row.cost[measure]), show(row.baseline_cost[measure]))


def reached_text(row: MethodRow) -> str:
    """What else to know of a method's way to the target: seeds that did not get there, or not for sure."""
    remarks = []
    if 0 < row.reached < row.compared:
        remarks.append(f"{row.reached} of {row.compared} seeds")
    if row.at_end:
        remarks.append("at the end" if row.at_end == row.reached else f"{row.at_end} at the end")
    return ", ".join(remarks)


def accuracy_text(accuracy: Spread) -> tuple[str, str]:
    return range_text(accuracy, "{:.3f}".format)


def range_text(value: Spread, show: Callable[[float], str]) -> tuple[str, str]:
    """(middle, "low–high"); no range where the seeds do not differ as shown, "–" where nothing is known."""
    if math.isnan(value.middle):
        return "–", ""
    low, high = show(value.low), show(value.high)
    return show(value.middle), f"{low}–{high}" if low != high else ""


def finding(rows: tuple[MethodRow, ...], baseline: str, target: Spread) -> str:
    """The result in words, from FLOPs: the cheapest method first, then the others, those that never got there last."""
    if not baseline:
        return "No complete stock GRPO run is among these, so there is no target to compare costs at."
    others = [row for row in rows if row.label != baseline and row.compared]
    own = next(row for row in rows if row.label == baseline).ratio["total_flops"]
    goal = f"{baseline}'s final accuracy ({target.middle:.3f})"
    if own is None or math.isnan(own.middle):
        return _no_target(next(row for row in rows if row.label == baseline), goal)
    if not others:
        return f"{baseline} ends at {target.middle:.3f}; no other method of known cost is here to compare."
    caution = " Fewer than 3 seeds: a difference may be luck." if min(row.compared for row in others) < 3 else ""
    ranked = sorted(others, key=_rank)
    best = ranked[0].ratio["total_flops"]
    if best is None:
        return f"No method reached {goal}: {'; '.join(_claim(row) for row in ranked)}.{caution}"
    if math.isnan(best.middle):
        return f"What the methods spent to reach {goal} is unknown."
    lead = "" if best.middle > 1 + EQUAL else "No method was cheaper. "
    lead += f"{ranked[0].label} reached {goal} with {_sides(ranked[0], baseline)}: {_claim(ranked[0], named=False)}."
    rest = f" {'; '.join(_claim(row) for row in ranked[1:])}." if ranked[1:] else ""
    return lead + rest + caution


def _no_target(own: MethodRow, goal: str) -> str:
    if own.baseline_cost["total_flops"] == 0:
        return (
            f"{goal} is no higher than where training began, so there is nothing to reach: the baseline did not learn."
        )
    return f"{own.label} does not hold {goal}, its own, at two evaluations in a row: use more validation samples."


def _rank(row: MethodRow) -> float:
    ratio = row.ratio["total_flops"]
    return 1.0 if ratio is None else 0.0 if math.isnan(ratio.middle) else -ratio.middle


def _sides(row: MethodRow, baseline: str) -> str:
    own, other = units.flops(row.cost["total_flops"]), units.flops(row.baseline_cost["total_flops"])
    return f"{own} where {baseline} took {other}"


def _claim(row: MethodRow, named: bool = True) -> str:
    """ "sGPO (paper): 2.6× fewer FLOPs (ratio 2.30–2.90 over seeds)"."""
    ratio = row.ratio["total_flops"]
    if ratio is None:
        got = f"reached it in only {row.reached} of {row.compared} seeds" if row.reached else "never got there"
        return f"{row.label} {got}"
    if math.isnan(ratio.middle):
        return f"{row.label}: cost unknown"
    if abs(ratio.middle - 1) <= EQUAL:
        words = "about as many FLOPs"
    elif ratio.middle > 1:
        words = f"{ratio.middle:.2f}× fewer FLOPs"
    else:
        words = f"{1 / ratio.middle:.2f}× more FLOPs"
    remarks = [f"ratio {ratio.low:.2f}–{ratio.high:.2f} over seeds"] if ratio.high - ratio.low >= 0.005 else []
    remarks += [f"reached by {row.reached} of {row.compared} seeds"] if row.reached < row.compared else []
    remarks += ["the seeds disagree"] if ratio.low < 1 - EQUAL and ratio.high > 1 + EQUAL else []
    return (f"{row.label}: " if named else "") + words + (f" ({', '.join(remarks)})" if remarks else "")
