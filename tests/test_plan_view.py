"""The plan as people see it: tables whose numbers are the plan's, and a picture."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import make_profile

from sgpo_verl import plan_view
from sgpo_verl.config import load_settings
from sgpo_verl.cost import ModelShape
from sgpo_verl.errors import SgpoError
from sgpo_verl.plan import make_plan
from sgpo_verl.schedule import RunNumbers

# 4 prompts of group size 2, 2 of 8, 2 trivial and 20 unsolved ones, of which 2 are drawn into each phase
SUCCESSES = [4] * 4 + [1] * 2 + [8] * 2 + [0] * 20
NUMBERS = RunNumbers(train_batch_size=4, rollout_n=4, mini_batch_size=4)
SHAPE = ModelShape(1000, 10)


def plan(successes=SUCCESSES, trials: int = 8, numbers: RunNumbers = NUMBERS):
    return make_plan(make_profile(successes, trials), load_settings({}), numbers)


@pytest.fixture
def shown(monkeypatch, capsys):
    """The lines that a plan prints, runs of spaces as one."""
    monkeypatch.setenv("COLUMNS", "120")

    def lines(made, shape=SHAPE) -> list[str]:
        plan_view.show(made, shape)
        return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]

    return lines


def test_classes_with_their_counts_and_what_happens_to_them(shown):
    lines = shown(plan())
    # 2, 6 and 20 of 28
    assert "trivial 2 7% removed (pass rate above 0.75)" in lines
    assert "learnable 6 21% trained on" in lines
    assert "unsolved 20 71% 2 drawn into each phase" in lines


def test_a_method_that_filters_nothing_has_no_classes(shown):
    made = make_plan(make_profile(SUCCESSES), load_settings({"method": "bayes"}), NUMBERS)
    lines = shown(made)
    assert lines[0] == "pass rates"
    assert not any("trivial" in line for line in lines)


def test_pass_rates_have_a_line_per_possible_rate_and_a_bar_in_proportion(shown):
    lines = shown(plan())
    assert f"0 20 {'█' * 40}" in lines
    assert f"0.125 2 {'█' * 4}" in lines  # 40 x 2 / 20
    assert "0.25 0" in lines
    assert f"0.5 4 {'█' * 8}" in lines
    assert f"1 2 {'█' * 4}" in lines


def test_phases_with_their_steps(shown):
    lines = shown(plan())
    # 6 prompts x 2 = 12 of 16 rollouts: one step of 8 prompts; 4 x 8 = 32: two steps of 2 prompts
    assert "2 4 2 1 16 8" in lines
    assert "8 2 2 2 16 2" in lines


def test_the_forecast_beside_stock_grpo(shown):
    lines = shown(plan())
    # 28 prompts / 4 = 7 steps x 16 = 112 rollouts; ours 3 x 16 and 28 x 8 = 224 of the profile: 112 / 272
    assert "training steps 7 3 2.33x" in lines
    assert "rollouts, profile included 112 272 0.41x" in lines
    # trained: 16 x 30 = 480 per step
    assert "tokens trained on 3,360 1,440 2.33x" in lines
    assert any(line.startswith("FLOPs, profile included") for line in lines)


def test_without_the_model_there_are_no_flops_and_a_way_to_get_them(shown):
    *tables, advice = shown(plan(), None)
    assert not any("FLOPs" in line for line in tables)
    assert advice == "FLOPs need the model: add actor_rollout_ref.model.path=<local folder>"


def test_fewer_prompts_than_a_batch_show_no_stock_grpo(shown):
    lines = shown(plan(numbers=RunNumbers(train_batch_size=64, rollout_n=1, mini_batch_size=64)))
    assert "training steps 2" in lines
    assert "Stock GRPO would not start: 28 prompts do not fill one step of 64." in lines


@settings(deadline=None)
@given(st.integers(1, 64).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(0, n), min_size=1))))
def test_every_prompt_is_in_one_bin(counts):
    trials, successes = counts
    successes = [1, *successes]
    made = make_plan(make_profile(successes, trials), load_settings({"filter": {"max_pass_rate": 1.0}}), NUMBERS)
    edges, counted = plan_view.pass_rate_bins(made)
    assert counted.sum() == len(successes)
    assert counted.shape == (3, len(edges) - 1)
    assert edges[0] < 0
    assert edges[-1] > 1
    if trials <= 20:  # a bin per possible rate
        assert counted.sum(axis=0).tolist() == np.bincount(successes, minlength=trials + 1).tolist()


def model(folder, layers: int):
    folder.mkdir()
    config = {"hidden_size": 8, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 16}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def config(path):
    return {"actor_rollout_ref": {"model": {"path": path}}}


def test_the_shape_is_the_commands_model_else_the_profiles_else_unknown(tmp_path):
    mine, profiled = model(tmp_path / "mine", 1), model(tmp_path / "profiled", 2)
    profile = make_profile([1])
    profile.metadata.model["path"] = profiled
    assert plan_view.shape_of(config(mine), profile).parameters == 640
    assert plan_view.shape_of(config("some/hub-name"), profile).parameters == 1280
    assert plan_view.shape_of(config(None), profile).parameters == 1280
    assert plan_view.shape_of(config("some/hub-name"), make_profile([1])) is None


@pytest.mark.parametrize(("shape", "trials"), [(SHAPE, 8), (None, 8), (SHAPE, 100)])
def test_the_picture_is_a_png_and_nothing_else_is_left(tmp_path, shape, trials):
    successes = [s * trials // 8 for s in SUCCESSES]
    plan_view.draw(plan(successes, trials), shape, tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert os.listdir(tmp_path) == ["plan.png"]


@pytest.mark.parametrize("name", ["plan.jpg", "plan", "nowhere/plan.png", "folder.png"])
def test_a_place_that_takes_no_png_is_refused(tmp_path, name):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(SgpoError, match=rf"--plot .*{name}"):
        plan_view.draw(plan(), SHAPE, tmp_path / name)
    assert os.listdir(tmp_path) == ["folder.png"]


@pytest.mark.parametrize("shape", [SHAPE, None])
def test_a_profile_without_lengths_forecasts_no_tokens_and_says_why(shown, shape):
    made = make_plan(make_profile(SUCCESSES, prompt=0, response=0.0), load_settings({}), NUMBERS)
    *tables, reason = shown(made, shape)
    assert reason == "No tokens and FLOPs: this profile has no prompt and response lengths."
    assert not any("tokens" in line or "FLOPs" in line for line in tables)
    assert "rollouts, profile included 112 272 0.41x" in tables


def test_without_lengths_no_model_is_read(tmp_path):
    assert plan_view.shape_of(config(model(tmp_path / "mine", 1)), make_profile([1], response=0.0)) is None


def test_prompts_that_could_not_be_profiled_are_listed_and_left_out(shown):
    profile = make_profile([8, 4, 2, 1, 0, 0])
    made = make_plan(replace(profile, table=profile.table.assign(trials=[8] * 5 + [0])), load_settings({}), NUMBERS)
    lines = shown(made)
    assert "failed 1 17% left out (could not be profiled)" in lines
    assert "unsolved 1 17% 0 drawn into each phase" in lines
    assert "0 1 " + "█" * 40 in lines  # the unsolved one alone has a pass rate of 0


def test_without_such_prompts_there_is_no_line_for_them(shown):
    assert not any(line.startswith("failed") for line in shown(plan()))
