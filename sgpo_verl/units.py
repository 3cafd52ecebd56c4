"""Amounts as people read them: 3.1 EFLOP, 1.2 M tokens, 1 h 23 min."""

import math

FLOP_PREFIXES = {1.0: "", 1e3: "k", 1e6: "M", 1e9: "G", 1e12: "T", 1e15: "P", 1e18: "E", 1e21: "Z", 1e24: "Y"}
COUNT_PREFIXES = {1.0: "", 1e3: "k", 1e6: "M", 1e9: "G", 1e12: "T"}
TIME_UNITS = {1.0: "s", 60.0: "min", 3600.0: "h"}


def scale(largest: float, units: dict[float, str]) -> tuple[float, str]:
    """(divisor, name) of the largest unit that ``largest`` has at least one of; the smallest unit below that."""
    fitting = [size for size in units if size <= largest]
    size = max(fitting) if fitting else min(units)
    return size, units[size]


def flops(amount: float) -> str:
    """3.1e18 -> "3.10 EFLOP"."""
    if math.isnan(amount):
        return "unknown"
    size, prefix = scale(amount, FLOP_PREFIXES)
    return f"{_three_digits(amount / size)} {prefix}FLOP"


def count(amount: float) -> str:
    """12345 -> "12.3 k"; below 1000 as it is."""
    if math.isnan(amount):
        return "unknown"
    if amount < 1000:
        return f"{amount:.0f}"
    size, prefix = scale(amount, COUNT_PREFIXES)
    return f"{_three_digits(amount / size)} {prefix}"


def duration(seconds: float) -> str:
    """4980 -> "1 h 23 min"; 125 -> "2 min 5 s"; 9.5 -> "9.5 s"."""
    if math.isnan(seconds):
        return "unknown"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest:02d} min"


def share(part: float) -> str:
    """0.1234 -> "12.3%"."""
    return "unknown" if math.isnan(part) else f"{100 * part:.1f}%"


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
