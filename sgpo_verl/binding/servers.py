"""verl's rollout servers on their own: no actor, no optimizer, all devices that the configuration names."""

import logging
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from omegaconf import DictConfig, OmegaConf, open_dict
from verl.experimental.reward_loop import RewardLoopManager
from verl.utils.device import get_resource_name
from verl.workers.rollout.llm_server import LLMServerManager
from verl.workers.rollout.replica import RolloutReplica

from sgpo_verl.binding.reward_worker import QuickRewardManager
from sgpo_verl.errors import SgpoError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Replicas:
    """verl's rollout replicas standing alone. urls: of their HTTP servers."""

    manager: LLMServerManager

    @property
    def urls(self) -> list[str]:
        return [f"http://{address}" for address in self.manager.get_addresses()]

    def drop_dead(self) -> None:
        """Take servers whose actor is gone out of verl's load balancer, which would go on choosing them.

        Raises SgpoError if none is left.
        """
        balancer = self.manager.global_load_balancer
        known = ray.get(balancer.get_all_servers.remote())
        gone = [address for address in known if not _healthy(address)]
        if gone:
            logger.warning("sgpo: going on without rollout server %s, which does not answer", ", ".join(gone))
            ray.get(balancer.remove_servers.remote(gone))
        if len(gone) == len(known):
            raise SgpoError("no rollout server is left; what was sampled is kept: run again to go on")


def _healthy(address: str) -> bool:
    """vLLM and SGLang answer /health with 200 while their engine lives."""
    try:
        with urllib.request.urlopen(f"http://{address}/health", timeout=10) as answer:
            return answer.status == 200
    except OSError:
        return False


@contextmanager
def standalone_servers(config: DictConfig) -> Iterator[Replicas]:
    """One server per replica, over all devices of the configuration; all of it is gone again on leaving."""
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
        ray.get(
            manager.global_load_balancer.get_all_servers.remote()
        )  # up as well, not still importing beside the servers
        yield Replicas(manager)
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
def reward_workers(config: DictConfig) -> Iterator[RewardLoopManager]:
    """verl's reward loop workers: the very scoring that training uses."""
    manager = QuickRewardManager(config=OmegaConf.create(OmegaConf.to_container(config, resolve=True)))
    try:
        yield manager
    finally:
        for worker in manager.reward_loop_workers:
            ray.kill(worker)
        if manager.reward_model_manager is not None:
            _stop(manager.reward_model_manager.rollout_replicas)
