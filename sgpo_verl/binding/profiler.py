"""The profiling worker: N samples of every prompt under the initial policy, scored as training scores them.

rounds of requests -> sampler (completions or agent loops) -> counts on disk, one request at a time -> the profile
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from sgpo_verl.adaptive import next_samples
from sgpo_verl.binding.fleet import PromptFailed
from sgpo_verl.binding.samplers import Sampler, choose, request_seed
from sgpo_verl.binding.sources import SamplerStart, load_hf_config, sampler_for
from sgpo_verl.checks.profile import check_profilable
from sgpo_verl.config import Settings
from sgpo_verl.cost import generate_flops, shape_from_config
from sgpo_verl.counts import Sampled
from sgpo_verl.errors import SgpoError
from sgpo_verl.merge import add_up
from sgpo_verl.profile import Profile, ProfileMetadata, save_profile
from sgpo_verl.prompts import Prompts
from sgpo_verl.rewards import BadReward, check_score, succeeded
from sgpo_verl.shards import PassFiles, parts_folder
from sgpo_verl.tally import Tally

HOPELESS = 64  # prompts that all failed, and none that did not: it is not the prompts


@dataclass(frozen=True)
class Target:
    """What is profiled: verl's configuration, the data set, its prompts' identities, the tokenizer, our settings, and what
    a profile of it says of itself."""

    config: DictConfig
    dataset: Dataset
    prompts: Prompts
    tokenizer: PreTrainedTokenizerBase
    settings: Settings
    metadata: ProfileMetadata


def make_profile(
    target: Target, output: Path, goal: int | np.ndarray, base: Profile | None, show: Callable[[Tally], None]
) -> Profile:
    """Sample until every prompt has ``goal`` trials (with ``profile.adaptive``: that many on average), write the profile.

    output: its file; samples already in its ``.parts`` folder are taken up. goal: of all prompts, or int (P,). base: a
    profile to add to, of the same prompts in their order. show: called after every request.

    Raises SgpoError if the configuration cannot be profiled, no server is left, or too many prompts fail. What was
    sampled by then is kept.
    """
    check_profilable(target.config)
    with PassFiles(parts_folder(output), _header(target, base), len(target.prompts)) as files:
        kind = choose(target.config, target.dataset, target.settings)
        job = ProfilingPass(target, files, goal, base, show)
        if job.tally.samples:
            print(f"sgpo: {job.tally.samples} samples are there already; going on from them", flush=True)
        if job.next_round().any():
            with sampler_for(kind, target.config, target.tokenizer, target.settings) as start:
                asyncio.run(job.run(start))
        profile = job.profile(kind)
        save_profile(profile, output)
        files.remove()
    return profile


def _header(target: Target, base: Profile | None) -> dict[str, Any]:
    """What must be the same for samples to be added up."""
    hash_P = pd.util.hash_pandas_object(pd.Series(target.prompts.keys_P), index=False).to_numpy()
    return {
        **{name: getattr(target.metadata, name) for name in ProfileMetadata.IDENTITY},
        "prompts": f"{len(hash_P)}, {hashlib.sha256(hash_P.tobytes()).hexdigest()[:16]}",
        "sgpo.seed": target.settings.seed,
        "added to": [p["id"] for p in base.metadata.passes] if base else None,
    }


class ProfilingPass:
    """One pass over the prompts: rounds of requests, each result on disk before it counts."""

    def __init__(
        self,
        target: Target,
        files: PassFiles,
        goal: int | np.ndarray,
        base: Profile | None,
        show: Callable[[Tally], None],
    ):
        self.target, self.files, self.goal, self.base, self.show = target, files, goal, base, show
        counts, prompts = files.counts, len(target.prompts)
        self.trials_P, self.successes_P = counts.trials_P.copy(), counts.successes_P.copy()
        if base is not None:
            self.trials_P += base.table["trials"].to_numpy()
            self.successes_P += base.table["successes"].to_numpy()
        self.tally = Tally(prompts, int(np.broadcast_to(goal, prompts).sum()), target.settings.filter)
        self.tally.found(self.trials_P, self.successes_P)
        self.failed: dict[int, str] = {}  # in this call

    def next_round(self) -> np.ndarray:
        """Samples that each prompt gets next, int (P,); all 0 when there is nothing left to sample."""
        more_P = np.maximum(np.broadcast_to(self.goal, self.trials_P.shape) - self.trials_P, 0)
        more_P[list(self.failed)] = 0
        if (settings := self.target.settings).profile.adaptive:
            open_P = np.ones(len(more_P), bool)
            open_P[list(self.failed)] = False
            trials_P, budget = self.trials_P[open_P], self.tally.budget - int(self.trials_P[~open_P].sum())
            rules = settings.filter, settings.group_size, settings.seed
            more_P[open_P] = next_samples(trials_P, self.successes_P[open_P], budget, *rules)
        return more_P

    async def run(self, start: SamplerStart) -> None:
        """All rounds, one after another."""
        async with start() as sampler:
            self.tally.start()
            while (more_P := self.next_round()).any():
                await self._round(sampler, ((int(p), int(more_P[p])) for p in np.flatnonzero(more_P)))

    async def _round(self, sampler: Sampler, jobs: Iterator[tuple[int, int]]) -> None:
        async def work():
            for position, n in jobs:
                self._count(await self._one(sampler, position, n))

        tasks = [asyncio.create_task(work()) for _ in range(sampler.width)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _one(self, sampler: Sampler, position: int, n: int) -> Sampled:
        """Sample and score one prompt ``n`` times."""
        settings, key = self.target.settings, str(self.target.prompts.keys_P[position])
        item = self.target.dataset[int(self.target.prompts.rows_P[position])]
        seed = request_seed(settings.seed, key, int(self.trials_P[position]))
        try:
            samples = await sampler.sample(item, n, seed)
            scores = [check_score(r["reward_score"], _info(r), settings, key) for r in samples.results]
        except (PromptFailed, BadReward) as failure:
            return Sampled(position, 0, 0, 0.0, 0, 0, str(failure))
        wins = sum(succeeded(s, _info(r), settings) for s, r in zip(scores, samples.results, strict=True))
        return Sampled(position, n, wins, float(sum(scores)), samples.prompt_tokens, samples.response_tokens)

    def _count(self, sampled: Sampled) -> None:
        self.files.add(sampled)
        p = sampled.position
        self.trials_P[p] += sampled.trials
        self.successes_P[p] += sampled.successes
        self.tally.add(sampled, int(self.trials_P[p]), int(self.successes_P[p]))
        if sampled.failure is not None:
            self.failed[p] = sampled.failure
            self._stop_if_too_many()
        self.show(self.tally)

    def _stop_if_too_many(self) -> None:
        """Raises SgpoError with the commonest reasons if more prompts failed than may, or all of the first did."""
        settings, failed, prompts = self.target.settings.profile, len(self.failed), len(self.target.prompts)
        if failed <= settings.max_failed_frac * prompts and not failed == self.tally.requests >= HOPELESS:
            return
        first = self.target.prompts.keys_P[next(iter(self.failed))]
        raise SgpoError(
            f"profiling stopped: {failed} of {self.tally.requests} prompts failed, of {prompts} at most "
            f"sgpo.profile.max_failed_frac={settings.max_failed_frac:g} may (first: {first}): "
            f"{commonest(self.failed.values())}. What was sampled is kept: mend it and run again to go on"
        )

    def profile(self, sampler: str) -> Profile:
        """The profile of all counts, with what it took to make it."""
        prompts, counts = self.target.prompts, self.files.counts
        trials_P = np.maximum(counts.trials_P, 1)
        columns = {
            "prompt_key": prompts.keys_P,
            "data_source": prompts.sources_P,
            "index": prompts.index_P,
            "trials": counts.trials_P,
            "successes": counts.successes_P,
            "reward_mean": (counts.reward_sum_P / trials_P).astype(np.float32),
            "prompt_tokens": counts.prompt_tokens_P,
            "response_tokens_mean": (counts.response_tokens_P / trials_P).astype(np.float32),
        }
        table = pd.DataFrame(columns)
        if counts.failures:
            table["failure"] = [counts.failures.get(p) for p in range(len(prompts))]
        made = Profile(table, self.target.metadata)
        tokens = made.tokens()
        settings = self.target.settings.profile
        this = {
            "id": self.files.id,
            "seed": self.target.settings.seed,
            "sampler": sampler,
            "samples": made.samples,
            **({"endpoints": settings.endpoints} if settings.endpoints else {}),
        }
        shape = shape_from_config(load_hf_config(self.target.config).to_dict(), "config.json")
        metadata = replace(
            self.target.metadata,
            passes=[this],
            total_tokens=round(tokens.generated),
            flops=generate_flops(shape, tokens),
            seconds=round(self.files.seconds, 1),
        )
        made = replace(made, metadata=metadata)
        return made if self.base is None else add_up([self.base, made])


def commonest(failures: Iterable[str]) -> str:
    """The three most common reasons, for example "12x reward function: raised KeyError('x'); 1x ..."."""
    return "; ".join(f"{times}x {reason}" for reason, times in Counter(failures).most_common(3))


def _info(result: dict[str, Any]) -> dict[str, Any]:
    return result.get("reward_extra_info") or {}
