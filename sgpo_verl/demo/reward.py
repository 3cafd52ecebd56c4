"""The demo's rule: an answer is right or it is not. verl's custom reward function; the recipes name this file."""

from typing import Any


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **_: Any
) -> float:
    """1.0 if the answer, special tokens and outer blanks left aside, is the ground truth; else 0.0."""
    return float(solution_str.strip() == ground_truth)
