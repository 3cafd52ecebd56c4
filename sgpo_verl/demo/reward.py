"""The demo's rule: an answer is right or it is not. verl's custom reward function; the recipes name this file."""


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: dict | None = None, **_) -> float:
    """1.0 if the answer, special tokens and outer blanks left aside, is the ground truth; else 0.0."""
    return float(solution_str.strip() == ground_truth)
