"""Rows into mini-batches: literal cases, and the properties for every small shape."""

import itertools

import pytest

from sgpo_verl.minibatches import kept_share, micro_batch_size, spread_padding, updates_of


@pytest.mark.parametrize(("rows", "planned", "updates"), [(64, 2, 2), (1, 4, 1), (3, 4, 3), (0, 4, 1)])
def test_there_are_never_more_updates_than_rows(rows, planned, updates):
    assert updates_of(rows, planned) == updates


def test_without_padding_nothing_moves():
    assert spread_padding([False] * 8, 2, 2) == list(range(8))


def test_padding_at_the_end_of_a_block_is_dealt_out():
    # one rank, two mini-batches of three rows; 3, 4 and 5 are padding: the last mini-batch would be empty
    assert spread_padding([False] * 3 + [True] * 3, 1, 2) == [0, 3, 5, 1, 2, 4]


def test_ranks_begin_with_different_mini_batches():
    # two ranks, two mini-batches of one row each; each rank has one padding row
    assert spread_padding([False, True, False, True], 2, 2) == [1, 0, 2, 3]


@pytest.mark.parametrize(("ranks", "updates", "cell"), itertools.product((1, 2, 3), (1, 2, 3, 4), (1, 2, 3)))
def test_every_mini_batch_keeps_a_real_row_however_few_there_are(ranks, updates, cell):
    rows = ranks * updates * cell
    for padding in range(min(ranks * updates, rows - updates + 1)):
        # verl's balance may put the padding rows of a step anywhere: at the end, at the front, on one rank
        layouts = ([False] * (rows - padding) + [True] * padding, [True] * padding + [False] * (rows - padding))
        for is_padding in layouts:
            order = spread_padding(is_padding, ranks, updates)
            assert sorted(order) == list(range(rows))
            block = rows // ranks
            assert all(row // block == place // block for place, row in enumerate(order))  # ranks keep their rows
            for m in range(updates):
                places = [r * block + m * cell + i for r in range(ranks) for i in range(cell)]
                assert not all(is_padding[order[place]] for place in places)


@pytest.mark.parametrize(("rows", "most", "size"), [(12, 8, 6), (7, 4, 1), (8, 8, 8), (6, 100, 6)])
def test_a_micro_batch_divides_the_rows(rows, most, size):
    assert micro_batch_size(rows, most) == size


def test_a_token_mean_over_kept_rows_times_its_share_is_the_mean_over_all():
    # 30 and 10 kept tokens, 40 left out: 20 each. 30 / 50 and 10 / 30.
    assert kept_share([30, 10], 40) == pytest.approx([0.6, 1 / 3])
    assert kept_share([30, 10], 0) == [1.0, 1.0]
