"""`sgpo profile --endpoint` against a real `vllm serve`, and the pass that is killed again and again."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
import tiny

from sgpo_verl.profile import load_profile
from sgpo_verl.shards import parts_folder

pytestmark = pytest.mark.stack

SLOW = """
import time

def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    time.sleep(0.01)
    return float(len(solution_str) % 2 == 0)
"""


def free_port() -> int:
    """Below those that the system hands out: one of these may be another run's before the server is up to take it."""
    for port in range(20000 + os.getpid() % 10000, 32000):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port from 20000 to 32000")


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    """URL of a vLLM server of the tiny model, which it calls "tiny"."""
    port = free_port()
    work = tmp_path_factory.mktemp("serve")
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "model")]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "64"]
    with (work / "log").open("w") as log:
        process = subprocess.Popen(command, env=tiny.environment(work), stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, (work / "log").read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{url}/health", timeout=1)
                break
            except OSError:
                time.sleep(1)
        else:
            pytest.fail("the server was not up in time: " + (work / "log").read_text()[-3000:])
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(300)


def command(folder, output, url, **more):
    words = tiny.overrides(folder, **{"algorithm.adv_estimator": None, "+sgpo": "paper", **more})
    return [sys.executable, "-m", "sgpo_verl.cli", "profile", *words, "-o", str(output), "--endpoint", url]


def run(*args, extra=(), **more):
    return subprocess.run(
        [*command(*args, **more), *extra],
        env=tiny.environment(args[1].parent),
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def whole(folder, server, tmp_path_factory):
    """The profile of a pass that nothing interrupts."""
    output = tmp_path_factory.mktemp("whole") / "p.parquet"
    process = run(folder, output, f"{server}/v1")
    assert process.returncode == 0, process.stderr[-3000:]
    return load_profile(output)


def test_a_fleet_of_its_own_gives_a_profile_as_any_other(whole, server):
    assert set(whole.table["trials"]) == {8}
    assert 0 < whole.table["successes"].sum() < whole.samples
    assert whole.table["response_tokens_mean"].between(1, 8).all()
    made = whole.metadata.passes[0]
    assert (made["sampler"], made["endpoints"]) == ("completions", [f"{server}/v1"])
    assert whole.metadata.flops > 0


def test_a_wrong_model_name_is_refused_with_those_that_there_are(folder, server, tmp_path):
    process = run(folder, tmp_path / "p.parquet", server, extra=["--endpoint-model", "large"])
    assert process.returncode == 2
    assert f"sgpo.profile.endpoint_model=large: {server} serves tiny" in process.stderr.splitlines()[-1]


def lines_on_disk(output):
    return sum(path.read_bytes().count(b"\n") for path in parts_folder(output).glob("*.jsonl"))


def test_killed_at_random_moments_the_profile_is_that_of_a_pass_that_was_not(folder, server, whole, tmp_path):
    output, rng, seen = tmp_path / "p.parquet", random.Random(0), 0
    slow = {
        "reward.custom_reward_function.path": tiny.make_reward(tmp_path / "reward.py", SLOW),
        "sgpo.profile.max_in_flight": 2,
    }
    for _ in range(3):
        with (tmp_path / "log").open("a") as log:
            process = subprocess.Popen(
                command(folder, output, server, **slow), env=tiny.environment(tmp_path), stdout=log, stderr=log
            )
        wanted = seen + rng.randint(1, 8)
        while lines_on_disk(output) < wanted:
            assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert lines_on_disk(output) >= wanted > seen
        seen = lines_on_disk(output)
    assert not output.exists()
    last = run(folder, output, server, **slow)
    assert last.returncode == 0, last.stderr[-3000:]
    assert f"sgpo: {8 * seen} samples are there already" in last.stdout
    profile = load_profile(output)
    assert set(profile.table["trials"]) == {8}
    columns = ["prompt_key", "trials", "successes", "prompt_tokens", "response_tokens_mean"]
    assert profile.table[columns].equals(whole.table[columns])
    assert not parts_folder(output).exists()


def test_more_trials_are_added_once(folder, server, whole, tmp_path):
    output = tmp_path / "p.parquet"
    assert run(folder, output, server).returncode == 0
    process = run(folder, output, server, extra=["--add", "4"])
    assert process.returncode == 0, process.stderr[-3000:]
    profile = load_profile(output)
    assert set(profile.table["trials"]) == {12}
    assert (profile.table["successes"] >= whole.table["successes"]).all()
    # A crash after the profile was written and before its parts were removed: the trials are not added again.
    parts = parts_folder(output)
    parts.mkdir()
    (parts / "pass.json").write_text(json.dumps({"id": profile.metadata.passes[-1]["id"]}))
    again = run(folder, output, server, extra=["--add", "4"])
    assert "its last pass had ended" in again.stdout
    assert load_profile(output).table.equals(profile.table)
    assert not parts.exists()
