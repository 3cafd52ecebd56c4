"""The built-in tasks and the sizes of base models, by the names that the command line and benchmark files use."""

from dataclasses import dataclass

from sgpo_verl.demo.sorting import SORT, SORT_LONG
from sgpo_verl.demo.task import DOUBLE

TASKS = {"double": DOUBLE, "sort": SORT, "sort_long": SORT_LONG}


@dataclass(frozen=True)
class Size:
    """A Llama's shape, and the highest learning rate of its training from scratch."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    peak_rate: float


SIZES = {"0.6M": Size(128, 352, 3, 4, 2e-3), "85M": Size(768, 2048, 12, 12, 4e-4)}
