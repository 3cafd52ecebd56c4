"""The ``verl.plugins`` entry point: importing this file registers what verl looks up by name, and nothing sooner.

verl imports it in every process, so it stays cheap: trainer and estimator are imported when, and only when, the verl
module that owns their registry is. verl logs a plugin's exception at DEBUG and goes on; ``sgpo doctor`` shows it. Beside
a verl that we do not know, nothing is registered, and that is said once.
"""

import os
import sys

import wrapt

from sgpo_verl.binding import cpu
from sgpo_verl.binding.verl_version import check_verl_version
from sgpo_verl.errors import SgpoError

_SAID = "SGPO_VERL_VERSION_SAID"  # in the environment, so that Ray's workers do not repeat it


def _register_estimator(module):
    from sgpo_verl.binding import estimator  # noqa: F401


def _register_trainers(module):
    from sgpo_verl.binding import trainer, trainer_async  # noqa: F401


try:
    check_verl_version()
except SgpoError as error:
    if _SAID not in os.environ:
        os.environ[_SAID] = "1"
        print(f"sgpo: {error}; +sgpo=... is off", file=sys.stderr)
else:
    wrapt.when_imported("verl.trainer.ppo.core_algos")(_register_estimator)
    wrapt.when_imported("verl.trainer.ppo.v1")(_register_trainers)
    if cpu.wanted():
        cpu.enable()
