"""The ``verl.plugins`` entry point: importing this file registers what verl looks up by name, and nothing sooner.

verl imports it in every process, so it stays cheap: the trainer and the estimator are imported when, and only when,
the verl module that owns their registry is. verl logs a plugin's exception at DEBUG and goes on; ``sgpo doctor`` shows it.
"""

import wrapt

from sgpo_verl.binding import cpu


@wrapt.when_imported("verl.trainer.ppo.core_algos")
def _register_estimator(module):
    from sgpo_verl.binding import estimator  # noqa: F401


@wrapt.when_imported("verl.trainer.ppo.v1")
def _register_trainers(module):
    from sgpo_verl.binding import trainer  # noqa: F401


if cpu.wanted():
    cpu.enable()
