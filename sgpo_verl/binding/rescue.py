"""AERO's rescue, inside verl's agent-loop workers: a prompt none of whose rollouts succeeded gets more, a few at a time.

verl runs a prompt's rollouts as the sessions of one task and publishes its status when all of them are done. Whichever
session is the last one of its wave looks at the prompt's rewards, and runs the next wave before it ends: the waves belong
to that task, and nobody else waits for them.
"""

import asyncio
from dataclasses import dataclass, field

import ray
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ

from sgpo_verl.methods.aero import more
from sgpo_verl.rewards import succeeded
from sgpo_verl.run_config import as_dicts, settings_of

Worker = AgentLoopWorkerTQ.__ray_metadata__.modified_class


@dataclass
class Group:
    """A prompt's rollouts so far. expected: of this wave and those before it."""

    expected: int
    ended: int = 0
    failed: bool = False
    successes: list[bool] = field(default_factory=list)


class RescueWorker(Worker):  # type: ignore[valid-type, misc]  # found at run time, behind Ray's decorator
    """verl's worker, whose groups may grow. With another ``sgpo.allocation`` it is verl's."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._settings = settings_of(as_dicts(self.config))
        self._groups: dict[str, Group] = {}

    async def _run_prompt(self, prompt, sampling_params, trajectory, trace=False):
        if self._settings.allocation != "rescue" or trajectory["validate"]:
            return await super()._run_prompt(prompt, sampling_params, trajectory, trace)
        uid, n = prompt["uid"], prompt.get("__rollout_n__", self.config.actor_rollout_ref.rollout.n)
        self._groups[uid] = Group(n)
        try:
            return await super()._run_prompt(prompt, sampling_params, trajectory, trace)
        finally:
            del self._groups[uid]

    async def _run_agent_loop(self, sampling_params, trajectory, *, session_id, uid, **kwargs):
        session = {"trajectory": trajectory, "uid": uid, **kwargs}
        group = self._groups.get(uid)
        if group is None:
            return await super()._run_agent_loop(sampling_params, session_id=session_id, **session)
        try:
            return await super()._run_agent_loop(sampling_params, session_id=session_id, **session)
        except BaseException:
            group.failed = True
            raise
        finally:
            group.ended += 1
            if group.ended == group.expected and not group.failed:
                await self._next_wave(group, sampling_params, session)

    async def _next_wave(self, group: Group, sampling_params: dict, session: dict) -> None:
        added = more(group.expected, sum(group.successes), self._settings.aero)
        sessions = range(group.expected, group.expected + added)
        group.expected += added
        runs = (self._run_agent_loop(sampling_params, session_id=number, **session) for number in sessions)
        ended = await asyncio.gather(*runs, return_exceptions=True)  # all of them, before the group is published
        for failure in (end for end in ended if isinstance(end, BaseException)):
            raise failure

    async def _agent_loop_postprocess(self, output, validate, **kwargs):
        await super()._agent_loop_postprocess(output, validate, **kwargs)
        outputs = output if isinstance(output, list) else [output]
        if (group := self._groups.get(kwargs["uid"])) is not None and outputs:
            last = outputs[-1]
            info = last.extra_fields.get("reward_extra_info", {})
            group.successes.append(succeeded(last.reward_score, info, self._settings))


class RescueManager(AgentLoopManagerTQ):
    """verl's manager, with workers that rescue."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(RescueWorker)
