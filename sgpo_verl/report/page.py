"""Run directories -> one HTML page that stands alone: finding, headline table, figures, totals, what was run.

Only reads files; nothing in training feeds it. ``compare`` gives the same numbers for a terminal.
"""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgpo_verl.errors import SgpoError
from sgpo_verl.report import units, wording
from sgpo_verl.report.comparison import Comparison, compare
from sgpo_verl.report.headline import MEASURES, Rule
from sgpo_verl.report.methodrow import MethodRow
from sgpo_verl.report.runs import Run

if TYPE_CHECKING:
    from sgpo_verl.report.figures import Picture


def write(
    runs: list[Run],
    out_html: str | Path,
    metric: str | None = None,
    baseline: str | None = None,
    notes: tuple[str, ...] = (),
) -> list[Path]:
    """Writes the page, and a PNG of each figure into ``<stem>_files/`` beside it; returns what was written, page first.

    metric, baseline, notes: see ``compare``. Files appear whole or not at all. Raises SgpoError for runs that cannot be
    compared and for a place that cannot be written to.
    """
    from sgpo_verl.report.figures import pictures

    out_html = Path(out_html)
    if os.path.exists(out_html) and not os.path.isfile(out_html):
        raise SgpoError(f"-o {out_html}: is a folder or a device - name a file, such as report.html")
    if out_html.suffix not in (".html", ".htm"):  # among the logs that it was made from, say
        raise SgpoError(f"-o {out_html}: the report is a page - name an .html file, such as report.html")
    comparison = compare(runs, metric, baseline, notes)
    drawn = pictures(comparison)
    files = {out_html: render(comparison, drawn).encode(errors="replace")}
    folder = out_html.with_name(f"{out_html.stem}_files")
    files |= {folder / f"{picture.name}.png": picture.png for picture in drawn}
    for path, content in files.items():
        _write_whole(path, content)
    return list(files)


def _write_whole(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            try:
                file.write(content)
                file.flush()
                # A temporary file is its owner's alone; a report is read by others.
                os.chmod(temporary, 0o644)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise SgpoError(f"{path}: cannot be written ({error.strerror}) - choose another place") from None


def render(comparison: Comparison, drawn: "list[Picture]") -> str:
    """The page. drawn: Pictures of ``figures.py``."""
    import jinja2

    from sgpo_verl.report.palette import css_variables

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("report.html.j2").render(
        comparison=comparison,
        pictures=drawn,
        held=[_headline_cells(row) for row in comparison.rows],
        smoothed=[_way_cells(row, Rule.SMOOTHED) for row in comparison.rows],
        totals=[_total_cells(row) for row in comparison.rows],
        runs=[_run_cells(run) for run in comparison.runs],
        budget=units.flops(comparison.budget),
        target=wording.accuracy_text(comparison.target),
        light=css_variables(dark=False),
        dark=css_variables(dark=True),
    )


def _way_cells(row: MethodRow, rule: Rule) -> dict[str, Any]:
    """Each cell: what is shown large, then small lines."""
    way = row.by(rule)
    costs = [(*wording.ratio_text(way, measure), wording.sides_text(way, measure)) for measure in MEASURES]
    return {"label": (row.label, wording.reached_text(way)), "cells": costs}


def _headline_cells(row: MethodRow) -> dict[str, Any]:
    cells = _way_cells(row, Rule.HELD)
    accuracies = [wording.accuracy_text(row.equal_flops), wording.accuracy_text(row.final)]
    cells["cells"] += [*accuracies, wording.range_text(row.frac_mixed, units.share)]
    return cells


def _total_cells(row: MethodRow) -> dict[str, Any]:
    costs = [wording.range_text(row.totals[measure], wording.MEASURE_FORMATS[measure]) for measure in MEASURES]
    shares = [
        wording.range_text(value, units.share) for value in (row.profile_share, row.padding_share, row.plugin_share)
    ]
    return {"label": (row.label,), "cells": [*costs, *shares]}


def _run_cells(run: Run) -> dict[str, Any]:
    return {
        "label": run.label,
        "seed": "–" if run.seed is None else str(run.seed),
        "steps": f"{run.log.index[0]}–{run.log.index[-1]}",
        "model": run.model,
        "commit": run.commit or "–",
        "versions": ", ".join(f"{name} {version}" for name, version in run.versions.items()) or "–",
        "path": str(run.path),
    }
