"""Run directories as read from disk: logs found and merged, kinds told apart, costs counted, bad input refused."""

import json
import math
import os

import pytest
from rundirs import (
    METRIC,
    SHAPE,
    config,
    sgpo_run,
    sgpo_step,
    stock_run,
    stock_step,
    validation,
    write_log,
    write_run,
)

from sgpo_verl.errors import SgpoError
from sgpo_verl.report.runs import load_run


def test_stock_costs_follow_from_its_own_log(tmp_path):
    run = load_run(stock_run(tmp_path / "r", [0.2, 0.3, 0.4]))
    step = run.table.loc[1]
    assert step["rollouts"] == 32  # 4 prompts x 8
    assert step["generated_tokens"] == 680  # 4 prompts x 10 + 32 responses x 20
    assert step["trained_tokens"] == 960  # perf/total_num_tokens
    # N = 1, no attention: generate 2 x 680 = 1360; score 2 x 960 and train 6 x 960 = 7680
    assert (step["generate_flops"], step["train_flops"]) == (1360, 7680)
    assert run.table["total_flops"].tolist() == [0, 9040, 18080]
    assert run.table["total_rollouts"].tolist() == [0, 32, 64]
    assert run.table["total_trained_tokens"].tolist() == [0, 960, 1920]
    assert run.table["total_seconds"].tolist() == [0, 30, 60]
    assert (run.kind, run.label, run.gap, run.seed) == ("grpo", "GRPO", "", None)


@pytest.mark.parametrize(
    ("settings", "train_flops"),
    [
        ({"actor_rollout_ref__actor__use_kl_loss": True}, 9600),  # 2 scoring passes: (2 + 3) x 2 x 960
        ({"algorithm__use_kl_in_reward": True}, 9600),
        ({"algorithm__rollout_correction__bypass_mode": True}, 5760),  # none: 3 x 2 x 960
        ({"actor_rollout_ref__actor__ppo_epochs": 2}, 13440),  # (1 + 3 x 2) x 2 x 960
    ],
)
def test_scoring_passes_and_epochs_come_from_the_config(tmp_path, settings, train_flops):
    run = load_run(stock_run(tmp_path / "r", [0.2, 0.3], settings=config(**settings)))
    assert run.table.loc[1, "train_flops"] == train_flops


def test_trained_tokens_count_every_epoch(tmp_path):
    run = load_run(stock_run(tmp_path / "r", [0.2, 0.3], settings=config(actor_rollout_ref__actor__ppo_epochs=2)))
    assert run.table.loc[1, "total_trained_tokens"] == 1920


def test_dynamic_sampling_pays_for_the_groups_it_threw_away(tmp_path):
    thrown = {"training/filter_groups/evicted_samples": 5, "training/filter_groups/discarded_surplus_samples": 1}
    rows = [stock_step(1, 0.3, **thrown), stock_step(2, 0.4)]
    run = load_run(write_run(tmp_path / "r", rows, config(algorithm__filter_groups__enable=True)))
    assert run.label == "dynamic sampling"
    assert run.table["rollouts"].tolist() == [80, 32]  # (4 + 5 + 1) x 8, then 4 x 8
    assert run.table["generated_tokens"].tolist() == [1700, 680]  # 10 x 10 + 80 x 20
    assert run.table["trained_tokens"].tolist() == [960, 960]
    assert run.table["frac_mixed"].tolist() == [0.5, 1.0]  # 4 kept and 1 surplus of 10 were mixed


def test_sgpo_totals_are_used_as_logged_and_start_at_the_profile(tmp_path):
    run = load_run(sgpo_run(tmp_path / "r", [0.2, 0.3, 0.4]))
    assert (run.kind, run.label) == ("paper", "sGPO (paper)")
    assert run.table["total_flops"].tolist() == [1000, 4000, 7000]
    assert run.table["total_rollouts"].tolist() == [32, 48, 64]
    assert run.table["total_trained_tokens"].tolist() == [0, 480, 960]
    assert run.table["total_seconds"].tolist() == [20, 35, 50]  # 20 s of profile, 15 s per step
    assert run.table["frac_mixed"].tolist()[1:] == [0.75, 0.75]


def test_facts_override_label_and_seed(tmp_path):
    facts = {"label": "tuned", "seed": 7, "commit": "abc", "versions": {"verl": "0.9.1"}, "model_shape": SHAPE}
    run = load_run(write_run(tmp_path / "r", [stock_step(1, 0.3)], config(data__seed=3), facts))
    assert (run.label, run.kind, run.seed, run.commit, run.versions) == ("tuned", "grpo", 7, "abc", {"verl": "0.9.1"})


def test_the_seed_of_the_config_is_used_without_facts(tmp_path):
    assert load_run(stock_run(tmp_path / "r", [0.2, 0.3], settings=config(data__seed=3))).seed == 3


def test_the_shape_comes_from_a_local_model_folder(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    # attention 1 x 1 x (2 + 2) = 4, MLP 3 x 1 x 2 = 6: N = 10, one layer of one head of size 1
    shape = {"hidden_size": 1, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 2}
    (model / "config.json").write_text(json.dumps(shape))
    settings = config(actor_rollout_ref__model__path=str(model))
    run = load_run(write_run(tmp_path / "r", [stock_step(1, 0.3)], settings, facts={"seed": 1}))
    # 2 x 10 x 960 x 4 + attention 2 x 960 x 30 (960 tokens in 32 rows) x 4
    assert run.table.loc[1, "train_flops"] == 76800 + 230400


def test_logs_are_known_by_content_and_found_one_level_down(tmp_path):
    run_dir = stock_run(tmp_path / "r", [0.2, 0.3])
    (run_dir / "metrics.jsonl").rename(run_dir / "metrics.moved")
    (run_dir / "logs").mkdir()
    (run_dir / "metrics.moved").rename(run_dir / "logs" / "anything.jsonl")
    write_log(run_dir / "rollouts" / "1.jsonl", [{"input": "", "output": "", "score": 1.0, "step": 1, "uid": "a_0_0"}])
    assert load_run(run_dir).table.index.tolist() == [0, 1]


def test_a_torn_last_line_is_skipped(tmp_path):
    run_dir = stock_run(tmp_path / "r", [0.2, 0.3])
    with (run_dir / "metrics.jsonl").open("a") as log:
        log.write('{"step":2,"data":{"timing_s/st')
    assert load_run(run_dir).table.index.tolist() == [0, 1]


@pytest.mark.parametrize("bad", ["{torn", "[1]", '{"step":"x","data":{}}'])
def test_any_other_bad_line_is_refused_by_number(tmp_path, bad):
    run_dir = stock_run(tmp_path / "r", [0.2, 0.3, 0.4])
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    (run_dir / "metrics.jsonl").write_text("\n".join([lines[0], bad, *lines[1:]]) + "\n")
    with pytest.raises(SgpoError, match=r"metrics\.jsonl, line 2: "):
        load_run(run_dir)


def test_a_bad_first_line_is_refused_too(tmp_path):
    run_dir = stock_run(tmp_path / "r", [0.2, 0.3])
    (run_dir / "metrics.jsonl").write_text("{torn\n" + (run_dir / "metrics.jsonl").read_text())
    with pytest.raises(SgpoError, match="line 1"):
        load_run(run_dir)


def test_null_is_nan_and_what_is_no_number_is_left_out(tmp_path):
    row = stock_step(1, 0.3, **{"critic/score/mean": None, "note": "text", "flag": True})
    log = load_run(write_run(tmp_path / "r", [row])).log
    assert math.isnan(log.loc[1, "critic/score/mean"])
    assert "note" not in log and "flag" not in log


def test_a_resumed_run_continues_in_a_second_log(tmp_path):
    run_dir = stock_run(tmp_path / "r", [0.2, 0.3, 0.4, 0.5])  # first attempt: steps 0 to 3, checkpoint at 2
    write_log(run_dir / "metrics.jsonl", [validation(0, 0.2), *(stock_step(i, 0.3) for i in (1, 2, 3))], age_s=100)
    resumed = [validation(2, 0.35), stock_step(3, 0.6, **{"timing_s/step": 40.0}), stock_step(4, 0.7)]
    write_log(run_dir / "again.jsonl", resumed)
    run = load_run(run_dir)
    assert run.gap == "" and run.remarks == ()
    assert run.log[METRIC].tolist() == [0.2, 0.3, 0.35, 0.6, 0.7]  # the later file wins
    assert run.table["total_seconds"].tolist() == [0, 30, 60, 100, 130]  # step 2 keeps its training metrics


def test_steps_that_a_resume_threw_away_are_left_out_and_said(tmp_path):
    run_dir = stock_run(tmp_path / "r", [0.2, 0.3])
    write_log(run_dir / "metrics.jsonl", [stock_step(i, 0.3) for i in range(1, 7)], age_s=100)
    write_log(run_dir / "again.jsonl", [stock_step(3, 0.5), stock_step(4, 0.5)])
    run = load_run(run_dir)
    assert run.table.index.tolist() == [1, 2, 3, 4]
    assert run.remarks == (
        "steps 5 to 6 of an earlier log are left out: again.jsonl, a newer file, starts again at step 3",
    )


def test_a_stock_log_cut_by_a_resume_has_no_cost(tmp_path):
    run = load_run(write_run(tmp_path / "r", [validation(5, 0.3), stock_step(6, 0.4)]))
    assert run.gap == "log starts at step 6: the cost before it is missing"
    assert run.table["total_flops"].isna().all() and run.table["total_seconds"].isna().all()
    assert run.table.loc[6, "rollouts"] == 32


def test_a_hole_in_a_stock_log_is_a_gap_too(tmp_path):
    run = load_run(write_run(tmp_path / "r", [stock_step(1, 0.3), stock_step(4, 0.4)]))
    assert run.gap == "log has no step 2: the cost of the steps up to 4 is missing"


def test_an_sgpo_log_cut_by_a_resume_lacks_only_wall_clock(tmp_path):
    run = load_run(write_run(tmp_path / "r", [sgpo_step(6, 0.4)], config(sgpo__method="bayes"), {}))
    assert run.table.loc[6, "total_flops"] == 19000
    assert math.isnan(run.table.loc[6, "total_seconds"])


def test_a_run_that_has_not_ended_is_marked(tmp_path):
    run = load_run(stock_run(tmp_path / "r", [0.2, 0.3], settings=config(trainer__total_training_steps=9)))
    assert run.remarks == ("ends at step 1 of the 9 planned",)


def dump(directory, step, rows):
    write_log(directory / f"{step}.jsonl", [{"input": "", "output": "", "score": s, "uid": u} for u, s in rows])


def test_mixed_groups_are_counted_in_rollout_dumps(tmp_path):
    run_dir = stock_run(tmp_path / "r", [0.2, 0.3, 0.4], settings=config(trainer__rollout_data_dir="dumps"))
    # a: 1 and 0, mixed; b: 1 and 1; c: its second session ends on 1 after two outputs, so 1 and 1; pad: no rollouts
    rows = [("a_0_0", 1.0), ("a_1_0", 0.0), ("b_0_0", 1.0), ("b_1_0", 1.0), ("c_0_0", 1.0)]
    rows += [("c_1_0", 0.0), ("c_1_1", 1.0), ("pad9_0_0", 0.0), ("pad9_1_0", 5.0)]
    dump(run_dir / "dumps", 1, rows)
    shares = load_run(run_dir).table["frac_mixed"]
    assert shares[1] == pytest.approx(1 / 3)
    assert math.isnan(shares[2])


def test_a_foreign_uid_in_a_dump_is_refused(tmp_path):
    run_dir = stock_run(tmp_path / "r", [0.2, 0.3], settings=config(trainer__rollout_data_dir="dumps"))
    dump(run_dir / "dumps", 1, [("a_0_0", 1.0), ("nonsense", 1.0)])
    with pytest.raises(SgpoError, match=r"1\.jsonl, line 2: uid 'nonsense'"):
        load_run(run_dir)


def test_a_dump_without_scores_is_refused(tmp_path):
    run_dir = stock_run(tmp_path / "r", [0.2, 0.3], settings=config(trainer__rollout_data_dir="dumps"))
    write_log(run_dir / "dumps" / "1.jsonl", [{"uid": "a_0_0"}])
    with pytest.raises(SgpoError, match=r"1\.jsonl, line 1: no score"):
        load_run(run_dir)


def test_a_missing_directory_is_refused(tmp_path):
    with pytest.raises(SgpoError, match="nowhere: no such directory"):
        load_run(tmp_path / "nowhere")


def test_a_directory_without_a_log_is_refused(tmp_path):
    with pytest.raises(SgpoError, match=r"no log of verl's in it.*VERL_FILE_LOGGER_PATH"):
        load_run(tmp_path)


@pytest.mark.parametrize("content", ["", '{"step":0,"data":{"val-co'])
def test_an_empty_log_is_refused(tmp_path, content):
    (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(SgpoError, match=r"metrics\.jsonl: empty log"):
        load_run(tmp_path)


def test_a_run_before_its_first_training_step_is_refused(tmp_path):
    with pytest.raises(SgpoError, match="no training step in it yet"):
        load_run(write_run(tmp_path / "r", [validation(0, 0.2)]))


def test_a_run_without_validation_is_refused(tmp_path):
    with pytest.raises(SgpoError, match=r"no validation metric.*trainer\.test_freq"):
        load_run(write_run(tmp_path / "r", [stock_step(1)]))


def test_a_run_without_config_is_refused(tmp_path):
    write_log(tmp_path / "metrics.jsonl", [stock_step(1, 0.3)])
    with pytest.raises(SgpoError, match=r"\.hydra/config\.yaml: no such file"):
        load_run(tmp_path)


def test_a_broken_config_is_refused(tmp_path):
    run_dir = stock_run(tmp_path / "r", [0.2, 0.3])
    (run_dir / ".hydra" / "config.yaml").write_text("a: [1")
    with pytest.raises(SgpoError, match="cannot be read as YAML"):
        load_run(run_dir)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data__train_batch_size": None}, r"data\.train_batch_size is None, expected a number above 0"),
        ({"actor_rollout_ref__rollout__n": "${oc.env:SGPO_NO_SUCH_VARIABLE}"}, r"rollout\.n cannot be resolved"),
    ],
)
def test_a_needed_key_that_is_missing_or_unresolvable_is_named(tmp_path, settings, message):
    with pytest.raises(SgpoError, match=message):
        load_run(stock_run(tmp_path / "r", [0.2, 0.3], settings=config(**settings)))


def test_an_unknown_model_shape_says_how_to_give_it(tmp_path):
    with pytest.raises(
        SgpoError, match=r"'toy/model' is neither a folder nor in the hub's cache .*model_shape.* to run"
    ):
        load_run(write_run(tmp_path / "r", [stock_step(1, 0.3)], facts={"seed": 1}))


def test_the_shape_of_a_model_known_by_its_name_on_a_hub_comes_from_the_cache(tmp_path, monkeypatch):
    cached = tmp_path / "hub" / "models--toy--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc123")
    (cached / "snapshots" / "abc123").mkdir(parents=True)
    parts = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    (cached / "snapshots" / "abc123" / "config.json").write_text(json.dumps(parts))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    run = load_run(write_run(tmp_path / "r", [stock_step(1, 0.3)], facts={"seed": 1}))
    assert (run.table["total_flops"] > 0).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not readable as JSON"), ("[]", "expected an object"), ('{"model_shape": 5}', "model_shape must be as in")],
)
def test_bad_facts_are_refused(tmp_path, text, message):
    run_dir = stock_run(tmp_path / "r", [0.2, 0.3])
    (run_dir / "run.json").write_text(text)
    with pytest.raises(SgpoError, match=rf"run\.json: {message}"):
        load_run(run_dir)


def test_a_stock_log_without_the_costs_metrics_is_refused(tmp_path):
    row = stock_step(1, 0.3)
    del row["data"]["perf/total_num_tokens"]
    with pytest.raises(SgpoError, match="the log has no perf/total_num_tokens"):
        load_run(write_run(tmp_path / "r", [row]))


def test_an_sgpo_config_with_a_stock_log_is_refused(tmp_path):
    with pytest.raises(SgpoError, match="its log no sgpo/flops/total"):
        load_run(write_run(tmp_path / "r", [stock_step(1, 0.3)], config(sgpo__method="paper")))


def test_what_is_no_file_is_no_log(tmp_path):
    run_dir = stock_run(tmp_path / "r", [0.2, 0.3])
    (run_dir / "folder.jsonl").mkdir()
    (run_dir / "broken.jsonl").symlink_to("/nowhere")
    os.mkfifo(run_dir / "pipe.jsonl")
    assert len(load_run(run_dir).log) == 2


@pytest.mark.parametrize("value", ["Infinity", "1" + "0" * 400])
def test_a_number_that_is_none_is_unknown(tmp_path, value):
    run_dir = stock_run(tmp_path / "r", [0.2, 0.3])
    log = run_dir / "metrics.jsonl"
    log.write_text(log.read_text().replace('"timing_s/step":30.0', f'"timing_s/step":{value}'))
    assert load_run(run_dir).log["timing_s/step"].isna().all()


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"label": 5}, "label is 5, expected a text"),
        ({"versions": "0.9"}, "versions is '0.9', expected an object"),
        ({"seed": [1]}, r"seed is \[1\], expected a whole number"),
        ({"model_shape": {"parameters": "many", "attention": 1}}, "model_shape must be as in"),
        ({"model_shape": {"parameters": 0, "attention": 0}}, "model_shape must be as in"),
    ],
)
def test_facts_of_the_wrong_kind_are_refused(tmp_path, facts, words):
    run_dir = stock_run(tmp_path / "r", [0.2, 0.3])
    (run_dir / "run.json").write_text(json.dumps(facts))
    with pytest.raises(SgpoError, match=words):
        load_run(run_dir)


def test_a_config_that_is_not_text_is_named(tmp_path):
    run_dir = stock_run(tmp_path / "r", [0.2, 0.3])
    (run_dir / ".hydra" / "config.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(SgpoError, match=r"config.yaml: cannot be read as YAML"):
        load_run(run_dir)
