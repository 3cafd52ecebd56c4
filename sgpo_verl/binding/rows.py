"""A step's sampled rows: which are trained on, in which mini-batch, and with which advantage.

A row whose advantage is zero has a policy gradient of zero. With ``sgpo.prune`` such rows are left out before anything is
computed on them, while the loss keeps the denominators that it would have had with them: the gradient is the same. They
stay in TransferQueue until the step is over, so verl's own metrics and dumps are of everything that was sampled.
"""

from dataclasses import dataclass

import numpy as np
import torch
import transfer_queue as tq
from omegaconf import DictConfig
from tensordict import TensorDict
from transfer_queue import KVBatchMeta

from sgpo_verl.binding.estimator import last_output_rows, session_advantages
from sgpo_verl.config import Settings
from sgpo_verl.minibatches import kept_share, micro_batch_size, spread_padding


@dataclass
class Rows:
    """kept, left_out: together the sampled rows. advantage: of every sampled row, by key, if rows may be left out.

    loss_tokens: of every sampled row, by key. token_mean: whether the loss divides by the tokens of a mini-batch.
    """

    kept: KVBatchMeta
    left_out: KVBatchMeta
    loss_tokens: dict[str, int]
    advantage: dict[str, float] | None
    token_mean: bool
    updates: int = 1
    ranks: int = 1

    @classmethod
    def choose(cls, batch: KVBatchMeta, data: TensorDict, settings: Settings, config: DictConfig) -> "Rows":
        """data: rm_scores and response_mask (nested, (N, T)) of the rows of ``batch``."""
        loss_tokens = dict(zip(batch.keys, data["response_mask"].sum(dim=1).tolist(), strict=True))
        token_mean = config.actor_rollout_ref.actor.loss_agg_mode == "token-mean"
        if not settings.prune:
            return cls(batch, batch.select_keys([]), loss_tokens, None, token_mean)
        rewards_N = data["rm_scores"].sum(dim=1).double().cpu().numpy()
        uid_N = np.array([key.split("_")[0] for key in batch.keys])
        normalize = config.algorithm.get("norm_adv_by_std_in_grpo", True)
        advantages_N = session_advantages(rewards_N, uid_N, last_output_rows(batch.keys), normalize)
        advantage = dict(zip(batch.keys, advantages_N.tolist(), strict=True))
        kept = [key for key in batch.keys if advantage[key] != 0]
        if not kept:  # verl needs a row to go on with; nothing is learned from it
            lengths = [tag["seq_len"] for tag in batch.tags]
            kept = [batch.keys[int(np.argmin(lengths))]]
        left_out = [key for key in batch.keys if key not in set(kept)]
        return cls(batch.select_keys(kept), batch.select_keys(left_out), loss_tokens, advantage, token_mean)

    @property
    def generated(self) -> int:
        """Rows sampled: kept or not, padding not."""
        return len(self.kept) + len(self.left_out)

    @property
    def nothing_to_learn(self) -> bool:
        return self.advantage is not None and not any(self.advantage[key] for key in self.kept.keys)

    def arrange(self, balanced: KVBatchMeta, ranks: int, updates: int) -> None:
        """Deal the padding rows of a balanced batch out over its mini-batches, in place."""
        self.ranks, self.updates = ranks, updates
        balanced.reorder(spread_padding([tag.get("is_padding", False) for tag in balanced.tags], ranks, updates))

    def sized(self, batch: KVBatchMeta, config: DictConfig) -> KVBatchMeta:
        """The batch, with a micro-batch size that divides its mini-batches where verl is to use a fixed one."""
        actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
        if not actor.use_dynamic_bsz:
            most = min(actor.ppo_micro_batch_size_per_gpu, rollout.log_prob_micro_batch_size_per_gpu)
            cell = len(batch) // (self.ranks * self.updates)
            batch.extra_info["micro_batch_size_per_gpu"] = micro_batch_size(cell, most)
        return batch

    def advantages_N(self, batch: KVBatchMeta) -> np.ndarray | None:
        """Of the rows of the arranged batch, float64 (N,), padding rows 0; None if rows are never left out: then they
        follow from the batch itself.

        Where the loss divides by the tokens that are there, times the share of them that is: kept_share.
        """
        if self.advantage is None:
            return None
        advantages_N = np.array([self.advantage.get(key, 0.0) for key in batch.keys])
        if not self.token_mean:
            return advantages_N
        block = len(batch) // self.ranks
        mini_batch_N = np.arange(len(batch)) % block // (block // self.updates)
        tokens_N = np.array([self.loss_tokens.get(key, 0) for key in batch.keys])
        share_M = kept_share(
            np.bincount(mini_batch_N, tokens_N, self.updates).tolist(),
            sum(self.loss_tokens[key] for key in self.left_out.keys),
        )
        return advantages_N * np.array(share_M)[mini_batch_N]

    def put_back(self, trained: KVBatchMeta) -> KVBatchMeta:
        """The trained rows and those left out, for verl's metrics and dumps; the latter get their advantage, zero."""
        if not self.left_out.keys:
            return trained
        keys, partition = self.left_out.keys, trained.partition_id
        mask = tq.kv_batch_get(keys=keys, partition_id=partition, select_fields=["response_mask"])["response_mask"]
        zeros = torch.nested.nested_tensor_from_jagged(torch.zeros(len(mask.values())), mask.offsets())
        fields = TensorDict({"advantages": zeros, "returns": zeros}, batch_size=len(keys))
        tq.kv_batch_put(keys=keys, partition_id=partition, fields=fields)
        return KVBatchMeta(
            partition_id=partition, keys=[*trained.keys, *keys], tags=[*trained.tags, *self.left_out.tags]
        )
