"""Profiles with made-up counts: what the tests of the core plan with."""

from collections.abc import Sequence

import pandas as pd

from sgpo_verl.profile import Profile, ProfileMetadata


def make_profile(successes: Sequence[int], trials: int = 8, prompt: int = 10, response: float = 20.0) -> Profile:
    """Prompt "toy:i" succeeded ``successes[i]`` times in ``trials``; all prompts and responses are equally long."""
    count = len(successes)
    table = pd.DataFrame(
        {
            "prompt_key": [f"toy:{i}" for i in range(count)],
            "data_source": "toy",
            "index": range(count),
            "trials": trials,
            "successes": successes,
            "reward_mean": [s / trials for s in successes],
            "prompt_tokens": prompt,
            "response_tokens_mean": response,
        }
    )
    model = {"path": "toy/model", "fingerprint": "f1"}
    stated = {"sampling": {"temperature": 1.0}, "reward": {"name": "r"}, "chat_template": "t1", "tokenizer": "k1"}
    metadata = ProfileMetadata(model=model, data={"train.parquet": "d1"}, total_tokens=123, seconds=4.5, **stated)
    return Profile(table, metadata)
