"""`sgpo profile` for real: verl's servers standing alone, vLLM, and verl's own reward workers."""

import json
import subprocess
import sys
from contextlib import contextmanager
from functools import partial

import pandas as pd
import pyarrow.parquet as pq
import pytest
import ray
import tiny
from omegaconf import OmegaConf

from sgpo_verl.binding import profiler
from sgpo_verl.binding.profile_command import load_target
from sgpo_verl.binding.profiler import make_profile
from sgpo_verl.binding.servers import reward_workers, standalone_servers
from sgpo_verl.binding.sources import agent_loop_sampler, agent_loops, completions
from sgpo_verl.errors import SgpoError
from sgpo_verl.profile import SCHEMA, load_profile
from sgpo_verl.run_config import compose, settings_of
from sgpo_verl.shards import PassFiles, parts_folder

pytestmark = pytest.mark.stack

RECORDER = '''
import json

def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    """Half of the answers succeed; every call leaves a line."""
    score = float(len(solution_str) % 2 == 0)
    with open({path!r}, "a") as log:
        log.write(json.dumps([extra_info["index"], solution_str, ground_truth, score]) + "\\n")
    return score
'''


def arguments(folder, **more):
    return tiny.overrides(folder, **{"algorithm.adv_estimator": None, "+sgpo": "paper", **more})


def sgpo(*words, cwd):
    command = [sys.executable, "-m", "sgpo_verl.cli", *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=tiny.environment(cwd), capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def profiled(folder, tmp_path_factory):
    """(output of the command, profile file, calls of the reward function)."""
    work = tmp_path_factory.mktemp("profile")
    calls = work / "calls.jsonl"
    reward = tiny.make_reward(work / "reward.py", RECORDER.format(path=str(calls)))
    words = arguments(folder, **{"reward.custom_reward_function.path": reward, "sgpo.profile.n": 6})
    process = sgpo("profile", *words, "-o", work / "profile.parquet", cwd=work)
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    lines = [json.loads(line) for line in calls.read_text().splitlines()]
    return process.stdout, work / "profile.parquet", lines, words


def test_every_prompt_has_exactly_n_trials_scored_by_the_trainings_reward(profiled, folder):
    _, path, calls, _ = profiled
    table = load_profile(path).table
    assert len(table) == 48
    assert set(table["trials"]) == {6}
    truth = [m["ground_truth"] for m in pd.read_parquet(folder / "train.parquet")["reward_model"]]
    frame = pd.DataFrame(calls, columns=["index", "answer", "truth", "score"])
    assert len(frame) == 48 * 6
    assert all(truth[row.index_] == row.truth for row in frame.rename(columns={"index": "index_"}).itertuples())
    wins = frame.groupby("index")["score"].sum()
    assert table.set_index("index")["successes"].to_dict() == wins.to_dict()


def test_the_file_has_the_fixed_columns_and_says_what_it_profiled(profiled, folder):
    _, path, calls, _ = profiled
    assert pq.read_schema(path).remove_metadata() == SCHEMA
    metadata = load_profile(path).metadata
    assert metadata.model["path"] == str(folder / "model")
    assert list(metadata.data) == ["train.parquet"]
    assert metadata.sampling["temperature"] == 1.0
    assert metadata.versions["verl"] == "0.9.1"
    table = load_profile(path).table
    response_tokens = (table["trials"] * table["response_tokens_mean"]).sum()
    assert metadata.total_tokens == round(table["prompt_tokens"].sum() + response_tokens)
    # a character is a token here, special tokens are not shown, and an answer may take 8
    assert sum(len(answer) for _, answer, _, _ in calls) <= response_tokens <= 8 * len(calls)


def test_a_second_call_finds_the_profile_and_samples_nothing(profiled, folder):
    _, path, _, words = profiled
    before = path.read_bytes()
    process = sgpo("profile", *words, "-o", path, cwd=path.parent)
    assert process.returncode == 0
    assert "already there: 48 prompts, 288 samples" in process.stdout
    assert path.read_bytes() == before


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """This process's own Ray; yields a folder whose modules its workers can import."""
    modules = tmp_path_factory.mktemp("modules")
    environment = {"env_vars": {"PYTHONPATH": str(modules)}}
    ray.init(num_cpus=32, num_gpus=4, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    yield modules
    ray.shutdown()


@pytest.fixture(scope="module")
def replicas(folder, cluster):
    """Two standalone servers, which the tests share."""
    config = OmegaConf.create(compose(arguments(folder, **{"trainer.n_gpus_per_node": 2})))
    with standalone_servers(config) as running:
        yield running


def make_target(folder, **more):
    plain = compose(arguments(folder, **more))
    return load_target(plain, settings_of(plain))


def sample(folder, replicas, output, goal=8, base=None, agent_loop=False, show=lambda tally: None, **more):
    """A pass as ``make_profile`` runs it, on servers that are already there; its profile."""
    target = make_target(folder, **more)
    config, settings = target.config, target.settings

    @contextmanager
    def source(kind, *_):
        with reward_workers(config) as rewards:
            if kind == "completions":
                yield partial(completions, replicas.urls, rewards, config, target.tokenizer, settings)
                return
            with agent_loop_sampler(replicas, rewards, config, settings) as sampler:
                yield partial(agent_loops, sampler)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiler, "sampler_for", source)
        return make_profile(target, output, goal, base, show)


def header(folder):
    return profiler._header(make_target(folder), None)


def counts(profile):
    return dict(zip(profile.table["prompt_key"], profile.table["successes"], strict=True))


SIGNATURE = "def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):\n    "


def reward(tmp_path, body):
    return {"reward.custom_reward_function.path": tiny.make_reward(tmp_path / "reward.py", SIGNATURE + body)}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ZeroDivisionError('no such sum')", r"reward function: raised ZeroDivisionError\('no such sum'\)"),
        ("return 0.3", r"reward function: returned 0.3 for prompt sums:\d+, neither 0 nor 1; set sgpo.graded_rewards"),
    ],
)
def test_a_reward_function_that_is_no_0_1_reward_stops_the_pass_by_name(folder, replicas, tmp_path, body, message):
    with pytest.raises(SgpoError, match=rf"profiling stopped: 1 of 1 prompts failed, of 48 at most .*{message}"):
        sample(folder, replicas, tmp_path / "p.parquet", **reward(tmp_path, body))
    assert not (tmp_path / "p.parquet").exists()


BAD = {3, 17, 40}
FAILING = """import os, time
    index = extra_info['index']
    if index == 3: raise KeyError('x')
    if index == 17: os._exit(1)
    if index == 40: time.sleep(3600)
    return float(len(solution_str) % 2 == 0)"""


def test_prompts_that_fail_are_recorded_with_their_reason_and_the_others_go_on(folder, replicas, tmp_path):
    more = {"sgpo.profile.max_failed_frac": 0.1, "sgpo.profile.timeout": 20, **reward(tmp_path, FAILING)}
    sample(folder, replicas, tmp_path / "p.parquet", **more)
    profile = load_profile(tmp_path / "p.parquet")
    table = profile.table.set_index("index")
    assert table["trials"].to_dict() == {i: 0 if i in BAD else 8 for i in range(48)}
    assert table["failure"][3] == "reward function: raised KeyError('x')"
    assert table["failure"][17] == "reward function: its worker died each time"
    assert table["failure"][40] == "reward function: no result within sgpo.profile.timeout=20 s"
    assert table["failure"].drop(list(BAD)).isna().all()


def test_graded_rewards_count_from_the_threshold_on_when_declared(folder, replicas, tmp_path):
    more = {"sgpo.graded_rewards": True, "sgpo.success_threshold": 0.6, **reward(tmp_path, "return 0.6")}
    table = sample(folder, replicas, tmp_path / "p.parquet", **more).table
    assert set(table["successes"]) == {8}
    assert table["reward_mean"].round(6).eq(0.6).all()


def test_the_reward_functions_own_acc_decides_not_its_score(folder, replicas, tmp_path):
    more = reward(tmp_path, "return {'score': -1.0, 'acc': True}")
    table = sample(folder, replicas, tmp_path / "p.parquet", **more).table
    assert set(table["successes"]) == {8}
    assert set(table["reward_mean"]) == {-1.0}


def test_samples_of_one_prompt_do_not_share_what_a_reward_function_may_write_to(folder, replicas, tmp_path):
    body = "extra_info['seen'] = extra_info.get('seen', 0) + 1\n    return float(extra_info['seen'] == 1)"
    table = sample(folder, replicas, tmp_path / "p.parquet", **reward(tmp_path, body)).table
    assert set(table["successes"]) == {8}


def test_equal_seeds_give_equal_profiles_and_more_trials_are_new_samples(folder, replicas, tmp_path):
    first, second = (sample(folder, replicas, tmp_path / f"{i}.parquet") for i in range(2))
    assert counts(first) == counts(second)
    other = sample(folder, replicas, tmp_path / "other.parquet", **{"sgpo.seed": 1})
    assert counts(other) != counts(first)
    more = sample(folder, replicas, tmp_path / "0.parquet", goal=16, base=first)
    assert set(more.table["trials"]) == {16}
    added = {key: wins - counts(first)[key] for key, wins in counts(more).items()}
    assert added != counts(first)
    assert len(more.metadata.passes) == 2


def test_a_pass_that_stopped_is_taken_up_where_it_was(folder, replicas, tmp_path):
    whole = sample(folder, replicas, tmp_path / "whole.parquet")

    def stop(tally):
        if tally.requests == 20:
            raise SgpoError("stopped by the test")

    with pytest.raises(SgpoError, match="stopped by the test"):
        sample(folder, replicas, tmp_path / "p.parquet", show=stop)
    with PassFiles(parts_folder(tmp_path / "p.parquet"), header(folder), 48) as files:
        there = int((files.counts.trials_P == 8).sum())
        assert files.counts.trials_P.sum() == 8 * there
    assert 20 <= there < 48
    requests = []
    resumed = sample(folder, replicas, tmp_path / "p.parquet", show=lambda tally: requests.append(tally.requests))
    assert requests[-1] == 48 - there
    assert counts(resumed) == counts(whole)
    assert not parts_folder(tmp_path / "p.parquet").exists()


def test_both_paths_give_the_same_pass_rates_where_sampling_is_greedy(folder, replicas, tmp_path):
    by_truth = reward(tmp_path, "return float((len(solution_str) + int(ground_truth)) % 2 == 0)")
    greedy = {"actor_rollout_ref.rollout.temperature": 0, "sgpo.profile.n": 1, **by_truth}
    fast = sample(folder, replicas, tmp_path / "fast.parquet", goal=1, **greedy)
    loops = sample(folder, replicas, tmp_path / "loops.parquet", goal=1, **greedy, **LOOPS)
    assert [p["sampler"] for p in (*fast.metadata.passes, *loops.metadata.passes)] == ["completions", "agent_loop"]
    assert set(counts(fast).values()) == {0, 1}
    assert counts(fast) == counts(loops)
    lengths = ["prompt_tokens", "response_tokens_mean", "reward_mean"]
    pd.testing.assert_frame_equal(fast.table[lengths], loops.table[lengths])


LOOPS = {"sgpo.profile.sampler": "agent_loop"}


def test_both_paths_agree_within_sampling_error(folder, replicas, tmp_path):
    fast = sample(folder, replicas, tmp_path / "fast.parquet")
    loops = sample(folder, replicas, tmp_path / "loops.parquet", **LOOPS)
    rates = [profile.table["successes"].sum() / profile.samples for profile in (fast, loops)]
    assert (
        abs(rates[0] - rates[1]) < 4 * (2 * 0.25 / fast.samples) ** 0.5
    )  # 4 standard errors, at most, of a difference
    lengths = [profile.tokens().response_tokens / profile.samples for profile in (fast, loops)]
    assert lengths[0] == pytest.approx(lengths[1], rel=0.1)


TWICE = """
from uuid import uuid4
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput

class Twice(AgentLoopBase):
    \"\"\"Answers, is asked to go on, and answers again: two turns of the model, three tokens of the user between them.\"\"\"

    async def run(self, sampling_params, **kwargs):
        prompt = await self.ct_build_initial_tokens(list(kwargs["raw_prompt"]))
        first = await self.server_manager.generate(
            request_id=uuid4().hex, prompt_ids=prompt, sampling_params={**sampling_params, "max_tokens": 2}
        )
        between = [5, 6, 7]
        second = await self.server_manager.generate(
            request_id=uuid4().hex, prompt_ids=prompt + first.token_ids + between,
            sampling_params={**sampling_params, "max_tokens": 2},
        )
        response = first.token_ids + between + second.token_ids
        mask = [1] * len(first.token_ids) + [0] * 3 + [1] * len(second.token_ids)
        return AgentLoopOutput(prompt_ids=prompt, response_ids=response, response_mask=mask, num_turns=4, metrics={})
"""


def test_a_run_of_several_turns_is_profiled_by_its_own_agent_loop(folder, cluster, replicas, tmp_path):
    (cluster / "twice_agent.py").write_text(TWICE)
    (tmp_path / "agents.yaml").write_text("- name: twice\n  _target_: twice_agent.Twice\n")
    data = tiny.make_data(tmp_path / "train.parquet", 8, agent_name="twice")
    calls = tmp_path / "calls.jsonl"
    source = RECORDER.format(path=str(calls))
    more = {
        "data.train_files": data,
        "actor_rollout_ref.rollout.agent.agent_loop_config_path": tmp_path / "agents.yaml",
        "reward.custom_reward_function.path": tiny.make_reward(tmp_path / "reward.py", source),
        "sgpo.profile.n": 4,
    }
    profile = sample(folder, replicas, tmp_path / "p.parquet", goal=4, **more)
    assert profile.metadata.passes[0]["sampler"] == "agent_loop"
    assert set(profile.table["trials"]) == {4}
    answers = [json.loads(line)[1] for line in calls.read_text().splitlines()]
    assert len(answers) == 32
    assert all("345" in answer for answer in answers)  # what the user said: token 5 is the character 3
    assert profile.table["response_tokens_mean"].between(5, 7).all()


def test_a_row_that_needs_an_agent_loop_is_a_failure_of_the_fast_path(folder, replicas, tmp_path):
    data = tiny.make_data(tmp_path / "train.parquet", 8, agent_name="tool_agent")
    more = {"data.train_files": data, "sgpo.profile.sampler": "completions"}
    with pytest.raises(
        SgpoError, match=r"its row names the agent 'tool_agent', which takes sgpo.profile.sampler=agent_loop"
    ):
        sample(folder, replicas, tmp_path / "p.parquet", **more)


def test_a_prompt_that_the_chat_template_refuses_is_a_failure(folder, replicas, tmp_path):
    frame = pd.read_parquet(folder / "train.parquet")
    prompts = [list(p) for p in frame["prompt"]]
    prompts[5] = [{**prompts[5][0], "content": ""}]
    frame.assign(prompt=prompts).to_parquet(tmp_path / "train.parquet")
    more = {"data.train_files": tmp_path / "train.parquet", "sgpo.profile.max_failed_frac": 0.1}
    table = sample(folder, replicas, tmp_path / "p.parquet", goal=2, **more).table.set_index("index")
    assert table["trials"].drop(5).eq(2).all()
    assert table["trials"][5] == 0 and table["failure"][5]


def test_adaptive_sampling_spends_the_same_budget_unevenly(folder, replicas, tmp_path):
    profile = sample(folder, replicas, tmp_path / "p.parquet", **{"sgpo.profile.adaptive": True})
    trials = profile.table["trials"]
    assert trials.sum() == 48 * 8
    assert trials.min() >= 4 and trials.max() <= 32 and trials.nunique() > 1


def test_a_replica_that_dies_in_the_middle_is_replaced_by_the_other(folder, replicas, tmp_path):
    """Last of those that share the servers: from here on there is one."""
    slow = reward(tmp_path, "import time; time.sleep(0.05)\n    return float(len(solution_str) % 2 == 0)")
    killed = []

    def kill(tally):
        if tally.requests == 6 and not killed:
            killed.append(replicas.manager.server_handles[0])
            ray.kill(killed[0])

    more = {"sgpo.profile.max_in_flight": 2, **slow}
    profile = sample(folder, replicas, tmp_path / "p.parquet", show=kill, **more)
    assert killed
    assert set(profile.table["trials"]) == {8}
    assert "failure" not in profile.table
    loops = sample(folder, replicas, tmp_path / "loops.parquet", goal=2, **LOOPS, **more)
    assert set(loops.table["trials"]) == {2}
    assert "failure" not in loops.table
