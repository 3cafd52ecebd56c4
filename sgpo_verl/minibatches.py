"""How the rows of a step divide into optimizer updates, whatever their number.

verl cuts a step's rows into one block per data-parallel rank, and each block into ``updates`` mini-batches of equal size;
it appends padding rows (empty loss mask) until that is possible. A mini-batch of padding rows only would divide by zero.
"""

from collections.abc import Sequence


def updates_of(rows: int, planned: int) -> int:
    """Optimizer updates of a step of ``rows`` rows: as planned, fewer where there is not a row for each."""
    return max(1, min(rows, planned))


def spread_padding(is_padding_N: Sequence[bool], ranks: int, updates: int) -> list[int]:
    """Order of rows in which every mini-batch has about the same number of padding rows; ranks keep their own.

    is_padding_N: rows rank by rank; N is a multiple of ranks x updates, with at least ``updates`` real rows. Mini-batch m is
    the m-th part of every rank's block. Without padding rows nothing moves.
    """
    if not any(is_padding_N):
        return list(range(len(is_padding_N)))
    block = len(is_padding_N) // ranks
    cell = block // updates
    order: list[int] = []
    dealt = 0  # over all ranks, so that they do not all begin with the same mini-batch
    for rank in range(ranks):
        rows = range(rank * block, (rank + 1) * block)
        padding = [row for row in rows if is_padding_N[row]]
        real = iter([row for row in rows if not is_padding_N[row]])
        cells: list[list[int]] = [[] for _ in range(updates)]
        for row in padding:
            cells[dealt % updates].append(row)
            dealt += 1
        for rows_of_cell in cells:
            order += [next(real) for _ in range(cell - len(rows_of_cell))] + rows_of_cell
    return order


def micro_batch_size(rows: int, most: int) -> int:
    """The largest number of rows up to ``most`` that divides ``rows``: what a ragged mini-batch is processed in."""
    return next(size for size in range(min(most, rows), 0, -1) if rows % size == 0)


def kept_share(tokens_M: Sequence[float], left_out: float) -> list[float]:
    """Per mini-batch: its own loss tokens / those it would have had, had no row been left out.

    A token-mean loss divides by the tokens that are there; times this share, it divides by all. left_out: loss tokens of
    the rows that are not trained on, which count as dealt out evenly over the mini-batches.
    """
    each = left_out / len(tokens_M)
    return [tokens / (tokens + each) if tokens else 1.0 for tokens in tokens_M]
