"""What a profiling pass samples from, started for it and stopped after it: verl's servers standing alone, or endpoints."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial

import ray
from omegaconf import DictConfig
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase
from verl.experimental.agent_loop import AgentLoopManager, AgentLoopWorker
from verl.experimental.reward_loop import RewardLoopManager
from verl.utils.fs import copy_to_local

from sgpo_verl.binding.fleet import Fleet, http_session, served_model
from sgpo_verl.binding.samplers import AgentLoopSampler, CompletionsSampler, Sampler, chat_builder, dialect_of
from sgpo_verl.binding.scoring import Scorer
from sgpo_verl.binding.servers import Replicas, reward_workers, standalone_servers
from sgpo_verl.config import Settings
from sgpo_verl.endpoints import base_url
from sgpo_verl.errors import SgpoError

logger = logging.getLogger("sgpo_verl")

SamplerStart = Callable[[], AbstractAsyncContextManager[Sampler]]
FIRST_ANSWER = 60.0  # seconds that a server of our own may take to answer after verl says that it is up
ENDPOINT_ANSWER = 5.0  # seconds: an endpoint is up, or its address is wrong


def load_hf_config(config: DictConfig) -> PretrainedConfig:
    """Of actor_rollout_ref.model.path, wherever verl finds it."""
    model = config.actor_rollout_ref.model
    return AutoConfig.from_pretrained(
        copy_to_local(model.path), trust_remote_code=model.get("trust_remote_code", False)
    )


@contextmanager
def sampler_for(
    kind: str, config: DictConfig, tokenizer: PreTrainedTokenizerBase, settings: Settings
) -> Iterator[SamplerStart]:
    """Start the processes that ``kind`` ("completions" or "agent_loop") needs; yields how to open the sampler."""
    with reward_workers(config) as rewards:
        if settings.profile.endpoints:
            urls = [base_url(url) for url in settings.profile.endpoints]
            yield partial(completions, urls, rewards, config, tokenizer, settings)
            return
        with standalone_servers(config) as replicas:
            if kind == "completions":
                yield partial(completions, replicas.urls, rewards, config, tokenizer, settings)
                return
            with agent_loop_sampler(replicas, rewards, config, settings) as sampler:
                yield partial(agent_loops, sampler)


class LastOutputWorker(AgentLoopWorker):
    """verl's worker. Of several outputs of a session the last speaks for all, as in training; verl's own takes one only."""

    async def _agent_loop_postprocess(self, output, validate, **kwargs):
        last = output[-1] if isinstance(output, list) else output
        return await super()._agent_loop_postprocess(last, validate, **kwargs)


class LastOutputManager(AgentLoopManager):
    def __init__(self, *args, **kwargs):
        self.agent_loop_workers_class = ray.remote(LastOutputWorker)
        super().__init__(*args, **kwargs)


@contextmanager
def agent_loop_sampler(
    replicas: Replicas, rewards: RewardLoopManager, config: DictConfig, settings: Settings
) -> Iterator[AgentLoopSampler]:
    """verl's agent loop workers over servers that are running; they end on leaving."""
    manager = LastOutputManager.create(
        config=config,
        llm_client=replicas.manager.get_client(),
        reward_loop_worker_handles=rewards.reward_loop_worker_handles,
    )
    try:
        width = settings.profile.max_in_flight * len(replicas.urls)
        yield AgentLoopSampler(manager, replicas, width, settings.profile.timeout)
    finally:
        for worker in manager.agent_loop_workers:
            ray.kill(worker)


@asynccontextmanager
async def agent_loops(sampler: AgentLoopSampler) -> AsyncIterator[Sampler]:
    yield sampler


@asynccontextmanager
async def completions(
    urls: Sequence[str],
    rewards: RewardLoopManager,
    config: DictConfig,
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
) -> AsyncIterator[Sampler]:
    """A sampler over HTTP servers at ``urls``, once every one of them has answered."""
    hf_config, endpoints = load_hf_config(config), settings.profile.endpoints
    rollout = config.actor_rollout_ref.rollout
    async with http_session(os.environ.get("OPENAI_API_KEY") if endpoints else None) as session:
        name = None
        if endpoints or rollout.name == "vllm":
            patience = ENDPOINT_ANSWER if endpoints else FIRST_ANSWER
            found = [served_model(session, url, settings.profile.endpoint_model, patience) for url in urls]
            models = await asyncio.gather(*found)
            name = _one_name(urls, models)
            if endpoints:
                _warn_of_another_model(urls[0], models[0], config.actor_rollout_ref.model.path)
        dialect = dialect_of(config, name, hf_config, tokenizer)
        async with Scorer(rewards, settings.profile.timeout) as scorer:
            fleet = Fleet(session, urls, dialect, settings.profile.timeout)
            builder = chat_builder(config, tokenizer, hf_config)
            in_flight = settings.profile.max_in_flight * len(urls)
            yield CompletionsSampler(fleet, scorer, builder, rollout.prompt_length, in_flight)


def _one_name(urls: Sequence[str], models: Sequence[dict]) -> str:
    names = {str(model["id"]) for model in models}
    if len(names) > 1:
        raise SgpoError(f"sgpo.profile.endpoints={list(urls)}: serve different models: {', '.join(sorted(names))}")
    return names.pop()


def _warn_of_another_model(url: str, served: dict, path: str) -> None:
    """vLLM says which folder or hub name it loaded: it should be the one that will be trained."""
    root = str(served.get("root") or path)
    if os.path.basename(root.rstrip("/")) != os.path.basename(path.rstrip("/")):
        logger.warning("sgpo: %s serves %s, and actor_rollout_ref.model.path=%s will be trained", url, root, path)
