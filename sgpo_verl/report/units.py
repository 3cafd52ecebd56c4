"""Amounts as people read them: 3.1 EFLOP, 1.20 M tokens, 1.38 h."""

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
    return _amount(amount, {size: f"{prefix}FLOP" for size, prefix in FLOP_PREFIXES.items()})


def count(amount: float) -> str:
    """12345 -> "12.3 k"; below 1000 as it is."""
    return _amount(amount, COUNT_PREFIXES) if not amount < 1000 else f"{amount:.0f}"


def duration(seconds: float) -> str:
    """4980 -> "1.38 h"; 125 -> "2.08 min"; 9.5 -> "9.50 s"."""
    return _amount(seconds, TIME_UNITS)


def side_by_side(one: str, other: str) -> str:
    """Two amounts with their common unit named once: "146 PFLOP", "222 PFLOP" -> "146 / 222 PFLOP"."""
    number, _, unit = one.partition(" ")
    return f"{number if unit and other.endswith(' ' + unit) else one} / {other}"


def _amount(amount: float, units: dict[float, str]) -> str:
    if math.isnan(amount):
        return "unknown"
    if math.isinf(amount):
        return "never"
    size, name = scale(amount, units)
    return f"{_three_digits(amount / size)} {name}"


def share(part: float) -> str:
    """0.1234 -> "12.3%"."""
    return "unknown" if math.isnan(part) else f"{100 * part:.1f}%"


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
