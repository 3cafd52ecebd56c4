"""A profile for people: what it found, and what it is a profile of."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from sgpo_verl.profile import Profile

BAR = 40  # characters of the longest bar
BINS = 10


def summary(profile: Profile, console: Console) -> None:
    """Samples, pass rate, cost, and failures with their reasons: a few lines."""
    table, made = profile.table, profile.metadata
    rate = table["successes"].sum() / max(profile.samples, 1)
    flops = f", {made.flops:.3g} FLOPs" if made.flops else ""
    console.print(
        f"{len(table):,} prompts, {profile.samples:,} samples, mean pass rate {rate:.3f}, {made.total_tokens:,} tokens"
        f"{flops}, {made.seconds:,.0f} s"
    )
    if "failure" in table:
        reasons = Counter(table["failure"].dropna())
        console.print(f"{reasons.total():,} prompts failed and are left out of training:", style="yellow")
        for reason, times in reasons.most_common(3):
            console.print(f"  {times:,}x {reason}", style="yellow", markup=False)


def show(profile: Profile, path: Path) -> None:
    """Summary, histogram of pass rates, and the metadata."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{path}", style="bold", markup=False)
    summary(profile, console)
    console.print(_histogram(profile))
    unstated = profile.metadata.unstated()
    if unstated:
        console.print(f"not stated, so not checked in training: {', '.join(unstated)}", style="yellow")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for name, value in asdict(profile.metadata).items():
        if name not in unstated:
            table.add_row(name, value if isinstance(value, str) else json.dumps(value, sort_keys=True))
    console.print(table)


def _histogram(profile: Profile) -> Table:
    """Prompts per tenth of pass rate; never and always solved on their own."""
    counts = profile.table[profile.table["trials"] > 0]
    trials, successes = counts["trials"].to_numpy(), counts["successes"].to_numpy()
    inside = (successes > 0) & (successes < trials)
    number, _ = np.histogram(successes[inside] / trials[inside], BINS, (0, 1))
    labels = [f"{i / BINS:.1f}-{(i + 1) / BINS:.1f}" for i in range(BINS)]
    rows = [("0", int((successes == 0).sum())), *zip(labels, number.tolist(), strict=True)]
    rows.append(("1", int((successes == trials).sum())))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("pass rate")
    table.add_column("prompts", justify="right")
    table.add_column("")
    longest = max(count for _, count in rows)
    for label, count in rows:
        table.add_row(label, f"{count:,}", "#" * round(BAR * count / max(longest, 1)))
    return table
