"""`sgpo profile` for real: verl's servers standing alone, vLLM, and verl's own reward workers."""

import asyncio
import json
import subprocess
import sys

import pandas as pd
import pyarrow.parquet as pq
import pytest
import ray
import tiny
from omegaconf import OmegaConf
from transformers import AutoTokenizer
from verl.trainer.ppo.utils import create_rl_dataset
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from sgpo_verl.binding.dataloader import identify_dataset
from sgpo_verl.binding.profiler import ProfilingPass, Sampling
from sgpo_verl.binding.servers import reward_workers, standalone_servers
from sgpo_verl.errors import SgpoError
from sgpo_verl.profile import SCHEMA, load_profile
from sgpo_verl.run_config import compose, settings_of

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
def servers(folder):
    """Addresses of standalone servers in this process's own Ray."""
    config = OmegaConf.create(compose(arguments(folder)))
    ray.init(num_cpus=32, num_gpus=1, include_dashboard=False, log_to_driver=False)
    try:
        with standalone_servers(config) as addresses:
            yield addresses
    finally:
        ray.shutdown()


def run_pass(folder, servers, reward, **more):
    """A pass over the first prompts with this reward function; rows of the profile table."""
    words = arguments(folder, **{"reward.custom_reward_function.path": reward, **more})
    config = OmegaConf.create(compose(words))
    settings = settings_of(OmegaConf.to_container(config))
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    dataset = create_rl_dataset(config.data.train_files, config.data, tokenizer, None)
    prompts = identify_dataset(dataset, settings.duplicates)
    builder = create_continuous_token_builder(tokenizer, hf_model_type="llama")
    sampling = Sampling.of(config, 64, settings)
    with reward_workers(config) as workers:
        job = ProfilingPass(dataset, prompts, builder, sampling, settings, servers, workers, lambda done, wins: None)
        return asyncio.run(job.run())


SIGNATURE = "def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):\n    "


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ZeroDivisionError('no such sum')", r"reward function: raised ZeroDivisionError\('no such sum'\)"),
        ("return None", r"reward function: returned None for prompt sums:\d+"),
        ("return float('nan')", r"reward function: returned nan for prompt sums:\d+"),
        ("return 'yes'", r"reward function: returned 'yes' for prompt sums:\d+"),
        ("return 0.3", r"reward function: returned 0.3 for prompt sums:\d+, neither 0 nor 1; set sgpo.graded_rewards"),
    ],
)
def test_a_reward_function_that_is_no_0_1_reward_is_named(folder, servers, tmp_path, body, message):
    reward = tiny.make_reward(tmp_path / "reward.py", SIGNATURE + body)
    with pytest.raises(SgpoError, match=message):
        run_pass(folder, servers, reward)


def test_graded_rewards_count_from_the_threshold_on_when_declared(folder, servers, tmp_path):
    reward = tiny.make_reward(tmp_path / "reward.py", SIGNATURE + "return 0.6")
    rows = run_pass(folder, servers, reward, **{"sgpo.graded_rewards": True, "sgpo.success_threshold": 0.6})
    assert {(row[3], row[4]) for row in rows} == {(8, 8)}


def test_the_reward_functions_own_acc_decides_not_its_score(folder, servers, tmp_path):
    reward = tiny.make_reward(tmp_path / "reward.py", SIGNATURE + "return {'score': -1.0, 'acc': True}")
    rows = run_pass(folder, servers, reward)
    assert {(row[4], row[5]) for row in rows} == {(8, -1.0)}


def test_equal_seeds_give_equal_profiles(folder, servers):
    first, second = (run_pass(folder, servers, folder / "reward.py") for _ in range(2))
    assert first == second
    other = run_pass(folder, servers, folder / "reward.py", **{"sgpo.seed": 1})
    assert other != first


def test_a_prompt_of_an_agent_loop_is_refused_by_name(folder, servers, tmp_path):
    data = tiny.make_data(tmp_path / "train.parquet", 8, agent_name="tool_agent")
    with pytest.raises(SgpoError, match=r"prompt sums:\d names the agent 'tool_agent'; profiling samples single turns"):
        run_pass(folder, servers, folder / "reward.py", **{"data.train_files": data})


def test_samples_of_one_prompt_do_not_share_what_a_reward_function_may_write_to(folder, servers, tmp_path):
    body = "extra_info['seen'] = extra_info.get('seen', 0) + 1\n    return float(extra_info['seen'] == 1)"
    rows = run_pass(folder, servers, tiny.make_reward(tmp_path / "reward.py", SIGNATURE + body))
    assert {row[4] for row in rows} == {8}
