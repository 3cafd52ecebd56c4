"""``sgpo profile``: the profiling worker outside a training run."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
from omegaconf import OmegaConf
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn
from rich.text import Text
from verl.trainer.constants_ppo import get_ppo_ray_runtime_env
from verl.trainer.ppo.utils import create_rl_dataset
from verl.utils.config import omega_conf_to_dataclass

from sgpo_verl import profile_view
from sgpo_verl.binding.dataloader import identify_dataset
from sgpo_verl.binding.named import named
from sgpo_verl.binding.preflight import TO_PROFILE, check_run
from sgpo_verl.binding.profiler import Target, make_profile
from sgpo_verl.binding.session import metadata_for
from sgpo_verl.checks.profile import check_profilable
from sgpo_verl.config import Settings
from sgpo_verl.errors import SgpoError
from sgpo_verl.profile import Profile, check_writable, differences, load_profile
from sgpo_verl.run_config import own_profile_path, settings_of, with_profile
from sgpo_verl.shards import discard, parts_folder, pass_id
from sgpo_verl.tally import Tally, plain_lines


def run(plain: dict[str, Any], output: Path | None, force: bool = False, add: int | None = None) -> None:
    """Profile what ``plain`` (a resolved training configuration) would train on; write and summarise it.

    force: discard what is there. add: sample every prompt of an existing profile that many times more.
    """
    console = Console(highlight=False, soft_wrap=True)
    settings = settings_of(plain)
    check_run(with_profile(plain, {"path": None}), TO_PROFILE)
    output = output or Path(settings.profile.path or own_profile_path(plain))
    if os.path.isdir(output):
        raise SgpoError(f"-o {output}: is a folder; name a file")
    target = load_target(plain, settings)
    goal: int | np.ndarray | None
    if os.path.exists(output) and not force:
        goal, base = _existing(target, output, add, console)
        if goal is None:
            return
    elif add:
        raise SgpoError(f"--add {add}: there is no profile {output} to add to; leave --add out")
    else:
        goal, base = settings.profile.n, None
    check_profilable(target.config)
    check_writable(output)
    if force:
        discard(parts_folder(output))
    console.print(f"profiling {len(target.prompts)} prompts x {add or settings.profile.n} samples; starting ...")
    with ray_running(target.config), _progress(console) as show:
        profile = make_profile(target, output, goal, base, show)
    profile_view.summary(profile, console)
    console.print(f"profile: {output}")


def load_target(plain: dict[str, Any], settings: Settings) -> Target:
    """The data set, tokenizer and identities of a training configuration, loaded as verl does."""
    config = OmegaConf.create(plain)
    with named(f"actor_rollout_ref.model.path={config.actor_rollout_ref.model.path}: cannot be loaded"):
        model = omega_conf_to_dataclass(config.actor_rollout_ref.model)
    with named("data.train_files: verl cannot read it"):
        dataset = create_rl_dataset(
            config.data.train_files,
            config.data,
            model.tokenizer,
            model.processor,
            is_train=True,
            max_samples=config.data.get("train_max_samples", -1),
        )
    prompts = identify_dataset(dataset, settings.duplicates)
    metadata = metadata_for(plain, settings, model.tokenizer)
    return Target(config, dataset, prompts, model.tokenizer, settings, metadata)


def _existing(
    target: Target, output: Path, add: int | None, console: Console
) -> tuple[np.ndarray | None, Profile | None]:
    """(trials that every prompt shall have, the profile that is there), or (None, None) if nothing needs doing.

    Raises SgpoError if what is there is a profile of something else.
    """
    existing, n = load_profile(output), target.settings.profile.n
    lines = differences(existing.metadata, target.metadata)
    most = int(existing.table["trials"].max())
    if not add and most < n:
        lines.append(f"samples per prompt: profile {most}, sgpo.profile.n {n} (--add {n - most} samples the rest)")
    if add and (unstated := existing.metadata.unstated()):
        lines.append(f"it does not state its {', '.join(unstated)}, so nothing can be added")
    if lines:
        raise SgpoError(f"{output}: holds a profile of something else ({'; '.join(lines)}); use --force or another -o")
    parts = parts_folder(output)
    finished = pass_id(parts) in {p["id"] for p in existing.metadata.passes}
    if finished:  # written, and killed before its parts were removed
        discard(parts)
    if not add or finished:
        done = "its last pass had ended" if add else "--force to redo, --add for more"
        done += f"; {parts} holds an --add that was not finished" if pass_id(parts) else ""
        console.print(f"profile: {output} (already there: {len(existing)} prompts, {existing.samples} samples; {done})")
        return None, None
    base = existing.align(target.prompts.keys_P, str(output), target.prompts.index_P)
    return base.table["trials"].to_numpy() + add, base


@contextmanager
def ray_running(config) -> Iterator[None]:
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
            f"profiling stopped: {str(error).splitlines()[-1]}; the servers' logs are in {folder}; what was sampled is "
            "kept: run again to go on"
        ) from error
    except KeyboardInterrupt:
        raise SgpoError("profiling interrupted; what was sampled is kept: run again to go on") from None
    finally:
        ray.shutdown()


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[Tally], None]]:
    """A bar and a line of figures on a terminal, plain lines elsewhere."""
    if not console.is_terminal:
        yield plain_lines()
        return
    columns = [BarColumn(bar_width=None), TaskProgressColumn()]
    bar, figures = Progress(*columns, console=console), Text()
    with Live(Group(bar, figures), console=console, refresh_per_second=4):
        task = bar.add_task("", total=None)

        def show(tally: Tally) -> None:
            bar.update(task, completed=tally.samples, total=tally.budget)
            figures.plain = tally.line().replace("; ", "\n")  # two lines fit any terminal

        yield show
