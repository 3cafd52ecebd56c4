"""verl's reward loop worker, without a thread for every step of every sample while the reward function is quick.

verl decodes and scores each sample in a thread of its own, which costs more than most rule rewards take: 0.4 ms a sample
against 0.15 ms. That matters where thousands of samples a second are scored, as in profiling.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import ray
from omegaconf import DictConfig
from verl import DataProto
from verl.experimental.reward_loop import RewardLoopManager, RewardLoopWorker

QUICK = 0.002  # seconds: a call that takes no longer need not leave the event loop
TRIALS = 64  # calls in threads that must all be quick first


class QuickCalls:
    """An event loop whose ``run_in_executor`` calls quick functions on the spot.

    The first TRIALS calls run in threads and are timed. If all are quick, later ones run here, until one is not: then it
    is threads again, for as many calls. A function that hangs is what the scorer's time-out is for, here or there.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop, self._quick = loop, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def run_in_executor(self, executor: Any, function: Callable, *arguments: Any) -> asyncio.Future:
        if self._quick < TRIALS:
            return self._loop.run_in_executor(executor, self._timed, function, *arguments)
        result = self._loop.create_future()
        try:
            result.set_result(self._timed(function, *arguments))
        except Exception as error:  # the caller's, wherever it runs
            result.set_exception(error)
        return result

    def _timed(self, function: Callable, *arguments: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            self._quick = self._quick + 1 if time.perf_counter() - start <= QUICK else 0


class QuickRewardWorker(RewardLoopWorker):
    """Scores as its base class does, with the same reward manager."""

    def __init__(self, config: DictConfig, reward_router_address: str | None = None):
        super().__init__(config, reward_router_address)
        self.reward_manager.loop = QuickCalls(self.reward_manager.loop)
        by_model = config.reward.custom_reward_function.path is None and config.reward.reward_model.enable
        self._score = super().compute_score if by_model else self.reward_manager.run_single

    async def compute_score(self, data: DataProto) -> dict:
        return await self._score(data)  # verl decides this from its configuration for every sample


class QuickRewardManager(RewardLoopManager):
    """verl's manager, with these workers."""

    def _init_reward_loop_workers(self) -> None:
        self.reward_loop_workers_class = ray.remote(QuickRewardWorker)
        super()._init_reward_loop_workers()
