"""What we read from verl's configuration, in one place: a composed training config in, our settings and numbers out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sgpo_verl import SUPPORTED_VERL
from sgpo_verl.config import Settings, load_settings
from sgpo_verl.errors import SgpoError
from sgpo_verl.extern import load_class
from sgpo_verl.schedule import RunNumbers

if TYPE_CHECKING:
    from omegaconf import DictConfig

RESCUE_MANAGER = "sgpo_verl.binding.rescue.RescueManager"
TRAINER_MODES = ("sgpo_sync", "sgpo_colocate_async", "sgpo_separate_async")


def compose(arguments: Sequence[str]) -> dict[str, Any]:
    """The configuration that ``python -m verl.trainer.main_ppo <arguments>`` would train with, resolved.

    arguments: Hydra overrides, and Hydra's ``--config-dir DIR``, ``--config-path PATH`` and ``--config-name NAME``.
    verl is located but not imported. Raises SgpoError with Hydra's own first lines if it does not compose.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    flags, overrides = _split_arguments(arguments)
    name = flags.get("config_name", "ppo_trainer").removesuffix(".yaml")
    places = [_primary_config_dir(flags.get("config_path"))]
    if "config_dir" in flags:
        folder = Path(flags["config_dir"]).resolve()
        if not folder.is_dir():
            raise SgpoError(f"--config-dir {flags['config_dir']}: no such folder")
        # Hydra looks for the primary config only in the place it starts from; the other one is searched for the rest.
        places = sorted([*places, folder], key=lambda place: not (place / f"{name}.yaml").is_file())
    searched = [f"hydra.searchpath=[{_quoted(f'file://{place}')}]" for place in places[1:]]
    try:
        with initialize_config_dir(config_dir=str(places[0]), version_base=None):
            config = hydra_compose(name, overrides=[*overrides, *searched])
        return as_dicts(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise SgpoError(f"the configuration does not compose: {_first_words(str(error))}") from None
    except (YAMLError, UnicodeDecodeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise SgpoError(f"--config-name {name}: it, or a file it names, is not a YAML mapping ({reason})") from None
    except ValueError as error:  # what Hydra lets out for algorithm=null: a group that is no name
        raise SgpoError(f"the configuration does not compose: {_first_words(str(error))}") from None


def as_dicts(config: "DictConfig") -> dict[str, Any]:
    """A composed configuration as dicts, lists and values, resolved. Raises OmegaConfBaseException if it does not resolve."""
    from omegaconf import OmegaConf

    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def _first_words(text: str) -> str:
    """The first two lines of Hydra's message as one, and the options that it lists, without its search path."""
    lines = [line.strip() for line in text.partition("Config search path")[0].splitlines() if line.strip()]
    listed = len(lines) > 1 and lines[1].startswith("Available options")
    return " ".join([*lines[:2], ", ".join(lines[2:])] if listed else lines[:2])


def _quoted(text: str) -> str:
    """As one value of Hydra's override grammar, whatever characters a path holds."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _split_arguments(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    flags, overrides, rest = {}, [], list(arguments)
    names = {"--config-dir": "config_dir", "-cd": "config_dir", "--config-name": "config_name", "-cn": "config_name"}
    names |= {"--config-path": "config_path", "-cp": "config_path"}
    while rest:
        word = rest.pop(0)
        name, _, value = word.partition("=")
        if name not in names:
            if word.startswith("-"):
                raise SgpoError(f"{word}: unknown option; Hydra overrides look like key=value")
            overrides.append(word)
        elif value or rest:
            flags[names[name]] = value or rest.pop(0)
        else:
            raise SgpoError(f"{name}: needs a value")
    return flags, overrides


def _primary_config_dir(config_path: str | None) -> Path:
    """verl's own folder; with --config-path another one, relative to the folder of verl's main, as Hydra has it."""
    import importlib.util

    spec = importlib.util.find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        raise SgpoError(f"verl is not installed here: pip install 'verl{SUPPORTED_VERL}'")
    folder = Path(spec.submodule_search_locations[0]) / "trainer" / (config_path or "config")
    if not folder.is_dir():
        raise SgpoError(f"--config-path {config_path}: no such folder ({folder})")
    return folder


def settings_of(config: Mapping[str, Any]) -> Settings:
    """The settings under ``sgpo:``; the paper's defaults if the configuration has none."""
    node = config.get("sgpo")
    if node is not None and not isinstance(node, Mapping):
        raise SgpoError(f"sgpo={node!r}: the settings are a group; write +sgpo=paper (with the plus sign)")
    return load_settings(node or {})


def with_profile(config: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with these settings under sgpo.profile."""
    node = config.get("sgpo") or {}
    inner = node.get("profile") if isinstance(node, Mapping) else None
    if not more or not isinstance(node, Mapping) or not isinstance(inner or {}, Mapping):
        return dict(config)
    return {**config, "sgpo": {**node, "profile": {**(inner or {}), **more}}}


REQUIRED = (
    "data.train_batch_size",
    "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.actor.ppo_mini_batch_size",
    "actor_rollout_ref.actor.ppo_epochs",
    "trainer.total_epochs",
)


def value_at(config: Mapping[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            raise SgpoError(f"{key}: not in this configuration; is it one of verl's PPO trainer (ppo_trainer)?")
        node = node[part]
    return node


def group_at(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The settings under ``key``, none where it is null or missing. Raises SgpoError if it is something else."""
    *parents, name = key.split(".")
    parent = value_at(config, ".".join(parents)) if parents else config
    if not isinstance(parent, Mapping):
        raise SgpoError(f"{'.'.join(parents)}={parent!r}: is a group of settings; set those under it")
    node = parent.get(name) or {}
    if not isinstance(node, Mapping):
        raise SgpoError(f"{key}={node!r}: is a group of settings; set those under it, {key}.<name>=...")
    return node


def is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value < 2**31


def numbers_of(config: Mapping[str, Any]) -> RunNumbers:
    """Batch, mini-batch and length of the training run. Raises SgpoError naming a key that is missing or not positive."""
    required = {key: value_at(config, key) for key in REQUIRED}
    for key, value in required.items():
        if not is_count(value):
            raise SgpoError(f"{key}={value!r}: must be a positive integer")
    steps = value_at(config, "trainer.total_training_steps")
    if steps is not None and not is_count(steps):
        raise SgpoError(f"trainer.total_training_steps={steps!r}: must be a positive integer, or null")
    correction = group_at(config, "algorithm.rollout_correction")
    reference = value_at(config, "actor_rollout_ref.actor.use_kl_loss") or value_at(
        config, "algorithm.use_kl_in_reward"
    )
    return RunNumbers(
        train_batch_size=required["data.train_batch_size"],
        rollout_n=required["actor_rollout_ref.rollout.n"],
        mini_batch_size=required["actor_rollout_ref.actor.ppo_mini_batch_size"],
        total_epochs=required["trainer.total_epochs"],
        total_training_steps=steps,
        scoring_passes=(0 if correction.get("bypass_mode") else 1) + bool(reference),
        ppo_epochs=required["actor_rollout_ref.actor.ppo_epochs"],
        shuffle=config["data"].get("shuffle") is not False,
    )


def own_profile_path(config: Mapping[str, Any]) -> Path:
    """Where a run keeps the profile it makes itself, and where `sgpo profile` puts one that is to be found without a name."""
    folder = value_at(config, "trainer.default_local_dir")
    if not isinstance(folder, str):
        raise SgpoError(f"trainer.default_local_dir={folder!r}: must be a folder")
    return Path(folder) / "sgpo" / "profile.parquet"


def check_supported(config: Mapping[str, Any]) -> None:
    """Refuse what cannot work together with us. Raises SgpoError naming the key, the reason and the way out."""
    if not value_at(config, "trainer.use_v1"):
        raise SgpoError("trainer.use_v1=False: sgpo plugs into verl's V1 trainer; leave trainer.use_v1 at True")
    mode = value_at(config, "trainer.v1.trainer_mode")
    if "sgpo" in config and mode not in TRAINER_MODES:
        raise SgpoError(
            f"trainer.v1.trainer_mode={mode}: with +sgpo it must be one of {', '.join(TRAINER_MODES)}, else verl's own "
            "trainer would run without the plan"
        )
    if isinstance(config.get("sgpo"), Mapping):
        _check_parts(config, settings_of(config))
    custom = group_at(config, "trainer.v1.sampler.custom_sampler") if "sgpo" in config else {}
    if custom.get("path") or custom.get("name"):
        raise SgpoError(
            "trainer.v1.sampler.custom_sampler: the plugin brings a replay buffer that knows groups of different sizes; leave "
            "it unset"
        )
    if group_at(config, "algorithm.filter_groups").get("enable"):
        raise SgpoError(
            "algorithm.filter_groups.enable=True: dynamic sampling refills steps with prompts of its own choice, the "
            "plan with its own; use one of the two"
        )
    if "sgpo" in config and (value_at(config, "critic.enable") or value_at(config, "algorithm.adv_estimator") == "gae"):
        raise SgpoError(
            "critic.enable / algorithm.adv_estimator=gae: a group's own mean is the baseline here; use sgpo or grpo"
        )


def _check_parts(config: Mapping[str, Any], settings: Settings) -> None:
    """What the chosen parts need of the rest of the configuration, and of files."""
    if settings.curriculum.order == "custom":
        load_class(settings.curriculum.custom)
    model = group_at(config, "reward.reward_model")
    if model.get("enable") and not model.get("enable_resource_pool"):
        for part, value in (("filter", settings.filter.by), ("allocation", settings.allocation)):
            if value in ("mixed", "rescue"):
                raise SgpoError(
                    f"sgpo.{part}={value}: needs rewards while groups are sampled, and a reward model that shares the "
                    "actor's devices scores them later; give it a pool of its own "
                    "(reward.reward_model.enable_resource_pool=True)"
                )
    if settings.allocation == "rescue":
        manager = group_at(config, "actor_rollout_ref.rollout.agent").get("agent_loop_manager_class")
        if manager != RESCUE_MANAGER:
            raise SgpoError(
                f"sgpo.allocation=rescue: needs actor_rollout_ref.rollout.agent.agent_loop_manager_class={RESCUE_MANAGER} "
                f"(+sgpo=aero sets it), this run has {manager}"
            )
        n, mode = value_at(config, "actor_rollout_ref.rollout.n"), value_at(config, "trainer.v1.trainer_mode")
        if mode != "sgpo_sync" and (settings.aero.explore != n or settings.batch.rollouts):
            raise SgpoError(
                f"sgpo.aero.explore={settings.aero.explore}: with trainer.v1.trainer_mode={mode} it must be "
                f"actor_rollout_ref.rollout.n={n}, and sgpo.batch.rollouts null: these modes count groups"
            )
    if not settings.chooses_rows:
        return
    estimator = value_at(config, "algorithm.adv_estimator")
    switch = _switch(settings)
    if estimator != "sgpo":
        raise SgpoError(
            f"{switch}: needs algorithm.adv_estimator=sgpo, this run has {estimator}, whose advantages are not known "
            "right after sampling; leave algorithm.adv_estimator out, and it is"
        )
    if value_at(config, "algorithm.use_kl_in_reward"):
        raise SgpoError(
            f"{switch}: with algorithm.use_kl_in_reward=True no reward is known before the reference model has run, so no "
            "row can be left out; use a KL loss with sgpo.prune=force, or sgpo.prune=false"
        )
    _check_prune(config, settings, switch)


def _switch(settings: Settings) -> str:
    """The setting that has advantages settled right after sampling."""
    if settings.prune:
        return f"sgpo.prune={settings.prune}"
    if settings.train_fraction < 1:
        return f"sgpo.train_fraction={settings.train_fraction}"
    return f"sgpo.advantage={settings.advantage}"


# What moves rows without advantage too, and the value at which it does not.
MOVERS = {"actor_rollout_ref.actor.use_kl_loss": "false", "actor_rollout_ref.actor.entropy_coeff": "0"}


def _check_prune(config: Mapping[str, Any], settings: Settings, switch: str) -> None:
    """Rows without advantage may only be left out where nothing else would have moved them."""
    moved = [key for key in MOVERS if value_at(config, key)]
    if moved and settings.prune != "force" and (settings.prune or settings.train_fraction < 1):
        raise SgpoError(
            f"{switch}: {' and '.join(moved)} would have moved the rows that it leaves out; set sgpo.prune=force if "
            f"only the rows that are trained on shall be, sgpo.prune=false, or train without ({moved[0]}={MOVERS[moved[0]]})"
        )
