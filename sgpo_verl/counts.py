"""What a profiling pass has counted so far: one request's samples, and the sums over all of them per prompt."""

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

MOST_TRIALS = 2**20  # of a request, so that no sum of them outgrows its type
SHARD = pa.schema(
    [
        ("position", pa.int64()),
        ("trials", pa.int32()),
        ("successes", pa.int32()),
        ("reward_sum", pa.float64()),
        ("prompt_tokens", pa.int32()),
        ("response_tokens", pa.int64()),
        ("failure", pa.string()),
    ]
)


@dataclass(frozen=True)
class Sampled:
    """What one request gave: ``trials`` scored samples of the prompt at ``position``; or none, and why."""

    position: int
    trials: int
    successes: int
    reward_sum: float
    prompt_tokens: int
    response_tokens: int
    failure: str | None = None

    def can_be(self) -> bool:
        """Whether a request can give this: for what is read back. Which positions there are, the caller knows."""
        counts = (self.trials, self.successes, self.prompt_tokens, self.response_tokens)
        return (
            type(self.position) is int
            and all(type(count) is int and 0 <= count < 2**63 for count in counts)
            and self.successes <= self.trials < MOST_TRIALS
            and self.prompt_tokens < 2**31
            and type(self.reward_sum) in (int, float)
            and math.isfinite(self.reward_sum)
            and (self.failure is None if self.trials else isinstance(self.failure, str))
        )


def impossible_rows(table: pa.Table) -> np.ndarray:
    """Rows of a shard, without missing counts, that ``Sampled.can_be`` would refuse."""
    column = {name: table[name].to_numpy() for name in SHARD.names[:-1]}
    good = (column["successes"] <= column["trials"]) & (column["trials"] < MOST_TRIALS)
    for name in ("successes", "prompt_tokens", "response_tokens"):
        good &= column[name] >= 0
    good &= np.isfinite(column["reward_sum"])
    good &= (column["trials"] > 0) == table["failure"].is_null().to_numpy()
    return np.flatnonzero(~good)


class Counts:
    """Sums over all requests so far, per prompt: 28 bytes each. failures: reasons, of prompts whose last request failed."""

    def __init__(self, prompts: int):
        self.trials_P, self.successes_P = np.zeros(prompts, np.int32), np.zeros(prompts, np.int32)
        self.reward_sum_P = np.zeros(prompts, np.float64)
        self.prompt_tokens_P, self.response_tokens_P = np.zeros(prompts, np.int32), np.zeros(prompts, np.int64)
        self.failures: dict[int, str] = {}

    def add_shard(self, table: pa.Table) -> None:
        """All rows of a shard."""
        columns = {name: table[name].to_numpy() for name in SHARD.names[:-1]}
        position = columns["position"]
        for name in ("trials", "successes", "reward_sum", "response_tokens"):
            np.add.at(getattr(self, f"{name}_P"), position, columns[name])
        sampled = columns["trials"] > 0
        self.prompt_tokens_P[position[sampled]] = columns["prompt_tokens"][sampled]
        for p, reason in zip(position.tolist(), table["failure"].to_pylist(), strict=True):
            if reason is not None:
                self.failures[p] = reason
            else:
                self.failures.pop(p, None)

    def add(self, sampled: Sampled) -> None:
        p = sampled.position
        if sampled.failure is not None:
            self.failures[p] = sampled.failure
            return
        self.failures.pop(p, None)
        self.trials_P[p] += sampled.trials
        self.successes_P[p] += sampled.successes
        self.reward_sum_P[p] += sampled.reward_sum
        self.prompt_tokens_P[p] = sampled.prompt_tokens
        self.response_tokens_P[p] += sampled.response_tokens
