"""The profile of a run: is it of this run, and what plan comes of it; or will one be made first, and can it be."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgpo_verl.checks.batch import rehearse
from sgpo_verl.checks.findings import Doubt
from sgpo_verl.errors import SgpoError
from sgpo_verl.plan import ProfiledPlan, make_plan
from sgpo_verl.profile import ProfileMetadata, differences, load_profile
from sgpo_verl.provenance import describe
from sgpo_verl.run_config import group_at, numbers_of, own_profile_path, settings_of


def check_profile(config: Mapping[str, Any]) -> str:
    """The profile and its plan, in words.

    Raises SgpoError if it is of something else, or cannot be made; Doubt if it does not say of what data it is.
    """
    if "sgpo" not in config:
        return "none: stock GRPO"
    settings, path = settings_of(config), profile_path(config)
    if path is not None:
        profile = load_profile(path)
        _check_match(config, path, profile.metadata)
        plan = make_plan(profile, settings, numbers_of(config)).plan
        sizes = ", ".join(str(phase.group_size) for phase in plan.phases)
        phases = f" in phases of groups of {sizes}" if len(plan.phases) > 1 else ""
        drawn = sum(len(phase.prompts_M) for phase in plan.phases)
        counts = f"{plan.prompts} prompts, {drawn} to draw; {plan.total_steps} steps{phases}"
        if "data" in profile.metadata.unstated():
            raise Doubt(
                f"{path}: does not say of what data it is, and is taken to be of this run's: {counts}",
                "the run itself holds its prompts against those of data.train_files",
            )
        return f"{path}: of this run, {counts}"
    if not settings.needs_profile:
        return "none is needed"
    check_profilable(config)
    if not settings.profile.adaptive:
        rehearse(settings, numbers_of(config), trials=settings.profile.n)
    return f"made before the first step: {settings.profile.n} samples of every prompt, in {own_profile_path(config)}"


def check_to_be_profiled(config: Mapping[str, Any]) -> str:
    """Whether a profile can be made, whatever there is already."""
    numbers_of(config)
    check_profilable(config)
    return f"{settings_of(config).profile.n} samples of every prompt"


def describe_run(config: Mapping[str, Any]) -> ProfileMetadata:
    """What a profile of this run would say of itself. Raises SgpoError naming the key of a file that is not there."""
    settings = settings_of(config)
    return describe(config, settings.success_threshold, settings.seed)


def profile_path(config: Mapping[str, Any]) -> Path | None:
    """The profile that the run will read: sgpo.profile.path, else the one that it made itself before."""
    settings = settings_of(config)
    if settings.profile.path is not None:
        return Path(settings.profile.path)
    own = own_profile_path(config)
    return own if settings.needs_profile and own.is_file() else None


def planned(config: Mapping[str, Any]) -> ProfiledPlan | None:
    """The plan of the run's profile, None without one; that it is of this run, ``check_profile`` sees."""
    path = profile_path(config)
    if path is None or "sgpo" not in config:
        return None
    return make_plan(load_profile(path), settings_of(config), numbers_of(config))


def _check_match(config: Mapping[str, Any], path: Path, made: ProfileMetadata) -> None:
    lines = differences(made, describe_run(config))
    if lines and not settings_of(config).profile.allow_mismatch:
        raise SgpoError(mismatch(path, lines))


def mismatches(config: Mapping[str, Any], made: ProfileMetadata) -> list[str]:
    """In what the profile is another than this run's, a line each; none where that is allowed, where the run does not say what
    it is of, or its files are not here."""
    if settings_of(config).profile.allow_mismatch:
        return []
    try:
        return differences(made, describe_run(config))
    except SgpoError:
        return []


def mismatch(path: Path, lines: list[str]) -> str:
    """The words for a profile of another model, data, sampling or reward."""
    return (
        f"{path}: is not a profile of this run ({'; '.join(lines)}): profile again with `sgpo profile`, or set "
        "sgpo.profile.allow_mismatch=true"
    )


def check_profilable(config: Mapping[str, Any]) -> None:
    """Refuse what would not be sampled and scored as training does. Raises SgpoError naming the key."""
    if group_at(config, "actor_rollout_ref.model").get("lora_adapter_path"):
        raise SgpoError(
            "actor_rollout_ref.model.lora_adapter_path: profiling would sample the model without its adapter; bring a "
            "profile made elsewhere as sgpo.profile.path"
        )
    model = group_at(config, "reward.reward_model")
    if model.get("enable") and not model.get("enable_resource_pool"):
        raise SgpoError(
            "reward.reward_model: a reward model that shares the actor's devices cannot score while profiling; give it "
            "its own with reward.reward_model.enable_resource_pool=True"
        )
