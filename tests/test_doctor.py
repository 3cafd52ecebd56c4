"""`sgpo doctor` and the start of a training run refuse the same mistakes, in the same words, before a model is loaded."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import tiny
from omegaconf import OmegaConf
from packaging.specifiers import SpecifierSet

from sgpo_verl.binding.preflight import Preflight, check_method
from sgpo_verl.binding.verls_checks import check_engines, check_loads, check_verls
from sgpo_verl.checks import profile
from sgpo_verl.checks.data import check_data
from sgpo_verl.checks.findings import Doubt, Finding, Unseen, examine
from sgpo_verl.checks.model import check_model
from sgpo_verl.checks.output import check_output
from sgpo_verl.checks.profile import check_profile
from sgpo_verl.checks.reward import check_reward
from sgpo_verl.doctor import versions
from sgpo_verl.doctor.command import BAD_INPUT, FAILED, FINE, Doctor, run
from sgpo_verl.errors import SgpoError
from sgpo_verl.provenance import describe
from sgpo_verl.run_config import compose
from sgpo_verl.seams import folders


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
    shutil.copytree(folder / "model", broken / "gpt2_model")
    gpt2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 64, "n_layer": 2, "n_head": 2}
    (broken / "gpt2_model" / "config.json").write_text(json.dumps({**gpt2, "n_positions": 64, "vocab_size": 14}))
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
    "groups of one, of what the profile solves often": (
        {**NO_PROFILE, "sgpo.group_size.min": 1},
        "group_size.min=1 with allocation=profile and advantage=grpo: a group of one is never mixed",
    ),
    "a profile of one sample": (
        {**NO_PROFILE, "sgpo.profile.n": 1},
        "no prompt to train on: of 2, 1 are trivial (pass rate above sgpo.filter.max_pass_rate=0.75) and 1 were never solved",
    ),
    "phases of no steps": (
        {**NO_PROFILE, "sgpo.curriculum.until": "steps", "sgpo.curriculum.steps": "[3,0]"},
        "sgpo.curriculum.steps.1=0: Input should be greater than or equal to 1",
    ),
    "an endpoint that is no address": (
        {**NO_PROFILE, "sgpo.profile.endpoints": "[localhost]"},
        "sgpo.profile.endpoints: 'localhost' is not an address such as http://host:8000/v1",
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
    "a reward where verl looked for it before 0.9": (
        {"custom_reward_function.path": "my.py"},
        "custom_reward_function.path='my.py': verl's trainer does not read it any more; "
        "write reward.custom_reward_function.path=my.py",
    ),
    "a reward manager where verl looked for it before 0.9": (
        {"reward_model.reward_manager": "dapo"},
        "reward_model.reward_manager='dapo': verl's trainer does not read it any more; "
        "write reward.reward_manager.name=dapo",
    ),
    "data that verl has no score for": (
        {"reward.custom_reward_function.path": None},
        "data.train_files: data_source 'sums': verl has no score for it; set reward.custom_reward_function.path",
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
    "a model whose cost cannot be counted": (
        {"actor_rollout_ref.model.path": "gpt2_model"},
        "gpt2_model/config.json: no key 'hidden_size'",
    ),
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
    "scores cut another way than updates": (
        {"actor_rollout_ref.rollout.log_prob_use_dynamic_bsz": False},
        "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=False: verl wants it to be as "
        "actor_rollout_ref.actor.use_dynamic_bsz=True; leave it unset",
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
    "an engine nobody samples with": (
        {"actor_rollout_ref.rollout.name": "vlm"},
        "actor_rollout_ref.rollout.name=vlm: verl does not know it (ValueError: Unknown rollout mode: vlm.",
    ),
    "an engine nobody trains with": (
        {"actor_rollout_ref.actor.strategy": "fsdp3"},
        "actor_rollout_ref.actor.strategy=fsdp3: verl does not know it (ValueError: known are fsdp, fsdp2,",
    ),
    "a learning rate that is no number": (
        {"actor_rollout_ref.actor.optim.lr": "1e-6x"},
        "actor_rollout_ref.actor.optim.lr=1e-6x: must be a number, 0 or more",
    ),
    "a temperature of nothing": (
        {"actor_rollout_ref.rollout.temperature": 0},
        "actor_rollout_ref.rollout.temperature=0: must be a number above 0",
    ),
    "no answers to validate": (
        {"actor_rollout_ref.rollout.val_kwargs.n": 0},
        "actor_rollout_ref.rollout.val_kwargs.n=0: must be a positive integer",
    ),
    "more memory than there is": (
        {"actor_rollout_ref.rollout.gpu_memory_utilization": 7},
        "actor_rollout_ref.rollout.gpu_memory_utilization=7: must be a share above 0, 1 at most",
    ),
    "checkpoints at no time": (
        {"trainer.save_freq": "null"},
        "trainer.save_freq=null: must be an integer, -1 for never",
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


def test_files_are_hashed_once_and_only_where_there_is_a_profile_to_compare(folder, profiled, monkeypatch):
    described = []
    monkeypatch.setattr(profile, "describe", lambda *given: described.append(given) or describe(*given))
    with_profile = arguments(folder, **{"sgpo.profile.path": profiled})
    for given, times in ((with_profile, 1), (arguments(folder, **{"+sgpo": "prune"}), 0), (tiny.overrides(folder), 0)):
        described.clear()
        assert Doctor(None).look_at_run(given)[0] == FINE
        assert len(described) == times, given


def test_what_cannot_be_foretold_is_a_finding_and_not_a_traceback(folder, profiled, monkeypatch):
    def untold(config):
        raise SgpoError("the model's cost is unknown")

    monkeypatch.setattr("sgpo_verl.doctor.story.story", untold)
    doctor = Doctor(None)
    assert doctor.look_at_run(arguments(folder, **{"sgpo.profile.path": profiled})) == (FAILED, [])
    assert doctor.findings[-1] == Finding("forecast", "fail", "the model's cost is unknown")


def test_a_setting_that_is_most_likely_misspelt_is_a_warning(folder, profiled):
    doctor = Doctor(None)
    given = arguments(folder, **{"sgpo.profile.path": profiled, "+trainer.test_frequency": 5})
    assert doctor.look_at_run(given)[0] == FINE
    assert [finding.text for finding in doctor.findings if finding.status == "warn"] == [
        "trainer.test_frequency: no such setting; did you mean trainer.test_freq?"
    ]


def test_what_stock_verl_can_do_by_itself_is_not_refused(folder):
    stock = compose(tiny.overrides(folder, **{"++algorithm.filter_groups.enable": True}))
    assert check_method(stock) == "stock GRPO, without +sgpo"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"data.train_batch_size": 64}, "its 48 prompts do not fill one step of 64; lower data.train_batch_size"),
        ({"data.train_max_samples": 5}, r"its 5 prompts \(data.train_max_samples=5\) do not fill one step of 8"),
        ({"data.train_max_samples": 5, "+sgpo": "prune"}, "its 5 prompts do not fill one step of 8"),
    ],
)
def test_data_that_does_not_fill_one_step_is_refused_for_stock_verl_too(folder, more, words):
    with pytest.raises(SgpoError, match=f"data.train_files: {words}"):
        check_data(compose(tiny.overrides(folder, **more)))


def test_the_context_is_the_one_verl_goes_by(folder, tmp_path):
    shutil.copytree(folder / "model", tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rope_scaling": {"rope_type": "yarn", "factor": 4}}))
    override = "actor_rollout_ref.model.override_config"
    longer = {"actor_rollout_ref.model.path": tmp_path / "model", "actor_rollout_ref.rollout.max_model_len": 128}
    with pytest.raises(SgpoError, match=r"max_model_len=128 is more than the model's 64.*set it to 64 or less, or, if"):
        check_model(compose(tiny.overrides(folder, **longer)))
    for key in (f"+{override}.max_position_embeddings", f"+{override}.model_config.max_position_embeddings"):
        assert check_model(compose(tiny.overrides(folder, **longer, **{key: 256}))).endswith("context 128")
    with pytest.raises(SgpoError, match=r"data.max_prompt_length=16 leaves no room for an answer in a context of 8"):
        check_model(compose(tiny.overrides(folder, **{f"+{override}.max_position_embeddings": 8})))


def test_ids_that_are_trained_but_never_sampled_are_a_warning(folder, tmp_path):
    shutil.copytree(folder / "model", tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    shape = json.loads(file.read_text())
    config = compose(tiny.overrides(folder, **{"actor_rollout_ref.model.path": tmp_path / "model"}))
    assert f" of {shape['vocab_size']} tokens" in check_loads(config)
    file.write_text(json.dumps({**shape, "vocab_size": 64}))
    with pytest.raises(Doubt, match=rf"model: 64 ids, {shape['vocab_size']} tokens in its tokenizer\. verl masks"):
        check_loads(config)


def test_flash_attention_that_a_model_is_loaded_with_is_looked_for(folder):
    config = compose(tiny.overrides(folder, **{"+runtime": None, "actor_rollout_ref.rollout.name": "vllm"}))
    with pytest.raises(
        Doubt, match=r"attn_implementation=flash_attention_2, verl's default: flash_attn is not installed"
    ):
        check_engines(config)
    assert check_engines(compose(tiny.overrides(folder))) == "vllm samples, fsdp2 trains"  # +runtime=cpu: sdpa


def test_what_verl_asks_vllm_for_is_left_open_where_vllm_is_not_installed(folder, monkeypatch):
    config = compose(tiny.overrides(folder, **{"actor_rollout_ref.model.lora_rank": 8}))

    def validate_config(*_):
        raise ValueError("vllm version None not supported and SGLang also not Found.")

    monkeypatch.setattr("sgpo_verl.binding.verls_checks.validate_config", validate_config)
    with pytest.raises(Doubt, match="of LoRA's rank verl asks vLLM, which is not installed here"):
        check_verls(config)


def test_a_home_folder_that_verl_would_not_find_is_named_in_full(folder, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = compose(tiny.overrides(folder, **{"trainer.default_local_dir": "'~/run'"}))
    with pytest.raises(Doubt, match=r"default_local_dir=~/run: verl takes ~ for .*; write /home/me/run"):
        check_output(config)
    config["reward"]["custom_reward_function"]["path"] = "~/reward.py"
    with pytest.raises(
        SgpoError, match=r"path=~/reward.py: verl takes ~ for a folder's name; write /home/me/reward.py"
    ):
        check_reward(config)


def test_a_table_of_counts_that_does_not_say_of_what_data_is_no_profile_of_this_run(folder, profiled, tmp_path):
    path = tmp_path / "counts.parquet"
    pd.read_parquet(profiled)[["prompt_key", "successes", "trials"]].to_parquet(path)
    with pytest.raises(Doubt, match=r"counts.parquet: does not say of what data it is.*: 48 prompts, 48 to draw"):
        check_profile(compose(arguments(folder, **{"sgpo.profile.path": path})))


def test_seams_of_no_verl_and_of_a_run_are_bad_input(capsys):
    for given, verl, words in (
        ([], Path("/nowhere"), "--seams /nowhere: no verl there"),
        (["+sgpo=paper"], folders()["verl"], "looks at no run: +sgpo=paper"),
    ):
        capsys.readouterr()
        assert run(given, as_json=True, seams=verl) == BAD_INPUT
        (check,) = json.loads(capsys.readouterr().out)["checks"]
        assert words in check["text"]


def test_what_only_megatron_needs_is_held_against_verls_pins(monkeypatch):
    monkeypatch.setattr(versions, "installed", {"mbridge": "0.15.1", "verl": "0.9.1"}.get)
    monkeypatch.setattr(versions, "wanted", lambda name: (SpecifierSet(">=0.15"), {"verl[mcore]": "0.16.0"}))
    said = dict(versions.checks())
    assert said["mbridge"](None) == "0.15.1 (verl asks for >=0.15; verl[mcore] pins 0.16.0)"
    assert said["megatron-core"](None) == "not installed (only for actor.strategy=megatron)"


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
    assert not {"trainer modes", "seams"} & checks.keys()  # a run is answered within seconds
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
