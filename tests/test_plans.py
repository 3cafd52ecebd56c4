"""Plans of every method, with a profile and without: schedules, ablations, beliefs, and what a checkpoint must agree on."""

import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import make_profile

from sgpo_verl.config import load_settings
from sgpo_verl.errors import SgpoError
from sgpo_verl.methods.base import Outcome
from sgpo_verl.methods.curriculum import Phase
from sgpo_verl.methods.paper import Class
from sgpo_verl.parts import PARTS
from sgpo_verl.plan import make_plan, merged, plan_without_profile
from sgpo_verl.schedule import RunNumbers

# 8 prompts of group size 2, 4 of 4, 2 of 8, 2 trivial ones, none unsolved
SUCCESSES = [3] * 8 + [2] * 4 + [1] * 2 + [8] * 2
NUMBERS = RunNumbers(train_batch_size=4, rollout_n=4, mini_batch_size=4)  # 16 rollouts per step, one update


def plan(successes=SUCCESSES, numbers: RunNumbers = NUMBERS, **settings):
    return make_plan(make_profile(successes), load_settings(settings), numbers).plan


# --- every method, with a profile and without ------------------------------------------------------------------------

METHODS = sorted(PARTS)
WITHOUT_PROFILE = [name for name in METHODS if not load_settings({"method": name}).needs_profile]
WIDE = RunNumbers(train_batch_size=4, rollout_n=8, mini_batch_size=4)  # 32 rollouts per step; AERO's 8 per prompt, too
KEYS_P = [f"toy:{i}" for i in range(18)]


def bare(numbers: RunNumbers = WIDE, keys_P=KEYS_P, **settings):
    """A plan from nothing but the prompts."""
    return plan_without_profile(keys_P, load_settings(settings), numbers)


def whole_run(made) -> list[list[tuple[int, int]]]:
    """Every step's groups, mixed and unmixed ones seen by turns."""
    method, posterior = made.start()
    steps = []
    for _ in range(made.total_steps):
        groups = method.next_groups(method.step_rollouts())
        seen = [Outcome(prompt, n, n * (prompt % 3) // 2, (prompt % 3) / 2) for prompt, n in groups]
        seen = [replace(o, successes=min(o.successes, o.size)) for o in seen]
        method.observe(seen)
        if posterior is not None:
            posterior.observe(seen)
        steps.append(groups)
    assert method.metrics()["curriculum/progress"] == 1.0
    return steps


def test_all_methods_but_sgpo_do_without_a_profile():
    assert [name for name in METHODS if name not in WITHOUT_PROFILE] == ["paper"]


@pytest.mark.parametrize("method", WITHOUT_PROFILE)
@pytest.mark.parametrize(
    "more",
    [{}, {"total_epochs": 3}, {"total_training_steps": 2}, {"total_epochs": 2, "total_training_steps": 99}],
    ids=str,
)
def test_methods_that_need_no_profile_take_the_steps_of_stock_verl(method, more):
    numbers = replace(WIDE, **more)
    # 18 prompts / 4: 4 steps an epoch, the rest of 2 left out; 4, 12, 2, 8
    assert bare(numbers, method=method).total_steps == numbers.stock_steps(18) in (4, 12, 2, 8)
    assert bare(numbers, method=method).steps_per_pass == 4
    profiled = plan([4] * 9 + [8] * 9, numbers, method=method)
    assert (profiled.total_steps, profiled.steps_per_pass) == (numbers.stock_steps(18), 4)


@pytest.mark.parametrize("method", WITHOUT_PROFILE)
@pytest.mark.parametrize("profiled", [False, True])
def test_every_step_of_a_run_has_exactly_its_budget(method, profiled):
    numbers = replace(WIDE, total_epochs=3)
    made = plan([4] * 6 + [0] * 6 + [8] * 6, numbers, method=method) if profiled else bare(numbers, method=method)
    steps = whole_run(made)
    assert [sum(n for _, n in groups) for groups in steps] == [32] * 12
    if method != "bayes":
        assert {n for groups in steps for _, n in groups} == {8}
    assert {prompt for groups in steps for prompt, _ in groups} <= set(range(18))


def test_sgpos_run_has_exactly_its_budget_too():
    steps = whole_run(plan(SUCCESSES, WIDE, curriculum={"epochs": 2}))
    assert {sum(n for _, n in groups) for groups in steps} == {32}


@pytest.mark.parametrize("method", ["prune", "aero"])
def test_without_filter_and_phases_every_prompt_is_drawn_once_an_epoch(method):
    made = bare(replace(WIDE, train_batch_size=6, mini_batch_size=6), method=method)  # 18 = 3 x 6
    drawn = [prompt for groups in whole_run(made) for prompt, _ in groups]
    assert sorted(drawn) == list(range(18)) != drawn


def test_a_step_of_greater_or_fewer_rollouts_changes_how_many_steps_an_epoch_takes():
    # 18 prompts: 64 rollouts hold 8 groups of 8, 16 hold 2
    assert [bare(method="prune", batch={"rollouts": n}).total_steps for n in (64, 32, 16)] == [2, 4, 9]
    # AERO begins with 8 of each, whatever rollout.n: 4 x 16 = 64 rollouts are 8 prompts
    assert bare(replace(WIDE, rollout_n=16), method="aero").total_steps == 2


def test_groups_that_are_chosen_may_be_smaller_than_rollout_n():
    # One step of 4 rollouts is less than a group of 8: counted as one prompt of stock GRPO.
    made = bare(method="bayes", group_size={"max": 4}, batch={"rollouts": 4})
    assert (made.total_steps, made.steps_per_pass) == (18, 18)
    assert {sum(n for _, n in groups) for groups in whole_run(made)} == {4}
    made = plan([4] * 18, WIDE, method="bayes", filter="profile", group_size={"max": 4}, batch={"rollouts": 4})
    assert made.total_steps == 18


def test_a_resumed_method_goes_on_as_planned():
    for method in METHODS:
        made = plan([4] * 9 + [2] * 5 + [1] * 4, replace(WIDE, total_training_steps=30), method=method)
        (old, believed), (new, restored) = made.start(), made.start()
        for _ in range(7):
            seen = [Outcome(p, n, (p % 3 == 0) * n, float(p % 3 == 0)) for p, n in old.next_groups(32)]
            old.observe(seen)
            if believed is not None:
                believed.observe(seen)
        new.load_state_dict(old.state_dict())
        if believed is not None:
            restored.load_state_dict(believed.state_dict())
        assert [new.next_groups(32) for _ in range(10)] == [old.next_groups(32) for _ in range(10)]


@pytest.mark.parametrize("method", WITHOUT_PROFILE)
def test_too_few_prompts_for_a_step_are_refused_with_the_way_out(method):
    with pytest.raises(
        SgpoError, match=r"data\.train_files: its 3 prompts do not fill one step of 4: lower data\.train"
    ):
        bare(keys_P=KEYS_P[:3], method=method)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"method": "aero"}, r"sgpo\.aero\.explore=8"),
        ({"method": "greso"}, r"actor_rollout_ref\.rollout\.n=8"),
        ({"method": "prune"}, r"actor_rollout_ref\.rollout\.n=8"),
        ({"method": "bayes"}, r"sgpo\.group_size\.max=8"),
    ],
)
def test_a_step_that_holds_no_group_is_refused_by_what_sizes_it(settings, key):
    with pytest.raises(SgpoError, match=rf"{key} is more than the 4 rollouts of a step \(sgpo\.batch\.rollouts\)"):
        bare(batch={"rollouts": 4}, **settings)


def test_a_prompt_of_the_baseline_is_worth_rollout_n_but_where_rescue_adds():
    worth = {method: plan(SUCCESSES, WIDE, method=method).rollouts_per_prompt for method in METHODS}
    assert worth == {"paper": 8, "prune": 8, "greso": 8, "bayes": 8, "aero": None}
    assert plan(batch={"unit": "prompts"}).rollouts_per_prompt is None


# --- ablations -------------------------------------------------------------------------------------------------------

# 2 trivial prompts, 8 of group size 2, 4 of 4, 2 of 8, 10 unsolved
MANY = [8] * 2 + [3] * 8 + [2] * 4 + [1] * 2 + [0] * 10


@pytest.mark.parametrize("by", ["profile", "none"])
@pytest.mark.parametrize("order", ["phases", "shuffle"])
@pytest.mark.parametrize("allocation", ["profile", "uniform"])
@pytest.mark.parametrize("advantage", ["grpo", "posterior"])
def test_the_parts_of_sgpo_can_be_taken_out_one_by_one(by, order, allocation, advantage):
    parts = {"filter": by, "curriculum": order, "allocation": allocation, "advantage": advantage}
    made = plan(MANY, replace(NUMBERS, total_epochs=4), **parts)
    steps = whole_run(made)
    assert {sum(n for _, n in groups) for groups in steps} == {16}
    drawn = {prompt for groups in steps for prompt, _ in groups}
    # removed: 2 trivial ones, and all unsolved ones but one, drawn into each phase (another in each, maybe)
    assert drawn == set(range(26)) if by == "none" else (set(range(2, 16)) < drawn and not drawn & {0, 1})
    # three group sizes; of everyone, unsolved ones train in groups of 8 and trivial ones of 2
    assert len(made.phases) == (3 if order == "phases" else 1)
    sizes = {n for groups in steps for _, n in groups}
    assert sizes == {4} if allocation == "uniform" else sizes >= {2, 4, 8}
    assert (made.prior is not None) == (made.start()[1] is not None) == (advantage == "posterior")


def test_an_ablation_down_to_stock_grpo_takes_its_steps():
    parts = {"filter": "none", "curriculum": "shuffle", "allocation": "uniform"}
    assert plan(MANY, **parts).total_steps == NUMBERS.stock_steps(26) == 6
    assert bare(NUMBERS, [str(i) for i in range(26)], **parts).total_steps == 6


@pytest.mark.parametrize(
    ("parts", "steps"),
    [
        # 10 trivial and easy ones x 2, 4 x 4, 12 x 8 = 132 rollouts in steps of 16
        ({"filter": "none", "curriculum": "shuffle"}, 9),
        # 8 x 2 + 4 x 4 + 2 x 8 + 1 unsolved x 8 = 56
        ({"curriculum": "shuffle"}, 4),
        # (8 + 4 + 2 + 1) prompts, 4 a step
        ({"curriculum": "shuffle", "allocation": "uniform"}, 4),
        # 8 + 1, 4 + 1, 2 + 1 prompts, 4 a step
        ({"allocation": "uniform"}, 3 + 2 + 1),
        # 20 x 1, of 4 x 4 and of 12 x 8: phases of 20, 16 and 96 rollouts
        ({"filter": "none"}, 2 + 1 + 6),
    ],
)
def test_steps_of_an_ablation_are_passes_over_its_prompts(parts, steps):
    assert (plan(MANY, **parts).total_steps, plan(MANY, **parts).steps_per_pass) == (steps, steps)


@settings(deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=40), st.integers(1, 3), st.integers(0, 3))
def test_a_shuffled_run_draws_every_prompt_of_the_profile_epochs_times(successes, epochs, seed):
    if not any(1 <= s <= 6 for s in successes):
        return
    made = plan(successes, curriculum={"order": "shuffle", "epochs": epochs}, seed=seed)
    drawn = Counter(prompt for groups in whole_run(made) for prompt, _ in groups)
    assert all(drawn[p] >= epochs for p in made.phases[0].prompts_M)


def test_phases_become_one_and_prompts_keep_their_group_sizes():
    easy = Phase(2, 2, 1, np.array([4, 1, 7], dtype=np.int32))
    hard = Phase(8, 1, 1, np.array([3, 6], dtype=np.int32))
    one = merged([easy, hard])
    # unsolved: the last phase's, once
    assert (one.prompts_M.tolist(), one.sizes_M.tolist()) == ([4, 1, 3, 6], [2, 2, 8, 8])
    assert (one.learnable, one.unsolved, one.group_size, one.rollouts_per_pass) == (3, 1, 5, 20)
    assert one.sizes_M.dtype == one.prompts_M.dtype == np.int32


def test_prompts_that_could_not_be_sampled_are_not_trained_on_by_any_method():
    profile = make_profile([4] * 12)
    table = profile.table.assign(trials=[0, 8] * 6, successes=[0, 4] * 6)
    for method in METHODS:
        made = make_plan(replace(profile, table=table), load_settings({"method": method}), NUMBERS)
        drawn = {prompt for groups in whole_run(made.plan) for prompt, _ in groups}
        assert drawn <= set(range(1, 12, 2)) and (made.class_P == Class.FAILED).sum() == 6


# --- beliefs -----------------------------------------------------------------------------------------------------------


def test_a_posterior_begins_with_what_the_profile_saw():
    made = plan([6, 0], replace(WIDE, train_batch_size=2, mini_batch_size=2), method="bayes")
    # weight 1/2 of 8 samples; 10 tokens of prompt and 20 of response
    assert made.prior.a_P.tolist() == [1 + 3, 1]
    assert made.prior.b_P.tolist() == [1 + 1, 1 + 4]
    assert made.prior.tokens_P.tolist() == [30, 30]


def test_a_posterior_without_profile_is_the_prior_alone():
    made = bare(method="bayes", posterior={"successes": 2, "failures": 3})
    assert made.prior.a_P.tolist() == [2] * 18 and made.prior.b_P.tolist() == [3] * 18
    assert made.prior.tokens_P.tolist() == [0] * 18


def test_each_start_believes_the_same_whatever_the_last_one_saw():
    made = bare(method="bayes")
    method, posterior = made.start()
    assert method.posterior is posterior
    posterior.observe([Outcome(0, 8, 8, 1.0)])
    assert made.start()[1].a_P.tolist() == made.prior.a_P.tolist() == [1] * 18


@pytest.mark.parametrize("method", [name for name in METHODS if name != "bayes"])
def test_methods_without_a_posterior_believe_nothing(method):
    made = plan(MANY, WIDE, method=method)
    assert made.prior is None and made.start()[1] is None


# --- what a checkpoint must agree on -----------------------------------------------------------------------------------

STEPS = replace(WIDE, total_training_steps=3)


@pytest.mark.parametrize(
    ("base", "other", "difference"),
    [
        ({"method": "prune"}, {"advantage": "posterior"}, "sgpo.advantage"),
        ({"method": "prune"}, {"curriculum": "greso"}, "sgpo.curriculum"),
        ({"method": "prune"}, {"seed": 1}, "sgpo.seed"),
        ({"method": "bayes"}, {"allocation": "uniform"}, "sgpo.allocation"),
        ({"method": "bayes"}, {"posterior": {"memory": 0.5}}, "sgpo.posterior"),
        ({"method": "bayes"}, {"group_size": {"max": 4}}, "sgpo.group_size"),
        ({"method": "greso"}, {"greso": {"step": 0.02}}, "sgpo.greso"),
        ({"method": "greso"}, {"filter": "none"}, "sgpo.filter"),
        ({"method": "aero"}, {"aero": {"most": 32}}, "sgpo.aero"),
        ({"method": "prune", "advantage": "aero"}, {"aero": {"keep": 2}}, "sgpo.aero"),
    ],
)
def test_a_part_that_decides_who_is_drawn_or_learnt_from_must_be_the_same(base, other, difference):
    state = json.loads(json.dumps(bare(STEPS, **base).fingerprint()))
    assert state == bare(STEPS, **base).fingerprint()
    changed = bare(STEPS, **{**base, **other}).fingerprint()
    assert difference in {key for key in state.keys() | changed.keys() if state.get(key) != changed.get(key)}


@pytest.mark.parametrize(
    ("method", "other"),
    [("prune", {"greso": {"step": 0.02}}), ("prune", {"aero": {"keep": 2}}), ("greso", {"posterior": {"memory": 0.5}})],
)
def test_settings_that_a_run_does_not_read_may_change(method, other):
    assert bare(STEPS, method=method, **other).fingerprint() == bare(STEPS, method=method).fingerprint()


@pytest.mark.parametrize("method", ["prune", "greso"])
@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"shuffle": False}, "data.shuffle: checkpoint True, run False"),
        # as many rollouts a step, in other groups
        (
            {"train_batch_size": 8, "rollout_n": 4, "mini_batch_size": 8, "total_training_steps": 2},
            "actor_rollout_ref.rollout.n: checkpoint 8, run 4",
        ),
    ],
)
def test_numbers_of_the_run_that_decide_who_is_drawn_must_be_the_same(method, numbers, message):
    base = replace(STEPS, total_training_steps=2)
    state = bare(base, method=method).start()[0].state_dict()
    other = bare(replace(base, **numbers), method=method).start()[0]
    with pytest.raises(SgpoError, match=re.escape(message)):
        other.load_state_dict(state)
    bare(base, method=method).start()[0].load_state_dict(state)


def test_the_prompts_themselves_must_be_the_same():
    first = bare(method="prune").fingerprint()["profile"]
    assert bare(method="prune", keys_P=KEYS_P).fingerprint()["profile"] == first
    assert bare(method="prune", keys_P=KEYS_P[::-1]).fingerprint()["profile"] != first
    assert bare(method="prune", keys_P=[*KEYS_P[:-1], "toy:99"]).fingerprint()["profile"] != first


# --- data.shuffle ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["prune", "greso", "aero"])
def test_without_shuffling_prompts_come_in_the_order_of_the_data(method):
    numbers = replace(WIDE, shuffle=False)
    # as a profile's clusters would list them, they are in another order
    for made in (bare(numbers, method=method), plan([1, 4, 2, 8, 0, 4] * 3, numbers, method=method)):
        chooser = made.start()[0]
        drawn = [prompt for _ in range(2) for prompt, _ in chooser.next_groups(18 * 8)]
        assert drawn == [*range(18)] * 2
    shuffled = bare(method=method).start()[0]
    assert [prompt for prompt, _ in shuffled.next_groups(18 * 8)] != [*range(18)]


def test_the_order_of_phases_and_of_beliefs_is_not_the_datas_to_decide():
    for method in ("paper", "bayes"):
        runs = [
            whole_run(plan(SUCCESSES, replace(NUMBERS, shuffle=shuffle), method=method)) for shuffle in (True, False)
        ]
        assert runs[0] == runs[1]


# --- what cannot teach ----------------------------------------------------------------------------------------------


def test_groups_of_one_against_themselves_are_refused():
    with pytest.raises(SgpoError, match=r"rollout\.n=1: a group of one has no advantage"):
        bare(replace(WIDE, rollout_n=1), method="prune")


def test_a_step_that_is_filled_up_group_by_group_must_divide_into_groups():
    with pytest.raises(SgpoError, match=r"sgpo\.batch\.rollouts=60 does not divide into groups .*rollout\.n=8"):
        bare(method="greso", batch={"rollouts": 60})
