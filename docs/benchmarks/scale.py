"""Planning, merging and looking up at the size of the largest data sets: seconds, peak memory, bytes kept per prompt.

    python docs/benchmarks/scale.py [--prompts 10000000]

Every stage is a process of its own, so that its peak memory is its own. "plan" loads a profile, makes the plan and hands
out the first 100 steps; "merge" loads two profiles and adds them up; "driver" is what a training run keeps in memory.
"""

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from sgpo_verl.config import Settings
from sgpo_verl.merge import merge
from sgpo_verl.plan import RunNumbers, make_plan
from sgpo_verl.profile import Profile, ProfileMetadata, load_profile, save_profile
from sgpo_verl.prompts import identify_indexed

NUMBERS = RunNumbers(train_batch_size=1024, rollout_n=8, mini_batch_size=256)


def write(folder: Path, prompts: int) -> None:
    """Two profiles of the same prompts, with other seeds."""
    rng, index_P = np.random.default_rng(0), np.arange(prompts)
    rate_P = rng.beta(0.4, 0.4, prompts)
    keys_P = pd.Series(pa.array(pc.binary_join_element_wise("math", pc.cast(pa.array(index_P), pa.string()), ":")))
    for seed in range(2):
        wins_P = rng.binomial(8, rate_P)
        table = pd.DataFrame(
            {
                "prompt_key": keys_P.array,
                "data_source": pd.Categorical.from_codes(np.zeros(prompts, np.int8), ["math"]),
                "index": index_P,
                "trials": np.int32(8),
                "successes": wins_P.astype(np.int32),
                "reward_mean": (wins_P / 8).astype(np.float32),
                "prompt_tokens": np.int32(100),
                "response_tokens_mean": np.float32(900.0),
            }
        )
        metadata = ProfileMetadata(passes=[{"id": str(seed), "seed": seed}])
        save_profile(Profile(table, metadata), folder / f"{seed}.parquet")


def plan(folder: Path) -> dict[str, float]:
    start = time.perf_counter()
    profile = load_profile(folder / "0.parquet")
    loaded = time.perf_counter()
    made = make_plan(profile, Settings(), NUMBERS)
    planned = time.perf_counter()
    method = made.method()
    for _ in range(100):
        method.next_groups(8192)
    end = time.perf_counter()
    return {"load": loaded - start, "plan": planned - loaded, "100 steps": end - planned, "seconds": end - start}


def merging(folder: Path) -> dict[str, float]:
    start = time.perf_counter()
    total = merge([load_profile(folder / f"{i}.parquet") for i in range(2)])
    save_profile(total, folder / "sum.parquet")
    return {"seconds": time.perf_counter() - start}


def driver(folder: Path) -> dict[str, float]:
    """What ``Session.start`` keeps: identities, plan and method; the profile's own arrays are gone."""
    gc.collect()
    before = _resident()
    start = time.perf_counter()
    profile = load_profile(folder / "0.parquet")
    index_P = profile.table["index"].to_numpy()
    prompts = identify_indexed(pa.array(profile.table["data_source"].astype(str)), index_P)
    aligned = profile.align(prompts.keys_P)
    method = make_plan(aligned, Settings(), NUMBERS).method()
    seconds = time.perf_counter() - start
    del profile, aligned, index_P
    gc.collect()
    pa.default_memory_pool().release_unused()
    kept = _resident() - before
    start = time.perf_counter()
    for _ in range(100):
        method.next_groups(8192)
    return {"seconds": seconds, "bytes per prompt": kept / len(prompts), "100 steps": time.perf_counter() - start}


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


STAGES = {"plan": plan, "merge": merging, "driver": driver}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=10_000_000)
    parser.add_argument("--stage", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        found = STAGES[options.stage[0]](Path(options.stage[1]))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({**found, "peak GiB": peak}))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), options.prompts)
        print(f"{options.prompts:,} prompts")
        for stage in STAGES:
            done = subprocess.run(
                [sys.executable, __file__, "--stage", stage, folder], stdout=subprocess.PIPE, text=True, check=True
            )
            figures = json.loads(done.stdout.splitlines()[-1])
            print(f"{stage:8}" + ", ".join(f"{name} {value:.1f}" for name, value in figures.items()), flush=True)


if __name__ == "__main__":
    main()
