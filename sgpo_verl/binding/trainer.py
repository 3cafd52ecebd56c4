"""Trainer modes ``sgpo_*``: verl's own trainers, with some of their decisions taken from the plan.

Overridden, and nothing else: which prompts come next (``_next_train_batch``), how many to wait for (``_step_once``), which
rows are trained on and how they divide into mini-batches (``_balance_batch``, ``_get_required_batch_multiple``,
``_compute_advantage``, ``_update_actor``), and how long to train (``_init_dataloader``). verl saves and restores the state
with its dataloader's.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import transfer_queue as tq
import wrapt
from omegaconf import OmegaConf, open_dict
from ray.exceptions import RayActorError
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils as tu

from sgpo_verl.binding import estimator
from sgpo_verl.binding.checkpoints import not_saved, resumed_state
from sgpo_verl.binding.dataloader import PROMPT
from sgpo_verl.binding.outcomes import outcomes_of, rollouts_of, tokens_of
from sgpo_verl.binding.replay import WatchedBuffer
from sgpo_verl.binding.rows import Rows
from sgpo_verl.binding.session import Session
from sgpo_verl.binding.watch import AGENT_LOOP, Watch, check_servers, died
from sgpo_verl.metrics import StepTotals
from sgpo_verl.minibatches import updates_of
from sgpo_verl.plan import Plan


class SgpoTrainer:
    """Mixed in before one of verl's trainers; ``base_mode`` is that trainer's own name."""

    base_mode: str
    buffer_class: type[WatchedBuffer] = WatchedBuffer

    @property
    def trainer_mode(self) -> str:
        """verl compares this with the literal names of its own modes, so we answer the one that we build on."""
        return self.base_mode

    @trainer_mode.setter
    def trainer_mode(self, name: str) -> None:
        pass  # verl's constructor assigns the registered name

    def _build_replay_buffer(self) -> WatchedBuffer:
        sampler = self.config.trainer.v1.sampler
        return self.buffer_class(
            trainer_mode=self.base_mode,
            trainer_config=self.config.trainer.v1.get(self.base_mode, {}),
            max_off_policy_threshold=sampler.max_off_policy_threshold,
            max_off_policy_strategy=sampler.max_off_policy_strategy,
            sampler_kwargs=sampler.sampler_kwargs,
            refill_fn=self._replace,
            train_batch_size=self.config.data.train_batch_size,
            gen_batch_size=1,
            sync_refill_failed_groups=bool(sampler.get("sync_refill_failed_groups", False)),
            watch=lambda: self._watch.check(),
            diagnose=self._check_servers,
        )

    def fit(self, agent_loop_manager):
        workers = getattr(agent_loop_manager, "agent_loop_workers", ())  # a manager of the user's own may have none
        self._watch = Watch(workers, AGENT_LOOP)
        super().fit(agent_loop_manager)

    def on_sample_end(self):
        self._check_servers()  # a dead one would never answer when it is sent to sleep
        super().on_sample_end()

    def _check_servers(self) -> None:
        check_servers([f"http://{a}" for manager in self._rollout_server_managers() for a in manager.server_addresses])

    def _init_dataloader(self):
        super()._init_dataloader()
        self.sgpo = Session.start(self.config, self.train_dataset, self.tokenizer)
        self.train_dataloader = self.sgpo.dataloader
        if (state := resumed_state(self.config)) is not None:  # verl loads it again, after the models: refuse it before
            self.train_dataloader.load_state_dict(state)
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

    def _save_checkpoint(self):
        try:
            super()._save_checkpoint()
        except (OSError, RuntimeError) as error:
            raise not_saved(self.config, self.global_steps, error) from error

    def _next_train_batch(self, num_prompts: int | None = None) -> TensorDict:
        return self._draw(self.sgpo.plan.step_rollouts(self.sgpo.method.group_size()))

    def _submit_batch_to_rollout(self, batch: TensorDict) -> int:
        try:
            return super()._submit_batch_to_rollout(batch)
        except RayActorError as error:
            raise died(AGENT_LOOP, error) from None

    def _replace(self, groups: int) -> int:
        """In place of groups that failed; all groups of a step have the same size."""
        rollouts = groups * self.sgpo.method.group_size(refill=True)
        return self._submit_batch_to_rollout(self._draw(rollouts, refill=True))

    def _draw(self, rollouts: int, refill: bool = False) -> TensorDict:
        """The next groups, ``rollouts`` in all, as verl submits them."""
        with self._our_time():
            rows = self.sgpo.dataloader.next_batch(rollouts, refill)
            self._groups_in_step = self._groups_in_step if refill else len(rows["uid"])
            batch = tu.get_tensordict(rows)
            tu.assign_non_tensor_data(batch, "global_steps", self.global_steps)
            return batch

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        self._totals = StepTotals()
        batch = super().step(metrics, timing_raw)
        ours = self._totals.metrics() | self.sgpo.method.metrics() | self.sgpo.ledger.metrics()
        ours |= {"seconds/plugin": self._plugin_seconds}
        metrics.update({f"sgpo/{name}": value for name, value in ours.items()})
        self._plugin_seconds = 0.0
        return batch

    def _step_once(self, metrics: dict, timing_raw: dict, sample_batch_size: int) -> KVBatchMeta:
        trained = super()._step_once(metrics, timing_raw, self._groups_to_wait_for(sample_batch_size))
        return self._rows.put_back(trained)

    def _groups_to_wait_for(self, prompts: int) -> int:
        """What the replay buffer is asked for, where stock verl asks for ``prompts``."""
        return self._groups_in_step

    def _balance_batch(self, batch: KVBatchMeta, metrics: dict, *args, **kwargs) -> KVBatchMeta:
        with self._our_time():
            fields = ["rm_scores", "extra_fields", "response_mask", PROMPT]
            data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
            names = self.sgpo.dataloader.prompts.keys_P.__getitem__
            outcomes = outcomes_of(batch.keys, data, self.sgpo.settings, names)
            self.sgpo.method.observe(outcomes)
            self._rows = Rows.choose(batch, data, self.sgpo.settings, self.config)
            planned = self.sgpo.plan.numbers.updates_per_step // self.parameter_sync_step
            self._updates = updates_of(len(self._rows.kept), planned)
        balanced = super()._balance_batch(self._rows.kept, metrics, *args, **kwargs)
        with self._our_time():
            self._rows.arrange(balanced, self._ranks, self._updates)
            tokens, rollouts = tokens_of(batch, balanced, self.sgpo.plan.numbers), rollouts_of(batch, balanced)
            self.sgpo.ledger.add(self.sgpo.shape, tokens, rollouts.generated)
            self._totals.add(outcomes, tokens, rollouts)
        return balanced

    def _get_required_batch_multiple(self, dp_size: int) -> int:
        """Rows that divide evenly among data-parallel ranks in each of the baseline's optimizer updates."""
        self._ranks = dp_size
        return dp_size * self._updates

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        return super()._compute_old_log_prob(self._rows.sized(batch, self.config), metrics)

    def _compute_ref_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        return super()._compute_ref_log_prob(self._rows.sized(batch, self.config), metrics)

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        with estimator.rows_are(batch.keys, self._rows.advantages_N(batch)):
            return super()._compute_advantage(batch, metrics)

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        if self._rows.nothing_to_learn:
            return batch  # every advantage is zero: weights, optimizer and learning rate stay as they are
        group = self.actor_rollout_wg
        self.actor_rollout_wg = ActorGroup(group, self._rows.generated / self._updates)
        try:
            with self._mini_batches_of(len(batch) // self._updates):
                return super()._update_actor(self._rows.sized(batch, self.config), metrics)
        finally:
            self.actor_rollout_wg = group

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

    @contextmanager
    def _our_time(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._plugin_seconds += time.perf_counter() - start


class ActorGroup(wrapt.ObjectProxy):
    """verl's worker group, whose losses divide by ``rollouts``: those of a mini-batch, left-out ones counted, padding not."""

    def __init__(self, group, rollouts: float):
        super().__init__(group)
        self._self_rollouts = rollouts

    def update_actor(self, batch: KVBatchMeta):
        batch.extra_info["global_batch_size"] = self._self_rollouts
        return self.__wrapped__.update_actor(batch)


@register_trainer("sgpo_sync")
class SgpoTrainerSync(SgpoTrainer, PPOTrainerSync):
    """Rollout and training take turns on the same devices; every step is on-policy."""

    base_mode = "sync"
