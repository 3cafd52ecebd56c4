"""The profiling worker: N samples of every prompt under the initial policy, scored as training scores them.

dataset -> prompt ids (verl's own chat templating) -> servers: one request per prompt, N samples -> reward workers -> counts
"""

import asyncio
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import numpy as np
import pandas as pd
import ray
import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from torch.utils.data import Dataset
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase
from verl import DataProto
from verl.utils.fs import copy_to_local
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder
from verl.workers.rollout.utils import get_max_position_embeddings

from sgpo_verl.binding.servers import check_profilable, model_name, reward_workers, standalone_servers
from sgpo_verl.config import Settings
from sgpo_verl.errors import SgpoError
from sgpo_verl.profile import SCHEMA, Profile, ProfileMetadata
from sgpo_verl.prompts import Prompts
from sgpo_verl.rewards import check_score, succeeded

TRIES = 4  # per request, with growing pauses: a busy or restarting server answers later
Progress = Callable[[int, int], None]  # (prompts done, successes so far)


@dataclass(frozen=True)
class Sampling:
    """The training run's sampling parameters, and how long answers may get."""

    temperature: float
    top_p: float
    top_k: int
    prompt_length: int
    response_length: int
    max_model_len: int
    n: int
    seed: int
    ignore_eos: bool

    @classmethod
    def of(cls, config: DictConfig, model_limit: int, settings: Settings) -> "Sampling":
        r = config.actor_rollout_ref.rollout
        limit = min(r.max_model_len or model_limit, model_limit)
        n, seed = settings.profile.n, settings.seed
        ignore_eos = bool(r.get("ignore_eos", False))
        return cls(r.temperature, r.top_p, r.top_k, r.prompt_length, r.response_length, limit, n, seed, ignore_eos)

    def request(self, model: str, prompt_ids: list[int], row: int) -> dict[str, Any]:
        """Body of one completions request. max_tokens is computed as verl's server does for training."""
        budget = min(self.response_length, self.prompt_length + self.response_length - len(prompt_ids))
        return {
            "model": model,
            "prompt": prompt_ids,
            "n": self.n,
            "max_tokens": max(1, min(budget, self.max_model_len - len(prompt_ids))),
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            # vLLM samples with seed, seed + 1, ..., one for each of the n: so prompts do not share any.
            "seed": (self.seed * 1_000_003 + row) * self.n,
            # As verl's agent loop has them; the endpoint would take them from the model's generation_config.json.
            "repetition_penalty": 1.0,
            "min_p": 0.0,
            "ignore_eos": self.ignore_eos,
            "return_token_ids": True,
        }


def load_hf_config(config: DictConfig) -> PretrainedConfig:
    """Of actor_rollout_ref.model.path, wherever verl finds it."""
    model = config.actor_rollout_ref.model
    return AutoConfig.from_pretrained(
        copy_to_local(model.path), trust_remote_code=model.get("trust_remote_code", False)
    )


def profile_dataset(
    config: DictConfig,
    dataset: Dataset,
    prompts: Prompts,
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    metadata: ProfileMetadata,
    progress: Progress,
) -> Profile:
    """Sample and score every prompt; returns the profile with ``metadata`` completed by tokens and seconds.

    Raises SgpoError if the configuration cannot be profiled, a server keeps failing, or the reward function raises or
    returns something that is no 0/1 reward; nothing is written then.
    """
    check_profilable(config)
    start = time.perf_counter()
    hf_config = load_hf_config(config)
    sampling = Sampling.of(config, get_max_position_embeddings(hf_config), settings)
    builder = create_continuous_token_builder(
        tokenizer,
        hf_model_type=hf_config.model_type,
        chat_template_kwargs=OmegaConf.to_container(
            config.data.get("apply_chat_template_kwargs") or OmegaConf.create()
        ),
    )
    with reward_workers(config) as workers, standalone_servers(config) as addresses:
        job = ProfilingPass(dataset, prompts, builder, sampling, settings, addresses, workers, progress)
        rows = asyncio.run(job.run())
    table = pd.DataFrame(rows, columns=SCHEMA.names)
    seconds = round(time.perf_counter() - start, 1)
    tokens = round(Profile(table, metadata).tokens().generated)
    return Profile(table, replace(metadata, total_tokens=tokens, seconds=seconds))


class ProfilingPass:
    """One pass over the prompts, dealt to the servers in turn, at most ``max_in_flight`` under way for each of them."""

    def __init__(self, dataset, prompts, builder, sampling, settings, addresses, workers, progress):
        self.dataset, self.prompts, self.builder = dataset, prompts, builder
        self.sampling, self.settings = sampling, settings
        self.addresses, self.workers, self.progress = addresses, workers, progress
        self.done = self.successes = 0

    async def run(self) -> list[tuple]:
        """Rows of the profile table, in the order of the prompts."""
        results: list[tuple | None] = [None] * len(self.prompts)
        queue = iter(range(len(self.prompts)))
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            self.model = await model_name(session, self.addresses[0])

            async def worker():
                for position in queue:
                    results[position] = await self._one(session, position)

            width = self.settings.profile.max_in_flight * len(self.addresses)
            tasks = [asyncio.create_task(worker()) for _ in range(width)]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
        return results

    async def _one(self, session: aiohttp.ClientSession, position: int) -> tuple:
        """Sample and score one prompt: its row of the profile table."""
        prompts, key = self.prompts, self.prompts.keys_P[position]
        item = self.dataset[int(prompts.rows_P[position])]
        _check_single_turn_text(item, key)
        prompt_ids = self.builder.build_initial_tokens(list(item["raw_prompt"]))[-self.sampling.prompt_length :]
        address = self.addresses[position % len(self.addresses)]
        body = self.sampling.request(self.model, list(map(int, prompt_ids)), position)
        responses = await self._sample(session, address, body, key)
        results = await self._score(item, prompt_ids, responses, position, key)
        scores = [check_score(r["reward_score"], r["reward_extra_info"], self.settings, key) for r in results]
        wins = [succeeded(s, r["reward_extra_info"], self.settings) for s, r in zip(scores, results, strict=True)]
        self.done, self.successes = self.done + 1, self.successes + sum(wins)
        self.progress(self.done, self.successes)
        lengths = [len(r) for r in responses]
        where = (key, prompts.sources_P[position], int(prompts.index_P[position]))
        return (*where, len(scores), sum(wins), np.mean(scores), len(prompt_ids), np.mean(lengths))

    async def _sample(self, session, address: str, body: dict[str, Any], key: str) -> list[list[int]]:
        """Token ids of the N samples of one prompt."""
        reason = ""
        for attempt in range(TRIES):
            try:
                async with session.post(f"http://{address}/v1/completions", json=body) as answer:
                    if answer.status == 200:
                        return [choice["token_ids"] for choice in (await answer.json())["choices"]]
                    reason = f"HTTP {answer.status}: {(await answer.text())[:200]}"
                    if answer.status < 500 and answer.status != 429:
                        break
            except aiohttp.ClientError as error:
                reason = f"{type(error).__name__}: {error}"
            await asyncio.sleep(2**attempt)
        raise SgpoError(f"rollout server {address}: could not sample prompt {key} ({reason})")

    async def _score(
        self, item: dict, prompt_ids: Sequence[int], responses: Sequence[Sequence[int]], position: int, key: str
    ) -> list[dict]:
        """verl's reward results of the N samples of one prompt."""
        data = _reward_input(item, prompt_ids, responses)
        worker = self.workers[position % len(self.workers)]
        try:
            return await worker.compute_score_batch.remote(data)
        except ray.exceptions.RayTaskError as error:
            raise SgpoError(f"reward function: raised {error.cause!r} for prompt {key}") from None


def _check_single_turn_text(item: dict, key: str) -> None:
    """Raises SgpoError for a prompt that training would not sample as one turn of text."""
    agent = item.get("agent_name", "single_turn_agent")
    parts = [m["content"] for m in item["raw_prompt"] if not isinstance(m["content"], str)]
    if agent != "single_turn_agent" or any(part.get("type") != "text" for content in parts for part in content or []):
        what = f"names the agent {agent!r}" if agent != "single_turn_agent" else "holds images, video or audio"
        raise SgpoError(
            f"data.train_files: prompt {key} {what}; profiling samples single turns of text, so bring a profile made "
            "elsewhere as sgpo.profile.path"
        )


def _reward_input(item: dict, prompt_ids: Sequence[int], responses: Sequence[Sequence[int]]) -> DataProto:
    """N rows as verl's agent loop hands them to the reward: right-padded responses and a mask over prompt + response."""
    n = len(responses)
    prompt = torch.tensor([list(prompt_ids)] * n)
    texts = [torch.tensor(list(r), dtype=torch.int64) for r in responses]
    response = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=0)
    lengths = torch.tensor([len(r) for r in responses])
    mask = torch.arange(response.shape[1]).unsqueeze(0) < lengths.unsqueeze(1)
    attention = torch.cat([torch.ones_like(prompt), mask.to(prompt)], dim=1)
    batch = TensorDict({"prompts": prompt, "responses": response, "attention_mask": attention}, batch_size=n)
    fields: dict[str, np.ndarray] = {}
    for name, value in item.items():
        if not isinstance(value, torch.Tensor):
            fields[name] = np.empty(n, dtype=object)
            fields[name][:] = [copy.deepcopy(value) for _ in range(n)]  # verl's reward managers write into them
    fields["__num_turns__"] = np.full(n, 2)
    fields["tool_extra_fields"] = np.array([{} for _ in range(n)], dtype=object)
    fields["prompt_len"], fields["response_len"] = np.full(n, len(prompt_ids)), lengths.numpy()
    return DataProto(batch=batch, non_tensor_batch=fields)
