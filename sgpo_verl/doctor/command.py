"""Runs the checks and shows what they found. Exit codes: 0 all fine, warnings aside; 1 a check failed; 2 bad input."""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from sgpo_verl.checks.findings import Check, Finding, Unseen, examine
from sgpo_verl.doctor import machine, plugin, screen, versions
from sgpo_verl.errors import SgpoError
from sgpo_verl.seams import folders

FINE, FAILED, BAD_INPUT = 0, 1, 2
GROUPS = (("versions", versions.checks), ("plugin", plugin.checks), ("this machine", machine.checks))


class Doctor:
    """console: where findings are shown as they are made; None: they are only kept."""

    def __init__(self, console: Console | None):
        self.console = console
        self.findings: list[Finding] = []

    def look_at(self, title: str, checks: Iterable[Check], subject: Any = None) -> list[Finding]:
        """Make the checks, under a heading."""
        if self.console:
            screen.heading(self.console, title)
        found = []
        for finding in examine(checks, subject):
            found.append(finding)
            if self.console:
                screen.show(self.console, finding)
        self.findings += found
        return found

    def look_at_run(self, arguments: Sequence[str]) -> tuple[int, list[str]]:
        """(exit code, what will happen) of a training command's arguments."""
        from sgpo_verl.run_config import compose

        try:
            config = compose(arguments)
        except SgpoError as error:
            self.look_at("this run", [("configuration", partial(_refuse, error))])
            return BAD_INPUT, []
        from sgpo_verl.binding.preflight import CHECKS
        from sgpo_verl.recipe_keys import check_keys

        first = (("configuration", lambda _: "composes"), ("names of settings", check_keys))
        found = self.look_at("this run", [*first, *CHECKS], config)
        if any(finding.status in ("fail", "skip") for finding in found):
            return FAILED, []
        return self.foretell(config)

    def foretell(self, config: dict[str, Any]) -> tuple[int, list[str]]:
        """(exit code, what will happen) of a run that has passed every check; what cannot be foretold is a finding."""
        from sgpo_verl.doctor.story import story

        try:
            lines = list(story(config))
        except Exception as error:
            self.look_at("what will happen", [("forecast", partial(_refuse, error))])
            return FAILED, []
        if self.console:
            screen.heading(self.console, "what will happen")
            screen.told(self.console, lines)
        return FINE, lines

    @property
    def failed(self) -> bool:
        return any(finding.status == "fail" for finding in self.findings)


def _refuse(error: Exception, _: Any) -> str:
    raise error


def run(arguments: Sequence[str], as_json: bool = False, seams: Path | None = None) -> int:
    """``sgpo doctor``. arguments: of a training command, if one is to be looked at. seams: hold this verl, and nothing else,
    against the list of what the plugin uses. Returns the exit code."""
    # What verl lacks on a machine without a GPU is not the question.
    os.environ.setdefault("VERL_LOGGING_LEVEL", "ERROR")
    warnings.simplefilter("ignore")
    output = sys.stdout
    doctor = Doctor(None if as_json else Console(file=output, highlight=False))
    with contextlib.redirect_stdout(sys.stderr):  # what verl and others print on being imported
        code, lines = _examine(doctor, arguments, seams)
    if as_json:
        print(screen.as_json(code, doctor.findings, lines), file=output)
    elif doctor.console:
        screen.verdict(doctor.console, doctor.findings)
    return code


def _examine(doctor: Doctor, arguments: Sequence[str], seams: Path | None) -> tuple[int, list[str]]:
    if seams is not None:
        return _examine_other(doctor, arguments, seams), []
    for title, checks in GROUPS:
        doctor.look_at(title, checks())
    if not arguments:  # seconds that a run, which is to be answered within ten, does not wait for
        doctor.look_at("verl", [*plugin.trainer_checks(), *plugin.seam_checks()])
    code = FINE
    lines: list[str] = []
    if arguments and doctor.failed:
        doctor.look_at("this run", [("configuration", partial(_refuse, Unseen("mend the installation first")))])
    elif arguments:
        code, lines = doctor.look_at_run(arguments)
    return (max(code, FAILED) if doctor.failed else code), lines


def _examine_other(doctor: Doctor, arguments: Sequence[str], verl: Path) -> int:
    """The exit code of ``--seams``: bad input where there is no verl, or a run is to be looked at besides."""
    title = f"verl in {verl}"
    try:
        if arguments:
            raise SgpoError(f"--seams {verl} looks at no run: {' '.join(arguments)}", "leave the one or the other out")
        folders(verl)
    except SgpoError as error:
        doctor.look_at(title, [("seams", partial(_refuse, error))])
        return BAD_INPUT
    doctor.look_at(title, plugin.seam_checks(verl))
    return FAILED if doctor.failed else FINE
