"""Planning, merging and looking up at the size of the largest data sets: seconds, peak memory, bytes kept per prompt.

    python docs/benchmarks/scale.py [--prompts 10000000] [--shuffled]

Every stage is a process of its own, so that its peak memory is its own. "plan" loads a profile, makes the plan and hands
out the first 100 steps; "merge" loads two profiles, adds them up and writes the sum; "driver" is what a training run keeps
in memory, its data set (on disk, mapped by `datasets`) apart. Measured sizes do not depend on the lengths of the prompts.
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

from sgpo_verl.config import Settings
from sgpo_verl.merge import merge
from sgpo_verl.plan import make_plan
from sgpo_verl.profile import Profile, ProfileMetadata, load_profile, save_profile
from sgpo_verl.prompts import Prompts, identify_indexed
from sgpo_verl.schedule import RunNumbers

NUMBERS = RunNumbers(train_batch_size=1024, rollout_n=8, mini_batch_size=256)
STEPS = 100
ROLLOUTS = 8192  # of a step


def identities(index_P: np.ndarray) -> Prompts:
    """Keys "gsm8k:17", as a data set with these indices gets them."""
    sources = pa.DictionaryArray.from_arrays(np.zeros(len(index_P), np.int8), ["gsm8k"]).cast(pa.string())
    return identify_indexed(pa.chunked_array([sources]), index_P)


def data_order(folder: Path, prompts: int) -> np.ndarray:
    """extra_info.index of the rows of the data set: of the first profile's, or in another order."""
    index_P = np.arange(prompts)
    return np.random.default_rng(1).permutation(index_P) if (folder / "shuffled").exists() else index_P


def write(folder: Path, prompts: int) -> None:
    """Two profiles of the same prompts, with other seeds; the second in the data set's order."""
    rate_P = np.random.default_rng(0).beta(0.4, 0.4, prompts)
    for seed, index_P in enumerate((np.arange(prompts), data_order(folder, prompts))):
        wins_P = np.random.default_rng(2 + seed).binomial(8, rate_P[index_P])
        known = identities(index_P)
        table = pd.DataFrame(
            {
                "prompt_key": known.keys_P,
                "data_source": known.sources_P,
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


class Clock:
    """Seconds of one part after another."""

    def __init__(self):
        self.start, self.parts = time.perf_counter(), {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.parts[name], self.start = now - self.start, now


def plan(folder: Path, prompts: int) -> dict:
    clock = Clock()
    profile = load_profile(folder / "0.parquet")
    clock.lap("load")
    made = make_plan(profile, Settings(), NUMBERS)
    clock.lap("plan")
    method = made.plan.start()[0]
    for _ in range(STEPS):
        method.next_groups(ROLLOUTS)
    clock.lap(f"{STEPS} steps")
    return {"parts": clock.parts}


def merging(folder: Path, prompts: int) -> dict:
    clock = Clock()
    profiles = [load_profile(folder / f"{i}.parquet") for i in range(2)]
    clock.lap("load")
    total = merge(profiles)
    clock.lap("merge")
    save_profile(total, folder / "sum.parquet")
    clock.lap("save")
    return {"parts": clock.parts}


class Rows:
    """In place of a data set: a row that takes no time to read."""

    def __getitem__(self, row: int) -> dict[str, int]:
        return {"row": row}


def driver(folder: Path, prompts: int) -> dict:
    """What ``Session`` holds when it has started: the plan, the method, and the dataloader with the prompts' identities."""
    from sgpo_verl.binding.dataloader import CurriculumDataLoader
    from sgpo_verl.metrics import Ledger

    index_P, before = data_order(folder, prompts), resident()
    clock = Clock()
    known = identities(index_P)
    clock.lap("identify")
    profile = load_profile(folder / "0.parquet")
    clock.lap("load")
    aligned = profile.align(known.keys_P, "0.parquet", known.index_P)
    clock.lap("align")
    kept = make_plan(aligned, Settings(), NUMBERS).plan
    clock.lap("plan")
    dataloader = CurriculumDataLoader(Rows(), known, kept.start()[0], Ledger())
    dataloader.next_batch(ROLLOUTS)  # the order of the first phase is kept, too
    clock.lap("first step")
    del profile, aligned
    pa.default_memory_pool().release_unused()
    held = resident() - before + index_P.nbytes  # the indices were there before, and are kept
    clock.start = time.perf_counter()
    for _ in range(STEPS):
        dataloader.next_batch(ROLLOUTS)
    clock.lap(f"{STEPS} steps")
    return {"parts": clock.parts, "held": held / prompts}


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


STAGES = {"plan": plan, "merge": merging, "driver": driver}


def report(stage: str, found: dict) -> None:
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in found["parts"].items())
    held = f"   {found['held']:.0f} bytes per prompt held" if "held" in found else ""
    print(f"{stage:8}{sum(found['parts'].values()):8.1f}{found['peak']:11.1f}   {parts}{held}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=10_000_000)
    parser.add_argument(
        "--shuffled", action="store_true", help="second profile and data in another order than the first"
    )
    parser.add_argument("--stage", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        found = STAGES[options.stage[0]](Path(options.stage[1]), options.prompts)
        print(json.dumps({**found, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.shuffled:
            (Path(folder) / "shuffled").touch()
        write(Path(folder), options.prompts)
        print(f"{options.prompts:,} prompts{', shuffled' if options.shuffled else ''}")
        print("stage    seconds   peak GiB   seconds of its parts")
        for stage in STAGES:
            command = [sys.executable, __file__, "--prompts", str(options.prompts), "--stage", stage, folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            report(stage, json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
