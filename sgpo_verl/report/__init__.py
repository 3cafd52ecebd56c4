"""Runs on disk -> comparison, figures, one HTML page. Reads files only; nothing in training feeds it.

runlog -> runs (stock: what verl alone logs) -> headline -> methodrow -> comparison -> figures, page
"""

from sgpo_verl.report.comparison import Comparison, compare
from sgpo_verl.report.page import write
from sgpo_verl.report.runs import Run, load_run

__all__ = ["Comparison", "Run", "compare", "load_run", "write"]
