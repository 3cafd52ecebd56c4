"""Bad input ends in one line that names what is wrong and the way out, with nothing half-written."""

import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import tiny
from omegaconf import OmegaConf
from transformers import AutoTokenizer
from verl.trainer.ppo.utils import create_rl_dataset

from sgpo_verl import cli
from sgpo_verl.binding.preflight import Preflight, check_run
from sgpo_verl.binding.session import Session
from sgpo_verl.errors import SgpoError
from sgpo_verl.run_config import compose

LEARNABLE = [4] * 48


def arguments(folder, **more):
    return tiny.overrides(folder, **{"algorithm.adv_estimator": None, "+sgpo": "paper", **more})


@pytest.fixture
def profiled(folder):
    return tiny.make_profile(folder, LEARNABLE, arguments(folder))


def preflight(folder, **more):
    check_run(compose(arguments(folder, **more)))


def start(folder, **more):
    """The trainer's own start, up to the first step, without servers: a profile is given."""
    config = OmegaConf.create(compose(arguments(folder, **more)))
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    dataset = create_rl_dataset(config.data.train_files, config.data, tokenizer, None)
    return Session.start(config, dataset, tokenizer)


def test_good_input_passes(folder, profiled):
    preflight(folder, **{"sgpo.profile.path": profiled})
    assert start(folder, **{"sgpo.profile.path": profiled}).plan.total_steps > 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"sgpo.profile.path": "/no/such.parquet"}, r"/no/such.parquet: no such profile"),
        ({"sgpo.group_size.max": 128}, r"sgpo.group_size.max=128 is more than the 64 rollouts of a step"),
        ({"sgpo.group_size.min": 9}, r"sgpo.group_size: min \(9\) is larger than max \(8\)"),
        ({"sgpo.profile.n": 0}, r"sgpo.profile.n=0"),
        ({"+sgpo.profile.samples": 8}, r"sgpo.profile.samples: no such setting"),
        ({"+sgpo.group_sise.max": 8}, r"sgpo.group_sise: no such setting; did you mean sgpo.group_size"),
        ({"sgpo.batch.rollouts": 63}, r"sgpo.batch.rollouts=63 does not divide into the 2 optimizer updates"),
        ({"algorithm.filter_groups.enable": True}, r"algorithm.filter_groups.enable=True"),
        ({"trainer.use_v1": False}, r"trainer.use_v1=False"),
        ({"data.train_files": "/no/train.parquet"}, r"data.train_files: cannot read /no/train.parquet"),
        ({"data.train_files": "/"}, r"data.train_files: cannot read / \(a folder; name its files\)"),
        ({"data.train_files": __file__}, r"test_bad_input.py is none of .parquet, .json, .jsonl"),
        ({"actor_rollout_ref.model.path": "/no/model"}, r"actor_rollout_ref.model.path=/no/model: no such folder"),
        (
            {"reward.custom_reward_function.name": "scor"},
            r"reward.custom_reward_function.name=scor: .*no such function",
        ),
        ({"reward.custom_reward_function.path": "/no/reward.py"}, r"reward.custom_reward_function.path: cannot read"),
    ],
)
def test_preflight_names_the_key(folder, profiled, more, message):
    with pytest.raises(SgpoError, match=message) as error:
        preflight(folder, **{"sgpo.profile.path": profiled, **more})
    assert "\n" not in str(error.value)


def test_a_truncated_profile_is_named(folder, profiled, tmp_path):
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(profiled.read_bytes()[:-200])
    with pytest.raises(SgpoError, match=r"cut.parquet: not a readable parquet file"):
        preflight(folder, **{"sgpo.profile.path": cut})


def test_a_profile_of_another_model_data_or_sampling_says_which_field_differs(folder, profiled):
    for more, field in [
        ({"actor_rollout_ref.rollout.temperature": 0.7}, "sampling.temperature: profile 1.0, run 0.7"),
        ({"data.train_files": folder / "val.parquet"}, "data.train.parquet"),
        ({"sgpo.success_threshold": 0.9}, "success_threshold: profile 0.5, run 0.9"),
    ]:
        with pytest.raises(SgpoError, match="is not a profile of this run") as error:
            preflight(folder, **{"sgpo.profile.path": profiled, **more})
        assert field in str(error.value)
        assert "sgpo.profile.allow_mismatch=true" in str(error.value)


@pytest.mark.parametrize(("temperature", "warned"), [(1.0, False), (0.7, True)])
def test_a_plan_from_a_profile_of_another_run_says_so(folder, profiled, monkeypatch, capsys, temperature, warned):
    given = arguments(folder, **{"actor_rollout_ref.rollout.temperature": temperature})
    monkeypatch.setattr(sys, "argv", ["sgpo", "plan", str(profiled), *given])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    last = capsys.readouterr().out.splitlines()[-1]
    assert not ended.value.code
    assert ("is not a profile of this run (sampling.temperature: profile 1.0, run 0.7)" in last) == warned


def test_a_mismatch_can_be_allowed(folder, profiled):
    more = {"actor_rollout_ref.rollout.temperature": 0.7, "sgpo.profile.allow_mismatch": True}
    preflight(folder, **{"sgpo.profile.path": profiled, **more})
    assert start(folder, **{"sgpo.profile.path": profiled, **more}).plan.total_steps > 0


@pytest.mark.parametrize(("successes", "what"), [([8] * 48, "48 are trivial"), ([0] * 48, "48 were never solved")])
def test_nothing_to_learn_is_refused(folder, successes, what):
    profile = tiny.make_profile(folder, successes, arguments(folder))
    with pytest.raises(SgpoError, match=f"no prompt to train on.*{what}"):
        preflight(folder, **{"sgpo.profile.path": profile})


def test_prompts_that_the_profile_lacks_are_counted_and_named(folder, profiled, tmp_path):
    data = tiny.make_data(tmp_path / "train.parquet", 50)
    with pytest.raises(SgpoError, match=r"has no counts for 2 of 50 prompts .*first: sums:48, sums:49"):
        start(
            folder,
            **{"data.train_files": data, "sgpo.profile.path": profiled, "sgpo.profile.allow_mismatch": True},
        )


def test_duplicate_prompts_name_both_rows(folder, profiled, tmp_path):
    data = tmp_path / "train.parquet"
    frame = pd.read_parquet(folder / "train.parquet")
    pd.concat([frame, frame.iloc[[5]]]).to_parquet(data)
    more = {"data.train_files": data, "sgpo.profile.path": profiled, "sgpo.profile.allow_mismatch": True}
    with pytest.raises(SgpoError, match="row 48 is the same prompt as row 5"):
        start(folder, **more)


def test_empty_and_broken_data_files_are_named(folder, tmp_path):
    empty, broken = tmp_path / "empty.parquet", tmp_path / "broken.parquet"
    pd.read_parquet(folder / "train.parquet").iloc[:0].to_parquet(empty)
    broken.write_bytes((folder / "train.parquet").read_bytes()[:-100])
    with pytest.raises(SgpoError, match=r"empty.parquet has no rows"):
        preflight(folder, **{"data.train_files": empty})
    with pytest.raises(SgpoError, match=r"broken.parquet is not a readable parquet file"):
        preflight(folder, **{"data.train_files": broken})


def test_data_whose_every_prompt_is_too_long_is_refused(folder, profiled):
    more = {"sgpo.profile.path": profiled, "sgpo.profile.allow_mismatch": True, "data.max_prompt_length": 2}
    more["data.filter_overlong_prompts"] = True
    with pytest.raises(SgpoError, match="no prompts left to train on"):
        start(folder, **more)


def test_a_reward_file_that_is_no_python_is_named(folder, tmp_path):
    reward = tiny.make_reward(tmp_path / "reward.py", "def compute_score(:")
    with pytest.raises(SgpoError, match=r"reward.py is not valid Python"):
        preflight(folder, **{"reward.custom_reward_function.path": reward})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": "1+1="}, "row 0: the prompt is '1\\+1=', not a list of messages"),
        ({"reward_model": "4"}, "row 0: reward_model is '4', not a mapping"),
        ({"data_source": 5}, "row 0: data_source is 5, not a text"),
        ({"data_source": None, "drop": "data_source"}, "no column data_source; there are prompt"),
        ({"prompt": None, "drop": "prompt"}, "no column prompt; there are data_source"),
    ],
)
def test_columns_that_are_not_as_verl_has_them_are_named(folder, profiled, tmp_path, columns, message):
    data, drop = tmp_path / "train.parquet", columns.pop("drop", None)
    frame = pd.read_parquet(folder / "train.parquet").assign(**columns)
    (frame.drop(columns=drop) if drop else frame).to_parquet(data)
    more = {"data.train_files": data, "sgpo.profile.path": profiled, "sgpo.profile.allow_mismatch": True}
    with pytest.raises(SgpoError, match=message):
        start(folder, **more)


def test_a_prompt_that_is_null_in_a_later_row_is_named(folder, profiled, tmp_path):
    data = tmp_path / "train.parquet"
    frame = pd.read_parquet(folder / "train.parquet")
    frame.at[5, "prompt"] = None
    frame.to_parquet(data)
    more = {"data.train_files": data, "sgpo.profile.path": profiled, "sgpo.profile.allow_mismatch": True}
    with pytest.raises(SgpoError, match="row 5: the prompt is None, not a list of messages"):
        start(folder, **{**more, "data.filter_overlong_prompts": False})


def test_a_profile_is_not_of_what_trains(folder, tmp_path, monkeypatch):
    from sgpo_verl.binding import profile_command

    class Reached(Exception):
        pass

    def ray_running(config):
        raise Reached

    monkeypatch.setattr(profile_command, "ray_running", ray_running)
    given = {"+sgpo": "prune", "actor_rollout_ref.actor.use_kl_loss": True}
    alone = {"+sgpo": None, "data.train_batch_size": 1, "actor_rollout_ref.actor.ppo_mini_batch_size": 1}
    for more in (given, alone | {"actor_rollout_ref.rollout.n": 4}):  # a step smaller than the paper's largest group
        with pytest.raises(Reached):
            profile_command.run(compose(arguments(folder, **more)), tmp_path / "p.parquet")


def test_profiling_finds_out_before_it_samples_that_it_cannot_write(folder, tmp_path, monkeypatch):
    from sgpo_verl.binding import profile_command

    monkeypatch.setattr(profile_command, "ray_running", lambda config: pytest.fail("started Ray"))
    (tmp_path / "file").touch()
    for output in (tmp_path / "file" / "p.parquet", "/proc/p.parquet"):
        with pytest.raises(SgpoError, match="cannot write the profile"):
            profile_command.run(compose(arguments(folder)), Path(output), force=True)
    with pytest.raises(SgpoError, match=r"p\.jsonl: a profile is written as parquet; name it .*p\.parquet"):
        profile_command.run(compose(arguments(folder)), tmp_path / "p.jsonl")


def test_a_model_that_cannot_be_loaded_is_named_before_anything_is_sampled(folder, tmp_path):
    from sgpo_verl.binding import profile_command

    shutil.copytree(folder / "model", tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{")
    plain = compose(arguments(folder, **{"actor_rollout_ref.model.path": tmp_path / "model"}))
    with pytest.raises(SgpoError, match=r"actor_rollout_ref.model.path=.*/model: cannot be loaded"):
        profile_command.run(plain, tmp_path / "p.parquet", force=False)


def test_the_callback_ends_the_process_with_one_line(folder, profiled, capsys):
    config = OmegaConf.create(compose(arguments(folder, **{"sgpo.profile.path": "/no/such.parquet"})))
    with pytest.raises(SystemExit) as stop:
        Preflight().on_job_start(config)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("sgpo: /no/such.parquet: no such profile")


def test_a_plugin_that_verl_did_not_load_is_said_before_the_trainer_is_unknown(folder, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "sgpo_verl.binding.register")
    with pytest.raises(SystemExit) as stop:
        Preflight().on_job_start(OmegaConf.create(compose(arguments(folder))))
    assert stop.value.code == 2
    assert "sgpo: verl did not load the plugin: `sgpo doctor` shows why" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "code", "words"),
    [
        ("a check", 2, "sgpo: cannot be checked: ZeroDivisionError: ours ("),
        ("their examination", 1, "Traceback"),
    ],
)
def test_a_mistake_of_ours_in_the_callback_ends_the_process_too(folder, monkeypatch, capsys, place, code, words):
    def broken(*given):
        raise ZeroDivisionError("ours")

    if place == "their examination":
        monkeypatch.setattr("sgpo_verl.binding.preflight.examine", broken)
    else:
        monkeypatch.setattr("sgpo_verl.binding.preflight.CHECKS", (("ours", broken),))
    with pytest.raises(SystemExit) as stop:
        Preflight().on_job_start(OmegaConf.create(compose(arguments(folder))))
    assert stop.value.code == code
    said = capsys.readouterr().err
    assert said.startswith(words) and "ZeroDivisionError: ours" in said


def test_files_on_remote_storage_are_left_to_verl(folder, profiled):
    more = {"data.train_files": "hdfs://name/train.parquet", "sgpo.profile.allow_mismatch": True}
    preflight(folder, **{"sgpo.profile.path": profiled, **more})


@pytest.mark.stack
def test_the_training_command_itself_ends_with_one_line_before_ray_starts(folder, tmp_path):
    process = tiny.train(tmp_path, arguments(folder, **{"+sgpo.group_sise.max": 8}))
    log = (tmp_path / "log").read_text()
    assert process.returncode == 2
    assert log.splitlines()[-1].startswith("sgpo: sgpo.group_sise: no such setting; did you mean sgpo.group_size?")
    assert "Traceback" not in log
    assert "Started a local Ray instance" not in log
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.stack
def test_what_only_the_data_shows_is_the_last_line_too(folder, profiled, tmp_path):
    data = tiny.make_data(tmp_path / "train.parquet", 50)
    more = {"data.train_files": data, "sgpo.profile.path": profiled, "sgpo.profile.allow_mismatch": True}
    process = tiny.train(tmp_path / "run", arguments(folder, **more))
    log = (tmp_path / "run" / "log").read_text()
    assert process.returncode == 2
    assert log.splitlines()[-1].startswith(f"sgpo: {profiled}: has no counts for 2 of 50 prompts")
