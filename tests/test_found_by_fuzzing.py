"""What test_fuzz.py found, one input each: every one of these once ended in a traceback, or in a wrong result."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from profiles import make_profile
from rundirs import config, sgpo_step, stock_step, validation, write_run
from test_fuzz import STATES, method

from sgpo_verl.config import load_settings
from sgpo_verl.counts import SHARD
from sgpo_verl.errors import SgpoError
from sgpo_verl.merge import merge
from sgpo_verl.metrics import Ledger
from sgpo_verl.profile import Profile, load_profile, save_profile
from sgpo_verl.prompts import identify
from sgpo_verl.report.comparison import compare
from sgpo_verl.report.runs import load_run
from sgpo_verl.run_config import numbers_of, own_profile_path
from sgpo_verl.shards import PassFiles, pass_id

TWO = {"trials": [8, 8], "successes": [3, 1], "prompt_key": ["a", "b"]}


def test_a_first_line_that_is_null_does_not_end_the_process(tmp_path):
    (tmp_path / "p.jsonl").write_text('null\n{"index": 1, "trials": 8, "successes": 1}\n')
    with pytest.raises(SgpoError, match=r"p\.jsonl: not readable as JSON lines \(row 0 is null"):
        load_profile(tmp_path / "p.jsonl")


def test_a_key_that_looks_like_a_date_stays_as_it_is(tmp_path):
    row = {"prompt_key": "2024-01-01", "data_source": "2024-01-01", "trials": 8, "successes": 3}
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    table = load_profile(tmp_path / "p.jsonl").table
    assert table[["prompt_key", "data_source"]].to_numpy().tolist() == [["2024-01-01", "2024-01-01"]]


def test_a_column_whose_name_is_not_text_is_refused(tmp_path):
    (tmp_path / "p.jsonl").write_bytes(b'{"\x80": 1, "index": 1, "trials": 8, "successes": 3}\n')
    with pytest.raises(SgpoError, match=r"p\.jsonl: not readable as JSON lines"):
        load_profile(tmp_path / "p.jsonl")


def test_a_bit_that_flipped_in_a_count_is_noticed(tmp_path):
    profile = make_profile([3] * 100)
    path = save_profile(Profile(profile.table.assign(trials=range(100, 200)), profile.metadata), tmp_path / "p.parquet")
    content = path.read_bytes()
    assert content.count(np.int32(150).tobytes()) == 1
    path.write_bytes(content.replace(np.int32(150).tobytes(), np.int32(151).tobytes()))
    with pytest.raises(SgpoError, match=r"p\.parquet: not a readable parquet file .*checksum"):
        load_profile(path)


def test_the_sum_of_two_plain_tables_can_be_read_back(tmp_path):
    pd.DataFrame(TWO).to_parquet(tmp_path / "a.parquet")
    plain = load_profile(tmp_path / "a.parquet")
    loaded = load_profile(save_profile(merge([plain, plain]), tmp_path / "p.parquet"))
    assert loaded.table["trials"].tolist() == [16, 16]
    assert loaded.metadata == plain.metadata


def test_more_trials_than_a_profile_can_hold_are_refused():
    profile = make_profile([1, 1], trials=2**31 - 1)
    with pytest.raises(SgpoError, match="prompt toy:0: 4294967294 trials in all are more than a profile can hold"):
        merge([profile, profile])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("passes", [{"id": ["a"], "seed": 0}]),
        ("passes", [{"id": "a", "seed": {}}]),
        ("seconds", float("nan")),
        ("seconds", -1.0),
        ("flops", 10**400),
        ("total_tokens", -5),
        ("seed", True),
    ],
)
def test_metadata_that_no_pass_can_have_is_refused(tmp_path, name, value):
    payload = json.dumps({"format_version": 1, name: value}).encode()
    table = pa.Table.from_pandas(make_profile([3]).table, preserve_index=False)
    pq.write_table(table.replace_schema_metadata({b"sgpo": payload}), tmp_path / "p.parquet")
    with pytest.raises(SgpoError, match=r"p\.parquet: .*metadata"):
        load_profile(tmp_path / "p.parquet")


def test_a_path_too_long_for_the_system_is_no_profile_and_no_run():
    with pytest.raises(SgpoError, match="no such profile"):
        load_profile("x" * 5000)
    with pytest.raises(SgpoError, match="no such directory"):
        load_run("x" * 5000)


def test_an_identity_that_is_no_text_is_refused_by_its_row():
    with pytest.raises(SgpoError, match=r"data.train_files: row 1: 's:\\ud800' holds what is no character"):
        identify(["s", "s"], ["a", "\ud800"], [1, 2])


@pytest.mark.parametrize("node", [None, "paper", 3, [1]])
def test_settings_that_are_no_group_are_refused(node):
    with pytest.raises(SgpoError, match=r"^sgpo="):
        load_settings(node)


def test_groups_and_folders_of_the_configuration_that_are_none_are_named():
    config = {
        "data": {"train_batch_size": 1},
        "algorithm": 5,
        "trainer": {"total_epochs": 1, "total_training_steps": None},
    }
    config["actor_rollout_ref"] = {"rollout": {"n": 1}, "actor": {"ppo_mini_batch_size": 1, "ppo_epochs": 1}}
    with pytest.raises(SgpoError, match=r"^algorithm=5: is a group of settings"):
        numbers_of(config)
    with pytest.raises(SgpoError, match=r"^trainer\.default_local_dir: not in this configuration"):
        own_profile_path(config)
    config["data"]["train_batch_size"] = 10**30
    with pytest.raises(SgpoError, match=r"^data\.train_batch_size=1000"):
        numbers_of(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phase": 3}, "phase=3 of 3"),
        ({"phase": -1}, "phase=-1"),
        ({"phase": True}, "phase=True"),
        ({"drawn": None}, "drawn=None"),
        ({"total": 10**400}, "total=1000"),
        ({"spent": 65}, "spent=65 of total=64"),
        ({"rewards": [float("nan")]}, "a reward that is not finite"),
        ({"rewards": "0.5"}, "rewards='0.5'"),
        ({"fingerprint": 3}, "fingerprint=3"),
    ],
)
def test_a_state_that_no_curriculum_wrote_is_refused(change, message):
    with pytest.raises(SgpoError, match=rf"^checkpoint: its sgpo state cannot be \({message}"):
        method().load_state_dict({**STATES[1], **change})


@pytest.mark.parametrize(("name", "value"), [("flops_train", float("nan")), ("rollouts_generated", 0.5)])
def test_totals_that_no_run_has_are_refused(name, value):
    with pytest.raises(SgpoError, match=rf"^checkpoint: its sgpo totals cannot be \({name}={value}\)"):
        Ledger().load_state_dict({**Ledger().state_dict(), name: value})


@pytest.mark.parametrize(
    "line",
    [
        '["0", 8, 3, 3.0, 1, 1, null]',
        "[true, 8, 3, 3.0, 1, 1, null]",  # would have been added to every prompt
        "[0, 8, 3, NaN, 1, 1, null]",
        "[0, 8.5, 3, 3.0, 1, 1, null]",
        "[0, 8, 3, 3.0, 1, -1, null]",
        "[0, 1e30, 3, 3.0, 1, 1, null]",
        "[0, 0, 0, 0.0, 0, 0, 5]",
        "[" * 100_000,
    ],
)
def test_a_line_that_no_request_gives_is_refused(tmp_path, line):
    with PassFiles(tmp_path, {}, 3):
        pass
    (tmp_path / "00000.jsonl").write_text(line + "\n")
    with pytest.raises(SgpoError, match=r"00000\.jsonl: line 1 is not one that we wrote"):
        PassFiles(tmp_path, {}, 3)


def test_a_shard_with_more_successes_than_trials_is_refused(tmp_path):
    with PassFiles(tmp_path, {}, 3):
        pass
    rows = {name: [value, value] for name, value in zip(SHARD.names, (0, 8, 9, 9.0, 1, 1, None), strict=True)}
    pq.write_table(pa.table(rows, schema=SHARD), tmp_path / "00000.parquet")
    with pytest.raises(SgpoError, match=r"00000\.parquet: not a shard \(row 0 cannot be\)"):
        PassFiles(tmp_path, {}, 3)


def test_the_id_and_seconds_of_a_pass_are_what_we_wrote(tmp_path):
    with PassFiles(tmp_path, {}, 3):
        pass
    (tmp_path / "seconds").write_text("inf")
    with PassFiles(tmp_path, {}, 3) as files:
        assert files.seconds < 60
    (tmp_path / "pass.json").write_text('{"id": [1]}')
    assert pass_id(tmp_path) is None
    with pytest.raises(SgpoError, match=r"pass\.json: not readable"):
        PassFiles(tmp_path, {}, 3)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"step": True, "data": {"a": 1}}, r"line 2: expected"),
        ({"step": -1, "data": {"a": 1}}, r"line 2: expected"),
        ({"step": 1, "data": {"timing_s/step": None}}, "no training step in it yet"),
    ],
)
def test_a_log_line_that_is_no_step_is_refused(tmp_path, step, message):
    with pytest.raises(SgpoError, match=message):
        load_run(write_run(tmp_path / "r", [validation(0, 0.2), step]))


def test_a_run_that_cost_nothing_is_compared_all_the_same(tmp_path):
    free = sgpo_step(1, 0.3, **{"sgpo/flops/total": 0.0, "sgpo/flops/profile": 0.0})
    runs = [
        write_run(tmp_path / "a", [stock_step(1, 0.3)]),
        write_run(tmp_path / "b", [free], config(sgpo__method="paper")),
    ]
    assert compare([load_run(run) for run in runs]).to_text()


def test_a_length_whose_square_is_no_number_is_unknown(tmp_path):
    run = load_run(write_run(tmp_path / "r", [stock_step(1, 0.3, **{"prompt_length/mean": 1e200})]))
    assert run.log["prompt_length/mean"].isna().all()


@pytest.mark.parametrize(
    ("settings", "facts", "message"),
    [
        ({"data__seed": [1]}, None, r"data\.seed is \[1\], expected a whole number"),
        ({"data__train_batch_size": True}, None, r"data\.train_batch_size is True"),
        ({"actor_rollout_ref__model__path": 5}, {"seed": 1}, "5 is neither a folder nor"),
        ({"actor_rollout_ref__model__path": "~nobody-here"}, {"seed": 1}, "is neither a folder nor"),
        ({}, {"model_shape": {"parameters": 10**400, "attention": 0}}, "model_shape must be as in"),
    ],
)
def test_a_run_folder_with_values_of_another_kind_is_refused(tmp_path, settings, facts, message):
    with pytest.raises(SgpoError, match=message):
        load_run(write_run(tmp_path / "r", [stock_step(1, 0.3)], config(**settings), facts))


def test_a_label_that_is_no_text_is_refused_before_it_is_printed(tmp_path):
    folder = write_run(tmp_path / "r", [stock_step(1, 0.3)])
    (folder / "run.json").write_text(r'{"label": "\ud800"}')
    with pytest.raises(SgpoError, match=r"run\.json: not readable as JSON .*surrogates"):
        load_run(folder)


def test_a_configuration_that_is_a_list_is_refused(tmp_path):
    folder = write_run(tmp_path / "r", [stock_step(1, 0.3)])
    (folder / ".hydra" / "config.yaml").write_text("- 1\n")
    with pytest.raises(SgpoError, match=r"config\.yaml: cannot be read as YAML \(a list, not a mapping\)"):
        load_run(folder)
