"""Findings for people: a mark, a word, a name, and lines that fit the terminal; or as one JSON document for scripts."""

import json
from collections.abc import Iterable

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sgpo_verl.checks.findings import Finding

LOOKS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "red"), "skip": ("–", "dim")}
WORDS = {"ok": "ok", "warn": "WARN", "fail": "FAIL", "skip": "skip"}
NAME = 17


def show(console: Console, finding: Finding) -> None:
    """One finding; what to do about it on a line of its own."""
    mark, style = LOOKS[finding.status]
    row = Table.grid(padding=(0, 1))
    for width in (1, 4, NAME):
        row.add_column(width=width)
    row.add_column(overflow="fold", ratio=1)
    text = Text(finding.text, style="" if finding.status in ("ok", "warn", "fail") else style)
    if finding.fix:
        text.append(f"\n→ {finding.fix}", style=style)
    row.add_row(Text(mark, style), Text(WORDS[finding.status], style), Text(finding.name, "bold"), text)
    console.print(row)


def heading(console: Console, title: str) -> None:
    console.print()
    console.print(Text(title, style="bold underline"))


def told(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(Padding(Text(line), (0, 0, 0, 2)))


def verdict(console: Console, findings: Iterable[Finding]) -> None:
    found = list(findings)
    failed, doubtful = (sum(f.status == status for f in found) for status in ("fail", "warn"))
    console.print()
    if failed:
        names = ", ".join(f.name for f in found if f.status == "fail")
        console.print(Text(f"✗ {failed} of {len(found)} checks failed: {names}", "bold red"))
    elif doubtful:
        console.print(Text(f"! nothing failed; {doubtful} of {len(found)} checks have a warning", "bold yellow"))
    else:
        console.print(Text(f"✓ all {len(found)} checks are fine", "bold green"))


def as_json(code: int, findings: Iterable[Finding], story: Iterable[str]) -> str:
    """{"ok", "exit_code", "checks": [{"name", "status", "text", "fix"}], "will_happen": [...]}."""
    checks = [{"name": f.name, "status": f.status, "text": f.text, "fix": f.fix} for f in findings]
    document = {"ok": code == 0, "exit_code": code, "checks": checks, "will_happen": list(story)}
    return json.dumps(document, indent=2, ensure_ascii=False)
