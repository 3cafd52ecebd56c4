"""How many rollouts a step has and how many steps a phase: from the settings and the training run's own numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

from sgpo_verl.config import Settings
from sgpo_verl.errors import SgpoError
from sgpo_verl.methods.curriculum import Phase


@dataclass(frozen=True)
class RunNumbers:
    """What the training run asks for, named as in verl's configuration.

    train_batch_size: prompts per step. rollout_n: rollouts per prompt. mini_batch_size: actor.ppo_mini_batch_size,
    prompts. total_epochs, total_training_steps: as in ``trainer`` (the latter may be None). scoring_passes, ppo_epochs:
    as in ``cost.StepTokens``. shuffle: ``data.shuffle``.
    """

    train_batch_size: int
    rollout_n: int
    mini_batch_size: int
    total_epochs: int = 1
    total_training_steps: int | None = None
    scoring_passes: int = 1
    ppo_epochs: int = 1
    shuffle: bool = True

    @property
    def updates_per_step(self) -> int:
        """Optimizer updates of one pass over a step's batch."""
        return -(-self.train_batch_size // self.mini_batch_size)

    def stock_steps(self, prompts: int) -> int:
        """Steps of stock verl on ``prompts`` prompts: its loop ends at whichever of the two limits comes first."""
        epochs = prompts // self.train_batch_size * self.total_epochs
        return epochs if self.total_training_steps is None else min(epochs, self.total_training_steps)


def step_rollouts(settings: Settings, numbers: RunNumbers, size: int) -> int:
    """Of a step in a phase of groups of ``size``."""
    if settings.batch.unit == "prompts":
        return numbers.train_batch_size * size
    return settings.batch.rollouts or numbers.train_batch_size * numbers.rollout_n


def whole_batches(phase: Phase, rollouts: int) -> int:
    """Steps of an epoch, as stock verl counts them: a batch that the data set does not fill is left out."""
    return len(phase.prompts_M) // max(1, rollouts // phase.group_size)  # allocation=posterior: groups may be smaller


def stock_steps(phase: Phase, rollouts: int, numbers: RunNumbers) -> int:
    """Stock verl's loop ends at whichever of ``trainer.total_epochs`` and ``trainer.total_training_steps`` comes first."""
    epochs = whole_batches(phase, rollouts) * numbers.total_epochs
    if not epochs:
        raise SgpoError(
            f"data.train_files: its {len(phase.prompts_M)} prompts do not fill one step of {rollouts // phase.group_size}: "
            "lower data.train_batch_size"
        )
    return epochs if numbers.total_training_steps is None else min(epochs, numbers.total_training_steps)


def phase_steps(
    phase_list: Sequence[Phase], rollouts: Sequence[int], settings: Settings, numbers: RunNumbers
) -> list[int]:
    """Training steps of each phase.

    trainer.total_training_steps unset: as many as ``epochs`` passes over the phase take, the last one filled up.
    Set: that many in all, shared in proportion to the rollouts of one pass, at least one each.
    until=steps with ``curriculum.steps``: those.
    """
    curriculum, total = settings.curriculum, numbers.total_training_steps
    if curriculum.steps is not None:
        return _given_steps(curriculum.steps, phase_list, total)
    if total is None:
        passes = curriculum.epochs or numbers.total_epochs
        return [steps_of_passes(p, r, passes) for p, r in zip(phase_list, rollouts, strict=True)]
    return share([p.rollouts_per_pass for p in phase_list], total)


def steps_of_passes(phase: Phase, rollouts: int, passes: int) -> int:
    """Steps of ``rollouts`` that ``passes`` over a phase take. Counted in groups, as they are dealt: one too many for
    the last step needs another."""
    if phase.sizes_M is not None:
        return -(-phase.rollouts_per_pass * passes // rollouts)
    return -(-len(phase.prompts_M) * passes // max(1, rollouts // phase.group_size))


def _given_steps(steps: Sequence[int], phase_list: Sequence[Phase], total: int | None) -> list[int]:
    sizes = [p.group_size for p in phase_list]
    if len(steps) != len(sizes):
        raise SgpoError(
            f"sgpo.curriculum.steps={list(steps)}: needs one number for each of the {len(sizes)} phases "
            f"(group sizes {sizes})"
        )
    if total is not None and total != sum(steps):
        raise SgpoError(
            f"sgpo.curriculum.steps={list(steps)} adds up to {sum(steps)}, trainer.total_training_steps is {total}: "
            "set one of the two to null"
        )
    return list(steps)


def share(weights: Sequence[int], total: int) -> list[int]:
    """``total`` split in proportion to ``weights`` by largest remainders, at least 1 each while they last.

    share([6, 3, 1], 10) = [6, 3, 1]; share([98, 1, 1], 10) = [8, 1, 1]; share([5, 5, 5], 2) = [1, 1, 0].
    """
    if total <= len(weights):
        return [int(i < total) for i in range(len(weights))]
    spare, whole = total - len(weights), sum(weights)
    exact = [max(0.0, w * total / whole - 1) for w in weights]
    scale = spare / sum(exact) if sum(exact) else 0.0
    exact = [e * scale for e in exact]
    parts = [int(e) for e in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: (parts[i] - exact[i], i))
    for i in by_remainder[: spare - sum(parts)]:
        parts[i] += 1
    return [part + 1 for part in parts]
