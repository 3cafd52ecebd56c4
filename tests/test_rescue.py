"""AERO's rescue inside a prompt's task: waves, failures, and nobody left behind. verl's own rollout is replaced by a script."""

import asyncio

import pytest

from sgpo_verl.binding import rescue
from sgpo_verl.binding.rescue import Group, RescueWorker
from sgpo_verl.config import load_settings


class Output:
    def __init__(self, reward):
        self.reward_score, self.extra_fields = reward, {"reward_extra_info": {}}


@pytest.fixture
def sampled(monkeypatch):
    """Runs a prompt whose rollouts get these rewards (an Exception is raised): [(session, when it ended), ...], group."""

    def run(rewards, explore=4, **aero):
        ended = []

        async def rollout(self, sampling_params, trajectory, *, session_id, uid, **kwargs):
            await asyncio.sleep(0.001 * (1 + session_id % 3))
            reward = rewards[session_id]
            if isinstance(reward, Exception):
                raise reward
            await self._agent_loop_postprocess(Output(reward), False, uid=uid)
            ended.append(session_id)

        async def stored(self, output, validate, **kwargs):
            pass

        monkeypatch.setattr(rescue.Worker, "_run_agent_loop", rollout)
        monkeypatch.setattr(rescue.Worker, "_agent_loop_postprocess", stored)
        worker = object.__new__(RescueWorker)
        worker._settings = load_settings({"method": "aero", "aero": {"explore": explore, **aero}})
        group = Group(explore)
        worker._groups = {"u": group}

        async def prompt():
            sessions = [
                worker._run_agent_loop({}, {"validate": False}, session_id=i, uid="u", agent_name="single_turn_agent")
                for i in range(explore)
            ]
            return await asyncio.gather(*sessions, return_exceptions=True)

        results = asyncio.run(prompt())
        return sorted(ended), [r for r in results if r is not None], group

    return run


def test_a_prompt_with_a_success_gets_no_more(sampled):
    assert sampled([0, 0, 1, 0])[0] == [0, 1, 2, 3]


def test_waves_come_until_the_first_success(sampled):
    # 4 wrong, a wave of 2 wrong, a wave of 2 with one right
    assert sampled([0, 0, 0, 0, 0, 0, 1, 0, 1, 1])[0] == list(range(8))


def test_waves_end_at_the_most(sampled):
    assert sampled([0] * 20, most=9)[0] == list(range(9))


def test_a_failed_rollout_ends_the_rescue(sampled):
    ended, errors, _ = sampled([0, ValueError("no judge"), 0, 0, 1, 1])
    assert ended == [0, 2, 3] and [str(e) for e in errors] == ["no judge"]


def test_a_wave_is_over_before_its_failure_is_known(sampled):
    # verl publishes a group when its sessions have ended, and clears a failed one: no row may come after that
    ended, errors, group = sampled([0, 0, 0, 0, ValueError("no judge"), 0])
    assert ended == [0, 1, 2, 3, 5]
    assert [str(e) for e in errors] == ["no judge"]
    assert (group.ended, group.expected) == (6, 6)
