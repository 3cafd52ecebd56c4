"""verl's sampled rows -> the core's rollouts and token counts."""

import math
from collections.abc import Callable

import numpy as np
from tensordict import TensorDict
from transfer_queue import KVBatchMeta

from sgpo_verl.binding.dataloader import PROMPT
from sgpo_verl.binding.estimator import last_output_rows
from sgpo_verl.config import Settings
from sgpo_verl.cost import StepTokens
from sgpo_verl.errors import SgpoError
from sgpo_verl.metrics import StepRollouts
from sgpo_verl.rewards import succeeded
from sgpo_verl.schedule import RunNumbers
from sgpo_verl.selection import Sampled


def sampled_of(
    batch: KVBatchMeta, data: TensorDict, settings: Settings, name_of: Callable[[int], str] = str
) -> tuple[Sampled, list[str]]:
    """(the rollouts of a sampled batch, their sessions "{uid}_{session}"), in the order of their prompts.

    batch: keys "{uid}_{session}_{output}" and tags. data: rm_scores (nested, (N, T)), extra_fields and the prompt's position
    per row. name_of: position -> the prompt's key, for people. A session's last output speaks for all of them.
    Raises SgpoError naming the prompt whose reward is NaN.
    """
    scores_N = data["rm_scores"].sum(dim=1).tolist()
    extra_N, prompt_N = list(data["extra_fields"]), list(data[PROMPT])
    speaking = set(last_output_rows(batch.keys).tolist())
    rows = sorted(speaking, key=lambda row: (prompt_N[row], _session(batch.keys[row])))
    successes = []
    for row in rows:
        if math.isnan(scores_N[row]):
            raise SgpoError(f"reward function: NaN for a rollout of prompt {name_of(prompt_N[row])}; return a number")
        successes.append(succeeded(scores_N[row], extra_N[row].get("reward_extra_info", {}), settings))
    sessions = [batch.keys[row].rpartition("_")[0] for row in rows]
    return Sampled(
        rewards_N=np.array([scores_N[row] for row in rows]),
        successes_N=np.array(successes, dtype=np.int64),
        group_N=np.array([session.split("_")[0] for session in sessions], dtype=object),
        prompt_N=np.array([prompt_N[row] for row in rows], dtype=np.int64),
        tokens_N=np.array([batch.tags[row]["seq_len"] for row in rows]),
    ), sessions


def _session(key: str) -> tuple[str, int]:
    """To sort by: a prompt that was drawn twice has two uids, whose order means nothing."""
    uid, session, _ = key.rsplit("_", 2)
    return uid, int(session)


def tokens_of(sampled: KVBatchMeta, trained: KVBatchMeta, numbers: RunNumbers) -> StepTokens:
    """Token counts of a step; padding rows that verl added are among those trained on."""
    prompt_of = {key.split("_")[0]: tag["prompt_len"] for key, tag in zip(sampled.keys, sampled.tags, strict=True)}
    return StepTokens(
        groups=len(prompt_of),
        prompt_tokens=sum(prompt_of.values()),
        rows=len(sampled.keys),
        response_tokens=sum(tag["response_len"] for tag in sampled.tags),
        trained=sum(tag["seq_len"] for tag in trained.tags),
        trained_rows=len(trained.keys),
        scoring_passes=numbers.scoring_passes,
        epochs=numbers.ppo_epochs,
    )


def rollouts_of(sampled: KVBatchMeta, trained: KVBatchMeta) -> StepRollouts:
    """Sessions of a step, whatever the number of outputs of each."""
    padding = {key for key, tag in zip(trained.keys, trained.tags, strict=True) if tag.get("is_padding", False)}
    generated, kept = (
        len({key.rpartition("_")[0] for key in keys}) for keys in (sampled.keys, set(trained.keys) - padding)
    )
    return StepRollouts(generated, kept, len(padding))
