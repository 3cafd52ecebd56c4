"""verl's own checks, made before Ray starts: its ``validate_config``, and the names that it looks up much later."""

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config
from verl.utils.reward_score import default_compute_score

from sgpo_verl.binding.named import named
from sgpo_verl.checks.data import TRAIN, VALIDATION, check_files
from sgpo_verl.checks.findings import Doubt
from sgpo_verl.checks.reward import check_reward
from sgpo_verl.cost import shape_from_config
from sgpo_verl.errors import SgpoError
from sgpo_verl.run_config import group_at, value_at

FLASH = "flash_attention_2"
ENGINES = {"vllm": "vllm", "sglang": "sglang", "trtllm": "tensorrt_llm"}
STRATEGIES = {
    "fsdp": "torch",
    "fsdp2": "torch",
    "fsdp_turbo": "torch",
    "megatron": "megatron.core",
    "veomni": "veomni",
    "torchtitan": "torchtitan",
    "automodel": "nemo_automodel",
}


def check_verls(config: Mapping[str, Any]) -> str:
    """Raises SgpoError in verl's words, or naming the key whose value verl does not know."""
    _check_names(config)
    made = OmegaConf.create(dict(config))
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        with named("verl refuses the configuration"):
            try:
                validate_config(made, need_reference_policy(made), need_critic(made))
            except ValueError as error:
                if str(error).startswith("vllm version None"):  # of LoRA's rank it asks vLLM
                    raise Doubt("not looked at: of LoRA's rank verl asks vLLM, which is not installed here") from error
                raise
            omega_conf_to_dataclass(made.actor_rollout_ref.rollout)
    return "validate_config, estimator, loss and reward manager"


def _check_names(config: Mapping[str, Any]) -> None:
    """verl asks for the estimator and the loss in the first step, for the reward manager once the models are there."""
    losses = group_at(config, "actor_rollout_ref.actor.policy_loss")
    lookups = [
        ("algorithm.adv_estimator", value_at(config, "algorithm.adv_estimator"), get_adv_estimator_fn),
        ("actor_rollout_ref.actor.policy_loss.loss_mode", losses.get("loss_mode", "vanilla"), get_policy_loss_fn),
    ]
    manager = group_at(config, "reward.reward_manager")
    if manager.get("source") == "register":
        from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls

        lookups.append(("reward.reward_manager.name", manager.get("name"), get_reward_manager_cls))
    for key, name, look_up in lookups:
        with named(f"{key}={name}: verl does not know it"):
            look_up(name)


def check_scores(config: Mapping[str, Any]) -> str:
    """The reward in words. Raises SgpoError as ``check_reward``, and where verl's own scores know nothing of the data."""
    said = check_reward(config)
    scored = not group_at(config, "reward.custom_reward_function").get("path")
    manager = group_at(config, "reward.reward_manager").get("source") == "register"
    own = group_at(config, "data.custom_cls").get("path") or group_at(config, "reward.reward_model").get("enable")
    if scored and manager and not own:
        for key in (TRAIN, VALIDATION):
            for peek in check_files(config, key):
                _check_known(key, peek.first if peek else {})
    return said


def _check_known(key: str, row: Mapping[str, Any]) -> None:
    """Without an answer to score: only whether there is a score for the row's data_source, which verl looks up first."""
    source = row.get("data_source")
    if source is None:
        return
    quiet = io.StringIO()
    try:
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            default_compute_score(source, "", "")
    except NotImplementedError:
        raise SgpoError(
            f"{key}: data_source {source!r}: verl has no score for it", "set reward.custom_reward_function.path"
        ) from None
    except Exception:  # of an answer and a truth that are none
        return


def check_loads(config: Mapping[str, Any]) -> str:
    """Tokenizer and configuration, as verl loads them. Of a model of a hub, nothing is fetched for this.

    Raises SgpoError if they cannot be loaded, or are of a shape whose cost ``+sgpo`` cannot count; Doubt where the model has
    far more ids than the tokenizer has tokens.
    """
    path = value_at(config, "actor_rollout_ref.model.path")
    folder = Path(str(path)).expanduser()
    if not folder.is_dir() or group_at(config, "actor_rollout_ref.model").get("use_shm"):
        return "left to the run: the model is not a folder of this machine"
    made = OmegaConf.create(dict(config))
    with contextlib.redirect_stdout(io.StringIO()), named(f"actor_rollout_ref.model.path={path}: cannot be loaded"):
        model = omega_conf_to_dataclass(made.actor_rollout_ref.model)
    if "sgpo" in config:
        shape_from_config(model.hf_config.to_dict(), f"{path}/config.json")
    tokens, ids = len(model.tokenizer), getattr(model.hf_config.get_text_config(), "vocab_size", 0)
    if ids > 2 * tokens:  # a few, to fill up to a multiple, have no probability to speak of
        raise Doubt(
            f"actor_rollout_ref.model.path={path}: {ids} ids, {tokens} tokens in its tokenizer. verl masks the others when it "
            "samples, not when it trains: what is taken from answers goes there, unseen, until the run collapses",
            "give the model as many ids as there are tokens",
        )
    return f"{type(model.tokenizer).__name__} of {tokens} tokens, {model.hf_config.model_type}"


def check_engines(config: Mapping[str, Any]) -> str:
    """What samples and what trains, if it is installed here. Raises Doubt if not: another machine may have it; SgpoError
    if verl does not know it."""
    name = value_at(config, "actor_rollout_ref.rollout.name")
    strategy = value_at(config, "actor_rollout_ref.actor.strategy")
    wanted = {
        f"actor_rollout_ref.rollout.name={name}": (name, ENGINES, _look_up_rollout),
        f"actor_rollout_ref.actor.strategy={strategy}": (strategy, STRATEGIES, _look_up_strategy),
    }
    for key, (value, known, look_up) in wanted.items():
        if value not in known:
            with named(f"{key}: verl does not know it"):
                look_up(value)
        elif not _installed(known[value]):
            raise Doubt(f"{key}: {known[value]} is not installed here", "it must be where the run trains")
    _check_attention(config, strategy)
    return f"{name} samples, {strategy} trains"


def _check_attention(config: Mapping[str, Any], strategy: Any) -> None:
    """Raises Doubt where a model is loaded with flash-attn, which verl's FSDP engine asks for, and it is not here."""
    key = "actor_rollout_ref.model.override_config.attn_implementation"
    chosen = group_at(config, "actor_rollout_ref.model.override_config").get("attn_implementation", FLASH)
    if strategy in ("fsdp", "fsdp2") and chosen == FLASH and not _installed("flash_attn"):
        raise Doubt(
            f"{key}={FLASH}, verl's default: flash_attn is not installed here",
            "pip install flash-attn --no-build-isolation where the run trains, or without it set "
            f"actor_rollout_ref.model.use_remove_padding=false +{key}=sdpa",
        )


def _look_up_rollout(name: Any) -> None:
    """Raises for a name that nobody has registered, those of verl's own aside."""
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    RolloutReplicaRegistry.get(name)


def _look_up_strategy(name: Any) -> None:
    """The same, of what trains; whatever device it is for."""
    from verl.workers.engine.base import EngineRegistry  # takes two seconds

    registered = EngineRegistry._engines["language_model"]
    if name not in registered:
        raise ValueError(f"known are {', '.join({**STRATEGIES, **registered})}")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of its parent
        return False
