"""A real model, tokenizer, data and reward, small enough to make on the spot and to train in seconds."""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil

REPO = Path(__file__).resolve().parent.parent
ALPHABET = "0123456789=+"


def make_model(folder: Path, layers: int = 2, tied: bool = True) -> Path:
    """A random Llama of width 64 over single characters, with tokenizer and chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *ALPHABET])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=tied,
            eos_token_id=1,
            pad_token_id=0,
            bos_token_id=None,
        )
    )
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def make_data(path: Path, prompts: int, seed: int = 0, **columns) -> Path:
    """``prompts`` distinct sums in verl's row format; ``columns`` replace whole columns."""
    rng = random.Random(seed)
    pairs = rng.sample([(a, b) for a in range(100) for b in range(100)], prompts)
    rows = [
        {
            "data_source": "sums",
            "prompt": [{"role": "user", "content": f"{a}+{b}="}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(a + b)},
            "extra_info": {"index": i, "split": "train"},
        }
        for i, (a, b) in enumerate(pairs)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).assign(**columns).to_parquet(path)
    return path


REWARD = '''
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    """1 for an even number of characters: a random model gets mixed groups from it."""
    return float(len(solution_str) % 2 == 0)
'''


def make_reward(path: Path, source: str = REWARD) -> Path:
    path.write_text(source)
    return path


def overrides(folder: Path, **more) -> list[str]:
    """The Hydra overrides of a small stock GRPO run on what ``make_*`` left in ``folder``."""
    settings = {
        "data.train_files": folder / "train.parquet",
        "data.val_files": folder / "val.parquet",
        "data.train_batch_size": 8,
        "data.max_prompt_length": 16,
        "data.max_response_length": 8,
        "data.seed": 1,
        "actor_rollout_ref.model.path": folder / "model",
        "actor_rollout_ref.actor.ppo_mini_batch_size": 4,
        "actor_rollout_ref.actor.use_dynamic_bsz": True,
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": 4096,
        "actor_rollout_ref.actor.optim.lr": 1e-3,
        "actor_rollout_ref.rollout.n": 8,
        "reward.custom_reward_function.path": folder / "reward.py",
        "algorithm.adv_estimator": "grpo",
        "trainer.logger": "[file]",
        "trainer.val_before_train": False,
        "trainer.save_freq": -1,
        "trainer.test_freq": -1,
        "+runtime": "cpu",
        **more,
    }
    return [f"{key}={value}" for key, value in settings.items() if value is not None]


def environment(run_dir: Path) -> dict[str, str]:
    return {
        **os.environ,
        "VERL_PLATFORM": "cpu",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "VERL_FILE_LOGGER_PATH": str(run_dir / "metrics.jsonl"),
        "RAY_DISABLE_IMPORT_WARNING": "1",
    }


def command(run_dir: Path, arguments: list[str]) -> list[str]:
    """``python -m verl.trainer.main_ppo`` with everything it leaves in ``run_dir``."""
    places = [
        f"hydra.run.dir={run_dir}",
        f"trainer.default_local_dir={run_dir}/checkpoints",
        f"trainer.rollout_data_dir={run_dir}/rollouts",
    ]
    return [sys.executable, "-m", "verl.trainer.main_ppo", *arguments, *places]


RAY_IS_UP = ("Started a local Ray instance", "Connected to Ray cluster")
RAY_WAS_TOO_SLOW = "The current node timed out during startup"


def start(run_dir: Path, arguments: list[str]) -> subprocess.Popen:
    """A run in the background, whose Ray is up; its output goes to ``run_dir/log``.

    Ray gives its own processes 30 s to start, however busy the machine: if that was too little, it is tried again.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    for _ in range(3):
        with (run_dir / "log").open("ab") as log:
            begin = log.tell()
            process = subprocess.Popen(
                command(run_dir, arguments), cwd=run_dir, env=environment(run_dir), stdout=log, stderr=subprocess.STDOUT
            )
        end = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < end and not said(run_dir, begin, *RAY_IS_UP):
            time.sleep(0.05)
        if process.poll() is None or not said(run_dir, begin, RAY_WAS_TOO_SLOW):
            break
    return process


def said(run_dir: Path, begin: int, *texts: str) -> bool:
    """Whether one of these is in the log, from there on."""
    log = (run_dir / "log").read_bytes()[begin:].decode(errors="replace")
    return any(text in log for text in texts)


def train(run_dir: Path, arguments: list[str], timeout: float = 1200) -> subprocess.Popen:
    """A run to its end."""
    process = start(run_dir, arguments)
    try:
        process.wait(timeout)
    finally:
        kill_all(process)  # nothing of a run that hangs, or of a test that is interrupted, is left for the next one
    return process


def wait_until(happened, process: subprocess.Popen, timeout: float = 900) -> None:
    """Poll until ``happened()``. Fails the test, and kills the run, if the run ends or the time is over before."""
    end = time.monotonic() + timeout
    try:
        while not happened():
            assert process.poll() is None, f"the run ended with {process.returncode} before that"
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.002)
    except BaseException:
        kill_all(process)
        raise


def kill_titled(process: subprocess.Popen, title: str) -> None:
    """SIGKILL to those processes of the run whose title begins like this; there must be one."""
    killed = 0
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if " ".join(child.cmdline()).startswith(title):
                child.kill()
                killed += 1
    assert killed, f"no process called {title}"


def last_line(run_dir: Path) -> str:
    """What we said last, after everything that Ray says of an error."""
    return [line for line in (run_dir / "log").read_text(errors="replace").splitlines() if line.startswith("sgpo: ")][
        -1
    ]


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL to the run and every process it started, at once: what the death of a machine is to it."""
    if process.poll() is not None:
        return
    everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in everyone:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(everyone[1:], timeout=30)
    process.wait(30)


def metrics(run_dir: Path) -> list[dict]:
    """verl's own log, one dict per step so far."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["data"] for line in lines if line.endswith("\n")]


def dumped_groups(run_dir: Path, step: int, dump: str = "rollouts") -> dict[str, list[dict]]:
    """verl's own rollout dump of a step: uid -> its rollouts."""
    groups: dict[str, list[dict]] = {}
    for line in (run_dir / dump / f"{step}.jsonl").read_text().splitlines():
        row = json.loads(line)
        groups.setdefault(row["uid"].split("_")[0], []).append(row)
    return groups


def make_profile(folder: Path, successes: list[int], arguments: list[str]) -> Path:
    """A profile with these successes of 8 trials for the rows of train.parquet, as if made for ``arguments``."""
    from transformers import AutoTokenizer

    from sgpo_verl.profile import Profile, save_profile
    from sgpo_verl.provenance import describe
    from sgpo_verl.run_config import compose

    template = AutoTokenizer.from_pretrained(folder / "model").chat_template
    metadata = describe(compose(arguments), 0.5, 0, template)
    table = pd.DataFrame(
        {
            "prompt_key": [f"sums:{i}" for i in range(len(successes))],
            "data_source": "sums",
            "index": range(len(successes)),
            "trials": 8,
            "successes": successes,
            "reward_mean": [s / 8 for s in successes],
            "prompt_tokens": 6,
            "response_tokens_mean": 5.0,
        }
    )
    return save_profile(Profile(table, metadata), folder / "profile.parquet")
