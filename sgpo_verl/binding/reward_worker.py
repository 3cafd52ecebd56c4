"""verl's reward loop worker, at a fraction of its overhead where the reward function is quick.

verl decodes and scores each sample in a thread, and slices it out of its batch three times over: 0.4 ms a sample, which is
more than most rule rewards take. Here it is less than 0.1 ms, which matters where thousands a second are scored.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import ray
from omegaconf import DictConfig
from verl import DataProto
from verl.experimental.reward_loop import RewardLoopManager, RewardLoopWorker
from verl.experimental.reward_loop.reward_manager.dapo import DAPORewardManager
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

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


class Row:
    """One row of a batch. verl's rule reward managers take a batch of one, and from it only ``data[-1:][0]``."""

    def __init__(self, data: DataProto, row: int):
        self.batch = {name: tensor[row] for name, tensor in data.batch.items()}
        self.non_tensor_batch = {name: values[row] for name, values in data.non_tensor_batch.items()}

    def __getitem__(self, index: int | slice) -> "Row":
        return self


class QuickRewardWorker(RewardLoopWorker):
    """Scores as its base class does, with the same reward manager."""

    def __init__(self, config: DictConfig, reward_router_address: str | None = None):
        super().__init__(config, reward_router_address)
        self.reward_manager.loop = QuickCalls(self.reward_manager.loop)
        by_model = config.reward.custom_reward_function.path is None and config.reward.reward_model.enable
        self._rows = not by_model and type(self.reward_manager) in (NaiveRewardManager, DAPORewardManager)

    async def compute_score_batch(self, data: DataProto) -> list[dict]:
        if not self._rows:
            return await super().compute_score_batch(data)
        return await asyncio.gather(*[self.reward_manager.run_single(Row(data, i)) for i in range(len(data))])


class QuickRewardManager(RewardLoopManager):
    """verl's manager, with these workers."""

    def _init_reward_loop_workers(self) -> None:
        self.reward_loop_workers_class = ray.remote(QuickRewardWorker)
        super()._init_reward_loop_workers()
