"""Trainer modes ``sgpo_*``: verl's own trainers, with some of their decisions taken from the plan.

Overridden, and nothing else: which prompts come next (``_next_train_batch``), how many to wait for (``_step_once``), which
rows are trained on and how they divide into mini-batches (``_balance_batch``, ``_get_required_batch_multiple``,
``_compute_advantage``, ``_update_actor``), and how long to train (``_init_dataloader``). verl saves and restores the state
with its dataloader's.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import transfer_queue as tq
from omegaconf import OmegaConf, open_dict
from ray.exceptions import RayActorError
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils as tu

from sgpo_verl.binding import estimator
from sgpo_verl.binding.actor_group import ActorGroup, ranks_of
from sgpo_verl.binding.checkpoints import not_saved, resumed_state
from sgpo_verl.binding.dataloader import PROMPT, ROLLOUT_N
from sgpo_verl.binding.outcomes import rollouts_of, sampled_of, tokens_of
from sgpo_verl.binding.replay import WatchedBuffer
from sgpo_verl.binding.rows import Rows, micro_batch_group
from sgpo_verl.binding.session import Session
from sgpo_verl.binding.watch import AGENT_LOOP, Watch, check_servers, died
from sgpo_verl.errors import SgpoError
from sgpo_verl.methods.greso import refill
from sgpo_verl.metrics import StepTotals
from sgpo_verl.minibatches import updates_of
from sgpo_verl.plan import Plan
from sgpo_verl.run_config import as_dicts, settings_of
from sgpo_verl.selection import Sampled, outcomes_of

POLL = 0.5  # seconds between two looks at what has been sampled; verl's is 2
GIVE_UP = 64  # steps' worth of groups drawn in place of others before a step is given up
NO_LIMIT = 1_000_000  # on batches in flight; how many prompts are drawn in place of others is decided here


if TYPE_CHECKING:  # a mixin: by this name a type checker knows that verl's attributes are there
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer as Base
else:
    Base = object


class SgpoTrainer(Base):
    """Mixed in before one of verl's trainers; ``base_mode`` is that trainer's own name."""

    base_mode: str
    actor_rollout_wg: Any  # verl's worker group; ours around it while it updates
    buffer_class: type[WatchedBuffer] = WatchedBuffer

    @property
    def trainer_mode(self) -> str:
        """verl compares this with the literal names of its own modes, so we answer the one that we build on."""
        return self.base_mode

    @trainer_mode.setter
    def trainer_mode(self, name: str) -> None:
        pass  # verl's constructor assigns the registered name

    def _build_replay_buffer(self) -> WatchedBuffer:
        self._settings = settings_of(as_dicts(self.config))
        self._sizes: dict[str, int] = {}  # rollouts of each group of this step, by uid
        sampler = self.config.trainer.v1.sampler
        return self.buffer_class(
            trainer_mode=self.base_mode,
            trainer_config=self.config.trainer.v1.get(self.base_mode, {}),
            max_off_policy_threshold=sampler.max_off_policy_threshold,
            max_off_policy_strategy=sampler.max_off_policy_strategy,
            sampler_kwargs=sampler.sampler_kwargs,
            poll_interval=POLL,
            refill_fn=self._replace,
            filter_groups_metric="reward" if self._settings.filter.by == "mixed" else None,
            train_batch_size=self.config.data.train_batch_size,
            gen_batch_size=1,
            max_inflight_gen_batches=NO_LIMIT,
            sync_refill_failed_groups=bool(sampler.get("sync_refill_failed_groups", False)),
            leaving=self._leave,
            sizes=self._sizes,
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
        self._totals, self._dropped, self._replaced = StepTotals(), [], 0
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
        self._sizes.clear()
        return self._draw(self.sgpo.method.step_rollouts())

    def _submit_batch_to_rollout(self, batch: TensorDict) -> int:
        try:
            return super()._submit_batch_to_rollout(batch)
        except RayActorError as error:
            raise died(AGENT_LOOP, error) from None

    def _replace(self, groups: int) -> int:
        """In place of groups that the buffer dropped: others of the same sizes, or as many as GRESO says.

        Raises SgpoError if far more than a step have been replaced: no step would ever be full.
        """
        sizes = self._sizes_to_replace()
        if not sizes:
            return 0
        self._replaced += len(sizes)
        if self._replaced > GIVE_UP * max(1, self.config.data.train_batch_size):
            raise SgpoError(
                f"step {self.global_steps}: {self._replaced} groups were drawn in place of others, which failed or had equal "
                "rewards, and it is still not full: look at the reward function and at the data, or use sgpo.filter=none with "
                "sgpo.prune=true"
            )
        return self._submit_batch_to_rollout(self._batch(self.sgpo.dataloader.more, sizes))

    def _sizes_to_replace(self) -> list[int]:
        evicted = self.replay_buffer.take_evicted()
        if self._settings.filter.by != "mixed":
            return evicted
        done, dropped = self.replay_buffer.done(), len(self._dropped)
        missing = self._groups_in_step - done - self.replay_buffer.on_their_way()
        if missing <= 0:
            return []  # what is on its way may yet fill the step
        prompts = refill(missing, dropped / max(1, done + dropped), self._groups_in_step, self._settings.greso)
        return [self.sgpo.plan.phases[0].group_size] * prompts

    def _leave(self, batch: KVBatchMeta, finished: set[str]) -> None:
        """Groups that were sampled and will not be trained on: their cost counts, and what they show is learned."""
        with self._our_time():
            known = [key for key in batch.keys if key.split("_")[0] in finished]
            if known and self.reward_loop_manager.reward_loop_worker_handles is not None:
                self._dropped += outcomes_of(self._sampled(batch.select_keys(known))[0])
            nothing = batch.select_keys([])
            tokens, rollouts = tokens_of(batch, nothing, self.sgpo.plan.numbers), rollouts_of(batch, nothing)
            self.sgpo.ledger.add(self.sgpo.shape, tokens, rollouts.generated)
            self._totals.add([], tokens, rollouts)

    def _sampled(self, batch: KVBatchMeta) -> tuple[Sampled, list[str]]:
        fields = ["rm_scores", "extra_fields", PROMPT]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        names = self.sgpo.dataloader.prompts.keys_P.__getitem__
        return sampled_of(batch, data, self.sgpo.settings, names)

    def _draw(self, rollouts: int) -> TensorDict:
        """The next groups, ``rollouts`` in all, as verl submits them."""
        batch = self._batch(self.sgpo.dataloader.next_batch, rollouts)
        self._groups_in_step = len(batch)
        return batch

    def _batch(self, draw: Callable[[Any], dict[str, Any]], what: Any) -> TensorDict:
        with self._our_time():
            rows = draw(what)
            self._sizes |= dict(zip(rows["uid"], rows[ROLLOUT_N], strict=True))
            batch = tu.get_tensordict(rows)
            tu.assign_non_tensor_data(batch, "global_steps", self.global_steps)
            return batch

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        self._totals = StepTotals()
        batch = super().step(metrics, timing_raw)
        self.sgpo.method.observe(self._totals.outcomes)  # once, however many updates the step has
        ours = self._totals.metrics() | self.sgpo.metrics()
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
            sampled, sessions = self._sampled(batch)
            selection = None
            if self.sgpo.settings.chooses_rows:
                normalize = self.config.algorithm.get("norm_adv_by_std_in_grpo", True)
                selection = self.sgpo.select(sampled, normalize)
            outcomes, self._dropped = [*self._dropped, *outcomes_of(sampled)], []
            self.sgpo.believe(outcomes)
            self._replaced = 0
            self._rows = Rows.choose(batch, self._loss_tokens(batch), selection, sessions, self.config)
            planned = self.sgpo.plan.numbers.updates_per_step // self.parameter_sync_step
            self._updates = updates_of(len(self._rows.kept), planned)
            self._rows.fill_up(self._get_required_batch_multiple(ranks_of(self.actor_rollout_wg)))
        balanced = super()._balance_batch(self._rows.kept, metrics, *args, **kwargs)
        with self._our_time():
            self._rows.arrange(balanced, self._ranks, self._updates)
            tokens, rollouts = tokens_of(batch, balanced, self.sgpo.plan.numbers), rollouts_of(batch, balanced)
            self.sgpo.ledger.add(self.sgpo.shape, tokens, rollouts.generated)
            self._totals.add(outcomes, tokens, rollouts)
        return balanced

    def _loss_tokens(self, batch: KVBatchMeta) -> list[int]:
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["response_mask"])
        return data["response_mask"].sum(dim=1).tolist()

    def _get_required_batch_multiple(self, dp_size: int) -> int:
        """Rows that divide evenly among data-parallel ranks in each of the baseline's optimizer updates, into as many
        micro-batches as the engine's pipeline wants."""
        self._ranks = dp_size
        return dp_size * self._updates * micro_batch_group(self.config)

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
        self.actor_rollout_wg = ActorGroup(group, self._rows.counted / self._updates)
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


@register_trainer("sgpo_sync")
class SgpoTrainerSync(SgpoTrainer, PPOTrainerSync):
    """Rollout and training take turns on the same devices; every step is on-policy."""

    base_mode = "sync"
