"""Scores from verl's own reward workers, many prompts to a call; a prompt that breaks a worker does not break the pass."""

import asyncio
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
import torch
from tensordict import TensorDict
from verl import DataProto
from verl.experimental.reward_loop import RewardLoopManager

from sgpo_verl.binding.fleet import PromptFailed

BATCH = 32  # prompts to a call
LINGER = 0.1  # seconds to wait for more of them: a call costs as much as scoring a few prompts
DEATHS = 3  # workers that one prompt may take down before it is given up


@dataclass
class Job:
    """Samples of one prompt that want scores. alone: it is not sent together with others any more."""

    item: dict
    prompt_ids: Sequence[int]
    responses: Sequence[Sequence[int]]
    result: asyncio.Future
    alone: bool = False
    deaths: int = 0


@dataclass
class Scorer:
    """Feeds the workers of a RewardLoopManager. timeout: seconds for one call. Use as an async context manager."""

    manager: RewardLoopManager
    timeout: float
    _queue: asyncio.Queue = field(default_factory=asyncio.Queue)
    _tasks: list[asyncio.Task] = field(default_factory=list)

    async def __aenter__(self) -> "Scorer":
        places = range(len(self.manager.reward_loop_workers))
        self._tasks = [asyncio.create_task(self._work(place)) for place in places]
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._tasks:
            task.cancel()

    async def score(self, item: dict, prompt_ids: Sequence[int], responses: Sequence[Sequence[int]]) -> list[dict]:
        """verl's reward results, one per response. Raises PromptFailed with what the reward function did."""
        job = Job(item, prompt_ids, responses, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(job)
        return await job.result

    async def _work(self, place: int) -> None:
        """One worker's turn after turn: whatever waits, up to BATCH prompts of it."""
        held: Job | None = None
        while True:
            jobs = [held or await self._queue.get()]
            held = None
            if not jobs[0].alone and self._queue.qsize() < BATCH:
                await asyncio.sleep(LINGER)
            while not jobs[0].alone and len(jobs) < BATCH and not self._queue.empty():
                job = self._queue.get_nowait()
                if job.alone:
                    held = job
                    break
                jobs.append(job)
            try:
                await self._call(place, [job for job in jobs if not job.result.done()])
            except Exception as error:  # a mistake of ours or of Ray's: it must reach who waits
                for job in jobs:
                    if not job.result.done():
                        job.result.set_exception(error)

    async def _call(self, place: int, jobs: list[Job]) -> None:
        if not jobs:
            return
        worker = self.manager.reward_loop_workers[place]
        try:
            call = worker.compute_score_batch.remote(reward_input(jobs))
            results = await asyncio.wait_for(asyncio.wrap_future(call.future()), self.timeout)
        except ray.exceptions.RayTaskError as error:
            self._blame(jobs, f"reward function: raised {error.cause!r}")
        except ray.exceptions.RayActorError:
            self._replace(place)
            for job in jobs:
                job.deaths += len(jobs) == 1
            self._blame(jobs, "reward function: its worker died each time", while_alive=DEATHS)
        except asyncio.TimeoutError:
            self._replace(place)
            self._blame(jobs, f"reward function: no result within sgpo.profile.timeout={self.timeout:g} s")
        else:
            rows = iter(results)
            for job in jobs:
                job.result.set_result([next(rows) for _ in job.responses])

    def _blame(self, jobs: list[Job], reason: str, while_alive: int = 0) -> None:
        """One of several is at fault: each is tried alone. A single one failed, if it has had its tries."""
        for job in jobs:
            if len(jobs) > 1 or job.deaths < while_alive:
                job.alone = True
                self._queue.put_nowait(job)
            else:
                job.result.set_exception(PromptFailed(reason))

    def _replace(self, place: int) -> None:
        """A new worker in place of one that died, or that hangs."""
        manager = self.manager
        ray.kill(manager.reward_loop_workers[place])
        manager.reward_loop_workers[place] = manager.reward_loop_workers_class.remote(
            manager.config, manager.reward_router_address
        )


def reward_input(jobs: Sequence[Job]) -> DataProto:
    """Rows as verl's agent loop hands them to the reward: right-padded responses and a mask over prompt + response.

    Prompts are padded on the left to a common length, as verl does; each row has its own copies of the data's fields,
    since reward managers write into them.
    """
    width = max(len(job.prompt_ids) for job in jobs)
    rows = [(job, response) for job in jobs for response in job.responses]
    prompt, mask = torch.zeros(len(rows), width, dtype=torch.int64), torch.zeros(len(rows), width, dtype=torch.int64)
    lengths = np.array([len(response) for _, response in rows])
    response_N = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for i, (job, response) in enumerate(rows):
        prompt[i, width - len(job.prompt_ids) :] = torch.as_tensor(job.prompt_ids)
        mask[i, width - len(job.prompt_ids) :] = 1
        response_N[i, : len(response)] = torch.as_tensor(response)
    response_mask = (torch.arange(response_N.shape[1]) < torch.as_tensor(lengths).unsqueeze(1)).to(torch.int64)
    attention = torch.cat([mask, response_mask], dim=1)
    batch = TensorDict({"prompts": prompt, "responses": response_N, "attention_mask": attention}, batch_size=len(rows))
    names = dict.fromkeys(name for job in jobs for name, v in job.item.items() if not isinstance(v, torch.Tensor))
    fields: dict[str, np.ndarray] = {}
    for name in names:
        fields[name] = np.empty(len(rows), dtype=object)
        fields[name][:] = [copied for job in jobs for copied in _copies(job.item.get(name), len(job.responses))]
    fields["__num_turns__"] = np.full(len(rows), 2)
    fields["tool_extra_fields"] = np.array([{} for _ in rows], dtype=object)
    fields["prompt_len"] = np.array([len(job.prompt_ids) for job, _ in rows])
    fields["response_len"] = lengths
    return DataProto(batch=batch, non_tensor_batch=fields)


def _copies(value: Any, count: int) -> list:
    """``count`` values that share nothing one could write to. (Ray pickles them anyway; copy.deepcopy takes far longer.)"""
    if value is None or isinstance(value, str | int | float):
        return [value] * count
    packed = pickle.dumps(value)
    return [pickle.loads(packed) for _ in range(count)]
