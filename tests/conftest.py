"""Real parts, made once per session. The CPU runtime is asked for before anything imports verl."""

import os

os.environ.update(VERL_PLATFORM="cpu", VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1", RAY_DEDUP_LOGS="0")

import pytest
import tiny


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder with model/, train.parquet (48 prompts), val.parquet and reward.py, as ``tiny.overrides`` expects it."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny.make_model(folder / "model")
    tiny.make_data(folder / "train.parquet", 48)
    tiny.make_data(folder / "val.parquet", 8, seed=1)
    tiny.make_reward(folder / "reward.py")
    return folder
