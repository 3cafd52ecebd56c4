"""A prompt's key: the same whenever and however the data is read."""

import json
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgpo_verl.errors import SgpoError
from sgpo_verl.prompts import NO_INDEX, identify, identify_indexed


def test_source_and_index_make_the_key_where_they_are_unique():
    prompts = identify(["gsm8k", "gsm8k", "math"], [17, 18, 17], ["a", "b", "c"])
    assert prompts.keys_P.tolist() == ["gsm8k:17", "gsm8k:18", "math:17"]
    assert prompts.sources_P.tolist() == ["gsm8k", "gsm8k", "math"]
    assert prompts.index_P.tolist() == [17, 18, 17]
    assert prompts.rows_P.tolist() == [0, 1, 2]
    assert len(prompts) == 3


@pytest.mark.parametrize("integer", [int, np.int32, np.int64, np.uint8])
def test_numpy_integers_are_integers(integer):
    prompts = identify(["s"], [integer(3)], ["a"])
    assert (prompts.keys_P.tolist(), prompts.index_P.tolist()) == (["s:3"], [3])


@pytest.mark.parametrize(
    ("index", "key"),
    [("train-7", "s:train-7"), (True, "s:True"), (np.bool_(False), "s:False"), (2**63, f"s:{2**63}"), ("é/1", "s:é/1")],
)
def test_an_index_that_int64_cannot_hold_is_in_the_key_only(index, key):
    prompts = identify(["s"], [index], ["a"])
    assert (prompts.keys_P.tolist(), prompts.index_P.tolist()) == ([key], [NO_INDEX])


@pytest.mark.parametrize("missing", [None, float("nan"), np.nan])
def test_one_missing_index_makes_all_keys_content_keys(missing):
    prompts = identify(["s", "s"], [1, missing], ["a", "b"])
    # sha256 of '["s", "a"]' and of '["s", "b"]', first 16 digits
    assert prompts.keys_P.tolist() == ["s#e6041735b003aa38", "s#084bceeb195944b3"]
    assert prompts.index_P.tolist() == [1, NO_INDEX]


def test_repeated_indices_make_content_keys():
    prompts = identify(["s", "s"], [1, 1], ["a", "b"])
    assert prompts.keys_P.tolist() == ["s#e6041735b003aa38", "s#084bceeb195944b3"]
    assert prompts.index_P.tolist() == [1, 1]


def test_rows_as_parquet_readers_hand_them_out_have_the_keys_of_plain_rows():
    messages = [{"role": "user", "content": "1+1="}]
    plain = identify(["s"], [None], [[messages, "2"]])
    read = identify(["s"], [None], [[np.array(messages, dtype=object), np.str_("2")]])
    numbers = identify(["s"], [None], [[[1, 2], 3.5]]), identify(["s"], [None], [[np.array([1, 2]), np.float64(3.5)]])
    assert plain.keys_P.tolist() == read.keys_P.tolist()
    assert numbers[0].keys_P.tolist() == numbers[1].keys_P.tolist()


@pytest.mark.parametrize("content", ["lone surrogate \ud800", {"unicode": "日本語 🙂"}, b"\xff", None])
def test_any_content_gets_a_key(content):
    assert identify(["s"], [None], [content]).keys_P[0].startswith("s#")


def test_different_answers_to_the_same_question_are_different_prompts():
    assert len(set(identify(["s", "s"], [None, None], [["q", "1"], ["q", "2"]]).keys_P)) == 2


def test_the_same_content_of_two_sources_is_two_prompts():
    assert len(set(identify(["a", "b"], [None, None], ["q", "q"]).keys_P)) == 2


def test_duplicate_rows_are_refused_by_row():
    with pytest.raises(
        SgpoError, match=r"row 2 is the same prompt as row 0 \(2 duplicate rows in all\).*duplicates=first"
    ):
        identify(["s"] * 4, [None] * 4, ["x", "y", "x", "y"])


def test_duplicates_first_keeps_the_first_row_of_each():
    prompts = identify(["s"] * 4, [None] * 4, ["x", "y", "x", "z"], duplicates="first")
    assert prompts.rows_P.tolist() == [0, 1, 3]
    assert len(prompts.keys_P) == len(prompts.sources_P) == len(prompts.index_P) == 3


def test_equal_content_under_different_indices_is_not_a_duplicate():
    assert identify(["s", "s"], [1, 2], ["x", "x"]).keys_P.tolist() == ["s:1", "s:2"]


def test_no_rows_are_refused():
    with pytest.raises(SgpoError, match=r"data\.train_files: no prompts left"):
        identify([], [], [])


rows = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.none() | st.integers(0, 5), st.text(max_size=3)), min_size=1, max_size=12
)


def keys_by_content(rows) -> dict[str, str]:
    prompts = identify(*map(list, zip(*rows, strict=True)), duplicates="first")
    return {json.dumps(rows[row]): key for row, key in zip(prompts.rows_P, prompts.keys_P, strict=True)}


@given(rows, st.integers(0, 99))
def test_keys_are_unique_and_do_not_depend_on_the_order_of_rows(rows, seed):
    rows = list({json.dumps(row): row for row in rows}.values())
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)
    here, there = keys_by_content(rows), keys_by_content(shuffled)
    assert len(set(here.values())) == len(here)
    # of duplicates (equal source and content, another index) either row may be the one that is kept
    assert all(there[row] == key for row, key in here.items() if row in there)
    assert set(here.values()) == set(there.values())


indexed = st.lists(
    st.tuples(st.sampled_from(["a", "b", "a:1", "", "日本"]), st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 2))
)


@given(indexed.filter(bool), st.integers(1, 5), st.sampled_from([pa.string(), pa.large_string()]))
def test_whole_columns_give_the_keys_that_rows_give(rows, chunk, text):
    sources, indices = map(list, zip(*rows, strict=True))
    chunks = pa.chunked_array([pa.array(sources[i : i + chunk], text) for i in range(0, len(rows), chunk)])
    found = identify_indexed(chunks, np.array(indices, dtype=np.int64))
    if len(set(rows)) < len(rows):
        assert found is None
        return
    expected = identify(sources, indices, [None] * len(rows))
    for name in ("keys_P", "sources_P", "index_P", "rows_P"):
        mine, theirs = getattr(found, name), getattr(expected, name)
        assert (mine.tolist(), mine.dtype) == (theirs.tolist(), theirs.dtype)
