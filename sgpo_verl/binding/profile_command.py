"""``sgpo profile``: the profiling worker outside a training run."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from verl.trainer.constants_ppo import get_ppo_ray_runtime_env
from verl.trainer.ppo.utils import create_rl_dataset
from verl.utils.config import omega_conf_to_dataclass

from sgpo_verl.binding.dataloader import identify_dataset
from sgpo_verl.binding.preflight import check_run
from sgpo_verl.binding.profiler import profile_dataset
from sgpo_verl.binding.servers import check_profilable
from sgpo_verl.binding.session import metadata_for, plain_progress
from sgpo_verl.errors import SgpoError
from sgpo_verl.profile import ProfileMetadata, check_writable, differences, load_profile, save_profile
from sgpo_verl.run_config import own_profile_path, settings_of


def run(plain: dict[str, Any], output: Path | None, force: bool) -> None:
    """Profile what ``plain`` (a resolved training configuration) would train on; write and summarise it."""
    console = Console(highlight=False, soft_wrap=True)
    settings = settings_of(plain)
    check_run(_without_profile(plain))
    output = output or Path(settings.profile.path or own_profile_path(plain))
    if os.path.isdir(output):
        raise SgpoError(f"-o {output}: is a folder; name a file")
    config = OmegaConf.create(plain)
    with _named(f"actor_rollout_ref.model.path={config.actor_rollout_ref.model.path}: cannot be loaded"):
        model = omega_conf_to_dataclass(config.actor_rollout_ref.model)
    with _named("data.train_files: verl cannot read it"):
        dataset = create_rl_dataset(
            config.data.train_files,
            config.data,
            model.tokenizer,
            model.processor,
            is_train=True,
            max_samples=config.data.get("train_max_samples", -1),
        )
    prompts = identify_dataset(dataset, settings.duplicates)
    wanted = metadata_for(plain, settings, model.tokenizer)
    if os.path.exists(output) and not force:
        _already_there(output, wanted, settings.profile.n, console)
        return
    check_profilable(config)
    check_writable(output)
    console.print(f"profiling {len(prompts)} prompts x {settings.profile.n} samples; starting the servers ...")
    with _ray(config), _progress(len(prompts), settings.profile.n, console) as progress:
        profile = profile_dataset(config, dataset, prompts, model.tokenizer, settings, wanted, progress)
    save_profile(profile, output)
    rate = profile.table["successes"].sum() / profile.samples
    made = profile.metadata
    console.print(
        f"{profile.samples} samples, mean pass rate {rate:.3f}, {made.total_tokens} tokens, {made.seconds:.0f} s\n"
        f"profile: {output}"
    )


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Whatever verl or a library raises for bad input, as one line. Raises SgpoError."""
    try:
        yield
    except SgpoError:
        raise
    except Exception as error:
        cause = error
        while isinstance(cause.__cause__, Exception):  # the first of the chain is the reason
            cause = cause.__cause__
        reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), "no reason given")
        raise SgpoError(f"{what} ({type(cause).__name__}: {reason[:300]})") from error


def _without_profile(plain: dict[str, Any]) -> dict[str, Any]:
    """The configuration as if no profile were named: that one is about to be made."""
    node = plain.get("sgpo") or {}
    return {**plain, "sgpo": {**node, "profile": {**node.get("profile", {}), "path": None}}}


def _already_there(output: Path, wanted: ProfileMetadata, n: int, console: Console) -> None:
    """Say that nothing needs doing, or refuse to overwrite a profile of something else."""
    existing = load_profile(output)
    lines = differences(existing.metadata, wanted)
    made = existing.samples / len(existing)
    if made != n:
        lines.append(f"samples per prompt: profile {made:g}, sgpo.profile.n {n}")
    if lines:
        raise SgpoError(f"{output}: holds a profile of something else ({'; '.join(lines)}); use --force or another -o")
    console.print(
        f"profile: {output} (already there: {len(existing)} prompts, {existing.samples} samples; --force to redo)"
    )


@contextmanager
def _ray(config) -> Iterator[None]:
    """Ray as verl's main starts it, its workers' output kept in its log files; shut down if it was started here."""
    if ray.is_initialized():
        yield
        return
    options = OmegaConf.to_container(config.ray_kwargs.get("ray_init") or OmegaConf.create(), resolve=True)
    environment = OmegaConf.to_container(OmegaConf.create(get_ppo_ray_runtime_env(config)))
    given = options.pop("runtime_env", None) or {}
    environment["env_vars"] |= given.pop("env_vars", {})
    context = ray.init(
        **{"log_to_driver": False, "logging_level": logging.ERROR, **options}, runtime_env=environment | given
    )
    try:
        yield
    except SgpoError:
        raise
    except ray.exceptions.RayError as error:
        folder = os.path.join(context.address_info["session_dir"], "logs")
        raise SgpoError(
            f"profiling stopped: {str(error).splitlines()[-1]}; the servers' logs are in {folder}"
        ) from error
    finally:
        ray.shutdown()


@contextmanager
def _progress(prompts: int, n: int, console: Console) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, a line every ten seconds elsewhere."""
    if not console.is_terminal:
        yield plain_progress(prompts, n)
        return
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("prompts, pass rate {task.fields[rate]:.2f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("profiling", total=prompts, rate=0.0)

        def show(done: int, successes: int) -> None:
            bar.update(task, completed=done, rate=successes / (done * n))

        yield show
