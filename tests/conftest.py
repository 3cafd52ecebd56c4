"""Real parts, made once per session. The CPU runtime is asked for before anything imports verl."""

import os
import tempfile

# Ray would join a cluster that runs on this machine, of another test process or of the user's: look for one elsewhere.
_ray_folder = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
os.environ.update(
    VERL_PLATFORM="cpu",
    VLLM_CPU_KVCACHE_SPACE="1",
    HF_HUB_OFFLINE="1",
    RAY_DEDUP_LOGS="0",
    RAY_TMPDIR=_ray_folder.name,
    RAY_memory_monitor_refresh_ms="0",  # it kills a worker when the machine's memory is nearly full, whoever filled it
)

import pytest  # noqa: E402
import tiny  # noqa: E402


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder with model/, train.parquet (48 prompts), val.parquet and reward.py, as ``tiny.overrides`` expects it."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny.make_model(folder / "model")
    tiny.make_data(folder / "train.parquet", 48)
    tiny.make_data(folder / "val.parquet", 8, seed=1)
    tiny.make_reward(folder / "reward.py")
    return folder
