"""Every recipe, without a GPU: it composes, says nothing that nobody reads, passes verl's own checks, and divides evenly."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sgpo_verl.checks.findings import Doubt
from sgpo_verl.data.sources import SOURCES
from sgpo_verl.recipe_keys import check_keys, inherited, unknown_keys
from sgpo_verl.run_config import check_supported, compose, numbers_of, settings_of

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
STOCK = sorted(path.stem for path in RECIPES.glob("*_grpo.yaml"))
PAIRS = [(stock, stock.replace("_grpo", "_sgpo")) for stock in STOCK]
BOTH = [name for pair in PAIRS for name in pair]
ON_GPUS = [name for name in BOTH if not name.startswith("arithmetic")]

# The models' own config.json: layers, attention heads, key-value heads, positions.
MODELS = {
    "Qwen/Qwen2.5-0.5B-Instruct": (24, 14, 2, 32768),
    "Qwen/Qwen2.5-1.5B-Instruct": (28, 12, 2, 32768),
    "Qwen/Qwen2.5-Math-1.5B": (28, 12, 2, 4096),
    "Qwen/Qwen2.5-Math-7B": (28, 28, 4, 4096),
    "Qwen/Qwen2.5-32B": (64, 40, 8, 131072),
}


@pytest.fixture(scope="module")
def composed():
    made = {}

    def of(name, *overrides):
        if (name, overrides) not in made:
            made[name, overrides] = compose(["--config-dir", str(RECIPES), "--config-name", name, *overrides])
        return made[name, overrides]

    return of


def test_recipes_come_in_pairs_and_every_file_is_used():
    assert all((RECIPES / f"{name}.yaml").is_file() for name in BOTH)
    used = {file for name in BOTH for file in inherited(RECIPES, name)}
    assert used == {path for path in RECIPES.rglob("*.yaml") if path.parent.name != "bench"}


@pytest.mark.parametrize("name", BOTH)
def test_every_key_of_a_recipe_is_a_setting_of_verl_or_ours(name):
    assert unknown_keys(RECIPES, name) == []


MISSPELT = """
defaults: [ppo_trainer, parts/shared, sgpo: paper, _self_]
recipe: x
run_dri: y
data: {train_file: a, apply_chat_template_kwargs: {enable_thinking: false}}
actor_rollout_ref:
  model: {override_config: {anything: 1}}
  actor:
    fsdp_config: {mixed_precision: {param_dtype: bf16}, ofload_policy: true}
  rollout: {engine_kwargs: {vllm: {anything: 1}}}
sgpo: {filter: {max_pas_rate: 0.5}}
trainer: {experiment_name: "${recipe}"}
hydra: {run: {dir: z}}
"""


def test_a_misspelt_key_of_a_recipe_is_found_by_name_and_file_and_nothing_else_is(tmp_path):
    (tmp_path / "parts").mkdir()
    shared = "# @package _global_\nactor_rollout_ref: {actor: {ppo_mini_batchsize: 3, ppo_epochs: 1}}\n"
    (tmp_path / "parts" / "shared.yaml").write_text(shared)
    (tmp_path / "mine.yaml").write_text(MISSPELT)
    actor = "actor_rollout_ref.actor"
    assert unknown_keys(tmp_path, "mine") == [
        "mine.yaml: run_dri: no such setting",
        "mine.yaml: data.train_file: no such setting; did you mean data.train_files?",
        f"mine.yaml: {actor}.fsdp_config.ofload_policy: no such setting; did you mean "
        f"{actor}.fsdp_config.offload_policy?",
        "mine.yaml: sgpo.filter.max_pas_rate: no such setting; did you mean sgpo.filter.max_pass_rate?",
        f"parts/shared.yaml: {actor}.ppo_mini_batchsize: no such setting; did you mean {actor}.ppo_mini_batch_size?",
    ]


@pytest.mark.parametrize("name", BOTH)
def test_no_recipe_looks_misspelt(composed, name):
    assert check_keys(composed(name)) == "none looks misspelt"


def test_keys_after_a_plus_are_doubted_if_they_are_like_one_beside_them():
    rollout = "actor_rollout_ref.rollout"
    unlisted = ["+data.cache_dir=x", "+reward.reward_kwargs.num_worker=1", "+ray_kwargs.ray_init.num_gpus=1"]
    own = ["+mine.total_epoch=1", f"+{rollout}.engine_kwargs.vllm.max_num_seq=1", "+data.colour=red"]
    assert check_keys(compose([*unlisted, *own])) == "none looks misspelt"
    wrong = [
        "+trainer.total_epoch=1",
        f"+{rollout}.multi_tern.enable=true",
        "++reward.num_worker=1",
        "+trianer.nnodes=2",
    ]
    with pytest.raises(Doubt) as doubt:
        check_keys(compose([*own, *wrong]))
    lines = str(doubt.value)
    for pair in (
        f"{rollout}.multi_tern.enable: no such setting; did you mean {rollout}.multi_turn.enable?",
        "trainer.total_epoch: no such setting; did you mean trainer.total_epochs?",
        "(and 1 more)",
    ):
        assert pair in lines


@pytest.mark.parametrize("name", BOTH)
def test_verl_and_we_accept_it(composed, name):
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    config = composed(name)
    check_supported(config)
    settings_of(config)
    theirs = OmegaConf.create(config)
    validate_config(theirs, need_reference_policy(theirs), need_critic(theirs))


@pytest.mark.parametrize("method", ["prune", "greso", "aero", "bayes"])
@pytest.mark.parametrize("name", ["gsm8k_0.5b_sgpo", "math_7b_async_sgpo"])
def test_one_word_swaps_in_another_method_and_its_run_has_a_folder_of_its_own(composed, name, method):
    config = composed(name, f"sgpo={method}")
    check_supported(config)
    assert config["sgpo"]["method"] == method
    assert config["run_dir"] == f"runs/{name.replace('sgpo', method)}"


@pytest.mark.parametrize("name", ON_GPUS)
def test_batches_divide_evenly(composed, name):
    config = composed(name)
    numbers, rollout = numbers_of(config), config["actor_rollout_ref"]["rollout"]
    actor, trainer = config["actor_rollout_ref"]["actor"], config["trainer"]
    layers, heads, kv_heads, positions = MODELS[config["actor_rollout_ref"]["model"]["path"]]
    gpus = trainer["nnodes"] * trainer["n_gpus_per_node"]
    tensor = pipeline = 1
    if actor["strategy"] == "megatron":
        tensor = actor["megatron"]["tensor_model_parallel_size"]
        pipeline = actor["megatron"]["pipeline_model_parallel_size"]
    assert gpus % (tensor * pipeline) == 0 and layers % pipeline == 0 and heads % tensor == kv_heads % tensor == 0
    ranks = gpus // (tensor * pipeline)
    assert numbers.train_batch_size % numbers.mini_batch_size == 0
    assert numbers.mini_batch_size * numbers.rollout_n % ranks == 0  # else verl pads every step
    longest = config["data"]["max_prompt_length"] + config["data"]["max_response_length"]
    assert longest <= min(positions, actor["ppo_max_token_len_per_gpu"], rollout["log_prob_max_token_len_per_gpu"])
    assert trainer["n_gpus_per_node"] % rollout["tensor_model_parallel_size"] == 0
    assert heads % rollout["tensor_model_parallel_size"] == kv_heads % rollout["tensor_model_parallel_size"] == 0
    if trainer["v1"]["trainer_mode"].endswith("separate_async"):
        assert numbers.updates_per_step == trainer["v1"]["separate_async"]["parameter_sync_step"]
        assert rollout["n_gpus_per_node"] + trainer["n_gpus_per_node"] == 8
        assert rollout["checkpoint_engine"]["backend"] == "nccl"


def leaves(node, above=""):
    if isinstance(node, dict) and node:
        return {key: value for k, v in node.items() for key, value in leaves(v, f"{above}{k}.").items()}
    return {above[:-1]: node}


NAMES = r"run_dir|trainer\.(experiment_name|default_local_dir|rollout_data_dir)|.*\.trace\.experiment_name"
METHOD = r"sgpo\..*|algorithm\.adv_estimator|trainer\.v1\.trainer_mode"


@pytest.mark.parametrize(("stock", "treatment"), PAIRS)
def test_a_pair_differs_in_the_method_and_the_runs_name_only(composed, stock, treatment):
    before, after = leaves(composed(stock)), leaves(composed(treatment))
    changed = {key for key in before.keys() | after.keys() if before.get(key, "-") != after.get(key, "-")}
    assert [key for key in changed if not re.fullmatch(f"{NAMES}|{METHOD}", key)] == []
    assert {"algorithm.adv_estimator", "trainer.v1.trainer_mode", "run_dir", "sgpo.method"} <= changed


@pytest.mark.parametrize("name", ON_GPUS)
def test_the_readme_has_the_recipe_and_how_its_data_is_made(composed, name):
    text = (RECIPES / "README.md").read_text()
    made = dict(re.findall(r"sgpo data (\w+) +-o (data/\w+)", text))
    files = {f"{folder}/{file}" for source, folder in made.items() for file in SOURCES[source].files.values()}
    data = composed(name)["data"]
    named = [
        f for key in ("train_files", "val_files") for f in (data[key] if isinstance(data[key], list) else [data[key]])
    ]
    assert set(named) <= files
    assert f"`{name.rsplit('_', 1)[0]}_*`" in text
