"""What a training run holds of its prompts: arrays alone, at most 100 bytes for each, looked up by position."""

import gc
import sys
import types

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from sgpo_verl.binding.dataloader import PROMPT, CurriculumDataLoader
from sgpo_verl.config import Settings
from sgpo_verl.metrics import Ledger
from sgpo_verl.plan import make_plan
from sgpo_verl.profile import Profile, ProfileMetadata
from sgpo_verl.prompts import Prompts, identify_indexed
from sgpo_verl.schedule import RunNumbers

COUNT = 200_000
NUMBERS = RunNumbers(train_batch_size=64, rollout_n=8, mini_batch_size=64)
NOT_HELD = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType)


def held(*roots) -> int:
    """Bytes of every object that can be reached, Arrow's and numpy's memory included; code apart."""
    total, seen, todo = 0, set(), list(roots)
    while todo:
        item = todo.pop()
        if id(item) in seen or isinstance(item, NOT_HELD):
            continue
        seen.add(id(item))
        if isinstance(item, pa.Array | pa.ChunkedArray):
            total += item.get_total_buffer_size()
        elif isinstance(item, np.ndarray) and item.base is None:
            total += item.nbytes
        else:
            total += sys.getsizeof(item)
        todo += [item.base] if isinstance(item, np.ndarray) else []
        todo += item if isinstance(item, dict) else []  # whose texts the collector skips
        todo += gc.get_referents(item)
    return total


class Rows:
    """A data set whose rows say where they came from."""

    def __getitem__(self, row: int) -> dict:
        assert type(row) is int
        return {"row": row}


def profile_of(prompts: Prompts) -> Profile:
    wins_P = np.arange(len(prompts)) % 9
    columns = {
        "prompt_key": prompts.keys_P.copy(),
        "data_source": prompts.sources_P,
        "index": prompts.index_P,
        "trials": np.int32(8),
        "successes": wins_P.astype(np.int32),
        "reward_mean": (wins_P / 8).astype(np.float32),
        "prompt_tokens": np.int32(100),
        "response_tokens_mean": np.float32(900.0),
    }
    return Profile(pd.DataFrame(columns), ProfileMetadata())


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return identify_indexed(pa.chunked_array([["gsm8k"] * COUNT]), np.arange(COUNT))


def test_a_run_holds_at_most_100_bytes_per_prompt(prompts):
    made = make_plan(profile_of(prompts), Settings(), NUMBERS)
    dataloader = CurriculumDataLoader(Rows(), prompts, made.plan.start()[0], Ledger())
    dataloader.next_batch(512)  # from here on the order of the phase is kept, too
    # keys: 8 of their ends + 12 letters; source 1, index 8, row 4; and 4 each in a phase and its order
    bytes_each = held(made.plan, dataloader) / COUNT
    assert 33 < bytes_each < 100


def test_that_count_sees_a_profile_and_a_dict_of_keys(prompts):
    made = make_plan(profile_of(prompts), Settings(), NUMBERS)
    # the profile's numbers are 5 x 4 bytes more, its keys 20, the class 1
    assert held(made, prompts) / COUNT > held(made.plan, prompts) / COUNT + 40
    assert held({key: row for row, key in enumerate(prompts.keys_P)}) / COUNT > 100


def test_a_batch_reads_the_row_that_stands_at_each_prompts_position():
    rows_P = np.array([9, 3, 5, 0, 7, 1, 8, 2], dtype=np.int32)
    known = identify_indexed(pa.chunked_array([["s"] * 8]), np.arange(8))
    known = Prompts(known.keys_P, known.sources_P, known.index_P, rows_P)
    profile = profile_of(known)
    method = make_plan(Profile(profile.table.assign(successes=4), profile.metadata), Settings(), NUMBERS).plan.start()[
        0
    ]
    batch = CurriculumDataLoader(Rows(), known, method, Ledger()).next_batch(16)
    assert sorted(batch[PROMPT]) == list(range(8))
    assert all(type(position) is int for position in batch[PROMPT])
    assert batch["row"].tolist() == [rows_P[position] for position in batch[PROMPT]]
