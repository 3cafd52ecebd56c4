"""The parts of a pass on disk: what a crash leaves, and what is counted of it."""

import json
import random
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgpo_verl import shards
from sgpo_verl.counts import Sampled
from sgpo_verl.errors import SgpoError
from sgpo_verl.shards import PassFiles, discard, parts_folder, pass_id

HEADER = {"model": {"fingerprint": "a"}, "seed": 0}


def sampled(position, trials=8, successes=3):
    return Sampled(position, trials, successes, float(successes), 10, 20 * trials)


def test_counts_are_the_sum_of_what_was_added_and_come_back(tmp_path):
    with PassFiles(tmp_path / "p.parts", HEADER, 3) as files:
        files.add(sampled(0, 8, 3))
        files.add(sampled(2, 4, 4))
        files.add(sampled(0, 2, 1))
        first = files.id
    with PassFiles(tmp_path / "p.parts", HEADER, 3) as files:
        assert files.id == first
        assert files.counts.trials_P.tolist() == [10, 0, 4]
        assert files.counts.successes_P.tolist() == [4, 0, 4]
        assert files.counts.reward_sum_P.tolist() == [4.0, 0.0, 4.0]
        assert files.counts.prompt_tokens_P.tolist() == [10, 0, 10]
        assert files.counts.response_tokens_P.tolist() == [200, 0, 80]


def test_a_failure_is_kept_until_the_prompt_succeeds(tmp_path):
    with PassFiles(tmp_path / "p.parts", HEADER, 2) as files:
        files.add(Sampled(0, 0, 0, 0.0, 0, 0, "too long"))
        files.add(Sampled(1, 0, 0, 0.0, 0, 0, "hung"))
    with PassFiles(tmp_path / "p.parts", HEADER, 2) as files:
        assert files.counts.failures == {0: "too long", 1: "hung"}
        files.add(sampled(1))
        assert files.counts.failures == {0: "too long"}


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_LINES", 4)


def test_full_line_files_become_shards(tmp_path, small_shards):
    folder = tmp_path / "p.parts"
    with PassFiles(folder, HEADER, 10) as files:
        for position in range(10):
            files.add(sampled(position))
    assert sorted(p.name for p in folder.iterdir() if p.name[0] == "0") == [
        "00000.parquet",
        "00001.parquet",
        "00002.jsonl",
    ]
    assert pq.read_table(folder / "00001.parquet")["position"].to_pylist() == [4, 5, 6, 7]
    with PassFiles(folder, HEADER, 10) as files:
        assert files.counts.trials_P.tolist() == [8] * 10


def test_a_crash_between_shard_and_removal_of_its_lines_counts_nothing_twice(tmp_path, small_shards):
    folder = tmp_path / "p.parts"
    with PassFiles(folder, HEADER, 8) as files:
        for position in range(3):
            files.add(sampled(position))
    lines = (folder / "00000.jsonl").read_text()
    with PassFiles(folder, HEADER, 8) as files:
        files.add(sampled(3))
    (folder / "00000.jsonl").write_text(lines)  # as if the process had died before it removed them
    (folder / "00001.jsonl").unlink()
    with PassFiles(folder, HEADER, 8) as files:
        assert files.counts.trials_P.tolist() == [8, 8, 8, 8, 0, 0, 0, 0]


def test_a_line_that_was_cut_short_is_dropped_and_written_over(tmp_path):
    folder = tmp_path / "p.parts"
    with PassFiles(folder, HEADER, 3) as files:
        files.add(sampled(0))
    with (folder / "00000.jsonl").open("a") as stream:
        stream.write("[1, 8, 3, 3.0")
    for _ in range(2):
        with PassFiles(folder, HEADER, 3) as files:
            assert files.counts.trials_P.tolist()[1:] == [0, 0]
    with PassFiles(folder, HEADER, 3) as files:
        files.add(sampled(2))
    with PassFiles(folder, HEADER, 3) as files:
        assert files.counts.trials_P.tolist() == [8, 0, 8]


def test_samples_of_something_else_are_refused_with_the_difference(tmp_path):
    with PassFiles(tmp_path / "p.parts", HEADER, 1):
        pass
    with pytest.raises(SgpoError, match=r"p\.parts: holds samples .*seed: there 0, now 1.*--force"):
        PassFiles(tmp_path / "p.parts", {**HEADER, "seed": 1}, 1)
    with PassFiles(tmp_path / "p.parts", HEADER, 1):  # the refusal let go of the lock
        pass


def test_a_second_process_is_refused(tmp_path):
    with PassFiles(tmp_path / "p.parts", HEADER, 1):
        with pytest.raises(SgpoError, match="another process is sampling this profile"):
            PassFiles(tmp_path / "p.parts", HEADER, 1)
        with pytest.raises(SgpoError, match="another process"):
            discard(tmp_path / "p.parts")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("00000.parquet", b"no parquet", r"00000\.parquet: not a shard"),
        ("00000.jsonl", b"[1, 2]\n", r"00000\.jsonl: line 1 is not one that we wrote"),
        ("00000.jsonl", b'{"a": 1}\n', r"00000\.jsonl: line 1 is not one that we wrote"),
        ("00000.jsonl", b"[99, 8, 3, 3.0, 1, 1, null]\n", r"00000\.jsonl: position 99 is no prompt"),
        ("00000.jsonl", b"[-1, 8, 3, 3.0, 1, 1, null]\n", r"00000\.jsonl: position -1 is no prompt"),
        ("00000.jsonl", b"[0, 2, 3, 3.0, 1, 1, null]\n", r"00000\.jsonl: line 1 is not one that we wrote"),
        ("pass.json", b"{", r"pass\.json: not readable"),
        ("pass.json", b"[]", r"pass\.json: not readable"),
    ],
)
def test_files_that_we_did_not_write_are_named(tmp_path, name, content, message):
    folder = tmp_path / "p.parts"
    with PassFiles(folder, HEADER, 3):
        pass
    (folder / name).write_bytes(content)
    with pytest.raises(SgpoError, match=message):
        PassFiles(folder, HEADER, 3)


def test_a_shard_with_a_missing_column_is_named(tmp_path):
    folder = tmp_path / "p.parts"
    with PassFiles(folder, HEADER, 3):
        pass
    pq.write_table(pa.table({"position": [1]}), folder / "00000.parquet")
    with pytest.raises(SgpoError, match=r"00000\.parquet: not a shard"):
        PassFiles(folder, HEADER, 3)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SgpoError, match=r"file/p\.parts: cannot write there"):
        PassFiles(tmp_path / "file" / "p.parts", HEADER, 1)


def test_discard_removes_what_we_wrote_and_nothing_else(tmp_path, small_shards):
    folder = parts_folder(tmp_path / "p.parquet")
    with PassFiles(folder, HEADER, 9) as files:
        for position in range(9):
            files.add(sampled(position))
    assert pass_id(folder) == files.id
    (folder / "notes.txt").touch()
    discard(folder)
    assert [p.name for p in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    discard(folder)
    discard(folder)  # nothing there is fine
    assert pass_id(folder) is None


def test_seconds_add_up_over_calls(tmp_path, monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(shards.time, "monotonic", lambda: next(clock))
    with PassFiles(tmp_path / "p.parts", HEADER, 1):
        pass
    written = float((tmp_path / "p.parts" / "seconds").read_text())
    assert written > 0
    with PassFiles(tmp_path / "p.parts", HEADER, 1) as files:
        assert files.seconds > written


WRITER = """
import signal, sys
from pathlib import Path
from sgpo_verl import shards
from sgpo_verl.counts import Sampled
shards.SHARD_LINES = 7
with shards.PassFiles(Path(sys.argv[1]), {"seed": 0}, 2000) as files:
    for number, position in enumerate(p for p in range(2000) if files.counts.trials_P[p] == 0):
        if number == int(sys.argv[2]):
            signal.setitimer(signal.ITIMER_PROF, float(sys.argv[3]))  # the end, so many of its own seconds from now
        files.add(Sampled(position, 8, position % 9, float(position % 9), 5, 40))
        print(position, flush=True)  # said after it was added: so it must be found again
"""


def test_killed_at_random_moments_nothing_that_was_added_is_lost_or_doubled(tmp_path):
    rng, told, kills = random.Random(0), set(), 0
    while len(told) < 2000:
        after = [str(rng.randrange(300)), str(rng.uniform(0.001, 0.02))]
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "p.parts"), *after],
            stdout=subprocess.PIPE,
            text=True,
        )  # it ends itself, without a warning: a busy machine may not let us do it before it is done
        told |= {int(line) for line in process.stdout}
        kills += process.wait() == -signal.SIGPROF
        with PassFiles(tmp_path / "p.parts", {"seed": 0}, 2000) as files:
            counts = files.counts
        found = set(np.flatnonzero(counts.trials_P).tolist())
        assert found >= told
        told |= found
        assert set(counts.trials_P.tolist()) <= {0, 8}
        position = np.flatnonzero(counts.trials_P)
        assert (counts.successes_P[position] == position % 9).all()
    assert kills >= 3


def test_the_header_may_hold_what_json_changes(tmp_path):
    header = {"seed": 0, "sizes": (1, 2), "map": {1: "a"}}
    for _ in range(2):
        with PassFiles(tmp_path / "p.parts", header, 1):
            pass
    assert json.loads((tmp_path / "p.parts" / "pass.json").read_text())["sizes"] == [1, 2]
