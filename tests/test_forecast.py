"""The forecast, worked out by hand."""

from dataclasses import astuple, replace

import pytest
from profiles import make_profile

from sgpo_verl.config import load_settings
from sgpo_verl.cost import ModelShape
from sgpo_verl.forecast import forecast
from sgpo_verl.plan import make_plan
from sgpo_verl.schedule import RunNumbers

# 4 prompts of p = 1/2 (group size 2) and 4 trivial ones; prompts of 10 tokens, responses of 20
PROFILE = make_profile([4, 4, 4, 4, 8, 8, 8, 8], trials=8, prompt=10, response=20.0)
NUMBERS = RunNumbers(train_batch_size=4, rollout_n=4, mini_batch_size=4)


def both(numbers: RunNumbers = NUMBERS, shape: ModelShape | None = None, **settings):
    return forecast(make_plan(PROFILE, load_settings(settings), numbers), shape)


def test_stock_grpo_on_all_prompts():
    stock, _ = both(shape=ModelShape(1, 0))
    # 8 prompts / 4 = 2 steps of 4 groups x 4 rollouts
    assert (stock.steps, stock.rollouts) == (2, 32)
    # a step reads 4 x 10 and generates 16 x 20 = 360 tokens; trains 16 x 30 = 480
    assert (stock.generated_tokens, stock.trained_tokens) == (720, 960)
    # 2 x 720 to generate, (1 scoring + 3) x 2 x 960 to train, no profile
    assert (stock.flops, stock.flops_profile) == (1440 + 7680, 0)
    # p = 1/2, n = 4: 1 - 2/16 = 0.875; trivial ones 0; half each
    assert stock.mixed == 0.4375


def test_the_plan_with_its_profile():
    _, ours = both(shape=ModelShape(1, 0))
    # 4 prompts x 2 rollouts fit in one step of 16; the profile took 8 x 8 samples
    assert (ours.steps, ours.rollouts) == (1, 16 + 64)
    # the step reads 8 x 10 and generates 16 x 20 tokens, trains 480
    assert (ours.generated_tokens, ours.trained_tokens) == (400, 480)
    # profile: 2 x (8 x 10 + 64 x 20) = 2720; step: 2 x 400 + 4 x 2 x 480
    assert (ours.flops_profile, ours.flops) == (2720, 2720 + 800 + 3840)
    assert ours.mixed == 0.5  # 1 - 2/4


def test_rows_left_out_are_generated_and_not_trained():
    stock, ours = both(shape=ModelShape(1, 0), prune=True)
    # half of the groups are mixed: 8 of the 16 rollouts are trained, 240 tokens; the baseline trains all of its own
    assert (ours.generated_tokens, ours.trained_tokens) == (400, 240)
    assert ours.flops == 2720 + 800 + 1920
    assert stock.trained_tokens == 960


def test_attention_is_counted_at_the_mean_length():
    stock, ours = both(shape=ModelShape(0, 1))
    # a stock step: 4 x 10^2 + 16 x (2 x 10 x 20 + 20^2) = 13,200 positions to generate, 480 x 30 per forward pass
    assert stock.flops == 2 * (2 * 13_200 + 4 * 2 * 14_400)
    # profile: 8 x 100 + 64 x 800 = 52,000; step: 8 x 100 + 16 x 800 = 13,600
    assert ours.flops == 2 * 52_000 + 2 * 13_600 + 4 * 2 * 14_400


def test_prompts_that_could_not_be_profiled_cost_stock_grpo_as_much_as_the_others_and_teach_it_nothing():
    table = PROFILE.table.copy()
    table.loc[4:, ["trials", "successes", "prompt_tokens", "response_tokens_mean"]] = 0
    stock, ours = forecast(make_plan(replace(PROFILE, table=table), load_settings({}), NUMBERS), ModelShape(1, 0))
    # still 2 steps of 360 generated and 480 trained tokens; p = 1/2 of four prompts: 0.875, p = 0 of four
    assert (stock.steps, stock.generated_tokens, stock.trained_tokens, stock.mixed) == (2, 720, 960, 0.4375)
    # the profile took 4 x 8 samples: 2 x (4 x 10 + 32 x 20)
    assert (ours.rollouts, ours.flops_profile) == (16 + 32, 1360)


def test_without_lengths_tokens_and_flops_are_zero_and_the_rest_is_there():
    made = make_plan(make_profile([4] * 8, prompt=0, response=0.0), load_settings({}), NUMBERS)
    stock, ours = forecast(made, ModelShape(1, 1))
    assert (stock.generated_tokens, stock.flops, ours.trained_tokens, ours.flops) == (0, 0, 0, 0)
    assert (stock.rollouts, ours.rollouts, stock.mixed) == (32, 16 + 64, 0.875)


def test_scoring_passes_and_update_epochs_are_counted():
    stock, _ = both(replace(NUMBERS, scoring_passes=2, ppo_epochs=2), ModelShape(1, 0))
    assert stock.flops == 1440 + (2 + 6) * 2 * 960


def test_without_the_model_flops_are_zero_and_the_rest_is_there():
    stock, ours = both()
    assert (stock.flops, ours.flops, ours.flops_profile) == (0, 0, 0)
    assert (stock.rollouts, ours.rollouts) == (32, 80)


def test_fewer_prompts_than_a_batch_are_no_step_of_stock_grpo():
    stock, ours = both(replace(NUMBERS, train_batch_size=16, mini_batch_size=16, rollout_n=1), ModelShape(1, 0))
    assert astuple(stock) == (0, 0, 0, 0, 0, 0, 0, 0)
    assert ours.steps == 1


@pytest.mark.parametrize("total", [1, 5])
def test_steps_are_the_plans(total):
    _, ours = both(replace(NUMBERS, total_training_steps=total))
    assert (ours.steps, ours.rollouts) == (total, 16 * total + 64)
