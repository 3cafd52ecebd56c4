"""verl's sampled rows -> the core's outcomes and token counts."""

import math
from collections.abc import Callable, Sequence

from tensordict import TensorDict
from transfer_queue import KVBatchMeta

from sgpo_verl.binding.dataloader import PROMPT
from sgpo_verl.binding.estimator import last_output_rows
from sgpo_verl.config import Settings
from sgpo_verl.cost import StepTokens
from sgpo_verl.errors import SgpoError
from sgpo_verl.methods.base import Outcome
from sgpo_verl.metrics import StepRollouts
from sgpo_verl.plan import RunNumbers
from sgpo_verl.rewards import succeeded


def outcomes_of(
    keys: Sequence[str], data: TensorDict, settings: Settings, name_of: Callable[[int], str] = str
) -> list[Outcome]:
    """One outcome per group of a sampled batch.

    keys: "{uid}_{session}_{output}" per row. data: rm_scores (nested, (N, T)), extra_fields and the prompt's position per row.
    name_of: position -> the prompt's key, for people.
    Raises SgpoError naming the prompt whose reward is NaN.
    """
    scores_N = data["rm_scores"].sum(dim=1).tolist()
    extra_N, prompt_N = list(data["extra_fields"]), list(data[PROMPT])
    groups: dict[str, list[int]] = {}
    for row in sorted(set(last_output_rows(keys).tolist())):
        groups.setdefault(keys[row].split("_")[0], []).append(row)
    outcomes = []
    for rows in groups.values():
        if any(math.isnan(scores_N[row]) for row in rows):
            raise SgpoError(
                f"reward function: NaN for a rollout of prompt {name_of(prompt_N[rows[0]])}; return a number"
            )
        infos = [extra_N[row].get("reward_extra_info", {}) for row in rows]
        wins = sum(succeeded(scores_N[r], info, settings) for r, info in zip(rows, infos, strict=True))
        mean = sum(scores_N[row] for row in rows) / len(rows)
        outcomes.append(Outcome(prompt_N[rows[0]], len(rows), wins, mean))
    return outcomes


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
