"""The two ways to sample a prompt: through completions (one request, N samples, one turn of text), or verl's agent loops.

completions: dataset item -> prompt ids (verl's chat templating) -> Fleet -> Scorer
agent_loop:  dataset item -> verl's AgentLoopWorker: turns, tools, images, its reward
"""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jinja2
import numpy as np
import ray
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import Dataset
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from verl import DataProto
from verl.experimental.agent_loop import AgentLoopManager
from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder
from verl.workers.rollout.utils import get_max_position_embeddings

from sgpo_verl.binding.fleet import TRIES, Dialect, Fleet, PromptFailed, openai_dialect, sglang_dialect
from sgpo_verl.binding.scoring import Scorer
from sgpo_verl.binding.servers import Replicas
from sgpo_verl.config import Settings

FAST_ENGINES = ("vllm", "sglang")  # that answer completions with token ids


@dataclass(frozen=True)
class Samples:
    """Of one prompt: verl's reward result per sample, and lengths in tokens."""

    results: list[dict]
    prompt_tokens: int
    response_tokens: int


class Sampler(Protocol):
    """width: requests that are worth having under way. sample raises PromptFailed, or SgpoError to end the pass."""

    width: int

    async def sample(self, item: dict, n: int, seed: int) -> Samples: ...


def choose(config: DictConfig, dataset: Dataset, settings: Settings) -> str:
    """ "completions" or "agent_loop": what the setting says; for "auto" the fast one, unless the run needs the other."""
    if settings.profile.sampler != "auto":
        return settings.profile.sampler
    if settings.profile.endpoints:
        return "completions"
    rollout = config.actor_rollout_ref.rollout
    loops = rollout.multi_turn.enable or rollout.agent.default_agent_loop != "single_turn_agent"
    fast = rollout.name in FAST_ENGINES and not loops and not _needs_loops(dataset)
    return "completions" if fast else "agent_loop"


def _needs_loops(dataset: Dataset) -> bool:
    """Whether a row names another agent than the single-turn one, or has a column of images, video or sound."""
    if not isinstance(dataset, RLHFDataset):
        return False  # each of its rows is looked at when its turn comes
    names = set(dataset.dataframe.column_names)
    agents = set(dataset.dataframe.unique("agent_name")) if "agent_name" in names else set()
    return bool(
        {dataset.image_key, dataset.video_key, dataset.audio_key} & names or agents - {"single_turn_agent", None}
    )


def request_seed(seed: int, key: str, first: int) -> int:
    """Seed of the samples ``first``, first + 1, ... of a prompt: the same in whatever order prompts are sampled."""
    digest = hashlib.blake2b(f"{seed}:{key}:{first}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big")  # 48 bits: vLLM adds 0, 1, ... for each of the samples


class CompletionsSampler:
    """One request per prompt to ``fleet``, scores from ``scorer``. At most ``in_flight`` prompts are being generated;
    as many again may be waiting for their scores."""

    def __init__(self, fleet: Fleet, scorer: Scorer, builder, prompt_length: int, in_flight: int):
        self.fleet, self.scorer, self.builder, self.prompt_length = fleet, scorer, builder, prompt_length
        self.width = 2 * in_flight
        self._generating = asyncio.Semaphore(in_flight)

    async def sample(self, item: dict, n: int, seed: int) -> Samples:
        _check_single_turn_text(item)
        async with self._generating:
            prompt_ids = self._prompt_ids(item)
            responses = await self.fleet.sample(prompt_ids, n, seed)
        results = await self.scorer.score(item, prompt_ids, responses)
        return Samples(results, len(prompt_ids), sum(map(len, responses)))

    def _prompt_ids(self, item: dict) -> list[int]:
        """As verl's agent loop has them: chat template, then at most ``prompt_length`` from the end."""
        try:
            prompt_ids = self.builder.build_initial_tokens(list(item["raw_prompt"]))
        except (jinja2.TemplateError, ValueError, KeyError, TypeError) as error:
            raise PromptFailed(f"chat template: raised {error!r:.200}") from None
        return list(map(int, prompt_ids))[-self.prompt_length :]


def chat_builder(config: DictConfig, tokenizer: PreTrainedTokenizerBase, hf_config: PretrainedConfig):
    """verl's own way from messages to prompt ids."""
    kwargs = OmegaConf.to_container(config.data.get("apply_chat_template_kwargs") or OmegaConf.create())
    return create_continuous_token_builder(tokenizer, hf_model_type=hf_config.model_type, chat_template_kwargs=kwargs)


def dialect_of(
    config: DictConfig, model: str | None, hf_config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> Dialect:
    """How to ask for samples as training takes them: its temperature, top-p, top-k, and lengths as verl's server has them.

    model: its name at an OpenAI-compatible server; None: verl's own SGLang server.
    """
    rollout = config.actor_rollout_ref.rollout
    limit = get_max_position_embeddings(hf_config)
    limit = min(rollout.max_model_len or limit, limit)

    def max_tokens(prompt_ids: Sequence[int]) -> int:
        budget = min(rollout.response_length, rollout.prompt_length + rollout.response_length - len(prompt_ids))
        return max(1, min(budget, limit - len(prompt_ids)))

    parameters: dict[str, Any] = {
        "temperature": rollout.temperature,
        "top_p": rollout.top_p,
        "top_k": rollout.top_k,
        # As verl's agent loop has them; a server would take them from the model's generation_config.json.
        "repetition_penalty": 1.0,
        "min_p": 0.0,
        "ignore_eos": bool(rollout.get("ignore_eos", False)),
    }
    if model is None:
        return sglang_dialect(parameters, max_tokens)
    return openai_dialect(model, parameters, max_tokens, lambda text: tokenizer.encode(text, add_special_tokens=False))


def _check_single_turn_text(item: dict) -> None:
    """Raises PromptFailed for a prompt that training would not sample as one turn of text."""
    agent = item.get("agent_name", "single_turn_agent")
    contents = [m["content"] for m in item["raw_prompt"] if not isinstance(m["content"], str)]
    if agent != "single_turn_agent" or any(part.get("type") != "text" for parts in contents for part in parts or []):
        what = f"names the agent {agent!r}" if agent != "single_turn_agent" else "holds images, video or audio"
        raise PromptFailed(f"its row {what}, which takes sgpo.profile.sampler=agent_loop")


class AgentLoopSampler:
    """verl's agent loop workers, one call per prompt; they sample, run tools and score as in training.

    verl samples these without a seed of their own.
    """

    def __init__(self, manager: AgentLoopManager, replicas: Replicas, in_flight: int, timeout: float):
        self.manager, self.replicas, self.timeout = manager, replicas, timeout
        self.width = in_flight
        self._turn = 0

    async def sample(self, item: dict, n: int, seed: int) -> Samples:
        reason = ""
        for _ in range(TRIES):
            self._turn += 1
            place = self._turn % len(self.manager.agent_loop_workers)
            call = self.manager.agent_loop_workers[place].generate_sequences.remote(_rows(item, n))
            try:
                output = await asyncio.wait_for(asyncio.wrap_future(call.future()), self.timeout)
                return _samples_of(output)
            except asyncio.TimeoutError:
                raise PromptFailed(f"agent loop: no result within sgpo.profile.timeout={self.timeout:g} s") from None
            except ray.exceptions.RayTaskError as error:  # first: Ray makes it an instance of its cause, too
                reason = f"agent loop: raised {error.cause!r:.300}"
                await asyncio.to_thread(self.replicas.drop_dead)
            except ray.exceptions.RayActorError as error:
                reason = f"agent loop: its worker died ({type(error).__name__})"
                self._replace(place)
        raise PromptFailed(reason)

    def _replace(self, place: int) -> None:
        """A new worker in place of a dead one, with the same servers and reward workers."""
        manager = self.manager
        ray.kill(manager.agent_loop_workers[place])
        manager.agent_loop_workers[place] = manager.agent_loop_workers_class.remote(
            manager.config, manager.llm_client, manager.teacher_client, manager.reward_loop_worker_handles
        )


def _rows(item: dict, n: int) -> DataProto:
    batch = collate_fn([item] * n)
    fields = {name: value for name, value in batch.items() if isinstance(value, np.ndarray)}
    return DataProto(non_tensor_batch=fields, meta_info={"global_steps": -1, "validate": False})


def _samples_of(output: DataProto) -> Samples:
    """Scores, reward infos and lengths of verl's padded rows; tokens that tools wrote count as response."""
    batch, extra = output.batch, output.non_tensor_batch
    keys = output.meta_info.get("reward_extra_keys", [])
    width = batch["prompts"].shape[1]
    scores = batch["rm_scores"].sum(dim=1).tolist()
    results = [
        {"reward_score": score, "reward_extra_info": {key: extra[key][i] for key in keys}}
        for i, score in enumerate(scores)
    ]
    mask = batch["attention_mask"]
    return Samples(results, int(mask[0, :width].sum()), int(mask[:, width:].sum()))
