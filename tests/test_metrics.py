"""What is logged of a step and of a run."""

import json

import pytest
from profiles import make_profile

from sgpo_verl.cost import ModelShape, StepTokens
from sgpo_verl.errors import SgpoError
from sgpo_verl.methods.base import Outcome
from sgpo_verl.metrics import Ledger, StepRollouts, StepTotals, group_metrics

SHAPE = ModelShape(1, 0)
STEP = StepTokens(groups=2, prompt_tokens=20, rows=4, response_tokens=80, trained=128, trained_rows=5, epochs=2)
OUTCOMES = [Outcome(0, 2, 1, 0.5), Outcome(1, 2, 2, 1.0), Outcome(2, 4, 0, 0.0), Outcome(3, 8, 7, 0.9)]


@pytest.mark.parametrize(
    ("size", "successes", "kind"),
    [(2, 1, "mixed"), (2, 2, "all_correct"), (2, 0, "all_wrong"), (1, 1, "all_correct"), (1, 0, "all_wrong")],
)
def test_kinds_of_groups(size, successes, kind):
    assert Outcome(0, size, successes, 0.0).kind == kind


def test_shares_of_groups_and_their_mean_size():
    assert group_metrics(OUTCOMES) == {
        "group/frac_mixed": 0.5,
        "group/frac_all_correct": 0.25,
        "group/frac_all_wrong": 0.25,
        "group/size_mean": 4.0,  # (2 + 2 + 4 + 8) / 4
    }


def test_no_groups_have_no_shares():
    assert group_metrics([]) == {}


def test_a_step_counts_padding_rows_apart_and_their_tokens_as_trained():
    totals = StepTotals()
    totals.add(OUTCOMES, STEP, StepRollouts(4, 3, padding=1))
    assert totals.metrics() == group_metrics(OUTCOMES) | {
        "rollouts/generated": 4,
        "rollouts/trained": 3,
        "rollouts/padding": 1,
        "tokens/generated": 100,
        "tokens/trained": 128,
    }


def test_a_step_of_several_local_updates_is_their_sum():
    totals = StepTotals()
    totals.add(OUTCOMES[:1], STEP, StepRollouts(4, 3, padding=1))
    totals.add(OUTCOMES[1:], STEP, StepRollouts(4, 4))
    assert totals.metrics() == group_metrics(OUTCOMES) | {
        "rollouts/generated": 8,
        "rollouts/trained": 7,
        "rollouts/padding": 1,
        "tokens/generated": 200,
        "tokens/trained": 256,
    }


def test_totals_begin_with_the_profile():
    # 2 prompts x 10 tokens and 16 samples x 20: 2 x 340 FLOPs
    ledger = Ledger.after_profile(SHAPE, make_profile([0, 8], trials=8, prompt=10, response=20.0))
    assert ledger.metrics() == {
        "flops/profile": 680,
        "flops/generate": 0,
        "flops/train": 0,
        "flops/total": 680,
        "rollouts/profile": 16,
        "rollouts/total": 16,
        "tokens/total_trained": 0,
        "seconds/profile": 4.5,
    }


def test_totals_add_up_over_steps():
    ledger = Ledger(flops_profile=1000.0, rollouts_profile=8)
    ledger.add(SHAPE, STEP, 4)
    ledger.add(SHAPE, STEP, 4)
    # per step: 2 x 100 to generate; (1 scoring + 3 x 2 epochs) x 2 x 128 = 1792 to train; 2 epochs x 128 tokens
    assert ledger.metrics() == {
        "flops/profile": 1000,
        "flops/generate": 400,
        "flops/train": 3584,
        "flops/total": 4984,
        "rollouts/profile": 8,
        "rollouts/total": 16,
        "tokens/total_trained": 512,
        "seconds/profile": 0,
    }


def test_totals_survive_a_checkpoint():
    old, new = Ledger(flops_profile=1.5, seconds_profile=2.5), Ledger()
    old.add(SHAPE, STEP, 4)
    new.load_state_dict(json.loads(json.dumps(old.state_dict())))
    assert new == old


def test_a_checkpoint_without_a_total_is_refused_by_its_name():
    state = {key: value for key, value in Ledger().state_dict().items() if key != "flops_train"}
    with pytest.raises(SgpoError, match=r"checkpoint: .*flops_train"):
        Ledger().load_state_dict(state)
