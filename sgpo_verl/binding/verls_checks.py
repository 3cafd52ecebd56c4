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

from sgpo_verl.binding.named import named
from sgpo_verl.checks.findings import Doubt
from sgpo_verl.run_config import group_at, value_at

ENGINES = {"vllm": "vllm", "sglang": "sglang", "trtllm": "tensorrt_llm"}


def check_verls(config: Mapping[str, Any]) -> str:
    """Raises SgpoError in verl's words, or naming the key whose value verl does not know."""
    _check_names(config)
    made = OmegaConf.create(dict(config))
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        with named("verl refuses the configuration"):
            validate_config(made, need_reference_policy(made), need_critic(made))
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


def check_loads(config: Mapping[str, Any]) -> str:
    """Tokenizer and configuration, as verl loads them. Of a model of a hub, nothing is fetched for this."""
    path = value_at(config, "actor_rollout_ref.model.path")
    folder = Path(str(path)).expanduser()
    if not folder.is_dir() or group_at(config, "actor_rollout_ref.model").get("use_shm"):
        return "left to the run: the model is not a folder of this machine"
    made = OmegaConf.create(dict(config))
    with contextlib.redirect_stdout(io.StringIO()), named(f"actor_rollout_ref.model.path={path}: cannot be loaded"):
        model = omega_conf_to_dataclass(made.actor_rollout_ref.model)
    return f"{type(model.tokenizer).__name__} of {len(model.tokenizer)} tokens, {model.hf_config.model_type}"


def check_engines(config: Mapping[str, Any]) -> str:
    """What samples and what trains, if it is installed here. Raises Doubt if not: another machine may have it."""
    name = value_at(config, "actor_rollout_ref.rollout.name")
    wanted = {f"actor_rollout_ref.rollout.name={name}": ENGINES.get(name)}
    if value_at(config, "actor_rollout_ref.actor.strategy") == "megatron":
        wanted["actor_rollout_ref.actor.strategy=megatron"] = "megatron.core"
    for key, package in wanted.items():
        if package and not _installed(package):
            raise Doubt(f"{key}: {package} is not installed here", "it must be where the run trains")
    return ", ".join(package for package in wanted.values() if package) or "left to verl"


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of its parent
        return False
