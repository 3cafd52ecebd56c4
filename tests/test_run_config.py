"""A training command's arguments -> the configuration that verl would train with, and what we read from it."""

from copy import deepcopy

import pytest

from sgpo_verl.errors import SgpoError
from sgpo_verl.run_config import check_supported, compose, numbers_of, settings_of
from sgpo_verl.schedule import RunNumbers

RECIPE = """
defaults:
  - ppo_trainer
  - sgpo: paper
  - _self_
data:
  train_batch_size: 7
sgpo:
  seed: 3
"""


@pytest.fixture(scope="module")
def composed():
    return compose(
        [
            "+sgpo=paper",
            "+runtime=cpu",
            "data.train_batch_size=16",
            "actor_rollout_ref.rollout.n=4",
            "actor_rollout_ref.actor.ppo_mini_batch_size=8",
            "trainer.total_epochs=2",
            "sgpo.filter.max_pass_rate=0.7",
        ]
    )


def changed(config: dict, key: str, value) -> dict:
    config = deepcopy(config)
    *parents, last = key.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    node[last] = value
    return config


def without(config: dict, key: str) -> dict:
    parent, _, last = key.rpartition(".")
    config = deepcopy(config)
    node = config
    for part in parent.split(".") if parent else ():
        node = node[part]
    del node[last]
    return config


def test_one_word_more_makes_verls_configuration_ours(composed):
    assert composed["algorithm"]["adv_estimator"] == "sgpo"
    assert composed["trainer"]["v1"]["trainer_mode"] == "sgpo_sync"
    assert composed["trainer"]["device"] == "cpu"
    check_supported(composed)


def test_settings_come_from_the_group_and_the_overrides(composed):
    settings = settings_of(composed)
    assert settings.filter.max_pass_rate == 0.7
    assert settings.filter.unsolved_fraction == 0.1


def test_without_the_group_settings_are_the_papers(composed):
    assert settings_of(without(composed, "sgpo")).filter.max_pass_rate == 0.75


def test_numbers_of_the_run(composed):
    assert numbers_of(composed) == RunNumbers(
        train_batch_size=16,
        rollout_n=4,
        mini_batch_size=8,
        total_epochs=2,
        total_training_steps=None,
        scoring_passes=1,
        ppo_epochs=1,
    )


@pytest.mark.parametrize(
    ("changes", "scoring_passes"),
    [
        ({}, 1),  # old log-probs
        ({"actor_rollout_ref.actor.use_kl_loss": True}, 2),  # and the reference model's
        ({"algorithm.use_kl_in_reward": True}, 2),
        ({"algorithm.use_kl_in_reward": True, "actor_rollout_ref.actor.use_kl_loss": True}, 2),
        ({"algorithm.rollout_correction": {"bypass_mode": True}}, 0),  # the rollout's own log-probs
        ({"algorithm.rollout_correction": {"bypass_mode": True}, "algorithm.use_kl_in_reward": True}, 1),
        ({"algorithm.rollout_correction": None}, 1),
    ],
)
def test_scoring_passes(composed, changes, scoring_passes):
    config = composed
    for key, value in changes.items():
        config = changed(config, key, value)
    assert numbers_of(config).scoring_passes == scoring_passes


REQUIRED = [
    "data.train_batch_size",
    "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.actor.ppo_mini_batch_size",
    "actor_rollout_ref.actor.ppo_epochs",
    "trainer.total_epochs",
]


@pytest.mark.parametrize("value", [None, 0, -1, 1.5, "8", "???", True, [8]], ids=repr)
@pytest.mark.parametrize("key", REQUIRED)
def test_a_number_that_is_not_a_positive_integer_is_refused_by_its_key(composed, key, value):
    with pytest.raises(SgpoError, match=rf"^{key}="):
        numbers_of(changed(composed, key, value))


@pytest.mark.parametrize("value", [0, -1, 1.5, "ten", True, [8]], ids=repr)
def test_total_training_steps_is_a_positive_integer_or_null(composed, value):
    with pytest.raises(SgpoError, match=r"^trainer\.total_training_steps="):
        numbers_of(changed(composed, "trainer.total_training_steps", value))


@pytest.mark.parametrize("key", [*REQUIRED, "actor_rollout_ref", "trainer"])
def test_a_key_that_is_gone_is_named(composed, key):
    with pytest.raises(SgpoError, match=key):
        numbers_of(without(composed, key))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("trainer.use_v1", False, r"trainer\.use_v1=False"),
        ("algorithm.filter_groups.enable", True, r"algorithm\.filter_groups\.enable=True: dynamic sampling"),
        ("trainer.v1.trainer_mode", "sync", r"trainer\.v1\.trainer_mode=sync: with \+sgpo it must be one of sgpo_sync"),
        ("critic.enable", True, r"critic\.enable"),
        ("algorithm.adv_estimator", "gae", r"algorithm\.adv_estimator=gae"),
    ],
)
def test_what_cannot_work_together_is_refused_by_its_key(composed, key, value, message):
    with pytest.raises(SgpoError, match=message):
        check_supported(changed(composed, key, value))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "algorithm.adv_estimator",
            "grpo",
            r"sgpo\.prune=True: needs algorithm\.adv_estimator=sgpo, this run has grpo",
        ),
        ("algorithm.use_kl_in_reward", True, r"sgpo\.prune=True: with algorithm\.use_kl_in_reward=True"),
        (
            "actor_rollout_ref.actor.use_kl_loss",
            True,
            r"actor\.use_kl_loss would have moved the rows .* sgpo\.prune=force",
        ),
        ("actor_rollout_ref.actor.entropy_coeff", 0.01, r"actor\.entropy_coeff would have moved the rows"),
    ],
)
def test_rows_are_left_out_only_where_nothing_else_would_have_moved_them(composed, key, value, message):
    pruned = changed(composed, "sgpo.prune", True)
    check_supported(pruned)
    check_supported(changed(composed, key, value))
    with pytest.raises(SgpoError, match=message):
        check_supported(changed(pruned, key, value))


def test_force_leaves_rows_out_beside_a_kl_loss_but_not_before_rewards_are_known(composed):
    forced = changed(composed, "sgpo.prune", "force")
    check_supported(changed(forced, "actor_rollout_ref.actor.use_kl_loss", True))
    with pytest.raises(SgpoError, match="no reward is known before the reference model"):
        check_supported(changed(forced, "algorithm.use_kl_in_reward", True))


@pytest.mark.parametrize(
    ("method", "overrides", "message"),
    [
        ("greso", ["reward.reward_model.enable=True"], r"sgpo\.filter=mixed: .*enable_resource_pool=True"),
        ("aero", ["reward.reward_model.enable=True"], r"sgpo\.allocation=rescue: .*enable_resource_pool=True"),
        (
            "aero",
            ["actor_rollout_ref.rollout.agent.agent_loop_manager_class=my.Manager"],
            r"sgpo\.allocation=rescue: needs .*RescueManager \(\+sgpo=aero sets it\), this run has my\.Manager",
        ),
        (
            "aero",
            ["trainer.v1.trainer_mode=sgpo_colocate_async", "actor_rollout_ref.rollout.n=4"],
            r"sgpo\.aero\.explore=8: with .*sgpo_colocate_async it must be actor_rollout_ref\.rollout\.n=4",
        ),
        ("aero", ["algorithm.adv_estimator=grpo"], r"sgpo\.advantage=aero: needs algorithm\.adv_estimator=sgpo"),
        ("aero", ["algorithm.use_kl_in_reward=True"], r"sgpo\.advantage=aero: with algorithm\.use_kl_in_reward=True"),
        ("bayes", ["actor_rollout_ref.actor.use_kl_loss=True"], r"sgpo\.prune=True: .*use_kl_loss would have moved"),
        (
            "paper",
            ["sgpo.train_fraction=0.5", "actor_rollout_ref.actor.entropy_coeff=0.1"],
            r"sgpo\.train_fraction=0\.5: .*entropy_coeff would have moved .* sgpo\.prune=force",
        ),
    ],
)
def test_what_a_method_needs_of_the_run_is_refused_by_its_key(method, overrides, message):
    arguments = ["data.train_files=a", "data.val_files=a", f"+sgpo={method}"]
    check_supported(compose(arguments))
    with pytest.raises(SgpoError, match=message):
        check_supported(compose([*arguments, *overrides]))


def test_aero_rejects_rows_beside_a_kl_loss_as_if_they_had_not_been_sampled():
    check_supported(compose(["+sgpo=aero", "actor_rollout_ref.actor.use_kl_loss=True"]))


@pytest.mark.parametrize("mode", ["sgpo_sync", "sgpo_colocate_async", "sgpo_separate_async"])
def test_every_mode_of_ours_passes(composed, mode):
    check_supported(changed(composed, "trainer.v1.trainer_mode", mode))


def test_a_replay_buffer_of_the_users_own_is_refused(composed):
    with pytest.raises(SgpoError, match=r"trainer\.v1\.sampler\.custom_sampler: the plugin brings a replay buffer"):
        check_supported(changed(composed, "trainer.v1.sampler.custom_sampler.path", "mine.py"))


@pytest.mark.parametrize(("key", "value"), [("algorithm.adv_estimator", "grpo"), ("algorithm.filter_groups", None)])
def test_what_works_together_is_accepted(composed, key, value):
    check_supported(changed(composed, key, value))


def test_stock_verls_trainer_is_refused_only_beside_our_settings(composed):
    stock = changed(composed, "trainer.v1.trainer_mode", "sync")
    check_supported(without(stock, "sgpo"))


@pytest.mark.parametrize("node", ["paper", [], 3])
def test_settings_that_are_no_group_are_refused_with_the_way_out(composed, node):
    with pytest.raises(SgpoError, match=r"write \+sgpo=paper \(with the plus sign\)"):
        settings_of(changed(composed, "sgpo", node))


@pytest.mark.parametrize("folder", ["recipes", "my recipes", "a,b=c", "a(b)[c]{d}", "récé", "it's"])
def test_a_recipe_of_ones_own_composes_on_top_of_verls_configuration(tmp_path, folder):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "recipe.yaml").write_text(RECIPE)
    arguments = ["--config-dir", str(tmp_path / folder), "--config-name", "recipe", "data.max_prompt_length=99"]
    config = compose(arguments)
    assert (config["data"]["train_batch_size"], config["data"]["max_prompt_length"]) == (7, 99)
    assert settings_of(config).seed == 3


@pytest.mark.parametrize("flags", ["-cd {} -cn recipe", "--config-dir={} --config-name=recipe.yaml"])
def test_flags_may_be_short_or_joined_to_their_values(tmp_path, flags):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    assert compose(flags.format(tmp_path).split())["data"]["train_batch_size"] == 7


def test_verls_own_configuration_composes_beside_a_folder_of_recipes(tmp_path):
    (tmp_path / "sgpo").mkdir()
    (tmp_path / "sgpo" / "mine.yaml").write_text("# @package _global_\nsgpo:\n  seed: 5\n")
    assert settings_of(compose(["--config-dir", str(tmp_path), "+sgpo=mine"])).seed == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.trian_batch_size=3"], r"data\.trian_batch_size"),
        (["+sgpo=paper", "sgpo.filter.max_pas_rate=1"], r"sgpo\.filter\.max_pas_rate"),
        (["sgpo=paper"], r"\+sgpo=paper"),
        (["+sgpo=papr"], "sgpo/papr"),
        (["data"], "data"),
        (["data.x=[1,"], r"\[1,"),
        (["data.train_batch_size=${nowhere}"], "nowhere"),
        (["--config-name", "nowhere"], "nowhere"),
        (["--config-dir", "nowhere"], r"--config-dir nowhere: no such folder"),
        (["--config-dir"], r"--config-dir: needs a value"),
        (["--verbose"], r"--verbose: unknown option"),
    ],
)
def test_arguments_that_do_not_compose_are_one_line_that_names_them(arguments, message):
    with pytest.raises(SgpoError, match=message) as refused:
        compose(arguments)
    assert "\n" not in str(refused.value)


def test_a_misspelt_setting_that_was_added_is_refused_with_a_suggestion():
    with pytest.raises(SgpoError, match=r"did you mean sgpo\.filter\.max_pass_rate\?"):
        settings_of(compose(["+sgpo=paper", "+sgpo.filter.max_pas_rate=1"]))


@pytest.mark.parametrize("content", [b"a: [1\nb: 2", b"a:\n\tb: 1", b"a: 1\na: 2", b"a: \xff", b"- 1", b"3"], ids=repr)
def test_a_recipe_that_is_no_yaml_mapping_is_one_line_that_names_it(tmp_path, content):
    (tmp_path / "broken.yaml").write_bytes(content)
    with pytest.raises(SgpoError, match="broken") as refused:
        compose(["--config-dir", str(tmp_path), "--config-name", "broken"])
    assert "\n" not in str(refused.value)


def test_config_path_is_relative_to_verls_main_as_on_its_own_command_line():
    config = compose(["--config-path=config", "--config-name=ppo_trainer.yaml", "data.train_batch_size=7"])
    assert config["data"]["train_batch_size"] == 7
    with pytest.raises(SgpoError, match="--config-path nowhere: no such folder"):
        compose(["--config-path", "nowhere"])
