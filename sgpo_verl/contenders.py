"""What ``sgpo simulate`` sets side by side: stock GRPO, and methods as their training commands would compose them."""

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sgpo_verl.config import Settings, load_settings
from sgpo_verl.errors import SgpoError
from sgpo_verl.parts import PARTS
from sgpo_verl.run_config import check_supported, compose, numbers_of, settings_of
from sgpo_verl.schedule import RunNumbers

BASELINE = "stock GRPO"
STEPS = 160
EVERY = ("paper", "paper sgpo.prune=true", "prune", "greso", "aero", "bayes")
# A small run, where no configuration is named: 8 prompts x 8 rollouts per step, one update. Later overrides win.
SMALL = (
    "data.train_batch_size=8",
    "actor_rollout_ref.rollout.n=8",
    "actor_rollout_ref.actor.ppo_mini_batch_size=${data.train_batch_size}",
)
OURS = re.compile(r"[+~]*sgpo([.=@]|$)")  # an override of the group sgpo, or under it


@dataclass(frozen=True)
class Contender:
    """One row of the comparison. config: the composed training configuration."""

    label: str
    settings: Settings
    numbers: RunNumbers
    config: Mapping[str, Any]

    @property
    def normalize_by_std(self) -> bool:
        return bool(self.config["algorithm"].get("norm_adv_by_std_in_grpo", True))


def contenders(arguments: Sequence[str], compare: Sequence[str] = (), steps: int | None = None) -> list[Contender]:
    """Stock GRPO first; then the method of the training command's ``arguments``, if it has one; then those of ``compare``,
    "METHOD key=value ..."; with neither, ``EVERY``, less what cannot be trained with these arguments.

    What is no setting of ours holds for all of them. Settings of ours belong to the command's method, if it has one, else to
    all methods. steps: of every run; None: trainer.total_training_steps, else 160.
    """
    arguments, compared = list(arguments), [(spec, *_words(spec)) for spec in compare]
    for word in [*arguments, *(word for _, _, own in compared for word in own)]:
        if re.match(r"\+*sgpo\.method=", word):
            raise SgpoError(f"{word}: every row is a method of its own; say +sgpo=METHOD, or --compare METHOD")
    if not any(re.match(r"(--config-name|-cn)(=|$)", word) for word in arguments):
        arguments = [*SMALL, *arguments]
    shared, ours = [w for w in arguments if not OURS.match(w)], [w for w in arguments if OURS.match(w)]
    base = compose(shared)
    stock = load_settings({"method": "prune", "prune": False})
    rows = [_contender(BASELINE, base, stock, steps)]
    sign = "" if "sgpo" in base else "+"  # a configuration file that names a method has the group already
    if "sgpo" in base or any(re.match(r"\++sgpo=", word) for word in ours):
        config = compose(arguments)
        settings = settings_of(config)
        rows.append(_contender(_label(settings.method, ours), config, settings, steps))
        ours = []
    every = not compared and len(rows) == 1
    if every:
        compared = [(spec, *_words(spec)) for spec in EVERY]
    for spec, method, own in compared:
        label = _label(method, own)
        if label in [row.label for row in rows] or (method, own) == ("grpo", []):
            continue
        try:
            config = compose([*shared, *([] if method == "grpo" else [f"{sign}sgpo={method}", *ours]), *own])
            settings = stock if method == "grpo" else settings_of(config)
            rows.append(_contender(label, config, settings, steps))
        except SgpoError as error:
            if every:  # nobody asked for this one
                print(f"left out: {spec} ({error})", file=sys.stderr)
                continue
            raise SgpoError(f"--compare '{spec}': {error}") from None
    return rows


def _words(spec: str) -> tuple[str, list[str]]:
    """(method, overrides) of "METHOD key=value ..."."""
    try:
        method, *own = shlex.split(spec)
    except ValueError:  # nothing in it, or a quote that is not closed
        method, own = "", []
    if method not in ("grpo", *PARTS):
        raise SgpoError(f"--compare '{spec}': must begin with a method: grpo, {', '.join(PARTS)}; overrides follow it")
    return method, own


def _label(method: str, overrides: Sequence[str]) -> str:
    """ "bayes advantage=posterior": what differs, without the names of groups that need no telling."""
    told = [word for word in overrides if not re.match(r"\+*sgpo=", word)]
    return " ".join([method, *(re.sub(r"^(\+*)(sgpo|actor_rollout_ref|data|algorithm)\.", "", word) for word in told)])


def _contender(label: str, config: dict[str, Any], settings: Settings, steps: int | None) -> Contender:
    """Of as many steps as it is told: however many passes over the prompts that takes."""
    check_supported(config)
    numbers = numbers_of(config)
    steps = steps or numbers.total_training_steps or sum(settings.curriculum.steps or [STEPS])
    return Contender(label, settings, replace(numbers, total_training_steps=steps, total_epochs=steps), config)
