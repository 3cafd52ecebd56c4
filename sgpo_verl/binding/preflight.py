"""Bad input ends with one clear line, before a GPU is touched: a Hydra callback that ``+sgpo=...`` brings along.

It runs in the process that the user started. What only the data can show is checked in the trainer, with the same
words; when that fails, the line is repeated here, after Ray's traceback.
"""

import sys
import traceback
from collections.abc import Iterable
from typing import Any, NoReturn

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from ray.exceptions import RayActorError

from sgpo_verl.binding.verl_version import check_verl_version
from sgpo_verl.binding.verls_checks import check_engines, check_loads, check_scores, check_verls
from sgpo_verl.binding.watch import AGAIN
from sgpo_verl.checks.batch import check_batch
from sgpo_verl.checks.data import check_data, check_training_data
from sgpo_verl.checks.devices import check_devices
from sgpo_verl.checks.findings import Check, Finding, examine
from sgpo_verl.checks.model import check_model
from sgpo_verl.checks.output import check_output
from sgpo_verl.checks.profile import check_profile, check_to_be_profiled
from sgpo_verl.checks.values import check_values
from sgpo_verl.errors import SgpoError
from sgpo_verl.run_config import check_supported, settings_of, value_at


class Preflight(Callback):
    """Refuses a run that cannot work, in the first second, and says why a run died of bad input."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            _check_loaded()
            ours = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
            _say_all(examine(CHECKS, OmegaConf.to_container(ours, resolve=True)))
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


def check_method(config: dict[str, Any]) -> str:
    """Whether what the method is made of fits together, and fits verl's settings; stock GRPO is verl's own affair.

    Raises SgpoError naming the key.
    """
    check_verl_version()
    if "sgpo" not in config:
        return "stock GRPO, without +sgpo"
    check_supported(config)
    s = settings_of(config)
    parts = {
        "allocation": s.allocation,
        "filter": s.filter.by,
        "curriculum": s.curriculum.order,
        "advantage": s.advantage,
    }
    made_of = ", ".join(f"{name}={value}" for name, value in parts.items())
    return f"{s.method}: {made_of}{', prune' if s.prune else ''}; {value_at(config, 'trainer.v1.trainer_mode')}"


def check_settings(config: dict[str, Any]) -> str:
    """The settings themselves, whatever is to be trained with them. Raises SgpoError naming the key."""
    check_verl_version()
    return f"seed {settings_of(config).seed}"


CHECKS: tuple[Check, ...] = (
    ("method", check_method),
    ("devices", check_devices),
    ("batch", check_batch),
    ("values", check_values),
    ("verl's own checks", check_verls),
    ("data", check_data),
    ("model", check_model),
    ("tokenizer", check_loads),
    ("reward function", check_scores),
    ("profile", check_profile),
    ("output", check_output),
    ("engines", check_engines),
)


# What `sgpo profile` is held against: not how the run trains, nor what an earlier profile says.
TO_PROFILE: tuple[Check, ...] = (
    ("settings", check_settings),
    ("data", check_training_data),
    ("model", check_model),
    ("reward function", check_scores),
    ("profile", check_to_be_profiled),
)


def check_run(config: dict[str, Any], checks: Iterable[Check] = CHECKS) -> None:
    """Everything that the resolved configuration, and the files that it names, can tell. Raises SgpoError."""
    for finding in examine(checks, config):
        if finding.status == "fail":
            raise SgpoError(finding.text, finding.fix)


def _say_all(findings: Iterable[Finding]) -> None:
    """Every refusal and every doubt, a line each; ends the process if something is refused."""
    found = [finding for finding in findings if finding.status in ("fail", "warn")]
    sys.stdout.flush()
    for finding in sorted(
        found, key=lambda finding: finding.status, reverse=True
    ):  # refusals last, where they are seen
        print(f"sgpo: {'warning: ' * (finding.status == 'warn')}{finding.line}", file=sys.stderr, flush=True)
    if any(finding.status == "fail" for finding in found):
        sys.exit(2)


def _refuse(error: SgpoError) -> NoReturn:
    sys.stdout.flush()
    print(f"sgpo: {error}", file=sys.stderr, flush=True)
    sys.exit(2)
