"""A step's arithmetic: rollouts, updates, ranks, micro-batches; and whether a plan can be made of it at all."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from sgpo_verl.checks.devices import ACTOR, ROLLOUT, count_at, devices_of, sequence_parallel
from sgpo_verl.config import Settings
from sgpo_verl.errors import SgpoError
from sgpo_verl.plan import as_stock, make_plan, plan_without_profile
from sgpo_verl.profile import Profile, ProfileMetadata
from sgpo_verl.run_config import group_at, is_count, numbers_of, settings_of, value_at
from sgpo_verl.schedule import RunNumbers


def check_batch(config: Mapping[str, Any]) -> str:
    """A step in words: groups, updates, rows per rank, micro-batches."""
    numbers, ranks = numbers_of(config), devices_of(config).ranks
    ours = "sgpo" in config
    settings = settings_of(config)
    if ours:
        rehearse(settings, numbers)
    pieces = _micro_batches(config)
    if ours and settings.batch.unit == "prompts":
        return f"{numbers.train_batch_size} prompts a step, {numbers.updates_per_step} updates; {pieces}"
    rollouts = numbers.train_batch_size * numbers.rollout_n
    first = f"{numbers.train_batch_size} x {numbers.rollout_n} = {rollouts} rollouts a step"
    if ours and settings.batch.rollouts:
        rollouts = settings.batch.rollouts
        first = f"{rollouts} rollouts a step"
    if ours and settings.allocation in ("profile", "posterior"):
        first += f", in groups of {settings.group_size.min} to {settings.group_size.max}"
    if ours and settings.allocation == "rescue":
        first += f", in groups of {settings.aero.explore} to {settings.aero.most}"
    updates = numbers.updates_per_step
    rows, padding = -(-rollouts // (updates * ranks)), -rollouts % (updates * ranks)
    most = "at most " if ours and settings.chooses_rows else ""
    cut = f"{updates} update{'s' * (updates > 1)} of {most}{rollouts // updates}"
    cut += f", {rows} on each of {ranks} ranks" if ranks > 1 else ""
    filled = f" ({padding} padding rows: {updates} x {ranks} does not divide {rollouts})" if padding else ""
    return f"{first}; {cut}{filled}; {pieces}"


def rehearse(settings: Settings, numbers: RunNumbers, prompts: int | None = None, trials: int = 64) -> None:
    """A plan of prompts of every pass rate, so that what contradicts itself is found before there is a profile.

    prompts: of the data set, if known. trials: of each prompt, and so how many pass rates there are.

    Raises SgpoError as the plan of the run itself would.
    """
    if as_stock(settings):
        count = prompts or numbers.train_batch_size * max(1, numbers.rollout_n)
        plan_without_profile([str(i) for i in range(count)], settings, numbers)
        return
    known = {"trials": trials, "prompt_tokens": 1, "response_tokens_mean": 1.0, "reward_mean": 0.5, "index": -1}
    table = pd.DataFrame({"prompt_key": [str(i) for i in range(trials + 1)], "successes": range(trials + 1), **known})
    table = table.assign(data_source="").astype({"successes": "int32", "trials": "int32"})
    # How many phases there will be, and so whether curriculum.steps fits them, only the profile itself shows.
    curriculum = settings.curriculum.model_copy(update={"steps": None, "until": "epochs"})
    make_plan(Profile(table, ProfileMetadata()), settings.model_copy(update={"curriculum": curriculum}), numbers)


def _micro_batches(config: Mapping[str, Any]) -> str:
    """Their size in words. Raises SgpoError where verl would end the run: at its start, or at the first long answer."""
    dynamic = bool(group_at(config, ACTOR).get("use_dynamic_bsz"))
    scored = group_at(config, ROLLOUT).get("log_prob_use_dynamic_bsz")
    if bool(scored) != dynamic:
        raise SgpoError(
            f"{ROLLOUT}.log_prob_use_dynamic_bsz={scored}: verl wants it to be as {ACTOR}.use_dynamic_bsz={dynamic}",
            "leave it unset, and it is",
        )
    if not dynamic:
        keys = f"{ACTOR}.ppo_micro_batch_size_per_gpu", f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu"
        for key in keys:
            if not is_count(value_at(config, key)):
                raise SgpoError(
                    f"{key}={value_at(config, key)!r}: must be a positive integer where {ACTOR}.use_dynamic_bsz=False",
                    f"set it, or {ACTOR}.use_dynamic_bsz=True",
                )
        most = min(value_at(config, key) for key in keys)
        return f"micro-batches of {most} rows, fewer where they do not divide"
    longest = count_at(config, "data.max_prompt_length") + count_at(config, "data.max_response_length")
    parallel, over = sequence_parallel(config)
    limits = [f"{ACTOR}.ppo_max_token_len_per_gpu", f"{ROLLOUT}.log_prob_max_token_len_per_gpu"]
    for key in limits:
        tokens = count_at(config, key)
        if tokens * parallel < longest:
            per_rank = f" x {over}={parallel}" if parallel > 1 else ""
            raise SgpoError(
                f"{key}={tokens}{per_rank} is less than one rollout may have: data.max_prompt_length + "
                f"data.max_response_length = {longest}; the first that is as long would end the run",
                f"raise it to {-(-longest // parallel)} or more",
            )
    return f"micro-batches of up to {count_at(config, limits[0])} tokens a device"
