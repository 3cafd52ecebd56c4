"""Profiles of the same model and settings, added up: more trials for the same prompts, or more prompts.

A: gsm8k:17  8 trials, 3 successes        B: gsm8k:17  8 trials, 1 success        merged: 16 trials, 4 successes
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce

import numpy as np
import pandas as pd

from sgpo_verl.errors import SgpoError
from sgpo_verl.profile import SCHEMA, Profile, ProfileMetadata, differences

Rows = slice | np.ndarray  # places in the sum, of the rows of one table


def merge(profiles: Sequence[Profile], names: Sequence[str] | None = None) -> Profile:
    """The sum of the profiles: counts and tokens added, means weighted by trials, prompts in order of first appearance.

    names: how to call each in an error. Raises SgpoError if two were made with another model, reward or settings, naming
    the fields; if they are of different files but share prompts; or if they hold the same samples.
    """
    names = list(names or (f"profile {i + 1}" for i in range(len(profiles))))
    for i, profile in enumerate(profiles):
        if profile.by_index:
            raise SgpoError(
                f"{names[i]}: has indices for prompts, no keys; add a column prompt_key (data_source:index)"
            )
        for j in range(i):
            _check_pair(profiles[j], profile, f"{names[j]} and {names[i]}")
    return add_up(profiles)


def add_up(profiles: Sequence[Profile]) -> Profile:
    """``merge`` of profiles that are known to fit together."""
    table = _sum([profile.table for profile in profiles])
    return Profile(table, reduce(_metadata, (profile.metadata for profile in profiles)))


def _check_pair(a: Profile, b: Profile, names: str) -> None:
    lines = [line for line in differences(a.metadata, b.metadata, ("first", "second")) if not line.startswith("data.")]
    files_a, files_b = a.metadata.data, b.metadata.data
    changed = sorted(f for f in files_a.keys() & files_b.keys() if files_a[f] != files_b[f])
    lines += [f"data.{f}: first {files_a[f]!r}, second {files_b[f]!r}" for f in changed]
    silent = [set(profile.metadata.unstated()) for profile in (a, b)]
    lines += [f"{name}: only one of them states it" for name in sorted(silent[0] ^ silent[1])]
    if lines:
        raise SgpoError(f"{names}: cannot be added up ({'; '.join(lines)})")
    passes = {p["id"] for p in a.metadata.passes} & {p["id"] for p in b.metadata.passes}
    if passes:
        raise SgpoError(f"{names}: both hold the samples of pass {min(passes)}; they would be counted twice")
    seeds = {p["seed"] for p in a.metadata.passes} & {p["seed"] for p in b.metadata.passes}
    if (seeds or files_a != files_b) and (shared := _shared(a.table, b.table)):
        if files_a != files_b:
            raise SgpoError(
                f"{names}: are of different files, yet both have {shared}; is it the same prompt? Re-index one"
            )
        raise SgpoError(
            f"{names}: both sampled {shared} with sgpo.seed={min(seeds)}, so they hold the same samples; take another "
            "sgpo.seed for the second, or add trials with `sgpo profile --add`"
        )


def _shared(a: pd.DataFrame, b: pd.DataFrame) -> str | None:
    """A prompt that is in both, if there is one."""
    both = np.flatnonzero(a["prompt_key"].isin(b["prompt_key"]))
    return str(a["prompt_key"].iloc[both[0]]) if both.size else None


def _sum(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    keys = tables[0]["prompt_key"]
    if all(len(t) == len(keys) and t["prompt_key"].equals(keys) for t in tables[1:]):
        code_of: list[Rows] = [slice(None)] * len(tables)  # the usual case, without looking any key up
        first = tables[0]
    else:
        code_R, _ = pd.factorize(pd.concat([t["prompt_key"] for t in tables], ignore_index=True))
        starts = np.cumsum([0, *map(len, tables)])
        code_of = [code_R[starts[i] : starts[i + 1]] for i in range(len(tables))]
        rows = np.unique(code_R, return_index=True)[1]
        first = _rows(tables, rows, starts)
    count = len(first)

    def total(values: Callable[[pd.DataFrame], pd.Series]) -> np.ndarray:
        sums = np.zeros(count)
        for code, table in zip(code_of, tables, strict=True):
            sums[code] += values(table).to_numpy(np.float64)  # a key is once in a table, so += adds each row once
        return sums

    trials_P = total(lambda t: t["trials"])
    if (many := np.flatnonzero(trials_P >= 2**31)).size:
        key, trials = first["prompt_key"].iloc[many[0]], int(trials_P[many[0]])
        raise SgpoError(f"prompt {key}: {trials} trials in all are more than a profile can hold; leave one out")
    weight_P = np.maximum(trials_P, 1)
    lengths_P = np.zeros(count, np.int32)
    for code, table in zip(code_of, tables, strict=True):
        lengths_P[code] = np.maximum(lengths_P[code], table["prompt_tokens"])
    columns = {
        "prompt_key": first["prompt_key"],
        "data_source": first["data_source"],
        "index": first["index"],
        "trials": trials_P.astype(np.int32),
        "successes": total(lambda t: t["successes"]).astype(np.int32),
        "reward_mean": (total(lambda t: t["reward_mean"] * t["trials"]) / weight_P).astype(np.float32),
        "prompt_tokens": lengths_P,
        "response_tokens_mean": (total(lambda t: t["response_tokens_mean"] * t["trials"]) / weight_P).astype(
            np.float32
        ),
    }
    merged = pd.DataFrame(columns)
    if any("failure" in t for t in tables):
        merged["failure"] = _failures(tables, code_of, trials_P)
    return merged


def _rows(tables: Sequence[pd.DataFrame], rows: np.ndarray, starts: np.ndarray) -> pd.DataFrame:
    """The first row of every prompt, from whichever table has it; ``rows`` count through all tables."""
    names = SCHEMA.names[:3]
    parts = [
        t[names].iloc[rows[(rows >= starts[i]) & (rows < starts[i + 1])] - starts[i]] for i, t in enumerate(tables)
    ]
    frame = pd.concat(parts, ignore_index=True)
    return frame.astype({"data_source": "category"})


def _failures(tables: Sequence[pd.DataFrame], code_of: Sequence[Rows], trials_P: np.ndarray) -> pd.Series:
    """The reason of each prompt that still has no trials, None for the others."""
    reason_P = np.full(len(trials_P), None, dtype=object)
    for code, table in zip(code_of, tables, strict=True):
        if "failure" in table:
            view = reason_P[code]
            reasons = table["failure"].to_numpy(object)
            reason_P[code] = np.where(pd.notna(reasons), reasons, view)
    reason_P[trials_P > 0] = None
    return pd.Series(reason_P, dtype=object)


def _metadata(a: ProfileMetadata, b: ProfileMetadata) -> ProfileMetadata:
    return replace(
        a,
        data={**a.data, **b.data},
        passes=[*a.passes, *b.passes],
        total_tokens=a.total_tokens + b.total_tokens,
        flops=a.flops + b.flops,
        seconds=a.seconds + b.seconds,
    )
