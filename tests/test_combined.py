"""What verl's users combine with a method, several things in one run: each must be there, and the plan must hold."""

import pytest
import tiny
from events import check_events
from paper_run import overrides, profile, rows_of

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def row_of(folder):
    return rows_of(folder)


def test_lora_dr_grpo_rollout_correction_trackers_and_several_validation_answers(folder, tmp_path, row_of, monkeypatch):
    more = {
        "sgpo.profile.path": profile(folder),
        "trainer.total_training_steps": 3,
        "trainer.save_freq": -1,
        "trainer.test_freq": 3,
        "trainer.logger": "[file,tensorboard]",
        "trainer.log_val_generations": 2,
        "trainer.validation_data_dir": tmp_path / "validation",
        "actor_rollout_ref.model.lora_rank": 4,
        "actor_rollout_ref.model.target_modules": "all-linear",
        "actor_rollout_ref.rollout.load_format": "safetensors",
        "actor_rollout_ref.rollout.calculate_log_probs": True,
        "algorithm.rollout_correction.rollout_is": "token",
        "algorithm.norm_adv_by_std_in_grpo": False,
        "actor_rollout_ref.rollout.val_kwargs.n": 3,
        "actor_rollout_ref.rollout.val_kwargs.do_sample": True,
        "actor_rollout_ref.rollout.val_kwargs.temperature": 1.0,
    }
    monkeypatch.setenv("TENSORBOARD_DIR", str(tmp_path / "events"))
    run = tiny.train(tmp_path, overrides(folder, **more))
    assert run.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    logged = tiny.metrics(tmp_path)
    check_events(tmp_path / "events", logged)
    for step, m in enumerate(logged, start=1):
        groups = tiny.dumped_groups(tmp_path, step).values()
        # r - mean, no division: in a group of two with one success +-1/2, of eight at most 7/8
        largest = max(
            max(rewards) - sum(rewards) / len(rewards) for rewards in ([row["score"] for row in g] for g in groups)
        )
        assert m["critic/advantages/max"] == pytest.approx(largest)
        assert m["rollout_corr/rollout_is_mean"] == pytest.approx(1, abs=1e-3)
        assert m["training/rollout_probs_diff_mean"] < 1e-4  # the adapter reached the rollout server
    answers = tiny.dumped_groups(tmp_path, 3, "validation").values()
    assert [len(rows) for rows in answers] == [3] * 8  # val_kwargs.n, whatever our group sizes


TWO_OUTPUTS = """
from uuid import uuid4
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput

class TwoOutputs(AgentLoopBase):
    '''A draft, and an answer to the draft: two outputs of one session, the last is scored.'''

    async def run(self, sampling_params, **kwargs):
        prompt = await self.ct_build_initial_tokens(list(kwargs["raw_prompt"]))
        outputs = []
        for tokens in (3, 5):
            said = await self.server_manager.generate(
                request_id=uuid4().hex, prompt_ids=prompt, sampling_params={**sampling_params, "max_tokens": tokens}
            )
            mask = [1] * len(said.token_ids)
            outputs.append(AgentLoopOutput(
                prompt_ids=prompt, response_ids=said.token_ids, response_mask=mask, num_turns=2, metrics={},
                extra_fields=said.extra_fields, response_logprobs=said.log_probs,
            ))
            prompt = prompt + said.token_ids
        return outputs
"""


@pytest.mark.long
def test_outputs_of_a_session_kl_twice_and_two_data_sources(folder, tmp_path, row_of, monkeypatch):
    (tmp_path / "two_outputs.py").write_text(TWO_OUTPUTS)
    (tmp_path / "agents.yaml").write_text("- name: two_outputs\n  _target_: two_outputs.TwoOutputs\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    data = tiny.make_data(
        tmp_path / "train.parquet", 48, agent_name="two_outputs", data_source=["sums", "more sums"] * 24
    )
    more = {
        "data.train_files": data,
        "data.max_prompt_length": 24,
        "sgpo.profile.n": 4,
        "sgpo.batch.rollouts": 32,
        "sgpo.filter.max_pass_rate": 1.0,
        "trainer.total_training_steps": 3,
        "trainer.save_freq": -1,
        "actor_rollout_ref.rollout.agent.agent_loop_config_path": tmp_path / "agents.yaml",
        "actor_rollout_ref.actor.use_kl_loss": True,
        "algorithm.use_kl_in_reward": True,
    }
    run = tiny.train(tmp_path, overrides(folder, **more))
    assert run.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    for step, m in enumerate(tiny.metrics(tmp_path), start=1):
        groups = tiny.dumped_groups(tmp_path, step).values()
        assert sum(len(rows) for rows in groups) == 2 * 32
        assert m["sgpo/rollouts/generated"] == m["sgpo/rollouts/trained"] == 32
        for rows in groups:
            by_session = {}
            for row in rows:
                by_session.setdefault(row["uid"].split("_")[1], set()).add(row["score"])
            assert all(len(scores) == 1 for scores in by_session.values())  # the last output's, for both
        assert "actor/kl_loss" in m and "actor/reward_kl_penalty" in m
