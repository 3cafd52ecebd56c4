"""GRESO, AERO and bayes in real runs: what verl dumped is what their rules say."""

import pytest
from methods_run import STEPS, check_rescued, is_mixed, trained

pytestmark = pytest.mark.stack


def test_greso_trains_on_full_steps_of_mixed_groups_and_pays_for_the_others(folder, tmp_path):
    logged, steps = trained(folder, tmp_path, "greso")
    total = 0
    for metrics, groups in zip(logged, steps, strict=True):
        assert [len(group) for group in groups] == [8] * 8
        assert all(map(is_mixed, groups))
        assert metrics["sgpo/rollouts/trained"] == 64
        generated = metrics["sgpo/rollouts/generated"]
        dropped = metrics.get("training/filter_groups/evicted_samples", 0)
        surplus = metrics.get("training/filter_groups/discarded_surplus_samples", 0)
        assert generated == 64 + 8 * (dropped + surplus)
        # of all groups, dropped ones included; a surplus group is mixed
        assert metrics["sgpo/group/frac_mixed"] == pytest.approx((8 + surplus) / (generated / 8))
        total += generated
        assert metrics["sgpo/rollouts/total"] == total
    assert total > STEPS * 64  # half of the prompts have no signal
    assert logged[-1]["sgpo/greso/p_hard"] < 0.5  # in the second pass, where a quarter and more of the groups are hard
    assert logged[-1]["sgpo/greso/frac_skipped"] > 0


def test_aero_rescues_within_the_group_and_trains_on_what_it_keeps(folder, tmp_path):
    more = {"sgpo.aero.explore": 4, "sgpo.aero.most": 9, "sgpo.aero.keep": 3}
    logged, steps = trained(folder, tmp_path, "aero", **more)
    for metrics, groups in zip(logged, steps, strict=True):
        assert len(groups) == 16  # 64 rollouts of the baseline / 4
        kept = check_rescued(groups, explore=4, most=9, keep=3)
        assert metrics["sgpo/rollouts/generated"] == sum(map(len, groups))
        assert metrics["sgpo/rollouts/trained"] == kept
    assert any(len(scores) == 9 for groups in steps for scores in groups)


def test_bayes_spends_an_exact_budget_and_trains_on_mixed_groups(folder, tmp_path):
    logged, steps = trained(folder, tmp_path, "bayes")
    for metrics, groups in zip(logged, steps, strict=True):
        assert sum(map(len, groups)) == metrics["sgpo/rollouts/generated"] == 64
        assert {len(scores) for scores in groups} <= {2, 3, 4}
        mixed = sum(len(scores) for scores in groups if is_mixed(scores))
        assert metrics["sgpo/rollouts/trained"] in (mixed, mixed + 1)  # two updates of equal size
        assert metrics["sgpo/rollouts/padding"] == 0
    # 21 to 32 prompts a step of 48: everyone has been seen at least once, and two groups weigh more than one
    assert logged[-1]["sgpo/posterior/evidence"] > logged[0]["sgpo/posterior/evidence"]
