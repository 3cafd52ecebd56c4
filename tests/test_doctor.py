"""`sgpo doctor` and the start of a training run refuse the same mistakes, in the same words, before a model is loaded."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import tiny
from omegaconf import OmegaConf

from sgpo_verl.binding.preflight import Preflight
from sgpo_verl.checks.findings import Doubt, Finding, Unseen, examine
from sgpo_verl.doctor.command import BAD_INPUT, FAILED, FINE, Doctor, run
from sgpo_verl.errors import SgpoError
from sgpo_verl.run_config import compose


def arguments(folder, **more):
    return tiny.overrides(folder, **{"algorithm.adv_estimator": None, "+sgpo": "paper", **more})


@pytest.fixture(scope="module")
def profiled(folder):
    return tiny.make_profile(folder, [4] * 48, arguments(folder))


@pytest.fixture(scope="module")
def broken(folder, tmp_path_factory):
    """A folder with copies of good files, each with one thing wrong."""
    broken = tmp_path_factory.mktemp("broken")
    frame = pd.read_parquet(folder / "train.parquet")
    frame.drop(columns="data_source").to_parquet(broken / "no_source.parquet")
    frame.assign(prompt="1+1=").to_parquet(broken / "text_prompt.parquet")
    frame.drop(columns="reward_model").to_parquet(broken / "no_truth.parquet")
    frame.iloc[:0].to_parquet(broken / "no_rows.parquet")
    (broken / "lines.jsonl").write_text('{"question": "1+1="}\n')
    tiny.make_reward(broken / "imports.py", "import math_verfy\n" + tiny.REWARD)
    tiny.make_reward(broken / "raises.py", tiny.REWARD + "\nTABLE = LENGTHS[0]\n")
    tiny.make_reward(broken / "takes_two.py", "def compute_score(answer, truth):\n    return 1.0\n")
    for name in ("other_model", "half_model", "no_tokenizer", "bad_tokenizer"):
        shutil.copytree(folder / "model", broken / name)
    shape = json.loads((broken / "other_model" / "config.json").read_text())
    (broken / "other_model" / "config.json").write_text(json.dumps({**shape, "rms_norm_eps": 1e-5}))
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (broken / "half_model" / "model.safetensors.index.json").write_text(json.dumps(index))
    for file in (broken / "no_tokenizer").glob("tokenizer*"):
        file.unlink()
    (broken / "bad_tokenizer" / "tokenizer.json").write_text("{")
    (broken / "file").touch()
    return broken


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    monkeypatch.setattr("sgpo_verl.checks.reward.PATIENCE", 120.0)  # a busy machine is not the question


NO_PROFILE = {"sgpo.profile.path": None}
FIXED = {"actor_rollout_ref.actor.use_dynamic_bsz": False}
MICRO = {
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 2,
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 2,
}
MISTAKES = {  # what is changed (paths are in the folder of broken files) -> the words
    "a misspelt setting": (
        {"+sgpo.group_sise.max": 8},
        "sgpo.group_sise: no such setting; did you mean sgpo.group_size?",
    ),
    "a setting out of range": ({"sgpo.profile.n": 0}, "sgpo.profile.n=0"),
    "stock verl's trainer": (
        {"trainer.v1.trainer_mode": "sync"},
        "trainer.v1.trainer_mode=sync: with +sgpo it must be one of",
    ),
    "dynamic sampling": (
        {"algorithm.filter_groups.enable": True},
        "algorithm.filter_groups.enable=True: dynamic sampling",
    ),
    "a critic": ({"critic.enable": True}, "critic.enable / algorithm.adv_estimator=gae"),
    "rows left out that a KL loss moves": (
        {"sgpo.prune": True, "actor_rollout_ref.actor.use_kl_loss": True},
        "sgpo.prune=True: actor_rollout_ref.actor.use_kl_loss would have moved the rows that it leaves out",
    ),
    "groups larger than a step, no profile yet": (
        {**NO_PROFILE, "sgpo.group_size.max": 128},
        "sgpo.group_size.max=128 is more than the 64 rollouts of a step",
    ),
    "a budget that does not divide, no profile yet": (
        {**NO_PROFILE, "sgpo.batch.rollouts": 63},
        "sgpo.batch.rollouts=63 does not divide into the 2 optimizer updates",
    ),
    "groups of one": (
        {**NO_PROFILE, "+sgpo": "prune", "actor_rollout_ref.rollout.n": 1},
        "actor_rollout_ref.rollout.n=1: a group of one has no advantage",
    ),
    "no step's worth of data": (
        {**NO_PROFILE, "+sgpo": "prune", "data.train_batch_size": 64},
        "data.train_files: its 48 prompts do not fill one step of 64: lower data.train_batch_size",
    ),
    "no steps": ({"trainer.total_training_steps": 0}, "trainer.total_training_steps=0: must be a positive integer"),
    "no data file": ({"data.train_files": "gone.parquet"}, "data.train_files: cannot read "),
    "no validation file": ({"data.val_files": "gone.parquet"}, "data.val_files: cannot read "),
    "an empty validation file": (
        {"data.val_files": "no_rows.parquet"},
        "data.val_files: .*no_rows.parquet has no rows",
    ),
    "a value for the reward's group": (
        {"reward.reward_manager": "dapo"},
        "reward.reward_manager='dapo': is a group of settings; set those under it",
    ),
    "a file for the reward function's group": (
        {"reward.custom_reward_function.path": None, "reward.custom_reward_function": "my.py"},
        "reward.custom_reward_function='my.py': is a group of settings; set those under it",
    ),
    "a file for the data set's group": (
        {"data.custom_cls": "my.py"},
        "data.custom_cls='my.py': is a group of settings; set those under it",
    ),
    "a column missing": (
        {"data.train_files": "no_source.parquet"},
        "data.train_files: no column data_source; there are ",
    ),
    "prompts that are texts": (
        {"data.val_files": "text_prompt.parquet"},
        "data.val_files: row 0: the prompt is '1+1=', not a list of messages",
    ),
    "no ground truth": (
        {"data.val_files": "no_truth.parquet"},
        "data.val_files: no ground_truth in a column reward_model",
    ),
    "JSON of another kind": (
        {"data.val_files": "lines.jsonl"},
        "data.val_files: no column data_source and no column prompt",
    ),
    "a reward that needs what is not there": (
        {"reward.custom_reward_function.path": "imports.py"},
        "imports.py does not load (ModuleNotFoundError: No module named 'math_verfy', line 1)",
    ),
    "a reward that raises": (
        {"reward.custom_reward_function.path": "raises.py"},
        "raises.py does not load (NameError: name 'LENGTHS' is not defined, line 6)",
    ),
    "a reward of other arguments": (
        {"reward.custom_reward_function.path": "takes_two.py"},
        "reward.custom_reward_function.name=compute_score: does not take what verl gives it",
    ),
    "a reward of another name": (
        {"reward.custom_reward_function.name": "scor"},
        "reward.custom_reward_function.name=scor: .*reward.py defines no such function",
    ),
    "a profile of another model": (
        {"actor_rollout_ref.model.path": "other_model"},
        "profile.parquet: is not a profile of this run (model.fingerprint: ",
    ),
    "a profile that is not there": ({"sgpo.profile.path": "gone.parquet"}, "gone.parquet: no such profile"),
    "an adapter that no profile can be made of": (
        {**NO_PROFILE, "actor_rollout_ref.model.lora_adapter_path": "other_model"},
        "actor_rollout_ref.model.lora_adapter_path: profiling would sample the model without its adapter",
    ),
    "no model": (
        {"actor_rollout_ref.model.path": "gone_model"},
        "actor_rollout_ref.model.path=.*gone_model: no such folder",
    ),
    "half a model": (
        {"actor_rollout_ref.model.path": "half_model"},
        "2 of the 2 weight files in model.safetensors.index.json are not there (first: model-00001-of-00002.safetensors)",
    ),
    "no tokenizer": ({"actor_rollout_ref.model.path": "no_tokenizer"}, "no_tokenizer: no tokenizer in this folder"),
    "a torn tokenizer": ({"actor_rollout_ref.model.path": "bad_tokenizer"}, "bad_tokenizer: cannot be loaded ("),
    "a context the model does not have": (
        {"actor_rollout_ref.rollout.max_model_len": 128},
        "actor_rollout_ref.rollout.max_model_len=128 is more than the model's 64",
    ),
    "a server larger than the devices": (
        {"actor_rollout_ref.rollout.tensor_model_parallel_size": 2},
        "trainer.nnodes x trainer.n_gpus_per_node = 1 x 1 = 1: does not divide into rollout servers of 2 devices",
    ),
    "heads that do not divide": (
        {"actor_rollout_ref.rollout.tensor_model_parallel_size": 4, "trainer.n_gpus_per_node": 4},
        "actor_rollout_ref.rollout.tensor_model_parallel_size=4: the model's 2 attention heads do not divide by it",
    ),
    "rollout without devices of its own": (
        {"trainer.v1.trainer_mode": "sgpo_separate_async"},
        "actor_rollout_ref.rollout.nnodes=0: with trainer.v1.trainer_mode=sgpo_separate_async, rollout has devices of its own",
    ),
    "a mini-batch larger than the batch": (
        {**FIXED, **MICRO, "actor_rollout_ref.actor.ppo_mini_batch_size": 16},
        "verl refuses the configuration (ValueError: train_batch_size (8) must be >= actor.ppo_mini_batch_size (16))",
    ),
    "no micro-batch size": (
        FIXED,
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=None: must be a positive",
    ),
    "micro-batches shorter than a rollout": (
        {"actor_rollout_ref.actor.ppo_max_token_len_per_gpu": 20},
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=20 is less than one rollout may have",
    ),
    "a rollout mode that is gone": (
        {"actor_rollout_ref.rollout.mode": "sync"},
        "verl refuses the configuration (ValueError: Rollout mode 'sync' has been removed",
    ),
    "an estimator nobody knows": (
        {"algorithm.adv_estimator": "sgpoo"},
        "algorithm.adv_estimator=sgpoo: verl does not know it",
    ),
    "a loss nobody knows": (
        {"actor_rollout_ref.actor.policy_loss.loss_mode": "vanila"},
        "actor_rollout_ref.actor.policy_loss.loss_mode=vanila: verl does not know it",
    ),
    "a logger nobody knows": ({"trainer.logger": "[file,wandbb]"}, "trainer.logger=wandbb: verl knows wandb, mlflow"),
    "a way of resuming nobody knows": (
        {"trainer.resume_mode": "always"},
        "trainer.resume_mode=always: must be one of auto",
    ),
    "checkpoints that cannot be written": (
        {"trainer.default_local_dir": "file/checkpoints"},
        "trainer.default_local_dir=.*file/checkpoints: cannot be written (.*file is no folder)",
    ),
}
PATHS = {"data.train_files", "data.val_files", "trainer.default_local_dir", "reward.custom_reward_function.path"}
PATHS |= {"sgpo.profile.path", "actor_rollout_ref.model.path", "actor_rollout_ref.model.lora_adapter_path"}


def mistaken(folder, profiled, broken, changes):
    placed = {key: broken / str(value) if key in PATHS and value else value for key, value in changes.items()}
    return arguments(folder, **{"sgpo.profile.path": profiled, **placed})


@pytest.mark.parametrize("name", MISTAKES)
def test_doctor_and_the_run_refuse_the_same_mistakes_in_the_same_words(name, folder, profiled, broken, capsys):
    changes, words = MISTAKES[name]
    given = mistaken(folder, profiled, broken, changes)
    doctor = Doctor(None)
    assert doctor.look_at_run(given)[0] == FAILED
    refused = [finding.line for finding in doctor.findings if finding.status == "fail"]
    pattern = re.escape(words).replace(re.escape(".*"), ".*")
    assert any(re.search(pattern, line) for line in refused), refused
    assert not any("\n" in line for line in refused)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        Preflight().on_job_start(OmegaConf.create(compose(given)))
    assert stop.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sgpo: ")]
    assert [line.removeprefix("sgpo: ") for line in said if not line.startswith("sgpo: warning")] == refused


def test_a_run_that_is_fine_passes_both_and_is_told_beforehand(folder, profiled, capsys):
    given = arguments(folder, **{"sgpo.profile.path": profiled})
    doctor = Doctor(None)
    code, story = doctor.look_at_run(given)
    assert (code, [f.status for f in doctor.findings]) == (FINE, ["ok"] * len(doctor.findings))
    found = {finding.name: finding.text for finding in doctor.findings}
    assert found["batch"] == (
        "8 x 8 = 64 rollouts a step, in groups of 2 to 8; 2 updates of 32; micro-batches of up to 4096 tokens a device"
    )
    assert found["data"] == "48 rows to train on, 8 rows to validate with"
    assert "it ends after 45 steps, and the learning rate's schedule with it" in story
    assert any(line.startswith("forecast, the profile included: 45 steps, 3264 rollouts") for line in story)
    capsys.readouterr()
    Preflight().on_job_start(OmegaConf.create(compose(given)))
    assert "sgpo: " not in capsys.readouterr().err


def test_what_only_this_machine_lacks_is_a_warning_in_both(folder, profiled, capsys):
    given = arguments(folder, **{"sgpo.profile.path": profiled, "trainer.logger": "[file,clearml]"})
    doctor = Doctor(None)
    assert doctor.look_at_run(given)[0] == FINE
    doubts = [finding.line for finding in doctor.findings if finding.status == "warn"]
    assert [line.partition(":")[0] for line in doubts] == ["trainer.logger=clearml"]
    capsys.readouterr()
    Preflight().on_job_start(OmegaConf.create(compose(given)))
    assert f"sgpo: warning: {doubts[0]}\n" in capsys.readouterr().err


def test_several_mistakes_are_said_together(folder, profiled, broken, capsys):
    changes = {"data.val_files": "gone.parquet", "trainer.resume_mode": "always"}
    with pytest.raises(SystemExit):
        Preflight().on_job_start(OmegaConf.create(compose(mistaken(folder, profiled, broken, changes))))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sgpo: ")]
    assert [line.split(" ")[1].rstrip(":") for line in said] == ["data.val_files", "trainer.resume_mode=always"]


def test_json_is_one_document_and_exit_codes_tell_bad_input_from_a_failed_check(folder, profiled, capsys):
    given = arguments(folder, **{"sgpo.profile.path": profiled})
    seen = {}
    for name, more, code in [
        ("fine", [], FINE),
        ("failed", ["trainer.resume_mode=always"], FAILED),
        ("bad input", ["data.no_such_key=1"], BAD_INPUT),
    ]:
        capsys.readouterr()
        assert run([*given, *more], as_json=True) == code, name
        seen[name] = json.loads(capsys.readouterr().out)
        assert seen[name]["exit_code"] == code
        assert seen[name]["ok"] == (code == FINE)
    checks = {check["name"]: check for check in seen["fine"]["checks"]}
    assert {
        "verl",
        "ray",
        "torch",
        "plugin",
        "names in verl",
        "Ray cluster",
        "devices",
        "profile",
    } <= checks.keys()
    assert set(checks["verl"]) == {"name", "status", "text", "fix"}
    assert seen["fine"]["will_happen"]
    failed = [check for check in seen["failed"]["checks"] if check["status"] == "fail"]
    assert [check["name"] for check in failed] == ["output"]
    bad = next(check for check in seen["bad input"]["checks"] if check["status"] == "fail")
    assert bad["text"].startswith("the configuration does not compose: ")


def test_the_screen_says_in_words_what_its_colours_say_and_fits_100_columns(folder, profiled, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    given = arguments(
        folder, **{"sgpo.profile.path": profiled, "trainer.logger": "[clearml]", "trainer.resume_mode": "x"}
    )
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert run(given) == FAILED
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert any(re.match(r"✓ ok +verl +0\.9\.", line) for line in lines)
    assert any(line.startswith("! WARN Ray cluster       RAY_ADDRESS=127.0.0.1:1 does not answer") for line in lines)
    assert any(line.startswith("✗ FAIL output            trainer.resume_mode=x: must be one of") for line in lines)
    assert lines[-1].startswith("✗ 1 of ")


def test_a_finding_is_made_of_what_a_check_returns_or_raises():
    def refuse(problem, way_out="", kind=SgpoError):
        def check(_):
            raise kind(problem, way_out)

        return check

    checks = [
        ("fine", str),
        ("refused", refuse("a=1", "use 2")),
        ("refused again", refuse("a=1", "use 2")),
        ("doubtful", refuse("no GPU", "find one", Doubt)),
        ("unseen", refuse("first the other", kind=Unseen)),
        ("broken", lambda number: [][number]),
        ("the next", str),
    ]
    here, line = "/".join(Path(__file__).parts[-3:]), checks[5][1].__code__.co_firstlineno
    assert list(examine(checks, 3)) == [
        Finding("fine", "ok", "3"),
        Finding("refused", "fail", "a=1", "use 2"),
        Finding("refused again", "skip", "see refused"),
        Finding("doubtful", "warn", "no GPU", "find one"),
        Finding("unseen", "skip", "first the other"),
        Finding("broken", "fail", f"cannot be checked: IndexError: list index out of range ({here}, line {line})"),
        Finding("the next", "ok", "3"),
    ]
