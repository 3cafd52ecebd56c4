"""The model of learning, and what it is for: methods and ablations side by side."""

import functools
import os
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import make_profile

from sgpo_verl import cli, simulate_view
from sgpo_verl import contenders as comparing
from sgpo_verl.coins import Coins, from_profile, profiled, synthetic
from sgpo_verl.config import load_settings
from sgpo_verl.contenders import contenders
from sgpo_verl.cost import ModelShape
from sgpo_verl.errors import SgpoError
from sgpo_verl.forecast import forecast
from sgpo_verl.parts import PARTS
from sgpo_verl.plan import make_plan
from sgpo_verl.profile import save_profile
from sgpo_verl.report.headline import first_reach
from sgpo_verl.schedule import RunNumbers
from sgpo_verl.simulate import Learning, Policy, simulate

NUMBERS = RunNumbers(train_batch_size=4, rollout_n=4, mini_batch_size=4, total_epochs=1000, total_training_steps=6)
STOCK = {"method": "prune", "prune": False}
STILL = Learning(rate=0.0)
SHAPE = ModelShape(1000, 0)


@pytest.fixture(autouse=True)
def _wide_screen(monkeypatch):
    """Lines as they are meant, however wide the terminal of the tests is."""
    monkeypatch.setenv("COLUMNS", "200")


def coins(*rates: float, prompt: float = 10, response: float = 20) -> Coins:
    return Coins(np.array(rates), np.full(len(rates), float(prompt)), np.full(len(rates), float(response)))


def run(node: dict, pool: Coins | None = None, numbers: RunNumbers = NUMBERS, seed: int = 0, learning=None):
    return simulate(pool or synthetic(64, 0), load_settings(node), numbers, SHAPE, learning, seed=seed)


COMPOSED = functools.cache(comparing.compose)  # half a second each


@pytest.fixture(autouse=True)
def composed_once(monkeypatch):
    monkeypatch.setattr(comparing, "compose", lambda arguments: COMPOSED(tuple(arguments)))


# the policy


def test_a_mixed_group_raises_its_prompt_by_the_formula():
    # Two rows of the only prompt, p = 1/2: A = (1, -1), s - p = (1/2, -1/2): u = 1/2 + 1/2 over 2 rows = 1/2.
    # K = 1; n^2 = noise^2 (1 + 1) / 4 = 2 for noise 2; v = 1/4 + 2; x = rate u / sqrt(v) = 0.3 x 0.5 / 1.5 = 0.1.
    policy = Policy(np.array([0.5]), Learning(rate=0.3, noise=2.0))
    policy.learn(np.array([0, 0]), np.array([0.25, 0.25]), squares=0.5, updates=1)
    assert policy.pass_rate(np.array([0]))[0] == pytest.approx(1 / (1 + np.exp(-0.1)))


def test_two_updates_go_twice_as_far_on_twice_the_noise():
    # k = 2: n^2 = 2 x 4 x 0.5 = 4, v = 1/4 + 4; x = 0.3 x 2 x 0.5 / sqrt(4.25)
    policy = Policy(np.array([0.5]), Learning(rate=0.3, noise=2.0))
    policy.learn(np.array([0]), np.array([0.5]), squares=0.5, updates=2)
    assert policy.own_P[0] + policy.shift_B[policy.bin_P[0]] == pytest.approx(0.3 / 4.25**0.5)


def test_what_one_prompt_learns_helps_those_like_it_more_than_others():
    policy = Policy(np.array([0.2, 0.2, 0.9, 0.0]), Learning())
    before = policy.pass_rate(np.arange(4))
    policy.learn(np.array([0]), np.array([0.5]), squares=0.1, updates=1)
    gained = np.log(policy.pass_rate(np.arange(3)) / (1 - policy.pass_rate(np.arange(3)))) - np.log(
        before[:3] / (1 - before[:3])
    )
    assert gained[0] > gained[1] > gained[2] > 0
    assert policy.pass_rate(np.array([3]))[0] == 0.0


def test_noise_alone_wears_off_what_was_learned_and_no_more():
    policy = Policy(np.array([0.3]), Learning(erosion=1.0))
    policy.learn(np.array([0]), np.array([0.5]), squares=0.0, updates=1)
    learned = policy.pass_rate(np.array([0]))[0]
    for _ in range(50):
        policy.learn(np.array([0]), np.array([0.0]), squares=0.1, updates=1)
    assert learned > policy.pass_rate(np.array([0]))[0] == pytest.approx(0.3, abs=1e-3)


@settings(deadline=None)
@given(
    st.floats(0.01, 0.99),
    st.integers(2, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1))),
)
def test_any_mixed_group_raises_its_prompt(p, group):
    n, wins = group
    success_N = np.arange(n) < wins
    advantage_N = (success_N - wins / n) / success_N.std(ddof=1)
    policy = Policy(np.array([p]), Learning())
    policy.learn(np.zeros(n, int), advantage_N * (success_N - p) / n, float((advantage_N**2).sum()) / n**2, 1)
    assert policy.pass_rate(np.array([0]))[0] > p


# runs

METHODS = [
    STOCK,
    {"method": "paper"},
    {"method": "paper", "prune": True, "profile": {"adaptive": True, "n": 4}},
    {"method": "paper", "batch": {"unit": "prompts"}},
    {"method": "paper", "curriculum": {"until": "plateau", "window": 1}},
    {"method": "prune"},
    {"method": "prune", "train_fraction": 0.3},
    {"method": "greso"},
    {"method": "greso", "curriculum": "shuffle"},
    {"method": "greso", "filter": "none"},
    {"method": "aero"},
    {"method": "aero", "allocation": "uniform"},
    {"method": "aero", "advantage": "grpo", "prune": True},
    {"method": "bayes"},
    {"method": "bayes", "advantage": "posterior", "prune": False},
    {"method": "bayes", "allocation": "uniform", "profile": {"path": "simulated"}},
    {"method": "bayes", "posterior": {"length_price": 0.01}},
]


@pytest.mark.parametrize("node", METHODS, ids=str)
def test_every_method_and_ablation_runs_learns_and_repeats_itself(node):
    numbers = replace(NUMBERS, train_batch_size=16, mini_batch_size=8, total_training_steps=20)
    first, again, other = (run(node, synthetic(256, 0), numbers, seed) for seed in (0, 0, 1))
    assert first.evals.equals(again.evals) and first.signal == again.signal
    assert not first.evals.equals(other.evals)
    assert first.steps == 20
    assert first.evals["accuracy"].iloc[-1] > first.evals["accuracy"].iloc[0]
    assert (first.evals["total_flops"].diff().dropna() > 0).all()
    assert first.evals["total_flops"].iloc[-1] == first.flops
    assert first.mixed <= first.groups and first.teaching <= first.rollouts - first.profile_rollouts


def test_prompts_that_are_never_solved_never_move_and_teach_nothing():
    pool = coins(*[0.0] * 8)
    for node in (STOCK, {"method": "bayes", "advantage": "posterior", "prune": False}, {"method": "aero"}):
        course = run(node, pool)
        assert (course.mixed, course.teaching, course.signal) == (0, 0, 0.0)


def test_filling_a_step_from_prompts_that_are_never_mixed_ends():
    course = run({"method": "greso"}, coins(*[0.0] * 8), replace(NUMBERS, total_training_steps=1))
    assert course.groups >= 64 * 4


def test_pruning_changes_the_bill_and_nothing_else():
    numbers = replace(NUMBERS, total_training_steps=30)
    stock, pruned = run(STOCK, numbers=numbers), run({"method": "prune"}, numbers=numbers)
    assert pruned.evals["accuracy"].tolist() == stock.evals["accuracy"].tolist()
    assert pruned.flops < stock.flops


def test_the_bill_of_stock_grpo():
    # 6 steps x 4 prompts x 4 rollouts = 96 rollouts; per step 4 x 10 + 16 x 20 = 360 tokens generated, 16 x 30 = 480 trained.
    # 2000 FLOPs per token to generate, 2000 to score and 6000 to train: 6 x (720,000 + 3,840,000)
    course = run(STOCK, coins(*[0.5] * 8))
    assert (course.rollouts, course.profile_rollouts, course.flops) == (96, 0, 27_360_000)


def test_the_bill_of_rows_left_out_is_their_generation():
    # Nothing is mixed: each step trains one row of 30 tokens, because verl goes on with one. 6 x (720,000 + 30 x 8000)
    assert run({"method": "prune"}, coins(*[0.0] * 8)).flops == 5_760_000


def test_the_profile_is_paid_for_where_it_is_used():
    # 8 prompts x 8 samples: 8 x 10 + 64 x 20 = 1360 tokens x 2000
    pool = coins(*[0.5] * 8)
    course = run({"method": "paper"}, pool)
    assert (course.profile_rollouts, course.evals["total_flops"].iloc[0]) == (64, 2_720_000)
    assert run({"method": "bayes"}, pool).profile_rollouts == 0
    assert run({"method": "bayes", "profile": {"path": "any"}}, pool).profile_rollouts == 64


def test_where_nothing_is_learned_the_bill_is_the_forecasts():
    # 1000 samples per prompt, so that counts and true rates agree
    profile = make_profile([0] * 20 + [300, 200, 450, 600] * 5 + [990] * 20, trials=1000)
    numbers = replace(NUMBERS, train_batch_size=16, mini_batch_size=16, total_training_steps=60, total_epochs=60)
    for node in ({"method": "paper"}, {"method": "paper", "prune": True}, {"method": "paper", "filter": "none"}):
        made = make_plan(profile, load_settings(node), numbers)
        stock, ours = forecast(made, SHAPE)
        course = run(node, from_profile(profile, 0), numbers, learning=STILL)
        assert course.rollouts == ours.rollouts
        assert course.flops == pytest.approx(ours.flops, rel=0.02)
        assert course.evals["accuracy"].nunique() == 1
    course = run(STOCK, from_profile(profile, 0), numbers, learning=STILL)
    assert (course.rollouts, course.flops) == (stock.rollouts, pytest.approx(stock.flops, rel=0.001))
    assert course.mixed / course.groups == pytest.approx(stock.mixed, rel=0.1)


def test_rescue_samples_more_of_what_never_succeeds():
    # explore 8 in groups of 8, most 16: every group of a hopeless prompt ends at 16
    assert run({"method": "aero"}, coins(*[0.0] * 8)).rollouts == 2 * 6 * 16


# coins


def test_synthetic_prompts_are_as_told():
    pool = synthetic(1000, 0)
    assert ((pool.rate_P == 0).sum(), (pool.rate_P >= 0.93).sum(), pool.learnable_P.sum()) == (350, 350, 300)
    assert pool.rate_P[pool.learnable_P].min() >= 0.03
    hard, easy = pool.response_tokens_P[pool.rate_P == 0], pool.response_tokens_P[pool.rate_P > 0.9]
    assert hard.min() == 900 and easy.max() < 350


def test_coins_of_a_profile_are_near_its_rates_and_most_unsolved_ones_are_hopeless():
    pool = from_profile(make_profile([0] * 50 + [1] * 10 + [8] * 40), 0)
    # as many of the unsolved may be solved one day as were solved once
    assert (pool.rate_P[:50] > 0).sum() == 10
    assert (pool.rate_P[50:] > 0).all()
    assert pool.rate_P[60:].mean() == pytest.approx(8.5 / 9, abs=0.05)
    assert (pool.prompt_tokens_P == 10).all() and (pool.response_tokens_P == 20).all()


def test_failed_prompts_are_hopeless_and_of_mean_length():
    profile = make_profile([4, 4, 0])
    table = profile.table.assign(trials=[8, 8, 0], prompt_tokens=[10, 20, 0], response_tokens_mean=[2.0, 4.0, 0.0])
    pool = from_profile(replace(profile, table=table), 0)
    assert (pool.rate_P[2], pool.prompt_tokens_P[2], pool.response_tokens_P[2]) == (0.0, 15.0, 3.0)


def test_a_profile_without_lengths_gets_made_up_ones():
    pool = from_profile(make_profile([4, 0], prompt=0, response=0.0), 0)
    assert pool.prompt_tokens_P.tolist() == [100, 100] and pool.response_tokens_P[1] == 900
    assert pool.profile.has_lengths


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_simulated_profile_costs_what_was_asked_for(adaptive):
    pool = synthetic(200, 0)
    made = profiled(pool, load_settings({"profile": {"adaptive": adaptive, "n": 8}}), 0)
    assert made.samples == 1600
    assert (made.table["successes"][pool.rate_P == 0] == 0).all()
    assert made.table["trials"].nunique() == 1 or adaptive


# the command


@pytest.fixture
def sgpo(monkeypatch, capsys, tmp_path):
    """Run ``sgpo simulate <arguments>`` in an empty folder -> (exit code, standard output, standard error)."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sgpo", "simulate", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (ended.value.code or 0, *capsys.readouterr())

    return run


QUICK = ("--prompts", 64, "--steps", 8, "--seeds", 2)


def test_without_a_method_all_are_shown_after_stock_grpo(sgpo, tmp_path):
    code, out, _ = sgpo(*QUICK, "--plot", "a.png")
    assert code == 0
    first = [line.split()[0] for line in out.splitlines() if line.strip()]
    order = ["stock", "paper", "paper", "prune", "greso", "aero", "bayes"]
    assert [word for word in first if word in order] == order * 2
    assert {method for method, *_ in map(str.split, comparing.EVERY)} == set(PARTS)
    lines = out.splitlines()
    assert lines[0].startswith("64 synthetic prompts: 35% trivial, 35% never solvable, 30% in between; 2 seeds")
    assert simulate_view.DISCLAIMER in lines
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG" and os.listdir() == ["a.png"]


def test_what_a_kl_loss_rules_out_is_left_out_of_all_methods_and_refused_where_it_was_asked_for(sgpo):
    kl = "actor_rollout_ref.actor.use_kl_loss=true"
    code, out, err = sgpo(*QUICK, kl)
    first = [line.split()[0] for line in out.splitlines() if line.strip()]
    assert code == 0 and {"stock", "paper", "greso", "aero"} <= set(first) and not {"prune", "bayes"} & set(first)
    left_out = [line.partition(" (")[0] for line in err.splitlines()]
    assert left_out == ["left out: paper sgpo.prune=true", "left out: prune", "left out: bayes"]
    code, _, err = sgpo(*QUICK, kl, "--compare", "prune")
    assert code == 2 and "--compare 'prune': sgpo.prune=True: " + kl.partition("=")[0] in err


def test_the_commands_own_method_and_its_settings_come_before_the_compared(sgpo):
    code, out, _ = sgpo(*QUICK, "+sgpo=bayes", "sgpo.group_size.max=2", "--compare", "aero sgpo.prune=true")
    assert code == 0
    assert [line.split("  ")[0] for line in out.splitlines()[4:7]] == [
        "stock GRPO",
        "bayes group_size.max=2",
        "aero prune=true",
    ]


def test_the_numbers_are_those_of_the_training_command(sgpo):
    code, out, _ = sgpo(
        "--prompts", 64, "trainer.total_training_steps=5", "data.train_batch_size=3", "--compare", "prune"
    )
    assert code == 0
    # 5 x 3 x 8 rollouts
    assert " ".join(out.splitlines()[4].split()).startswith("stock GRPO 5 120 0")


def test_settings_and_overrides_go_where_they_belong():
    rows = contenders(
        ["sgpo.seed=3", "data.train_batch_size=4"], ["grpo", "paper", "grpo data.train_batch_size=2", "paper"]
    )
    assert [row.label for row in rows] == ["stock GRPO", "paper", "grpo train_batch_size=2"]
    assert [row.settings.seed for row in rows] == [0, 3, 0]
    assert [row.numbers.train_batch_size for row in rows] == [4, 4, 2]
    assert {row.numbers.total_training_steps for row in rows} == {160}
    assert rows[0].numbers.updates_per_step == 1
    mine = contenders(["+sgpo=bayes", "sgpo.seed=3"], ["paper"])
    assert [row.settings.seed for row in mine] == [0, 3, 0]


def test_phases_of_given_length_decide_how_long_it_is():
    own = ["+sgpo=paper", "sgpo.curriculum.until=steps", "sgpo.curriculum.steps=[3,2,1]"]
    assert contenders(own)[1].numbers.total_training_steps == 6


def test_a_configuration_that_names_a_method_is_followed():
    recipes = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "recipes")
    rows = contenders(["--config-dir", recipes, "--config-name", "arithmetic_sgpo"], ["bayes"])
    assert [row.label for row in rows] == ["stock GRPO", "paper", "bayes"]
    assert len({row.numbers.train_batch_size for row in rows}) == 1


def test_a_profile_file_is_what_it_is_simulated_on(sgpo, tmp_path):
    save_profile(make_profile([0] * 10 + [1, 2, 3, 4, 5, 6] * 5 + [8] * 10), tmp_path / "p.parquet")
    code, out, _ = sgpo("--profile", "p.parquet", "--steps", 8, "--compare", "paper", "--compare", "bayes")
    assert code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0].startswith("p.parquet: 50 prompts; 3 seeds")
    assert lines[5].startswith("paper 8 912 400")  # 8 x 64 rollouts and 50 x 8 samples


def test_what_is_never_reached_is_said():
    field = contenders([], ["prune", "bayes data.train_batch_size=1"], 30)
    rows = simulate_view.rows_of(field, None, 128, 1, SHAPE)
    assert [row.reached for row in rows] == [1, 1, 0]
    assert simulate_view._ratio(rows[0])[0] == "1.00x"
    assert simulate_view._ratio(rows[2]) == ("not reached", "0 of 1")
    assert rows[1].ratio.middle > 1 and rows[1].baseline_cost == rows[0].cost


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--prompts 0", "--prompts 0: must be from 1 to"),
        ("--steps -3", "--steps -3: must be from 1 to"),
        ("--seeds 0", "--seeds 0: must be from 1 to"),
        ("--prompts 5 --compare prune", "5 prompts do not fill a step of data.train_batch_size=8"),
        ("--profile none.parquet", "none.parquet: no such profile"),
        ("--profile p.parquet --prompts 9", "--prompts 9: a profile has its own prompts"),
        (
            "--profile p.parquet data.train_batch_size=1 --compare prune",
            "none of the 2 prompts has a pass rate above 0",
        ),
        ("--plot a.jpg", "--plot a.jpg: must be a .png file"),
        ("--compare papr", "--compare 'papr': must begin with a method: grpo, paper"),
        ("--compare sgpo.seed=1", "--compare 'sgpo.seed=1': must begin with a method"),
        ("--compare paper'", "--compare 'paper'': must begin with a method"),
        ("--compare|paper sgpo.prun=1", "--compare 'paper sgpo.prun=1': the configuration does not compose"),
        ("--compare|greso sgpo.prune=true", "filter=mixed leaves no rows without advantage"),
        ("--compare|paper sgpo.filter.max_pass_rate=0", "paper filter.max_pass_rate=0: no prompt to train on"),
        ("+sgpo=papr", "Available options in 'sgpo'"),
        ("+sgpo=paper sgpo.profile.n=many", "sgpo.profile.n='many'"),
        ("data.train_batch_size=0", "data.train_batch_size=0: must be a positive integer"),
        ("--verbose", "--verbose: unknown option"),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2(sgpo, tmp_path, arguments, words):
    save_profile(make_profile([0, 0]), tmp_path / "p.parquet")
    separator = "|" if "|" in arguments else None
    code, _, err = sgpo(*arguments.split(separator))
    assert code == 2
    assert err.startswith("sgpo: ") and len(err.splitlines()) == 1
    assert words in err
    assert os.listdir() == ["p.parquet"]


def test_the_picture_of_more_methods_than_colours(tmp_path):
    field = contenders([], ["prune"], 4)
    rows = simulate_view.rows_of(field, None, 64, 2, SHAPE) * 5
    simulate_view.draw(rows, tmp_path / "a.png")
    assert os.listdir(tmp_path) == ["a.png"]
    with pytest.raises(SgpoError, match=r"--plot .*cannot be written"):
        simulate_view.draw(rows, type(tmp_path)("/proc/a.png"))


def test_the_ranking_of_a_small_real_run_is_reproduced():
    # docs/simulate.md: FLOPs to 0.80: groups of 4 chosen by the posterior < pruned GRPO < pruned sGPO < stock GRPO, sGPO
    def flops(node, n=8):
        numbers = RunNumbers(64 // n, n, 64 // n, total_epochs=160, total_training_steps=160)
        return first_reach(simulate(synthetic(2048, 0), load_settings(node), numbers).evals, 0.8).cost["total_flops"]

    chosen, pruned, stock = (
        flops({"method": "bayes", "allocation": "uniform"}, 4),
        flops({"method": "prune"}),
        flops(STOCK),
    )
    paper, paper_pruned = flops({"method": "paper"}), flops({"method": "paper", "prune": True})
    assert chosen < pruned < paper_pruned < stock < paper * 1.2
    assert paper_pruned < paper


@pytest.mark.parametrize("words", [["sgpo.method=paper"], ["+sgpo=paper", "sgpo.method=bayes"]])
def test_a_method_is_named_by_its_word_and_not_under_it(words):
    with pytest.raises(SgpoError, match=r"sgpo\.method=\w+: .* say \+sgpo=METHOD"):
        contenders(words)
