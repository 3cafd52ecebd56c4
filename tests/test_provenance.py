"""What a profile was made of: equal things hash equal, and whatever changes the counts changes the metadata."""

import pandas as pd
import pytest

from sgpo_verl import provenance
from sgpo_verl.checks.data import TRAIN, check_files
from sgpo_verl.errors import SgpoError
from sgpo_verl.profile import differences
from sgpo_verl.provenance import (
    describe,
    describe_model,
    describe_reward,
    hash_file,
    installed_versions,
    train_files,
)

KIBI = 1024


@pytest.fixture
def run(tmp_path):
    """A training configuration, as far as it is read here, whose files exist."""
    for folder in ("model", "a", "b"):
        (tmp_path / folder).mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    for name in ("a/train.parquet", "b/train.parquet"):
        messages, truth = [{"role": "user", "content": name}], {"style": "rule", "ground_truth": "1"}
        row = {"data_source": "d", "prompt": messages, "reward_model": truth}
        pd.DataFrame([row]).to_parquet(tmp_path / name)
    (tmp_path / "reward.py").write_text("")
    return {
        "actor_rollout_ref": {
            "model": {"path": str(tmp_path / "model")},
            "rollout": {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "n": 8},
        },
        "data": {
            "train_files": [str(tmp_path / "a" / "train.parquet"), str(tmp_path / "b" / "train.parquet")],
            "max_prompt_length": 16,
            "max_response_length": 8,
        },
        "reward": {
            "reward_manager": {"name": "naive"},
            "custom_reward_function": {"path": str(tmp_path / "reward.py"), "name": "compute_score"},
        },
    }


def described(run, threshold: float = 0.5, template: str = "t"):
    return describe(run, threshold, 0, template)


def test_the_same_run_described_twice_does_not_differ(run):
    assert differences(described(run), described(run)) == []


@pytest.mark.parametrize(
    ("file", "field"),
    [
        ("a/train.parquet", "data."),  # both data files have the same name
        ("b/train.parquet", "data."),
        ("model/config.json", "model.fingerprint"),
        ("model/model.safetensors", "model.fingerprint"),
        ("reward.py", "reward.sha256"),
    ],
)
def test_a_changed_file_is_a_difference(run, tmp_path, file, field):
    before = described(run)
    (tmp_path / file).write_text("changed")
    (line,) = differences(before, described(run))
    assert line.startswith(field)


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (("actor_rollout_ref", "rollout", "temperature"), 0.7, "sampling.temperature: profile 1.0, run 0.7"),
        (("actor_rollout_ref", "rollout", "top_p"), 0.9, "sampling.top_p: profile 1.0, run 0.9"),
        (("data", "max_response_length"), 9, "sampling.max_response_length: profile 8, run 9"),
        (("reward", "custom_reward_function", "name"), "f", "reward.name: profile 'compute_score', run 'f'"),
        (
            ("reward", "custom_reward_function", "reward_kwargs"),
            {"strict": True},
            "reward.reward_kwargs: profile None, run {'strict': True}",
        ),
        (("actor_rollout_ref", "rollout", "n"), 16, None),
    ],
)
def test_a_changed_setting_is_a_difference_where_it_changes_the_counts(run, path, value, line):
    before, node = described(run), run
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    assert differences(before, described(run)) == ([] if line is None else [line])


def test_template_and_threshold_are_part_of_the_identity(run):
    assert [d.split(":")[0] for d in differences(described(run), described(run, template="u"))] == ["chat_template"]
    assert differences(described(run), described(run, threshold=0.9)) == ["success_threshold: profile 0.5, run 0.9"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("data", "train_files"), None, r"data\.train_files"),
        (("data", "train_files"), 3, r"data\.train_files"),
        (("data", "train_files"), [], r"data\.train_files"),
        (("data", "train_files"), "none.parquet", r"data\.train_files: cannot read none\.parquet"),
        (("data", "train_files"), [None], r"data\.train_files"),
        (("data", "train_files"), "nul\0byte", r"data\.train_files"),
        (("actor_rollout_ref", "model", "path"), None, r"actor_rollout_ref\.model\.path"),
        (
            ("reward", "custom_reward_function", "path"),
            "none.py",
            r"custom_reward_function\.path: cannot read none\.py",
        ),
        (("reward", "custom_reward_function", "path"), "pkg://no_such_package.reward", "no_such_package"),
        (("reward", "custom_reward_function", "path"), "pkg://json.no_such_module", "no such module"),
    ],
)
def test_what_is_not_there_is_refused_by_its_key(run, path, value, message):
    node = run
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    with pytest.raises(SgpoError, match=message):
        check_files(run, TRAIN)
        described(run)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot read .*train\.parquet"),
        (b"PAR1", r".*train\.parquet is not a readable parquet file"),
        ("no rows", r".*train\.parquet has no rows"),
    ],
)
def test_a_data_file_that_holds_nothing_is_named(tmp_path, content, message):
    file = tmp_path / "train.parquet"
    if content == "no rows":
        pd.DataFrame({"prompt": []}).to_parquet(file)
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(SgpoError, match=rf"data\.train_files: {message}"):
        check_files({"data": {"train_files": str(file)}}, TRAIN)


def test_train_files_is_one_path_or_a_list():
    assert train_files({"data": {"train_files": "a"}}) == ["a"]
    assert train_files({"data": {"train_files": ["a", "b"]}}) == ["a", "b"]


def test_a_name_on_a_hub_is_its_own_fingerprint():
    assert describe_model("Qwen/Qwen3-0.6B") == {"path": "Qwen/Qwen3-0.6B", "fingerprint": "hub:Qwen/Qwen3-0.6B"}


def test_the_fingerprint_of_a_model_does_not_depend_on_where_it_lies(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    here, there = (describe_model(str(tmp_path / name)) for name in ("here", "there"))
    assert here["fingerprint"] == there["fingerprint"]
    assert here["path"] != there["path"]


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(SgpoError, match=r"actor_rollout_ref\.model\.path=.*: no config\.json and no weights"):
        describe_model(str(tmp_path))


@pytest.mark.parametrize("place", [0, 37, 74])  # first, fourth and last of eight blocks over 75 KiB
def test_large_weight_files_are_sampled_from_end_to_end(tmp_path, monkeypatch, place):
    monkeypatch.setattr(provenance, "_BLOCK", KIBI)
    weights = bytearray(75 * KIBI)
    (tmp_path / "model.safetensors").write_bytes(weights)
    before = describe_model(str(tmp_path))
    # blocks begin at (75 - 1) KiB x i / 7 = 0, 10.6, 21.1, 31.7, 42.3, 52.9, 63.4 and 74 KiB
    weights[{0: 0, 37: 32 * KIBI, 74: 75 * KIBI - 1}[place]] = 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert describe_model(str(tmp_path)) != before


def test_verls_own_rewards_go_by_verls_version():
    described = describe_reward(
        {
            "reward": {
                "reward_manager": {"name": "naive"},
                "custom_reward_function": {"path": None, "name": "compute_score"},
            }
        }
    )
    assert described == {
        "name": "verl.default_compute_score",
        "sha256": installed_versions()["verl"],
        "manager": "naive",
    }


def test_a_reward_whose_package_cannot_be_imported_is_refused_with_its_reason(run, tmp_path, monkeypatch):
    (tmp_path / "broken_rewards").mkdir()
    (tmp_path / "broken_rewards" / "__init__.py").write_text("raise ImportError('needs a newer sympy')")
    monkeypatch.syspath_prepend(tmp_path)
    run["reward"]["custom_reward_function"]["path"] = "pkg://broken_rewards.maths"
    with pytest.raises(
        SgpoError, match=r"pkg://broken_rewards\.maths: cannot be imported \(ImportError: needs a newer"
    ):
        described(run)


def test_another_trainers_configuration_is_refused_by_the_key_it_lacks(run):
    with pytest.raises(SgpoError, match=r"actor_rollout_ref: not in this configuration; is it one of verl's PPO"):
        described({"data": run["data"], "model": {}})


def test_a_reward_in_a_module_is_hashed_without_importing_it(tmp_path, monkeypatch):
    (tmp_path / "toy_reward.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    described = describe_reward(
        {
            "reward": {
                "reward_manager": {"name": "naive"},
                "custom_reward_function": {"path": "pkg://toy_reward", "name": "f"},
            }
        }
    )
    assert described == {
        "name": "pkg://toy_reward:f",
        "sha256": hash_file(tmp_path / "toy_reward.py", ""),
        "manager": "naive",
    }


def test_hash_of_a_file(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert hash_file(tmp_path / "f", "key") == "ba7816bf8f01cfea"  # sha256("abc"), FIPS 180-2, appendix B.1


def test_versions_name_what_is_installed_only():
    versions = installed_versions()
    assert {"python", "sgpo-verl", "verl"} <= versions.keys()
    assert all(versions.values())
