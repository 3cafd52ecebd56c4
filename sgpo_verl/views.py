"""What the screens of the command line share: the look of a table, and a picture that appears whole or not at all."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from sgpo_verl.errors import SgpoError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


def check_picture(path: Path) -> None:
    """Raises SgpoError if ``--plot path`` is no PNG file that could be written."""
    try:
        fits = path.suffix == ".png" and not path.is_dir() and path.parent.is_dir()
    except OSError:  # a name too long to look for, before Python 3.12
        fits = False
    if not fits:
        raise SgpoError(f"--plot {path}: must be a .png file in a folder that exists")


def save_picture(figure: "Figure", path: Path) -> None:
    """Raises SgpoError if the disk is full, say."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        try:
            figure.savefig(temporary, dpi=150, format="png")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise SgpoError(f"--plot {path}: cannot be written ({error.strerror}); name another file") from None
