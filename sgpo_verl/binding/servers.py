"""verl's rollout servers on their own: no actor, no optimizer, all devices that the configuration names."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from omegaconf import DictConfig, OmegaConf, open_dict
from verl.experimental.reward_loop import RewardLoopManager
from verl.workers.rollout.llm_server import LLMServerManager

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
    if devices < rollout.tensor_model_parallel_size:
        raise SgpoError(
            f"actor_rollout_ref.rollout.tensor_model_parallel_size={rollout.tensor_model_parallel_size} is more than "
            f"the {devices} device(s) of trainer.nnodes x trainer.n_gpus_per_node"
        )
    manager = LLMServerManager.create(config=config)
    try:
        yield manager.get_addresses()
    finally:
        _stop(manager)


def _stop(manager: LLMServerManager) -> None:
    """End the servers by their own handles and give their devices back to Ray."""
    for replica in manager.get_replicas():
        for actor in [*replica.servers, *replica.workers]:
            ray.kill(actor)
        for group in replica.resource_pool.pgs or []:
            ray.util.remove_placement_group(group)
    ray.kill(manager.global_load_balancer)


@contextmanager
def reward_workers(config: DictConfig) -> Iterator[list]:
    """Handles of verl's reward loop workers: the very scoring that training uses."""
    manager = RewardLoopManager(config=OmegaConf.create(OmegaConf.to_container(config, resolve=True)))
    try:
        yield manager.reward_loop_workers
    finally:
        for worker in manager.reward_loop_workers:
            ray.kill(worker)


async def model_name(session, address: str) -> str:
    """The name under which a server serves its only model. Waits up to a minute for it to answer."""
    for _ in range(60):
        try:
            async with session.get(f"http://{address}/v1/models") as answer:
                answer.raise_for_status()
                return (await answer.json())["data"][0]["id"]
        except OSError as error:
            logger.debug("%s does not answer yet: %s", address, error)
            await asyncio.sleep(1)
    raise SgpoError(f"rollout server {address}: no answer within a minute; see Ray's log for what stopped it")
