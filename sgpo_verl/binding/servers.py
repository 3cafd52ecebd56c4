"""verl's rollout servers on their own: no actor, no optimizer, all devices that the configuration names."""

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import aiohttp
import ray
from omegaconf import DictConfig, OmegaConf, open_dict
from verl.experimental.reward_loop import RewardLoopManager
from verl.utils.device import get_resource_name
from verl.workers.rollout.llm_server import LLMServerManager
from verl.workers.rollout.replica import RolloutReplica

from sgpo_verl.errors import SgpoError

logger = logging.getLogger(__name__)


def check_profilable(config: DictConfig) -> None:
    """Refuse what the single-turn path below does not sample as training would. Raises SgpoError naming the key."""
    rollout = config.actor_rollout_ref.rollout
    if rollout.name != "vllm":
        raise SgpoError(f"actor_rollout_ref.rollout.name={rollout.name}: profiling knows vllm so far")
    if rollout.multi_turn.enable or rollout.agent.default_agent_loop != "single_turn_agent":
        raise SgpoError(
            "actor_rollout_ref.rollout: profiling samples single turns, this run uses an agent loop "
            f"({rollout.agent.default_agent_loop}, multi_turn.enable={rollout.multi_turn.enable}); bring a profile made "
            "elsewhere as sgpo.profile.path"
        )
    if config.actor_rollout_ref.model.get("lora_adapter_path"):
        raise SgpoError(
            "actor_rollout_ref.model.lora_adapter_path: profiling would sample the model without its adapter; bring a "
            "profile made elsewhere as sgpo.profile.path"
        )
    if config.reward.reward_model.enable and not config.reward.reward_model.enable_resource_pool:
        raise SgpoError(
            "reward.reward_model: a reward model that shares the actor's devices cannot score while profiling; give it "
            "its own with reward.reward_model.enable_resource_pool=True"
        )


@contextmanager
def standalone_servers(config: DictConfig) -> Iterator[list[str]]:
    """Addresses ("host:port") of one OpenAI-compatible server per replica; all of it is gone again on leaving."""
    config = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    rollout = config.actor_rollout_ref.rollout
    with open_dict(config):
        rollout.nnodes, rollout.n_gpus_per_node = config.trainer.nnodes, config.trainer.n_gpus_per_node
        rollout.load_format = "auto"  # the actor would send the weights; there is none
    devices = rollout.nnodes * rollout.n_gpus_per_node
    needed = rollout.tensor_model_parallel_size * rollout.data_parallel_size * rollout.pipeline_model_parallel_size
    if devices < needed:
        raise SgpoError(
            f"actor_rollout_ref.rollout: one server takes {needed} devices (tensor x data x pipeline parallel size), "
            f"trainer.nnodes x trainer.n_gpus_per_node are {devices}"
        )
    manager = LLMServerManager.create(config=config)
    try:
        yield manager.get_addresses()
    finally:
        ray.kill(manager.global_load_balancer)
        _stop(manager.get_replicas())
        _wait_for_devices(devices)


def _stop(replicas: Sequence[RolloutReplica]) -> None:
    """End servers by their own handles and give their devices back to Ray."""
    for replica in replicas:
        for actor in [*replica.servers, *replica.workers]:
            ray.kill(actor)
        for group in replica.resource_pool.pgs or []:
            ray.util.remove_placement_group(group)


def _wait_for_devices(count: int, seconds: float = 60.0) -> None:
    """Ray frees devices in its own time; verl's trainer, next, raises where they are not free yet."""
    deadline = time.monotonic() + seconds
    while ray.available_resources().get(get_resource_name(), 0) < count and time.monotonic() < deadline:
        time.sleep(0.5)


@contextmanager
def reward_workers(config: DictConfig) -> Iterator[list]:
    """Handles of verl's reward loop workers: the very scoring that training uses."""
    manager = RewardLoopManager(config=OmegaConf.create(OmegaConf.to_container(config, resolve=True)))
    try:
        yield manager.reward_loop_workers
    finally:
        for worker in manager.reward_loop_workers:
            ray.kill(worker)
        if manager.reward_model_manager is not None:
            _stop(manager.reward_model_manager.rollout_replicas)


async def model_name(session: aiohttp.ClientSession, address: str) -> str:
    """The name under which a server serves its only model. Waits up to a minute for it to answer."""
    for _ in range(60):
        try:
            async with session.get(f"http://{address}/v1/models") as answer:
                answer.raise_for_status()
                return (await answer.json())["data"][0]["id"]
        except (OSError, aiohttp.ClientError) as error:
            logger.debug("%s does not answer yet: %s", address, error)
            await asyncio.sleep(1)
    raise SgpoError(f"rollout server {address}: no answer within a minute; see Ray's log for what stopped it")
