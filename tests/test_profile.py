"""The profile on disk: what was saved is read back, and nothing else is taken for a profile."""

import json
import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from profiles import make_profile

from sgpo_verl.errors import SgpoError
from sgpo_verl.profile import SCHEMA, Profile, ProfileMetadata, differences, load_profile, save_profile

METADATA = {"format_version": 1}


def write(path, metadata: bytes | dict | None = METADATA, **columns):
    """A parquet file of two prompts as another program might write it; ``columns`` replace whole columns."""
    table = {
        "prompt_key": ["a", "b"],
        "data_source": ["s", "s"],
        "index": [0, 1],
        "trials": [8, 8],
        "successes": [3, 1],
        "reward_mean": [0.375, 0.125],
        "prompt_tokens": [5, 6],
        "response_tokens_mean": [7.0, 8.0],
    } | columns
    table = pa.table({name: values for name, values in table.items() if values is not None})
    payload = json.dumps(metadata).encode() if isinstance(metadata, dict) else metadata
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({} if payload is None else {b"sgpo": payload}), path)
    return path


def test_what_was_saved_is_read_back(tmp_path):
    saved = make_profile([0, 3, 8])
    loaded = load_profile(save_profile(saved, tmp_path / "deep" / "p.parquet"))
    assert loaded.metadata == saved.metadata
    assert loaded.table.to_dict("list") == {
        "prompt_key": ["toy:0", "toy:1", "toy:2"],
        "data_source": ["toy", "toy", "toy"],
        "index": [0, 1, 2],
        "trials": [8, 8, 8],
        "successes": [0, 3, 8],
        "reward_mean": [0.0, 0.375, 1.0],
        "prompt_tokens": [10, 10, 10],
        "response_tokens_mean": [20.0, 20.0, 20.0],
    }
    assert pq.read_schema(tmp_path / "deep" / "p.parquet").remove_metadata().equals(SCHEMA)
    assert os.listdir(tmp_path / "deep") == ["p.parquet"]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    st.lists(
        st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.integers(1, 2**31 - 1), st.floats(0, 1)),
        min_size=1,
        unique_by=lambda row: row[0],
    )
)
def test_any_keys_and_counts_survive_the_round_trip(tmp_path, rows):
    keys, trials, shares = zip(*rows, strict=True)
    successes = [int(t * s) for t, s in zip(trials, shares, strict=True)]
    profile = make_profile([0] * len(rows))
    table = profile.table.assign(prompt_key=list(keys), trials=list(trials), successes=successes)
    loaded = load_profile(save_profile(Profile(table, profile.metadata), tmp_path / "p.parquet"))
    assert loaded.table[["prompt_key", "trials", "successes"]].to_numpy().tolist() == [
        list(row) for row in zip(keys, trials, successes, strict=True)
    ]


def test_samples_and_tokens_of_a_profile():
    profile = make_profile([0, 8], trials=8, prompt=10, response=20.0)
    assert (len(profile), profile.samples) == (2, 16)
    # 2 prompts x 10 tokens, read once each; 16 responses x 20
    tokens = profile.tokens()
    assert (tokens.groups, tokens.prompt_tokens, tokens.rows, tokens.response_tokens) == (2, 20, 16, 320)
    assert tokens.generated == 340


def test_align_gives_the_rows_asked_for_in_their_order():
    aligned = make_profile([1, 2, 3]).align(np.array(["toy:2", "toy:0"], dtype=object))
    assert aligned.table["successes"].tolist() == [3, 1]
    assert aligned.table.index.tolist() == [0, 1]


def test_align_works_on_a_profile_from_disk(tmp_path):
    loaded = load_profile(save_profile(make_profile([1, 2]), tmp_path / "p.parquet"))
    assert loaded.align(np.array(["toy:1"], dtype=object)).table["successes"].tolist() == [2]


def test_align_names_the_prompts_without_counts():
    with pytest.raises(SgpoError, match=r"p\.parquet: has no counts for 2 of 3 prompts.*first: x:1, x:2"):
        make_profile([1]).align(np.array(["toy:0", "x:1", "x:2"], dtype=object), "p.parquet")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"model": {"path": "elsewhere", "fingerprint": "f1"}}, None),
        ({"seed": 7, "versions": {"verl": "0.9.2"}, "seconds": 9.0, "total_tokens": 1}, None),
        ({"model": {"path": "toy/model", "fingerprint": "f2"}}, "model.fingerprint: profile 'f1', run 'f2'"),
        ({"data": {"train.parquet": "d2"}}, "data.train.parquet: profile 'd1', run 'd2'"),
        ({"data": {"more.parquet": "d1", "train.parquet": "d1"}}, "data.more.parquet: profile None, run 'd1'"),
        ({"sampling": {"temperature": 0.7}}, "sampling.temperature: profile 1.0, run 0.7"),
        ({"sampling": {"temperature": 1.0, "ignore_eos": True}}, "sampling.ignore_eos: profile None, run True"),
        ({"reward": {"name": "f"}}, "reward.name: profile 'r', run 'f'"),
        ({"chat_template": "t2"}, "chat_template: profile 't1', run 't2'"),
        ({"tokenizer": "k2"}, "tokenizer: profile 'k1', run 'k2'"),
        ({"chat_template": "", "tokenizer": "", "sampling": {}}, None),  # not stated
        ({"model": {"path": "toy/model", "fingerprint": "f1", "revision": "abc"}}, None),
        ({"success_threshold": 0.9}, "success_threshold: profile 0.5, run 0.9"),
    ],
)
def test_what_makes_a_profile_one_of_another_run(change, line):
    made = make_profile([1]).metadata
    assert differences(made, replace(made, **change)) == ([] if line is None else [line])


BAD_ROWS = {
    "prompt_key is missing": {"prompt_key": ["a", None]},
    "prompt_key is there twice": {"prompt_key": ["b", "b"]},
    "index is missing": {"index": [0, None]},
    "trials is missing or negative": {"trials": [8, -1]},
    "successes is missing or not between 0 and trials": {"successes": [0, 9]},
    "reward_mean is missing or not finite": {"reward_mean": [0.5, float("inf")]},
    "prompt_tokens is missing or negative": {"prompt_tokens": [5, -1]},
    "response_tokens_mean is missing or negative": {"response_tokens_mean": [1.0, float("nan")]},
}


@pytest.mark.parametrize("what", BAD_ROWS)
def test_a_bad_row_is_named(tmp_path, what):
    with pytest.raises(SgpoError, match=rf"p\.parquet: row 1 \(.*\): {what}"):
        load_profile(write(tmp_path / "p.parquet", **BAD_ROWS[what]))


@pytest.mark.parametrize(
    "columns",
    [
        {"trials": [8, None]},
        {"successes": [-1, 1]},
        {"successes": [None, 1]},
        {"response_tokens_mean": [7.0, float("inf")]},
        {"response_tokens_mean": [7.0, -1.0]},
        {"trials": ["8", "eight"]},
        {"trials": [8.5, 8.0]},
        {"trials": [2**31, 8]},
        {"trials": [[8], [8]]},
        {"trials": pd.to_datetime([1, 2])},
        {"prompt_key": [{"a": 1}, {"a": 2}]},
        {"prompt_key": [b"\xff", b"b"]},
        {"trials": None},
        {name: [] for name in SCHEMA.names},
    ],
)
def test_columns_that_no_profile_has_are_refused(tmp_path, columns):
    with pytest.raises(SgpoError, match=r"p\.parquet: "):
        load_profile(write(tmp_path / "p.parquet", **columns))


@pytest.mark.parametrize(
    "wide", [{"trials": np.array([8, 8], np.int64), "prompt_tokens": [5.0, 6.0]}, {"extra": [1, 2]}]
)
def test_wider_types_and_more_columns_are_read(tmp_path, wide):
    loaded = load_profile(write(tmp_path / "p.parquet", **wide))
    assert list(loaded.table.columns) == SCHEMA.names
    assert loaded.table.loc[0, ["trials", "prompt_tokens"]].tolist() == [8, 5]


@pytest.mark.parametrize(
    "metadata",
    [
        b"",
        b"{",
        b"\xff\xfe{",
        b'"\xff"',
        b"[]",
        b"[" * 100_000,
        {},
        {"format_version": 2},
        {"format_version": 1, "model": "toy/model"},
        {"format_version": 1, "model": {"path": 3}},
        {"format_version": 1, "data": None},
        {"format_version": 1, "seconds": "long"},
        {"format_version": 1, "passes": ["first"]},
        {"format_version": 1, "passes": [{"id": "a"}]},
    ],
    ids=lambda value: repr(value)[:40],
)
def test_metadata_that_sgpo_did_not_write_is_refused(tmp_path, metadata):
    with pytest.raises(SgpoError, match=r"p\.parquet: .*(metadata|format)"):
        load_profile(write(tmp_path / "p.parquet", metadata))


def test_metadata_of_a_later_minor_version_is_read(tmp_path):
    loaded = load_profile(write(tmp_path / "p.parquet", {"format_version": 1, "seed": 3, "new": "field"}))
    assert loaded.metadata == ProfileMetadata(seed=3)


def test_no_file_says_how_to_make_one(tmp_path):
    with pytest.raises(SgpoError, match=r"no such profile; make it with `sgpo profile"):
        load_profile(tmp_path / "none.parquet")
    with pytest.raises(SgpoError, match=r"is a folder; name the profile's file"):
        load_profile(tmp_path)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.binary() | st.binary().map(lambda middle: b"PAR1" + middle + b"PAR1"))
def test_arbitrary_bytes_are_no_profile(tmp_path, content):
    (tmp_path / "p.parquet").write_bytes(content)
    with pytest.raises(SgpoError, match=r"p\.parquet: not a readable parquet file"):
        load_profile(tmp_path / "p.parquet")


def test_a_truncated_profile_is_refused_wherever_it_was_cut(tmp_path):
    whole = save_profile(make_profile([1, 2]), tmp_path / "p.parquet").read_bytes()
    for length in range(0, len(whole), 97):
        (tmp_path / "p.parquet").write_bytes(whole[:length])
        with pytest.raises(SgpoError, match=r"p\.parquet: not a readable parquet file"):
            load_profile(tmp_path / "p.parquet")


def test_an_interrupted_write_leaves_the_old_profile_and_nothing_else(tmp_path, monkeypatch):
    path = save_profile(make_profile([1, 2]), tmp_path / "p.parquet")

    def half_written(table, target, **options):
        target.write_bytes(b"PAR1")
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", half_written)
    with pytest.raises(KeyboardInterrupt):
        save_profile(make_profile([8]), path)
    assert load_profile(path).table["successes"].tolist() == [1, 2]
    assert os.listdir(tmp_path) == ["p.parquet"]


@pytest.mark.parametrize("where", ["file/p.parquet", "folder"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path, where):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SgpoError, match=where):
        save_profile(make_profile([1]), tmp_path / where)


def test_revisions_of_a_hubs_model_count_where_both_are_known():
    made = make_profile([1]).metadata
    a, b = (replace(made, model={"path": "m", "fingerprint": "hub:m", "revision": r}) for r in ("abc", "def"))
    assert differences(a, b) == ["model.revision: profile 'abc', run 'def'"]


def test_a_prompt_that_failed_has_no_trials_and_a_reason(tmp_path):
    profile = make_profile([3, 0, 5])
    table = profile.table.assign(trials=[8, 0, 8], reward_mean=[0.375, 0.0, 0.625], failure=[None, "too long", None])
    loaded = load_profile(save_profile(Profile(table, profile.metadata), tmp_path / "p.parquet"))
    assert loaded.table["failure"].fillna("").tolist() == ["", "too long", ""]
    assert (loaded.samples, loaded.tokens().groups) == (16, 2)
    assert pq.read_schema(tmp_path / "p.parquet").names == [*SCHEMA.names, "failure"]


def test_a_profile_in_which_everything_failed_is_refused(tmp_path):
    profile = make_profile([0])
    save_profile(Profile(profile.table.assign(trials=0), profile.metadata), tmp_path / "p.parquet")
    with pytest.raises(SgpoError, match=r"p\.parquet: no prompt has any trials"):
        load_profile(tmp_path / "p.parquet")


def test_a_profile_from_disk_takes_little_memory_per_prompt(tmp_path):
    loaded = load_profile(save_profile(make_profile([3] * 5000), tmp_path / "p.parquet"))
    assert loaded.table.memory_usage(index=False, deep=True).sum() / 5000 < 60


PLAIN = [{"index": 4, "trials": 8, "successes": 3}, {"index": 2, "trials": 16, "successes": 0}]


def plain_file(path, rows):
    """A table as another tool would write it, by the file's ending."""
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["p.parquet", "p.jsonl", "p.json"])
def test_a_plain_table_by_index_is_matched_when_the_data_is_known(tmp_path, name):
    loaded = load_profile(plain_file(tmp_path / name, PLAIN))
    assert loaded.by_index and loaded.samples == 24
    assert loaded.metadata.unstated() == list(ProfileMetadata.IDENTITY)
    keys, index = pd.array(["s:2", "s:4"], dtype="str"), np.array([2, 4])
    aligned = loaded.align(keys, "p", index)
    assert aligned.table["prompt_key"].tolist() == ["s:2", "s:4"]
    assert aligned.table["successes"].tolist() == [0, 3]
    assert aligned.table["reward_mean"].tolist() == [0.0, 0.375]
    assert not aligned.by_index


def test_an_index_that_is_not_unique_in_the_data_is_refused(tmp_path):
    loaded = load_profile(plain_file(tmp_path / "p.jsonl", PLAIN))
    with pytest.raises(SgpoError, match="not one number per prompt: add a column data_source, or prompt_key"):
        loaded.align(pd.array(["a:2", "b:2"], dtype="str"), "p", np.array([2, 2]))


def test_a_plain_table_with_sources_or_keys_has_their_keys(tmp_path):
    rows = [{**row, "data_source": "gsm8k"} for row in PLAIN]
    loaded = load_profile(plain_file(tmp_path / "p.parquet", rows))
    assert not loaded.by_index and loaded.table["prompt_key"].tolist() == ["gsm8k:4", "gsm8k:2"]
    rows = [{"prompt_key": "a#1", "trials": 8, "successes": 8, "response_tokens_mean": 7.5, "note": "mine"}]
    loaded = load_profile(plain_file(tmp_path / "q.jsonl", rows))
    assert loaded.table["prompt_key"].tolist() == ["a#1"]
    assert loaded.table["response_tokens_mean"].tolist() == [7.5]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"index": 1, "trials": 8}], r"lacks the column\(s\) successes; there are index, trials"),
        ([{"trials": 8, "successes": 1}], r"lacks the column\(s\) prompt_key or index"),
        ([{"index": 1, "trials": 8, "successes": 9}], r"row 0 \(:1\): successes is missing or not between"),
        ([{"index": 1, "trials": 8, "successes": 1}] * 2, r"row 1 \(:1\): prompt_key is there twice"),
        ([{"index": "one", "trials": 8, "successes": 1}], "column index or data_source has the wrong type"),
        ([{"index": 1, "trials": 8.5, "successes": 1}], r"column trials has the wrong type \("),
        ([{"index": 1, "trials": "x", "successes": 1}], r"column trials has the wrong type \("),
        ([{"index": None, "trials": 8, "successes": 1}], "row 0 .*missing"),
        ([{"index": 1, "trials": None, "successes": 1}], "row 0 .*trials is missing"),
        ([{"index": 1, "trials": 0, "successes": 0}], "no prompt has any trials"),
    ],
)
@pytest.mark.parametrize("name", ["p.parquet", "p.jsonl"])
def test_a_bad_plain_table_is_named(tmp_path, name, rows, message):
    with pytest.raises(SgpoError, match=rf"p\.\w+: {message}"):
        load_profile(plain_file(tmp_path / name, rows))


def test_a_key_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "p.jsonl").write_bytes(b'{"prompt_key": "caf\xe9", "trials": 8, "successes": 1}\n')
    with pytest.raises(SgpoError, match=r"p\.jsonl: column prompt_key has the wrong type \(.*UTF8"):
        load_profile(tmp_path / "p.jsonl")


@pytest.mark.parametrize("text", ["", "{", "[]", "not json", '{"index": 1}\n[2]', "\x00"])
def test_what_is_no_table_of_json_lines_is_named(tmp_path, text):
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(SgpoError, match=r"p\.jsonl: (not readable as JSON lines|lacks the column)"):
        load_profile(tmp_path / "p.jsonl")
