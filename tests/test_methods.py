"""GRESO, AERO and bayes in real runs: what verl dumped is what their rules say."""

from collections import defaultdict

import pytest
import tiny
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


def unexpected(scores, a, b):
    """How many of a group's outcomes were not what its prompt's Beta(a, b) and the rest of the group led to expect."""
    scale = min(1.0, 4 / (a + b))
    means = [(scale * a + sum(scores) - s) / (scale * (a + b) + len(scores) - 1) for s in scores]
    return sum(s != (mean > 0.5) for s, mean in zip(scores, means, strict=True))


def test_bayes_trains_on_the_outcomes_that_were_not_expected(folder, tmp_path):
    a0, b0 = 0.3, 0.5  # with which no expectation is exactly one half
    more = {"sgpo.posterior.successes": a0, "sgpo.posterior.failures": b0}
    logged, _ = trained(folder, tmp_path, "bayes", **more)
    belief = defaultdict(lambda: (a0, b0))  # by the prompt's text
    for step, metrics in enumerate(logged, 1):
        groups = [rows for uid, rows in tiny.dumped_groups(tmp_path, step).items() if not uid.startswith("pad")]
        # 48 prompts get a rollout each, and the first 16 of them one of the 16 that are left
        assert sorted(map(len, groups)) == [1] * 32 + [2] * 16
        assert metrics["sgpo/rollouts/generated"] == 64
        news = 0
        for rows in groups:
            scores, (a, b) = [row["score"] for row in rows], belief[rows[0]["input"]]
            news += unexpected(scores, a, b)
            right = sum(scores)
            belief[rows[0]["input"]] = a0 + 0.9 * (a - a0) + right, b0 + 0.9 * (b - b0) + len(scores) - right
        assert metrics["sgpo/rollouts/trained"] in (news, news + 1)  # two updates of equal size
        assert 0 < news < 40
        assert metrics["sgpo/rollouts/padding"] == 0
