"""The borders under inputs that nobody would think of: whatever is read is refused in one line, or it is valid.

Every property starts from something good and changes parts of it. SGPO_FUZZ_EXAMPLES=20000 tries that many of each.
"""

import json
import math
import os
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from profiles import make_profile
from rundirs import SHAPE, config, sgpo_step, stock_step, validation, write_run

from sgpo_verl import shards
from sgpo_verl.config import Settings, load_settings
from sgpo_verl.counts import Sampled
from sgpo_verl.errors import SgpoError
from sgpo_verl.merge import merge
from sgpo_verl.methods.base import Outcome
from sgpo_verl.methods.paper import Class, classify
from sgpo_verl.metrics import Ledger
from sgpo_verl.plan import make_plan
from sgpo_verl.profile import SCHEMA, Profile, ProfileMetadata, differences, load_profile, save_profile
from sgpo_verl.prompts import identify
from sgpo_verl.report.comparison import compare
from sgpo_verl.report.page import render
from sgpo_verl.report.runs import load_run
from sgpo_verl.run_config import TRAINER_MODES, check_supported, numbers_of, own_profile_path, settings_of, with_profile
from sgpo_verl.schedule import RunNumbers
from sgpo_verl.shards import PassFiles, pass_id
from sgpo_verl.tally import Tally

MANY = int(os.environ.get("SGPO_FUZZ_EXAMPLES", 0))
FUZZ = settings(
    derandomize=not MANY,
    deadline=None,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


def fuzz(examples: int):
    """The settings of one property: ``examples``, or as many as the environment asks for."""
    return settings(FUZZ, max_examples=MANY or examples)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
EDGES = [-1, 0, 1, 2, 8, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, 10**400, 0.5, -0.0, 1e308, math.nan, math.inf]
WORDS = ["", "8", "nan", "1e999", "true", "~nobody", "x" * 5000, "\0", "\ud800", "a\nb"]
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.sampled_from(EDGES) | st.sampled_from(WORDS)
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))


def places(tree, path=()):
    """The paths of everything in a tree of dicts and lists."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


@st.composite
def changed(draw, tree, values=VALUES, most: int = 3):
    """``tree`` with up to ``most`` of its parts replaced, removed, or added to."""
    tree = {"": deepcopy(tree)}
    for _ in range(draw(st.integers(0, most))):
        *parents, last = ("", *draw(st.sampled_from(sorted(places(tree[""]), key=repr))))
        node = tree
        for key in parents:
            node = node[key]
        what = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if what == "remove" and parents:
            del node[last]
        elif what == "add" and isinstance(node[last], dict):
            node[last][draw(TEXT | st.integers())] = draw(values)
        else:
            node[last] = draw(values)
    return tree[""]


def refused(error: SgpoError, *names: str) -> None:
    """A refusal names what it is about, and stays readable."""
    assert any(name in str(error) for name in names), str(error)[:300]


# --- settings and configurations ---------------------------------------------------------------------------------

GOOD_SETTINGS = Settings().model_dump() | {"curriculum": {"until": "steps", "epochs": 2, "steps": [3, 2, 1]}}


@fuzz(40)
@given(changed(GOOD_SETTINGS) | st.dictionaries(TEXT | st.integers(), VALUES, max_size=3))
def test_settings_are_valid_or_refused_by_their_key(node):
    try:
        made = load_settings(node)
    except SgpoError as error:
        return refused(error, "sgpo")
    assert load_settings(made.model_dump()) == made
    size = made.group_size
    assert 1 <= size.min <= size.max and 0 <= made.filter.max_pass_rate <= 1 and made.profile.n >= 1 and made.seed >= 0
    assert math.isfinite(made.success_threshold) and math.isfinite(made.curriculum.min_gain)


GOOD_CONFIG = {
    "data": {"train_batch_size": 16, "train_files": "train.parquet"},
    "actor_rollout_ref": {
        "model": {"path": "toy/model"},
        "actor": {"ppo_mini_batch_size": 8, "ppo_epochs": 1, "use_kl_loss": False, "entropy_coeff": 0},
        "rollout": {"n": 8},
    },
    "algorithm": {
        "adv_estimator": "sgpo",
        "use_kl_in_reward": False,
        "filter_groups": {"enable": False},
        "rollout_correction": {"bypass_mode": False},
    },
    "critic": {"enable": False},
    "reward": {"reward_model": {"enable": False, "enable_resource_pool": False}},
    "trainer": {
        "use_v1": True,
        "v1": {"trainer_mode": "sgpo_sync"},
        "total_epochs": 2,
        "total_training_steps": None,
        "default_local_dir": "checkpoints",
    },
    "sgpo": {"seed": 3, "prune": True, "profile": {"n": 4}},
}


@fuzz(40)
@given(changed(GOOD_CONFIG), st.dictionaries(st.sampled_from(["n", "path"]), SCALARS, max_size=1))
def test_configurations_are_read_or_refused_by_their_key(whole, more):
    if not isinstance(whole, dict):
        return  # OmegaConf hands out nothing else
    for read in (check_supported, settings_of, numbers_of, own_profile_path, lambda c: with_profile(c, more)):
        try:
            made = read(whole)
        except SgpoError as error:
            refused(error, *GOOD_CONFIG)
            continue
        if isinstance(made, RunNumbers):
            assert all(
                type(n) is int and n >= 0 for name, n in asdict(made).items() if n is not None and name != "shuffle"
            )
            assert made.updates_per_step >= 1 and made.stock_steps(100) >= 0
        elif read is check_supported:
            assert "sgpo" not in whole or whole["trainer"]["v1"]["trainer_mode"] in TRAINER_MODES


# --- profiles ----------------------------------------------------------------------------------------------------

COUNT = st.integers(0, 8) | st.sampled_from([2**31 - 1])
ROWS = st.lists(
    st.tuples(TEXT.filter(bool), COUNT, st.floats(0, 1), st.integers(0, 2**31 - 1), st.floats(0, 2**100, width=32)),
    min_size=1,
    max_size=8,
    unique_by=lambda row: row[0],
).filter(lambda rows: any(trials for _, trials, *_ in rows))
FINITE = st.floats(allow_nan=False, allow_infinity=False)
TREES = st.dictionaries(TEXT, st.none() | st.booleans() | st.integers() | FINITE | TEXT, max_size=2)
METADATA = st.builds(
    ProfileMetadata,
    model=TREES.filter(lambda tree: "path" not in tree),
    data=st.dictionaries(TEXT, TEXT, max_size=2),
    sampling=TREES,
    reward=TREES,
    chat_template=TEXT,
    success_threshold=st.none() | st.floats(-1e9, 1e9),
    seed=st.integers(),
    passes=st.lists(st.fixed_dictionaries({"id": TEXT, "seed": st.integers(0, 9)}), max_size=2),
    total_tokens=st.integers(0, 2**63),
    flops=st.floats(0, 1e40),
    seconds=st.floats(0, 1e9),
)


@st.composite
def profiles(draw):
    keys, trials, rates, prompts, responses = zip(*draw(ROWS), strict=True)
    successes = [int(t * rate) for t, rate in zip(trials, rates, strict=True)]
    table = pd.DataFrame(
        {
            "prompt_key": keys,
            "data_source": draw(TEXT),
            "index": draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=len(keys), max_size=len(keys))),
            "trials": np.array(trials, np.int32),
            "successes": np.array(successes, np.int32),
            "reward_mean": np.array(rates, np.float32),
            "prompt_tokens": np.array(prompts, np.int32),
            "response_tokens_mean": np.array(responses, np.float32),
        }
    )
    if 0 in trials and draw(st.booleans()):
        table["failure"] = [None if t else draw(TEXT) for t in trials]
    return Profile(table, draw(METADATA))


def rows_of(profile: Profile) -> list[tuple]:
    frame = profile.table.assign(failure=profile.table.get("failure"))
    return [tuple(None if pd.isna(value) else value for value in row) for row in frame.itertuples(index=False)]


def check_counts(profile: Profile) -> None:
    """What every reader of a profile takes for granted."""
    table = profile.table
    assert len(table) and list(table)[: len(SCHEMA)] == SCHEMA.names and table["prompt_key"].is_unique
    assert not table[SCHEMA.names].drop(columns="data_source").isna().any().any()  # nothing depends on that one
    assert (table["successes"] <= table["trials"]).all() and (table["successes"] >= 0).all()
    assert np.isfinite(table[["reward_mean", "prompt_tokens", "response_tokens_mean"]]).all().all()
    assert profile.samples > 0 and math.isfinite(profile.tokens().generated)
    made = profile.metadata
    assert math.isfinite(made.flops) and math.isfinite(made.seconds) and made.total_tokens >= 0
    assert differences(made, deepcopy(made)) == []


@fuzz(40)
@given(profiles())
def test_any_profile_survives_the_round_trip(tmp_path, profile):
    loaded = load_profile(save_profile(profile, tmp_path / "p.parquet"))
    check_counts(loaded)
    assert (rows_of(loaded), loaded.metadata) == (rows_of(profile), profile.metadata)


NUMBER = st.integers(1, 64) | st.sampled_from([2**31 - 1])
NUMBERS = st.builds(
    RunNumbers,
    train_batch_size=NUMBER,
    rollout_n=NUMBER,
    mini_batch_size=NUMBER,
    total_training_steps=st.none() | NUMBER,
)


@fuzz(60)
@given(profiles(), changed(GOOD_SETTINGS, st.integers(1, 9) | st.floats(0, 1) | SCALARS), NUMBERS)
def test_a_plan_holds_together_or_is_refused(profile, node, numbers):
    try:
        made = make_plan(profile, load_settings(node), numbers)
    except SgpoError as error:
        return refused(error, "sgpo", "data.train_batch_size", "no prompt to train on")
    plan = made.plan
    assert len(plan.phases) == len(plan.steps) == len(plan.rollouts)
    assert min(plan.steps) >= 0 and min(plan.rollouts) >= 1
    assert numbers.total_training_steps in (None, plan.total_steps)
    wanted = (made.class_P == Class.LEARNABLE).sum()
    assert sum(phase.learnable for phase in plan.phases) == wanted > 0
    for phase in plan.phases:
        assert len(set(phase.prompts_M.tolist())) == len(phase.prompts_M) == phase.learnable + phase.unsolved
        assert set(made.class_P[phase.prompts_M].tolist()) <= {Class.LEARNABLE, Class.UNSOLVED}


@fuzz(40)
@given(profiles(), profiles())
def test_merged_counts_are_the_sum_or_refused(tmp_path, a, b):
    if not a.metadata.passes:
        b = Profile(b.table, a.metadata)
    try:
        merged = merge([a, b], ["a", "b"])
    except SgpoError as error:
        return refused(error, "a and b", "prompt ")
    check_counts(merged)
    assert merged.samples == a.samples + b.samples
    loaded = load_profile(save_profile(merged, tmp_path / "p.parquet"))
    assert loaded.metadata == merged.metadata


def saved_bytes(profile: Profile, tmp_path) -> bytes:
    return save_profile(profile, tmp_path / "p.parquet").read_bytes()


@st.composite
def damaged(draw, size: int):
    """How to damage a file of ``size`` bytes: a function of its bytes."""
    edits = draw(st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, 255)), max_size=4))
    start, stop = sorted(draw(st.tuples(st.integers(0, size), st.integers(0, size))))
    what = draw(st.sampled_from(["edit", "edit", "cut", "drop", "repeat"]))

    def damage(content: bytes) -> bytes:
        content = bytearray(content)
        if what == "edit":
            for place, value in edits:
                content[place] = value
            return bytes(content)
        return bytes({"cut": content[:stop], "drop": content[:start] + content[stop:]}.get(what, content[:stop] * 2))

    return damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A saved profile with every column, and its bytes."""
    profile = make_profile([*range(9), 0] * 5)
    table = profile.table.assign(failure=None).astype({"failure": object})
    table.loc[49, ["trials", "failure"]] = [0, "too long"]
    path = save_profile(Profile(table, profile.metadata), tmp_path_factory.mktemp("whole") / "p.parquet")
    return load_profile(path), path.read_bytes()


@fuzz(80)
@given(data=st.data())
def test_a_damaged_profile_is_refused_or_unharmed(tmp_path, whole, data):
    profile, content = whole
    (tmp_path / "p.parquet").write_bytes(data.draw(damaged(len(content)))(content))
    try:
        loaded = load_profile(tmp_path / "p.parquet")
    except SgpoError as error:
        return refused(error, "p.parquet: ")
    check_counts(loaded)
    counts = ["prompt_key", "trials", "successes"]
    assert loaded.table[counts].equals(profile.table[counts])


COLUMNS = {
    "prompt_key": ["a", "b"],
    "data_source": ["s", "s"],
    "index": [0, 1],
    "trials": [8, 8],
    "successes": [3, 1],
    "reward_mean": [0.375, 0.125],
    "prompt_tokens": [5, 6],
    "response_tokens_mean": [7.0, 8.0],
    "failure": [None, None],
}
ODD_COLUMNS = st.sampled_from(
    [
        pa.array([8, None], pa.int8()),
        pa.array([True, False]),
        pa.array([2**64 - 1, 1], pa.uint64()),
        pa.array([0, 86400], pa.timestamp("s")),
        pa.array([8, 9], pa.date32()),
        pa.array([8, 9], pa.duration("s")),
        pa.array([b"\xff", b"b"]),
        pa.array(["8", "nan"]).dictionary_encode(),
        pa.array([{"a": 1}, None]),
        pa.array([8.0, 1.0], pa.float16()),
        pa.array(["8.00", "1.00"]).cast(pa.decimal128(9, 2)),
        pa.nulls(2),
    ]
)


def column(values: list) -> pa.Array | None:
    with suppress(pa.ArrowException, ValueError, TypeError, OverflowError):
        return pa.array(values)
    return None


def table_of(columns: dict) -> pa.Table:
    """As much of ``columns`` as Arrow can hold, in two rows."""
    arrays = {
        str(name).encode(errors="replace").decode(): v if isinstance(v, pa.Array) else column(v)
        for name, v in columns.items()
        if isinstance(v, pa.Array | list)
    }
    return pa.table({name: v for name, v in arrays.items() if v is not None and len(v) == 2})


CELLS = st.lists(SCALARS | VALUES, min_size=2, max_size=2) | st.lists(st.integers(-3, 9), min_size=2, max_size=2)
STATED = asdict(ProfileMetadata(model={"path": "m"}, data={"f": "x"}, passes=[{"id": "a", "seed": 1}]))


@fuzz(40)
@given(changed(COLUMNS, CELLS | ODD_COLUMNS | SCALARS), changed(STATED), st.sampled_from(["stated", "plain", "twice"]))
def test_a_profile_of_odd_columns_and_metadata_is_valid_or_refused(tmp_path, columns, stated, kind):
    table = table_of(columns if isinstance(columns, dict) else {})
    if kind != "plain":
        table = table.replace_schema_metadata({b"sgpo": json.dumps(stated).encode()})
    if kind == "twice" and table.num_columns:
        table = table.append_column(table.field(0), table.column(0))
    pq.write_table(table, tmp_path / "p.parquet")
    try:
        loaded = load_profile(tmp_path / "p.parquet")
        merge([loaded, loaded], ["p.parquet", "p.parquet"])
    except SgpoError as error:
        return refused(error, "p.parquet")
    check_counts(loaded)


LINES = [
    {"index": 4, "prompt_key": "s:4", "data_source": "s", "trials": 8, "successes": 3},
    {"index": 2, "prompt_key": "s:2", "data_source": "s", "trials": 16, "successes": 0},
]


@fuzz(40)
@given(changed(LINES), st.booleans(), st.data())
def test_a_table_of_json_lines_is_valid_or_refused(tmp_path, lines, by_index, data):
    lines = lines if isinstance(lines, list) else [lines]
    if by_index:
        lines = [{k: v for k, v in x.items() if k != "prompt_key"} if isinstance(x, dict) else x for x in lines]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode() or b" "
    path = tmp_path / "p.jsonl"
    path.write_bytes(data.draw(damaged(len(content)))(content) if data.draw(st.booleans()) else content)
    try:
        loaded = load_profile(path)
    except SgpoError as error:
        return refused(error, "p.jsonl")
    check_counts(loaded)
    if path.read_bytes() == content and not by_index and all(isinstance(x.get("prompt_key"), str) for x in lines):
        assert loaded.table["prompt_key"].tolist() == [x["prompt_key"] for x in lines]


@fuzz(60)
@given(
    st.lists(st.tuples(TEXT, SCALARS, VALUES), max_size=6),
    st.sampled_from(["error", "first"]),
)
def test_prompts_have_keys_of_their_own_or_are_refused(rows, duplicates):
    sources, indices, contents = zip(*rows, strict=True) if rows else ((), (), ())
    try:
        prompts = identify(sources, indices, contents, duplicates)
    except SgpoError as error:
        return refused(error, "data.train_files")
    assert len(set(prompts.keys_P)) == len(prompts) == len(prompts.index_P) == len(prompts.rows_P)
    assert [sources[row] for row in prompts.rows_P] == prompts.sources_P.tolist()


# --- checkpoints -------------------------------------------------------------------------------------------------


def method(**more):
    """A curriculum of three phases: groups of 2, 4 and 8."""
    plan = make_plan(
        make_profile([4] * 20 + [2] * 9 + [1] * 5 + [0] * 10), load_settings(more), RunNumbers(8, 8, 4, 3)
    ).plan
    return plan.start()[0]


def at(step: int):
    """The curriculum after ``step`` steps of 64 rollouts."""
    started = method()
    for _ in range(step):
        draw = started.next_groups(64)
        started.observe([Outcome(prompt, size, size // 2, 0.5) for prompt, size in draw])
    return started


STATES = [json.loads(json.dumps(at(step).state_dict())) for step in (0, 1, 4, 7)]


@fuzz(40)
@given(st.sampled_from(STATES).flatmap(changed))
def test_a_checkpoint_of_the_curriculum_is_valid_or_refused(state):
    fresh = method()
    before = fresh.state_dict()
    try:
        fresh.load_state_dict(state)
    except SgpoError as error:
        assert fresh.state_dict() == before
        return refused(error, "checkpoint")
    assert 0 <= fresh.phase < len(fresh.phases) and fresh.drawn >= 0 and 0 <= fresh.spent <= fresh.total
    assert fresh.state_dict() == state or set(state) > set(before)
    json.dumps(fresh.state_dict(), allow_nan=False)
    draw = fresh.next_groups(16)
    assert sum(size for _, size in draw) == 16 and fresh.total == state["total"] + 16
    fresh.observe([Outcome(prompt, size, 0, 0.0) for prompt, size in draw])
    assert all(math.isfinite(value) for value in fresh.metrics().values())


@fuzz(40)
@given(
    st.sampled_from(["epochs", "plateau"]),
    st.lists(st.tuples(st.integers(8, 64), st.floats(-1, 1), st.booleans()), max_size=12),
    st.integers(0, 3),
)
def test_a_restored_curriculum_draws_the_same(until, steps, seed):
    more = {"seed": seed, "curriculum": {"until": until, "window": 2}}
    first, second = method(**more), method(**more)
    for rollouts, reward, refill in steps:
        draw = first.next_groups(rollouts)
        first.more_groups([2]) if refill else None
        first.observe([Outcome(prompt, size, 1, reward) for prompt, size in draw])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [first.next_groups(16) for _ in range(10)] == [second.next_groups(16) for _ in range(10)]


@fuzz(80)
@given(changed(Ledger(1e9, 2e9, 3e9, 400, 500, 6e3, 70.0).state_dict()))
def test_restored_totals_are_valid_or_refused(state):
    ledger = Ledger()
    try:
        ledger.load_state_dict(state)
    except SgpoError as error:
        assert ledger == Ledger()
        return refused(error, "checkpoint")
    assert all(0 <= value < math.inf for value in ledger.metrics().values())


# --- the parts of a profiling pass -------------------------------------------------------------------------------

PASS = {"seed": 0, "model": {"fingerprint": "a"}}
LINE = [1, 8, 3, 3.0, 10, 160, None]
NAMES = ["00000.parquet", "00001.parquet", "00002.jsonl", "pass.json", "seconds"]
REQUESTS = st.lists(
    st.builds(
        Sampled, st.integers(0, 3), st.just(8), st.integers(0, 8), st.floats(0, 8), st.just(9), st.integers(0, 99)
    )
    | st.builds(Sampled, st.integers(0, 3), *map(st.just, (0, 0, 0.0, 0, 0)), TEXT),
    max_size=9,
)


def check_pass(counts, prompts: int = 4) -> None:
    assert len(counts.trials_P) == prompts and set(counts.failures) <= set(range(prompts))
    assert (counts.successes_P >= 0).all() and (counts.successes_P <= counts.trials_P).all()
    assert np.isfinite(counts.reward_sum_P).all()
    assert (counts.prompt_tokens_P >= 0).all() and (counts.response_tokens_P >= 0).all()
    assert all(isinstance(reason, str) for reason in counts.failures.values())


@fuzz(40)
@given(REQUESTS, st.integers(0, 9))
def test_a_pass_that_was_stopped_anywhere_has_the_same_counts_and_tally(tmp_path_factory, requests, stop):
    folder = tmp_path_factory.mktemp("pass") / "p.parts"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_LINES", 3)
        tally = Tally(4, 99, Settings().filter)
        for part in (requests[:stop], requests[stop:]):
            with PassFiles(folder, PASS, 4) as files:
                for sampled in part:
                    files.add(sampled)
                    p = sampled.position
                    tally.add(sampled, int(files.counts.trials_P[p]), int(files.counts.successes_P[p]))
        with PassFiles(folder, PASS, 4) as files:
            again = files.counts
    check_pass(again)
    good = [r for r in requests if r.failure is None]
    assert again.trials_P.tolist() == [sum(r.trials for r in good if r.position == p) for p in range(4)]
    last = {r.position: r.failure for r in requests}
    assert again.failures == {p: reason for p, reason in last.items() if reason is not None}
    class_P = classify(again.trials_P, again.successes_P, Settings().filter)
    assert {c: n for c, n in tally._seen.items() if n} == {
        Class(c): (class_P == c).sum() for c in set(class_P.tolist()) - {Class.FAILED}
    }
    found = Tally(4, 99, Settings().filter)
    found.found(again.trials_P, again.successes_P)
    assert (found.samples, +found._seen) == (tally.samples, +tally._seen)
    assert found.line()


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """The folder of a pass over four prompts: two shards of three requests, and two lines."""
    monkeypatch.setattr(shards, "SHARD_LINES", 3)
    folder = tmp_path / "p.parts"
    with PassFiles(folder, PASS, 4) as files:
        for i in range(7):
            files.add(Sampled(i % 4, 8, i, float(i), 9, 10 * i))
        files.add(Sampled(3, 0, 0, 0.0, 0, 0, "too long"))
    return folder, {name: (folder / name).read_bytes() for name in NAMES}


def restore(folder, contents) -> None:
    for path in folder.iterdir():
        path.unlink()
    for name, content in contents.items():
        (folder / name).write_bytes(content)


def opened(folder):
    """The counts of the pass that is there, twice the same; None if it is refused."""
    found = []
    for _ in range(2):
        pass_id(folder) in {"a"}  # noqa: B015 - must be something that can be looked up
        try:
            with PassFiles(folder, PASS, 4) as files:
                found.append(files.counts)
                assert 0 <= files.seconds < 1e12
        except SgpoError as error:
            refused(error, *NAMES, "p.parts")
            found.append(None)
            continue
        check_pass(files.counts)
    assert (found[0] is None) == (found[1] is None)
    if found[0]:
        assert found[0].trials_P.tolist() == found[1].trials_P.tolist()
    return found[0]


@fuzz(30)
@given(data=st.data(), name=st.sampled_from(NAMES))
def test_damaged_parts_of_a_pass_are_refused_or_mended(parts, data, name):
    folder, contents = parts
    restore(folder, contents)
    whole = opened(folder).trials_P
    (folder / name).write_bytes(data.draw(damaged(len(contents[name])))(contents[name]))
    counts = opened(folder)
    if counts and name.endswith(".parquet"):
        assert counts.trials_P.tolist() == whole.tolist()


@fuzz(80)
@given(st.lists(changed(LINE), max_size=3), st.binary(max_size=20))
def test_odd_lines_of_a_pass_are_refused_or_counted(parts, lines, rest):
    folder, contents = parts
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    restore(folder, {**contents, "00002.jsonl": text + rest})
    counts = opened(folder)
    if counts and not rest.strip():
        added = [sum(line[1] for line in lines if line[0] == p) for p in range(4)]
        in_shards = [16, 16, 8, 8]  # of six requests of 8, dealt out in turn
        assert counts.trials_P.tolist() == [a + b for a, b in zip(in_shards, added, strict=True)]


@fuzz(60)
@given(changed({name: [i, 1] for i, name in enumerate(shards.SHARD.names)}, CELLS | ODD_COLUMNS))
def test_odd_shards_of_a_pass_are_refused_or_counted(parts, columns):
    folder, contents = parts
    restore(folder, contents)
    pq.write_table(table_of(columns if isinstance(columns, dict) else {}), folder / "00001.parquet")
    opened(folder)


@fuzz(30)
@given(changed({**PASS, "id": "a"}))
def test_an_odd_header_of_a_pass_is_refused_or_this_passs(parts, header):
    folder, contents = parts
    restore(folder, {**contents, "pass.json": json.dumps(header).encode()})
    if opened(folder):
        assert {**header, "id": ""} == {**PASS, "id": ""}


# --- logs and run folders ----------------------------------------------------------------------------------------

STOCK = [validation(0, 0.2), *(stock_step(i, 0.2 + i / 10) for i in (1, 2, 3))]
OURS = [validation(0, 0.2), *(sgpo_step(i, 0.2 + i / 10) for i in (1, 2, 3))]
KINDS = {"grpo": (STOCK, config()), "paper": (OURS, config(sgpo__method="paper"))}
KINDS["dynamic"] = (STOCK, config(algorithm__filter_groups__enable=True))


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    return load_run(write_run(tmp_path_factory.mktemp("runs") / "stock", STOCK))


def check_report(folder, baseline) -> None:
    """A run folder is refused by a file's or its own name, or gives numbers that can be compared and shown."""
    try:
        run = load_run(folder)
        compared = compare([baseline, run])
    except SgpoError as error:
        return refused(error, folder.name)
    assert run.table.index.equals(run.log.index) and run.log.index.is_unique and run.log.index.min() >= 0
    assert run.seed is None or type(run.seed) is int
    assert compared.to_text()
    assert render(compared, []).encode()


def write_lines(path, lines) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@fuzz(30)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_a_run_of_odd_logs_is_refused_or_compared(tmp_path, baseline, kind, data):
    rows, settings_ = KINDS[kind]
    lines = data.draw(changed(rows))
    folder = write_run(tmp_path / "odd", [], settings_)
    log = folder / "metrics.jsonl"
    write_lines(log, lines if isinstance(lines, list) else [lines])
    if data.draw(st.integers(0, 3)) == 0:
        log.write_bytes(data.draw(damaged(log.stat().st_size or 1))(log.read_bytes() or b" "))
    check_report(folder, baseline)


@fuzz(30)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_a_run_of_an_odd_configuration_is_refused_or_compared(tmp_path, baseline, kind, data):
    rows, settings_ = KINDS[kind]
    folder = write_run(tmp_path / "odd", rows, settings_)
    file = folder / ".hydra" / "config.yaml"
    text = yaml.safe_dump(data.draw(changed(settings_)), allow_unicode=data.draw(st.booleans()))
    content = text.encode(errors="surrogatepass") or b" "
    damage = data.draw(st.none() | damaged(len(content)))
    file.write_bytes(damage(content) if damage else content)
    check_report(folder, baseline)


FACTS = {"label": "mine", "seed": 1, "commit": "c", "versions": {"verl": "0.9.1"}, "model_shape": SHAPE}


@fuzz(30)
@given(st.sampled_from(sorted(KINDS)), changed(FACTS), st.none() | st.binary(max_size=8))
def test_a_run_of_odd_facts_is_refused_or_compared(tmp_path, baseline, kind, facts, raw):
    folder = write_run(tmp_path / "odd", *KINDS[kind], {"seed": 1})
    (folder / "run.json").write_bytes(json.dumps(facts).encode() if raw is None else raw)
    check_report(folder, baseline)


DUMP = [{"uid": f"g{i // 2}_{i % 2}_0", "score": float(i % 3 == 0), "input": "", "output": ""} for i in range(4)]


@fuzz(40)
@given(changed(DUMP), st.none() | st.binary(max_size=8))
def test_odd_rollout_dumps_are_refused_or_compared(tmp_path, baseline, rows, raw):
    folder = write_run(tmp_path / "odd", STOCK, config(trainer__rollout_data_dir="dumps"))
    (folder / "dumps").mkdir(exist_ok=True)
    write_lines(folder / "dumps" / "1.jsonl", rows if isinstance(rows, list) else [rows])
    (folder / "dumps" / "2.jsonl").write_bytes(raw or b"")
    check_report(folder, baseline)
