"""Trainer modes ``sgpo_colocate_async`` and ``sgpo_separate_async``: rollout runs ahead of training.

Groups are drawn ahead by ``num_warmup_batches``, so a method's feedback arrives that many steps late, and the last batches
that are drawn are never trained on: what is trained is exactly what the plan holds.
"""

import transfer_queue as tq
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync

from sgpo_verl.binding.replay import GroupBuffer, submitted_sizes
from sgpo_verl.binding.trainer import SgpoTrainer
from sgpo_verl.errors import SgpoError


class SgpoTrainerAsync(SgpoTrainer):
    """Groups of the async modes: submitted, refilled and restored by their number of rollouts."""

    buffer_class = GroupBuffer
    _restored_tq_prompt_count: int

    def _init_dataloader(self):
        super()._init_dataloader()
        plan = self.sgpo.plan
        self.replay_buffer.rollouts_per_prompt = plan.rollouts_per_prompt
        largest, in_update = plan.largest_group, plan.step_rollouts(1) // self.parameter_sync_step
        if plan.rollouts_per_prompt is not None and largest > in_update:
            raise SgpoError(
                f"groups of up to {largest} rollouts (sgpo.group_size.max, actor_rollout_ref.rollout.n) do not fit into the "
                f"{in_update} of one of the {self.parameter_sync_step} updates between two weight syncs "
                "(trainer.v1.separate_async.parameter_sync_step): lower the one or the other"
            )

    def _groups_to_wait_for(self, prompts: int) -> int:
        return prompts  # GroupBuffer knows what they are worth

    def _sizes_to_replace(self) -> list[int]:
        return self.replay_buffer.take_evicted()

    def _add_prompts_to_generate(self, num_prompts: int) -> int:
        """verl's warm-up: whole batches, one by one, since the next may be of another phase; then the rest."""
        batch = self.config.data.train_batch_size
        for prompts in [*[batch] * (num_prompts // batch), num_prompts % batch]:
            if prompts and (rollouts := self.sgpo.method.step_rollouts() * prompts // batch):
                self._submit_batch_to_rollout(self._draw(rollouts))
        return num_prompts

    def _load_checkpoint(self):
        super()._load_checkpoint()
        worth = self.sgpo.plan.rollouts_per_prompt
        if self._restored_tq_prompt_count and worth is not None:
            tags = tq.kv_list("train")["train"]
            restored = [key for key, tag in tags.items() if tag.get("is_prompt", False)]
            self._restored_tq_prompt_count = round(sum(submitted_sizes(restored, "train")) / worth)


@register_trainer("sgpo_colocate_async")
class SgpoTrainerColocateAsync(SgpoTrainerAsync, PPOTrainerColocateAsync):
    """Rollout and training take turns on the same devices; rollouts cut off by a turn go on in the next one."""

    base_mode = "colocate_async"


@register_trainer("sgpo_separate_async")
class SgpoTrainerSeparateAsync(SgpoTrainerAsync, PPOTrainerSeparateAsync):
    """Rollout has devices of its own and never stops."""

    base_mode = "separate_async"
