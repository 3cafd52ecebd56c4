"""Bad input ends with one clear line, before a GPU is touched: a Hydra callback that ``+sgpo=...`` brings along.

It runs in the process that the user started. What only the data can show is checked in the trainer, with the same
words; when that fails, the line is repeated here, after Ray's traceback.
"""

import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from ray.exceptions import RayActorError

from sgpo_verl.binding.verl_version import check_verl_version
from sgpo_verl.binding.watch import AGAIN
from sgpo_verl.errors import SgpoError
from sgpo_verl.plan import make_plan
from sgpo_verl.profile import differences, load_profile
from sgpo_verl.provenance import check_reward_function, check_train_files, describe
from sgpo_verl.run_config import check_supported, numbers_of, settings_of


class Preflight(Callback):
    """Refuses a run that cannot work, in the first second, and says why a run died of bad input."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            _check_loaded()
            ours = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
            check_run(OmegaConf.to_container(ours, resolve=True))
        except OmegaConfBaseException as error:  # Hydra would go on without us
            _refuse(SgpoError("the configuration does not resolve: " + " ".join(str(error).split())))
        except SgpoError as error:
            _refuse(error)
        except Exception:  # a mistake of ours: Hydra would make a warning of it, and train without us
            traceback.print_exc()
            sys.exit(1)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        # Ray raises an error that is an instance of the worker's own class, with the original in ``cause``.
        failure = job_return._return_value if job_return.status == JobStatus.FAILED else None
        if isinstance(failure, SgpoError):
            _refuse(getattr(failure, "cause", failure))
        if isinstance(failure, RayActorError):
            reason = " ".join(str(failure).split())
            _refuse(SgpoError(f"a worker of the run died, or the node it was on: {AGAIN} ({reason[-300:]})"))


def _check_loaded() -> None:
    """verl imports plugins before it composes anything, and swallows what they raise. Raises SgpoError if we are not in."""
    if "sgpo_verl.binding.register" not in sys.modules:
        raise SgpoError(
            "verl did not load the plugin: `sgpo doctor` shows why (an error in it, or VERL_USE_EXTERNAL_PLUGINS without sgpo)"
        )


def check_run(config: dict[str, Any]) -> None:
    """Everything that the resolved configuration alone can tell. Raises SgpoError."""
    check_verl_version()
    check_supported(config)
    numbers = numbers_of(config)
    settings = settings_of(config)
    check_train_files(config)
    check_reward_function(config)
    wanted = describe(config, settings.success_threshold, settings.seed)
    if settings.profile.path is None:
        return
    profile = load_profile(settings.profile.path)
    lines = differences(profile.metadata, wanted)
    if lines and not settings.profile.allow_mismatch:
        raise SgpoError(mismatch(Path(settings.profile.path), lines))
    make_plan(profile, settings, numbers)


def mismatch(path: Path, lines: list[str]) -> str:
    """The words for a profile of another model, data, sampling or reward."""
    return (
        f"{path}: is not a profile of this run ({'; '.join(lines)}): profile again with `sgpo profile`, or set "
        "sgpo.profile.allow_mismatch=true"
    )


def _refuse(error: SgpoError) -> NoReturn:
    sys.stdout.flush()
    print(f"sgpo: {error}", file=sys.stderr, flush=True)
    sys.exit(2)
