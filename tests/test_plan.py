"""Profile and run numbers -> phases, steps and budgets that agree with each other."""

import json
from dataclasses import replace
from itertools import combinations

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import make_profile

from sgpo_verl.config import load_settings
from sgpo_verl.errors import SgpoError
from sgpo_verl.fingerprint import digest
from sgpo_verl.plan import make_plan
from sgpo_verl.prompts import TEXT
from sgpo_verl.schedule import RunNumbers, share

# 8 prompts of group size 2, 4 of 4, 2 of 8, 2 trivial ones, none unsolved
SUCCESSES = [3] * 8 + [2] * 4 + [1] * 2 + [8] * 2
NUMBERS = RunNumbers(train_batch_size=4, rollout_n=4, mini_batch_size=4)  # 16 rollouts per step, one update


def plan(successes=SUCCESSES, numbers: RunNumbers = NUMBERS, **settings):
    return make_plan(make_profile(successes), load_settings(settings), numbers).plan


def test_a_plan_of_one_pass():
    made = plan()
    assert [(p.group_size, p.learnable, p.unsolved) for p in made.phases] == [(2, 8, 0), (4, 4, 0), (8, 2, 0)]
    # 8 x 2 = 16, 4 x 4 = 16 and 2 x 8 = 16 rollouts per pass: a step of 16 each
    assert (made.steps, made.rollouts, made.total_steps, made.steps_per_pass) == ([1, 1, 1], [16, 16, 16], 3, 3)


@pytest.mark.parametrize(
    ("successes", "epochs", "steps"),
    [
        (SUCCESSES, 3, [3, 3, 3]),
        ([3] * 9, 1, [2]),  # 18 rollouts: the second step is filled from the next pass
        ([3] * 9, 2, [3]),  # 36 rollouts: two passes share a step
        ([3] + [0] * 10, 1, [1]),  # with 1 unsolved: 2 prompts x 2 = 4 rollouts of 16
    ],
)
def test_steps_are_passes_over_the_phase_the_last_step_filled_up(successes, epochs, steps):
    assert plan(successes, curriculum={"epochs": epochs}).steps == steps


def test_steps_count_groups_where_the_budget_is_no_multiple_of_the_group():
    # 15 rollouts hold 1 group of 8 (of 15 rollouts): 10 prompts take 10 steps, not 80 / 15
    made = plan([1] * 10, RunNumbers(train_batch_size=5, rollout_n=3, mini_batch_size=5))
    assert made.steps == [10]
    assert made.steps_per_pass == 10


@settings(deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=40), st.integers(8, 40), st.integers(1, 3), st.integers(0, 3))
def test_training_draws_every_prompt_of_every_phase_at_least_epochs_times(successes, rollouts, epochs, seed):
    if not any(1 <= s <= 6 for s in successes):
        return
    numbers = RunNumbers(train_batch_size=rollouts, rollout_n=1, mini_batch_size=rollouts)
    made = plan(successes, numbers, curriculum={"epochs": epochs}, seed=seed)
    method, drawn, phases_seen = made.start()[0], {}, []
    for _ in range(made.total_steps):
        groups = method.next_groups(method.step_rollouts())
        phases_seen.append(method.phase)
        for prompt, _ in groups:
            drawn[method.phase, prompt] = drawn.get((method.phase, prompt), 0) + 1
    assert phases_seen == [number for number, steps in enumerate(made.steps) for _ in range(steps)]
    for number, phase in enumerate(made.phases):
        assert all(drawn[number, p] >= epochs for p in phase.prompts_M)
    assert method.metrics()["curriculum/progress"] == 1.0


@settings(deadline=None)
@given(st.integers(1, 40))
def test_total_training_steps_is_kept_exactly(total):
    made = plan(numbers=replace(NUMBERS, total_training_steps=total))
    assert made.total_steps == total
    assert len(made.steps) == 3


def test_a_step_of_prompts_holds_the_batch_size_of_prompts():
    made = plan(batch={"unit": "prompts"})
    assert made.rollouts == [8, 16, 32]  # 4 prompts x 2, 4, 8
    assert made.steps == [2, 1, 1]  # 8, 4 and 2 prompts


def test_the_budget_of_a_step_can_be_set():
    assert plan(batch={"rollouts": 32}).rollouts == [32, 32, 32]


def test_given_steps_are_taken():
    made = plan(curriculum={"until": "steps", "steps": [5, 6, 7]})
    assert made.steps == [5, 6, 7]


@pytest.mark.parametrize(
    ("settings", "numbers", "message"),
    [
        ({"curriculum": {"until": "steps", "steps": [5, 6]}}, {}, r"sgpo\.curriculum\.steps=\[5, 6\].*3 phases"),
        ({"curriculum": {"until": "steps", "steps": []}}, {}, r"sgpo\.curriculum\.steps=\[\]: List should have"),
        (
            {"curriculum": {"until": "steps", "steps": [5, 0, 1]}},
            {},
            r"sgpo\.curriculum\.steps\.1=0: Input should be greater",
        ),
        (
            {"curriculum": {"until": "steps", "steps": [1, 1, 1]}},
            {"total_training_steps": 4},
            r"adds up to 3, trainer\.total_training_steps is 4: set one of the two to null",
        ),
        ({"group_size": {"max": 32}}, {}, r"sgpo\.group_size\.max=32 is more than the 16 rollouts of a step"),
        ({"batch": {"rollouts": 4}}, {}, r"more than the 4 rollouts of a step \(sgpo\.batch\.rollouts\)"),
        ({"batch": {"rollouts": 15}}, {"mini_batch_size": 2}, r"sgpo\.batch\.rollouts=15 .* 2 optimizer updates"),
        ({"filter": {"max_pass_rate": 0}}, {}, r"no prompt to train on: of 16, 16 are trivial"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(settings, numbers, message):
    with pytest.raises(SgpoError, match=message):
        plan(numbers=replace(NUMBERS, **numbers), **settings)


@pytest.mark.parametrize(
    ("numbers", "steps"),
    [
        ({}, 25),  # 100 prompts / 4
        ({"total_epochs": 3}, 75),
        ({"total_epochs": 3, "total_training_steps": 30}, 30),
        ({"total_training_steps": 30}, 25),  # verl's loop ends with its epochs
        ({"train_batch_size": 33}, 3),  # the last, smaller batch is dropped
        ({"train_batch_size": 101}, 0),
    ],
)
def test_steps_of_stock_verl(numbers, steps):
    assert replace(NUMBERS, **numbers).stock_steps(100) == steps


@pytest.mark.parametrize(("mini", "updates"), [(4, 1), (2, 2), (3, 2), (1, 4)])
def test_updates_per_step_are_mini_batches_rounded_up(mini, updates):
    assert replace(NUMBERS, mini_batch_size=mini).updates_per_step == updates


@pytest.mark.parametrize(
    ("weights", "total", "expected"),
    [
        ([6, 3, 1], 10, [6, 3, 1]),
        ([98, 1, 1], 10, [8, 1, 1]),
        ([5, 5, 5], 2, [1, 1, 0]),
        ([5, 5], 3, [2, 1]),
        ([1], 7, [7]),
    ],
)
def test_share(weights, total, expected):
    assert share(weights, total) == expected


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=6), st.integers(1, 10**5))
def test_shares_sum_to_the_total_and_are_at_least_one_while_they_last(weights, total):
    parts = share(weights, total)
    assert sum(parts) == total
    assert total < len(weights) or min(parts) >= 1
    by_weight = [part for _, part in sorted(zip(weights, parts, strict=True))]
    assert all(lighter <= heavier + 1 for lighter, heavier in combinations(by_weight, 2))


def test_the_same_plan_resumes_and_another_is_refused_by_what_differs():
    state = json.loads(json.dumps(plan().start()[0].state_dict()))
    plan().start()[0].load_state_dict(state)
    others = {
        "profile: ": plan([3] * 8 + [2] * 4 + [1] * 2 + [8, 7]),
        "sgpo.seed: checkpoint '0', run '1'": plan(seed=1),
        "sgpo.filter: ": plan(filter={"max_pass_rate": 0.7}),
        "sgpo.group_size: ": plan(group_size={"rounding": "ceil"}),
        "sgpo.curriculum: ": plan(curriculum={"until": "plateau"}),
        r"steps per phase: checkpoint \[1, 1, 1\], run \[2, 2, 2\]": plan(curriculum={"epochs": 2}),
        r"rollouts per step: checkpoint \[16, 16, 16\], run \[32, 32, 32\]": plan(batch={"rollouts": 32}),
    }
    for difference, other in others.items():
        with pytest.raises(SgpoError, match=difference):
            other.start()[0].load_state_dict(state)


def changed(**columns):
    """The digest of three prompts, columns replaced."""
    profile = make_profile([3, 2, 1])
    return digest(replace(profile, table=profile.table.assign(**columns)))


def test_the_digest_is_of_keys_trials_and_successes_in_their_order():
    others = [
        changed(prompt_key=["toy:1", "toy:0", "toy:2"]),
        changed(prompt_key=["toy:", "0toy:1", "toy:2"]),  # the same letters, cut elsewhere
        changed(prompt_key=["toy:0", "toy:1", "toy:3"]),
        changed(trials=[8, 8, 9]),
        changed(successes=[2, 3, 1]),
        changed(trials=[3, 2, 1], successes=[8, 8, 8]),
    ]
    assert len({changed(), *others}) == 7
    assert changed(reward_mean=0.5, prompt_tokens=7) == changed()


def test_the_digest_does_not_depend_on_how_the_columns_are_stored():
    assert (
        changed() == "3e4340c0c0957ed6"
    )  # sha256 of lengths 5, 5, 5 as int64, "toy:0toy:1toy:2", 8, 8, 8, 3, 2, 1 as int32
    keys = ["toy:0", "toy:1", "toy:2"]
    chunked = pa.chunked_array([keys[:1], keys[1:]], pa.large_string())
    assert changed(prompt_key=pd.array(chunked, dtype=TEXT)) == changed()
    assert changed(prompt_key=pd.array(["x", *keys], dtype=TEXT)[1:]) == changed()
    assert changed(prompt_key=pd.Series(keys, dtype=object)) == changed()
    assert changed(trials=pd.array([8, 8, 8], dtype="int32")) == changed()


def test_a_plan_holds_nothing_that_is_as_long_as_the_profile_but_positions():
    made = make_plan(make_profile(SUCCESSES), load_settings({}), NUMBERS)
    assert (made.class_P.dtype, len(made.class_P)) == ("int8", 16)
    assert {p.prompts_M.dtype.name for p in made.plan.phases} == {"int32"}
    short = {"settings", "numbers", "phases", "steps", "rollouts", "counts", "prompts"}
    assert set(vars(made.plan)) == short | {"prior", "known"}
    assert made.plan.prior is None
    assert made.plan.known is None


@pytest.mark.parametrize("missing", ["fingerprint", "phase", "drawn", "spent", "total", "rewards"])
def test_an_incomplete_checkpoint_is_refused(missing):
    state = {key: value for key, value in plan().start()[0].state_dict().items() if key != missing}
    with pytest.raises(SgpoError, match=f"checkpoint: .*{missing}"):
        plan().start()[0].load_state_dict(state)


def test_a_checkpoint_of_another_method_is_refused():
    with pytest.raises(SgpoError, match=r"written by sgpo\.method='aero', this run is 'paper'"):
        plan().start()[0].load_state_dict({"method": "aero"})
