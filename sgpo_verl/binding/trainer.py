"""Trainer modes ``sgpo_*``: verl's own trainers, with four of their decisions taken from the plan.

Overridden, and nothing else: which prompts come next (``_next_train_batch``), how many to wait for (``_step_once``),
how rows divide into mini-batches (``_get_required_batch_multiple``, ``_update_actor``), and how long to train
(``_init_dataloader``). Outcomes are read where verl has just sampled them (``_balance_batch``).
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import transfer_queue as tq
from omegaconf import OmegaConf, open_dict
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils as tu

from sgpo_verl.binding import estimator
from sgpo_verl.binding.dataloader import PROMPT
from sgpo_verl.binding.outcomes import outcomes_of, tokens_of
from sgpo_verl.binding.session import Session
from sgpo_verl.metrics import step_metrics
from sgpo_verl.plan import Plan


class SgpoTrainer:
    """Mixed in before one of verl's trainers; ``base_mode`` is that trainer's own name."""

    base_mode: str

    @property
    def trainer_mode(self) -> str:
        """verl compares this with the literal names of its own modes, so we answer the one that we build on."""
        return self.base_mode

    @trainer_mode.setter
    def trainer_mode(self, name: str) -> None:
        pass  # verl's constructor assigns the registered name

    def _init_dataloader(self):
        super()._init_dataloader()
        self.sgpo = Session.start(self.config, self.train_dataset, self.tokenizer)
        self.train_dataloader = self.sgpo.dataloader
        self._follow(self.sgpo.plan)
        self._groups_in_step = 0
        self._plugin_seconds = 0.0

    def _follow(self, plan: Plan) -> None:
        """Make the loop, the progress bar, the epoch count and the LR schedule agree with the plan."""
        steps = self.total_training_steps = plan.total_steps
        # An epoch is one pass over every phase; verl leaves its loop when total_epochs of them are over.
        self.steps_per_epoch = max(plan.steps_per_pass, math.ceil(steps / self.config.trainer.total_epochs))
        with open_dict(self.config):
            for optimizer in ("actor_rollout_ref.actor.optim", "critic.optim"):
                if OmegaConf.select(self.config, optimizer) is not None:
                    OmegaConf.update(self.config, f"{optimizer}.total_training_steps", steps * self.parameter_sync_step)

    def _next_train_batch(self, num_prompts: int | None = None):
        with self._our_time():
            refill = num_prompts is not None  # verl asks for a number only to replace groups that failed
            size = self.sgpo.method.group_size(refill)
            rollouts = num_prompts * size if refill else self.sgpo.plan.step_rollouts(size)
            rows = self.sgpo.dataloader.next_batch(rollouts, refill)
            self._groups_in_step = self._groups_in_step if refill else len(rows["uid"])
            batch = tu.get_tensordict(rows)
            tu.assign_non_tensor_data(batch, "global_steps", self.global_steps)
            return batch

    def _step_once(self, metrics: dict, timing_raw: dict, sample_batch_size: int):
        return super()._step_once(metrics, timing_raw, self._groups_in_step)

    def _balance_batch(self, batch, metrics, *args, **kwargs):
        with self._our_time():
            fields = ["rm_scores", "extra_fields", PROMPT]
            data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
            self._outcomes = outcomes_of(
                batch.keys, data, self.sgpo.settings, self.sgpo.dataloader.prompts.keys_P.__getitem__
            )
            self.sgpo.method.observe(self._outcomes)
        balanced = super()._balance_batch(batch, metrics, *args, **kwargs)
        with self._our_time():
            self._tokens, self._padding = tokens_of(balanced, self.sgpo.plan.numbers)
            self.sgpo.ledger.add(self.sgpo.shape, self._tokens)
        return balanced

    def _get_required_batch_multiple(self, dp_size: int) -> int:
        """Rows that divide evenly among data-parallel ranks in each of the baseline's optimizer updates."""
        return dp_size * self.sgpo.plan.numbers.updates_per_step

    def _compute_advantage(self, batch, metrics: dict):
        with estimator.rows_are(batch.keys):
            return super()._compute_advantage(batch, metrics)

    def _update_actor(self, batch, metrics: dict):
        with self._mini_batches_of(len(batch) // self.sgpo.plan.numbers.updates_per_step):
            return super()._update_actor(batch, metrics)

    @contextmanager
    def _mini_batches_of(self, rows: int) -> Iterator[None]:
        """verl takes ppo_mini_batch_size x rollout.n for the rows of a mini-batch: while it does, make that ``rows``."""
        actor, rollout = self.config.actor_rollout_ref.actor, self.config.actor_rollout_ref.rollout
        kept = actor.ppo_mini_batch_size, rollout.n
        actor.ppo_mini_batch_size, rollout.n = rows, 1
        try:
            yield
        finally:
            actor.ppo_mini_batch_size, rollout.n = kept

    def step(self, metrics: dict, timing_raw: dict):
        batch = super().step(metrics, timing_raw)
        ours = step_metrics(self._outcomes, self._tokens, self._padding)
        ours |= self.sgpo.method.metrics() | self.sgpo.ledger.metrics() | {"seconds/plugin": self._plugin_seconds}
        metrics.update({f"sgpo/{name}": value for name, value in ours.items()})
        self._plugin_seconds = 0.0
        return batch

    @contextmanager
    def _our_time(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._plugin_seconds += time.perf_counter() - start


@register_trainer("sgpo_sync")
class SgpoTrainerSync(SgpoTrainer, PPOTrainerSync):
    """Rollout and training take turns on the same devices; every step is on-policy."""

    base_mode = "sync"
