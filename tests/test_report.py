"""Compute to target, the sentence about it, and the page: on runs whose costs can be added up by hand.

A stock step of ``rundirs`` costs 9040 FLOPs, 960 trained tokens, 32 rollouts and 30 s. A step of ours costs 3000 FLOPs
(or as given), 480 tokens, 16 rollouts and 15 s, after a profile of 1000 FLOPs, 32 rollouts and 20 s.
"""

import json
import math
import re

import pytest
from rundirs import METRIC, config, sgpo_run, stock_run, stock_step, validation, write_run

from sgpo_verl import report
from sgpo_verl.errors import SgpoError
from sgpo_verl.report import units
from sgpo_verl.report.figures import look_of
from sgpo_verl.report.headline import (
    Rule,
    Spread,
    accuracy_at,
    evaluations,
    final_accuracy,
    first_reach,
    median_ratio,
    smoothed,
)
from sgpo_verl.report.palette import SERIES
from sgpo_verl.report.runs import load_run

STEADY = [0.2, 0.3, 0.4, 0.5, 0.5, 0.5]  # target 0.5, reached at step 3 and held at 4


def load(path):
    return load_run(path)


def row_of(comparison, label):
    return next(row for row in comparison.rows if row.label == label)


def test_the_ratio_is_baseline_cost_over_method_cost(tmp_path):
    runs = [load(stock_run(tmp_path / "g", STEADY)), load(sgpo_run(tmp_path / "s", [0.2, 0.3, 0.5, 0.6]))]
    row = row_of(report.compare(runs), "sGPO (paper)")
    # GRPO at step 3: 27120 FLOPs, 2880 tokens, 96 rollouts, 90 s. Ours at step 2: 1000 + 6000, 960, 32 + 32, 20 + 30.
    assert row.held.cost == {
        "total_flops": 7000,
        "total_trained_tokens": 960,
        "total_rollouts": 64,
        "total_seconds": 50,
    }
    assert row.held.baseline_cost["total_flops"] == 27120
    assert row.held.ratio["total_flops"].middle == pytest.approx(27120 / 7000)
    assert row.held.ratio["total_trained_tokens"].middle == 3.0
    assert row.held.ratio["total_rollouts"].middle == 1.5
    assert row.held.ratio["total_seconds"].middle == pytest.approx(1.8)
    assert (row.held.reached, row.held.at_end) == (1, 0)


def test_the_target_is_the_mean_of_the_last_three_evaluations(tmp_path):
    assert final_accuracy(
        evaluations(load(stock_run(tmp_path / "a", [0.2, 0.3, 0.4, 0.5, 0.6, 0.5])))
    ) == pytest.approx(1.6 / 3)


def test_with_fewer_than_three_the_last_evaluation_is_the_target(tmp_path):
    assert final_accuracy(evaluations(load(stock_run(tmp_path / "a", [0.1, 0.3, 0.4])))) == 0.4


def test_a_target_must_be_held_at_the_next_evaluation(tmp_path):
    evals = evaluations(load(stock_run(tmp_path / "a", [0.2, 0.5, 0.4, 0.5, 0.5])))
    reach = first_reach(evals, 0.5)
    assert (reach.step, reach.at_end) == (3, False)


def test_the_last_evaluation_counts_and_is_marked(tmp_path):
    runs = [load(stock_run(tmp_path / "g", STEADY)), load(sgpo_run(tmp_path / "s", [0.2, 0.3, 0.5]))]
    comparison = report.compare(runs)
    assert row_of(comparison, "sGPO (paper)").held.at_end == 1
    assert "at the end" in comparison.to_text()


def test_not_reached_is_said(tmp_path):
    runs = [load(stock_run(tmp_path / "g", STEADY)), load(sgpo_run(tmp_path / "s", [0.2, 0.3, 0.4]))]
    comparison = report.compare(runs)
    assert row_of(comparison, "sGPO (paper)").held.ratio["total_flops"] is None
    assert comparison.finding == (
        "No method reached GRPO's final accuracy (0.500): sGPO (paper) never got there. "
        "Fewer than 3 seeds: a difference may be luck."
    )
    assert "not reached" in comparison.to_text()


def test_a_method_that_loses_is_said_to_lose(tmp_path):
    slow = sgpo_run(tmp_path / "s", [0.2, 0.3, 0.5, 0.5], flops=20000.0)  # step 2: 41000 against 27120
    comparison = report.compare([load(stock_run(tmp_path / "g", STEADY)), load(slow)])
    assert comparison.finding == (
        "No method was cheaper. sGPO (paper) reached GRPO's final accuracy (0.500) with 41.0 kFLOP where GRPO took "
        "27.1 kFLOP: 1.51× more FLOPs. Fewer than 3 seeds: a difference may be luck."
    )


def test_a_baseline_that_never_holds_its_own_target_is_compared_by_smoothed_curves(tmp_path):
    # The last three are 0.4, 0.6, 0.4, so the target is 0.4667: 0.6 is above it twice, and each time not held. Smoothed:
    # 0.25, 0.367, 0.433, 0.533: reached at step 3, 27120. Ours, smoothed: 0.35, 0.4, 0.5: at step 2, 7000.
    noisy = stock_run(tmp_path / "g", [0.2, 0.3, 0.6, 0.4, 0.6, 0.4])
    comparison = report.compare([load(noisy), load(sgpo_run(tmp_path / "s", [0.2, 0.5, 0.5]))])
    assert math.isnan(row_of(comparison, "sGPO (paper)").held.ratio["total_flops"].middle)
    assert comparison.rule is Rule.SMOOTHED
    assert comparison.finding == (
        "GRPO does not hold its own end at two evaluations in a row, so this is by smoothed curves. sGPO (paper) reached "
        "GRPO's final accuracy (0.467) with 7.00 kFLOP where GRPO took 27.1 kFLOP: 3.87× fewer FLOPs. "
        "Fewer than 3 seeds: a difference may be luck."
    )


def test_a_smoothed_point_is_the_mean_of_three_evaluations_and_of_two_at_either_end(tmp_path):
    evals = evaluations(load(stock_run(tmp_path / "a", [0.2, 0.5, 0.8, 0.5])))
    assert smoothed(evals)["accuracy"].tolist() == pytest.approx([0.35, 0.5, 0.6, 0.65])
    assert first_reach(evals, 0.6, Rule.SMOOTHED).step == 2
    last = first_reach(evals, 0.65, Rule.SMOOTHED)
    assert (last.step, last.at_end) == (3, True)


def test_one_lucky_evaluation_reaches_no_smoothed_target(tmp_path):
    evals = evaluations(load(stock_run(tmp_path / "a", [0.2, 0.2, 0.9, 0.2, 0.2])))
    assert first_reach(evals, 0.5, Rule.SMOOTHED) is None


def test_the_smoothed_target_is_one_for_all_seeds(tmp_path):
    # Ends 0.5 and 0.7, so the target is 0.6. Seed 1 of GRPO, smoothed 0.25, 0.3, 0.4, 0.467, 0.5, 0.5, never gets there: its
    # budget of 5 steps counts, 45200. Seed 2: 0.35, 0.467, 0.633: step 2, 18080. Ours: 0.4, 0.467, 0.667: step 2, 7000.
    runs = [
        load(stock_run(tmp_path / "g1", STEADY, seed=1)),
        load(stock_run(tmp_path / "g2", [0.2, 0.5, *[0.7] * 4], seed=2)),
    ]
    runs += [load(sgpo_run(tmp_path / f"s{seed}", [0.2, 0.6, 0.6, 0.8], seed=seed)) for seed in (1, 2)]
    comparison = report.compare(runs)
    way = row_of(comparison, "sGPO (paper)").smoothed
    assert comparison.smoothed_target == pytest.approx(0.6)
    assert [outcome.baseline_cost["total_flops"] for outcome in way.outcomes] == [45200, 18080]
    assert [outcome.reach.step for outcome in way.outcomes] == [2, 2]
    low, high = 18080 / 7000, 45200 / 7000
    assert way.ratio["total_flops"] == Spread(pytest.approx((low + high) / 2), pytest.approx(low), pytest.approx(high))
    assert (way.cost["total_flops"], way.baseline_cost["total_flops"]) == (7000, (45200 + 18080) / 2)
    assert comparison.notes[-1] == (
        "by smoothed curves, GRPO does not reach the target with 1 of 2 seeds: its full budget is counted there, which is less "
        "than it would have taken"
    )


def test_a_method_that_reaches_with_one_seed_of_three_has_no_ratio_by_either_rule(tmp_path):
    runs = [load(stock_run(tmp_path / f"g{i}", STEADY, seed=i)) for i in (1, 2, 3)]
    runs += [
        load(sgpo_run(tmp_path / f"s{i}", [0.2, 0.2, 0.2 + 0.4 * (i == 1), 0.2 + 0.8 * (i == 1)], i)) for i in (1, 2, 3)
    ]
    row = row_of(report.compare(runs), "sGPO (paper)")
    assert (row.held.ratio["total_flops"], row.held.reached) == (None, 1)
    assert (row.smoothed.ratio["total_flops"], row.smoothed.reached) == (None, 1)


def test_the_baseline_can_be_named_and_notes_be_added(tmp_path):
    runs = [load(stock_run(tmp_path / "g", STEADY)), load(sgpo_run(tmp_path / "s", [0.2, 0.5, 0.5, 0.5]))]
    comparison = report.compare(runs, baseline="sGPO (paper)", notes=("tuned",))
    assert (comparison.baseline, comparison.notes) == ("sGPO (paper)", ("tuned",))
    assert row_of(comparison, "GRPO").held.ratio["total_flops"].middle == pytest.approx(4000 / 27120)


def test_what_was_estimated_of_dynamic_sampling_is_said(tmp_path):
    # 4 groups kept, 6 thrown away: 60% of the tokens; a row has 960 / 32 = 30 tokens, in both runs.
    thrown = {"training/filter_groups/evicted_samples": 5, "training/filter_groups/discarded_surplus_samples": 1}
    dynamic = config(algorithm__filter_groups__enable=True)
    runs = [load(stock_run(tmp_path / "g", STEADY))]
    runs.append(load(write_run(tmp_path / "d", [validation(0, 0.2), stock_step(1, 0.3, **thrown)], dynamic)))
    assert report.compare(runs).notes == (
        "dynamic sampling: 60.0% of its generated tokens are estimated: verl logs how many groups it threw away, not their "
        "lengths, so they are counted at the mean lengths of those kept; a kept rollout has 30.0 tokens with its prompt, one "
        "of GRPO, which keeps all, 30.0",
    )


def test_a_profile_dearer_than_the_budget_buys_the_untrained_model(tmp_path):
    # GRPO stops after one step, 9040; the profile of ours costs 1000 here, but its first evaluation after it 13000.
    runs = [load(stock_run(tmp_path / "g", [0.2, 0.3]))]
    runs.append(load(sgpo_run(tmp_path / "s", [0.2, 0.9], flops=12000.0)))
    assert row_of(report.compare(runs), "sGPO (paper)").equal_flops.middle == 0.2
    evals = evaluations(runs[1])
    assert accuracy_at(evals, 500.0) == 0.2  # not even the profile


def test_many_methods_are_named_beside_the_axes(tmp_path):
    runs = [load(stock_run(tmp_path / "g", STEADY))]
    methods = ("paper", "prune", "greso", "aero", "bayes")
    runs += [load(sgpo_run(tmp_path / name, [0.2, 0.3, 0.5, 0.5], method=name)) for name in methods]
    page = report.write(runs, tmp_path / "page.html")[0].read_text()
    svgs = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert not any(re.search(r"(fill|stroke): ?#[0-9a-f]{6}", svg) for svg in svgs)
    assert all(f"sGPO ({name})" in svgs[0] for name in methods)


def test_no_two_methods_look_alike(tmp_path):
    names = [f"m{i}" for i in range(26)]
    runs = [load(sgpo_run(tmp_path / name, [0.2, 0.5], method=name)) for name in names]
    for comparison in (report.compare(runs), report.compare([load(stock_run(tmp_path / "g", STEADY)), *runs])):
        looks = {row.label: look_of(comparison, row.label) for row in comparison.rows}
        assert len(set(looks.values())) == len(comparison.rows) >= 26
        inked = [label for label, look in looks.items() if look.colour == SERIES[0][0]]
        assert inked == ([comparison.baseline] if comparison.baseline else [])  # ink is the baseline's alone


def test_a_baseline_that_does_not_learn_gives_no_ratio(tmp_path):
    flat = stock_run(tmp_path / "g", [0.3, 0.3, 0.3, 0.3])  # reached before training, at no cost
    comparison = report.compare([load(flat), load(sgpo_run(tmp_path / "s", [0.3, 0.5, 0.5]))])
    assert math.isnan(row_of(comparison, "sGPO (paper)").held.ratio["total_flops"].middle)
    assert comparison.finding.endswith("so there is nothing to reach: the baseline did not learn.")


def test_several_methods_are_ranked_by_compute(tmp_path):
    runs = [load(stock_run(tmp_path / f"g{i}", STEADY, seed=i)) for i in (1, 2, 3)]
    runs += [load(sgpo_run(tmp_path / f"a{i}", [0.2, 0.3, 0.5, 0.5], i, "aero")) for i in (1, 2, 3)]
    runs += [load(sgpo_run(tmp_path / f"b{i}", [0.2, 0.5, 0.5, 0.5], i, "bayes")) for i in (1, 2, 3)]
    runs += [load(sgpo_run(tmp_path / f"p{i}", [0.2, 0.2, 0.2, 0.5 * (i == 1)], i, "paper")) for i in (1, 2, 3)]
    # bayes at step 1: 4000 FLOPs, 27120 / 4000 = 6.78; aero at step 2: 7000, 3.87
    assert report.compare(runs).finding == (
        "sGPO (bayes) reached GRPO's final accuracy (0.500) with 4.00 kFLOP where GRPO took 27.1 kFLOP: 6.78× fewer "
        "FLOPs. sGPO (aero): 3.87× fewer FLOPs; sGPO (paper) reached it in only 1 of 3 seeds."
    )


def test_seeds_are_matched_and_give_median_and_range(tmp_path):
    later = [0.2, 0.3, 0.3, 0.4, 0.5, 0.5, 0.5]  # reaches 0.5 at step 4: 36160 FLOPs
    runs = [load(stock_run(tmp_path / "g1", STEADY, seed=1)), load(stock_run(tmp_path / "g2", later, seed=2))]
    runs += [load(sgpo_run(tmp_path / f"s{seed}", [0.2, 0.3, 0.5, 0.5], seed=seed)) for seed in (1, 2)]
    row = row_of(report.compare(runs), "sGPO (paper)")
    low, high = 27120 / 7000, 36160 / 7000
    assert row.held.ratio["total_flops"] == Spread(
        pytest.approx((low + high) / 2), pytest.approx(low), pytest.approx(high)
    )


def test_without_a_matching_seed_the_median_baseline_is_used(tmp_path):
    curves = [STEADY, [0.2, 0.3, 0.3, 0.4, 0.6, 0.6, 0.6], [0.2, 0.3, 0.7, 0.7, 0.7]]  # 0.5 at 3, 0.6 at 4, 0.7 at 2
    runs = [load(stock_run(tmp_path / f"g{i}", curve, seed=i)) for i, curve in enumerate(curves)]
    runs.append(load(sgpo_run(tmp_path / "s", [0.2, 0.5, 0.6, 0.6], seed=9)))
    (outcome,) = row_of(report.compare(runs), "sGPO (paper)").held.outcomes
    assert outcome.target == 0.6
    assert outcome.baseline_cost["total_flops"] == 27120  # median of 3, 4 and 2 steps
    assert outcome.reach.step == 2


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([2.0, 3.0, 4.0], Spread(3.0, 2.0, 4.0)),
        ([0.0, 3.0, 4.0], Spread(3.0, 3.0, 4.0)),  # a seed that never got there pulls the median down
        ([0.0, 4.0], None),
        ([0.0], None),
    ],
)
def test_seeds_that_never_reach_the_target_are_not_forgotten(ratios, expected):
    assert median_ratio(ratios) == expected


def test_accuracy_at_equal_flops_is_read_at_what_all_runs_spent(tmp_path):
    # GRPO spends 45200, ours 1000 + 4 x 3000 = 13000: GRPO's last evaluation within that is step 1 (9040)
    runs = [load(stock_run(tmp_path / "g", STEADY)), load(sgpo_run(tmp_path / "s", [0.2, 0.3, 0.4, 0.45, 0.48]))]
    comparison = report.compare(runs)
    assert comparison.budget == 13000
    assert row_of(comparison, "GRPO").equal_flops.middle == 0.3
    assert row_of(comparison, "sGPO (paper)").equal_flops.middle == 0.48


def test_shares_and_totals(tmp_path):
    row = row_of(report.compare([load(sgpo_run(tmp_path / "s", [0.2, 0.3, 0.4]))]), "sGPO (paper)")
    assert row.totals["total_flops"].middle == 7000
    assert row.profile_share.middle == pytest.approx(1 / 7)
    assert row.plugin_share.middle == pytest.approx(0.01)  # 0.15 s of 15 s
    assert row.padding_share.middle == 0.0
    assert row.frac_mixed.middle == 0.75


def test_a_log_cut_by_a_resume_stays_out_of_ratios(tmp_path):
    cut = write_run(tmp_path / "cut", [stock_step(i, 0.9) for i in (5, 6)])
    runs = [load(cut), load(stock_run(tmp_path / "g", STEADY)), load(sgpo_run(tmp_path / "s", [0.2, 0.5, 0.5]))]
    comparison = report.compare(runs)
    assert comparison.target.middle == 0.5
    assert comparison.notes == (f"{cut}: log starts at step 5: the cost before it is missing",)
    assert row_of(comparison, "GRPO").held.compared == 1


def test_only_a_cut_baseline_means_no_target(tmp_path):
    cut = write_run(tmp_path / "cut", [stock_step(i, 0.9) for i in (5, 6)])
    comparison = report.compare([load(cut), load(sgpo_run(tmp_path / "s", [0.2, 0.5, 0.5]))])
    assert comparison.baseline == ""
    assert comparison.finding.startswith("No complete stock GRPO run is among these")
    assert report.write([load(cut)], tmp_path / "r.html")


def test_data_sources_are_averaged_and_a_metric_can_be_named(tmp_path):
    other = "val-core/open/math/reward/mean@4"
    rows = [validation(0, 0.2), stock_step(1, 0.4, **{other: 0.6, "val-aux/toy/acc/best@4/mean": 0.9})]
    rows[0]["data"][other] = 0.1
    run = load(write_run(tmp_path / "r", rows))
    assert evaluations(run)["accuracy"].tolist() == pytest.approx([0.15, 0.5])
    assert evaluations(run, "val-aux/toy/acc/best@4/mean")["accuracy"].tolist() == [0.9]
    with pytest.raises(SgpoError, match=f"no metric val/x in its log; it has {re.escape(METRIC)}"):
        report.compare([run], "val/x")


def test_a_run_without_core_accuracy_asks_for_the_metric(tmp_path):
    run = load(write_run(tmp_path / "r", [stock_step(1, **{"val-aux/toy/score/mean@1": 0.4})]))
    with pytest.raises(SgpoError, match="name the metric"):
        report.compare([run])


def test_no_runs_are_refused():
    with pytest.raises(SgpoError, match="no runs given"):
        report.compare([])


def test_different_models_are_pointed_out(tmp_path):
    other = stock_run(tmp_path / "b", STEADY, settings=config(actor_rollout_ref__model__path="other/model"))
    notes = report.compare([load(stock_run(tmp_path / "a", STEADY)), load(other)]).notes
    assert notes == (
        "the runs train different models (other/model, toy/model): their costs and accuracies do not compare",
    )


def test_the_page_stands_alone_and_is_written_whole(tmp_path):
    runs = [load(stock_run(tmp_path / f"g{i}", STEADY, seed=i)) for i in (1, 2)]
    runs += [load(sgpo_run(tmp_path / f"<s{i}>", [0.2, 0.3, 0.5, 0.5], seed=i)) for i in (1, 2)]
    written = report.write(runs, tmp_path / "out" / "page.html")
    names = ["accuracy_flops", "accuracy_rollouts", "accuracy_seconds", "mixed_groups", "group_size"]
    assert written == [tmp_path / "out" / "page.html"] + [tmp_path / "out" / "page_files" / f"{n}.png" for n in names]
    assert all(path.stat().st_size > 0 for path in written)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["page.html", "page_files"]  # no temporary files
    page = written[0].read_text()
    assert page.count("<svg") == 5
    # Nothing is fetched: every address in the page is an XML namespace or one of its own ids.
    assert not re.search(r'(src|href)="(?!#)', page)
    assert not re.search(r"@import|url\((?!#)", page)
    assert "&lt;s1&gt;" in page and "<s1>" not in page
    assert "prefers-color-scheme: dark" in page
    assert "27.1 kFLOP" in page and "phase 2" in page


def test_drawn_colours_are_all_themed(tmp_path):
    written = report.write([load(stock_run(tmp_path / "g", STEADY))], tmp_path / "page.html")
    svgs = re.findall(r"<svg.*?</svg>", written[0].read_text(), re.DOTALL)
    assert svgs and not any(re.search(r"(fill|stroke): ?#[0-9a-f]{6}", svg) for svg in svgs)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SgpoError, match="cannot be written"):
        report.write([load(stock_run(tmp_path / "g", STEADY))], tmp_path / "file" / "page.html")


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (units.flops(3.1e18), "3.10 EFLOP"),
        (units.flops(12.0), "12.0 FLOP"),
        (units.count(12345), "12.3 k"),
        (units.count(999), "999"),
        (units.duration(4980), "1.38 h"),
        (units.duration(9.5), "9.50 s"),
        (units.flops(math.nan), "unknown"),
        (units.flops(math.inf), "never"),
        (units.count(math.nan), "unknown"),
        (units.share(0.1234), "12.3%"),
        (units.side_by_side("146 PFLOP", "222 PFLOP"), "146 / 222 PFLOP"),
        (units.side_by_side("55.0 min", "2.04 h"), "55.0 min / 2.04 h"),
        (units.side_by_side("12", "15"), "12 / 15"),
    ],
)
def test_amounts_read_well(shown, expected):
    assert shown == expected


@pytest.mark.parametrize("place", [".", "folder"])
def test_a_folder_is_no_page_and_nothing_is_left(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    run = load_run(stock_run(tmp_path / "r", [0.2, 0.3]))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SgpoError, match="is a folder or a device"):
        report.write([run], place)
    assert sorted(tmp_path.iterdir()) == before


def test_a_log_is_not_overwritten_by_the_page_that_is_made_of_it(tmp_path):
    run = load_run(stock_run(tmp_path / "r", [0.2, 0.3]))
    log = next((tmp_path / "r").rglob("*.jsonl"))
    before = log.read_bytes()
    with pytest.raises(SgpoError, match=r"jsonl: the report is a page - name an \.html file"):
        report.write([run], log)
    assert log.read_bytes() == before


def test_a_figure_that_cannot_be_written_leaves_no_temporary_file(tmp_path):
    run = load_run(stock_run(tmp_path / "r", [0.2, 0.3]))
    (tmp_path / "o_files" / "accuracy_flops.png").mkdir(parents=True)
    with pytest.raises(SgpoError, match=r"accuracy_flops.png: cannot be written"):
        report.write([run], tmp_path / "o.html")
    assert [path.name for path in (tmp_path / "o_files").iterdir()] == ["accuracy_flops.png"]


def test_a_label_with_dollar_signs_is_text(tmp_path):
    run_dir = stock_run(tmp_path / "r", [0.2, 0.3])
    facts = json.loads((run_dir / "run.json").read_text())
    (run_dir / "run.json").write_text(json.dumps(facts | {"label": "$\\frac{$"}))
    assert report.write([load_run(run_dir)], tmp_path / "o.html")[0].exists()


def test_the_same_run_given_twice_is_no_second_seed(tmp_path):
    path = stock_run(tmp_path / "grpo", STEADY)
    with pytest.raises(SgpoError, match="is given twice"):
        report.compare([load_run(path), load_run(path)])
