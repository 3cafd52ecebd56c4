"""A step's sampled rows: which are trained on, in which mini-batch, and with which advantage.

Which rows are trained on, and which the loss's denominators count, is decided in ``selection.py``. Rows that are not trained on
are left out before anything is computed on them, and the loss keeps its denominators. They stay in TransferQueue until the
step is over, so verl's own metrics and dumps are of everything that was sampled.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transfer_queue as tq
from omegaconf import DictConfig
from tensordict import TensorDict
from transfer_queue import KVBatchMeta

from sgpo_verl.minibatches import kept_share, micro_batch_size, spread_padding
from sgpo_verl.selection import Selection


def micro_batch_group(config: DictConfig) -> int:
    """Micro-batches of an update come in multiples of this: of the pipeline's stages, where Megatron interleaves them
    (``virtual_pipeline_model_parallel_size``); else 1."""
    actor = config.actor_rollout_ref.actor
    megatron: Any = actor.megatron if actor.strategy == "megatron" else {}
    if (megatron.get("virtual_pipeline_model_parallel_size") or 1) == 1:
        return 1
    given = megatron.override_transformer_config.get("microbatch_group_size_per_vp_stage")
    return given or megatron.pipeline_model_parallel_size


@dataclass
class Rows:
    """kept, left_out: together the sampled rows. counted: how many of them the loss divides by. filler: of those
    kept, rows that only make their number divide.

    loss_tokens: of every counted row, by key. advantage: of every sampled row, by key, if it was settled before scoring.
    token_mean: whether the loss divides by the tokens of a mini-batch.
    """

    sampled: KVBatchMeta
    kept: KVBatchMeta
    left_out: KVBatchMeta
    counted: int
    loss_tokens: dict[str, int]
    advantage: dict[str, float] | None
    token_mean: bool
    filler: set[str] = field(default_factory=set)
    updates: int = 1
    ranks: int = 1

    @classmethod
    def choose(
        cls,
        batch: KVBatchMeta,
        tokens_N: list[int],
        selection: Selection | None,
        sessions: list[str],
        config: DictConfig,
    ) -> "Rows":
        """tokens_N: loss tokens of each row of ``batch``. selection: of ``sessions``; None: every row, as stock verl."""
        token_mean = config.actor_rollout_ref.actor.loss_agg_mode == "token-mean"
        loss_tokens = dict(zip(batch.keys, tokens_N, strict=True))
        if selection is None:
            return cls(batch, batch, batch.select_keys([]), len(batch.keys), loss_tokens, None, token_mean)
        place = {session: i for i, session in enumerate(sessions)}
        place_of = {key: place[key.rpartition("_")[0]] for key in batch.keys}
        advantage = {key: float(selection.advantages_N[i]) for key, i in place_of.items()}
        counted = {key: loss_tokens[key] for key, i in place_of.items() if selection.counts_N[i]}
        kept = [key for key, i in place_of.items() if selection.trained_N[i]]
        if not kept:  # verl needs a row to go on with; nothing is learned from it
            lengths = [tag["seq_len"] for tag in batch.tags]
            kept = [batch.keys[int(np.argmin(lengths))]]
            advantage[kept[0]] = 0.0
        left_out = [key for key in batch.keys if key not in set(kept)]
        chosen = batch.select_keys(kept), batch.select_keys(left_out)
        return cls(batch, *chosen, len(counted), counted, advantage, token_mean)

    @property
    def nothing_to_learn(self) -> bool:
        return self.advantage is not None and not any(self.advantage[key] for key in self.kept.keys)

    def fill_up(self, multiple: int) -> None:
        """Take back so many rows, the shortest, that those kept divide: without advantage, and shorter than padding rows."""
        lengths = {key: tag["seq_len"] for key, tag in zip(self.left_out.keys, self.left_out.tags, strict=True)}
        needed = -len(self.kept) % multiple
        back = sorted(lengths.keys() & self.loss_tokens.keys(), key=lambda key: (lengths[key], key))[:needed]
        if self.advantage is None or not back:
            return
        self.filler |= set(back)
        self.advantage |= dict.fromkeys(back, 0.0)
        kept = [*self.kept.keys, *back]
        self.left_out = self.left_out.select_keys([key for key in self.left_out.keys if key not in self.filler])
        self.kept = self.sampled.select_keys(kept)

    def arrange(self, balanced: KVBatchMeta, ranks: int, updates: int) -> None:
        """Deal the rows that fill a balanced batch up, padding or not, out over its mini-batches, in place."""
        self.ranks, self.updates = ranks, updates
        adds_nothing = [
            tag.get("is_padding", False) or key in self.filler
            for key, tag in zip(balanced.keys, balanced.tags, strict=True)
        ]
        balanced.reorder(spread_padding(adds_nothing, ranks, updates))

    def sized(self, batch: KVBatchMeta, config: DictConfig) -> KVBatchMeta:
        """The batch, with a micro-batch size that divides its mini-batches where verl is to use a fixed one."""
        actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
        if not actor.use_dynamic_bsz:
            most = min(actor.ppo_micro_batch_size_per_gpu, rollout.log_prob_micro_batch_size_per_gpu)
            cell = len(batch) // (self.ranks * self.updates * micro_batch_group(config))
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
            sum(self.loss_tokens.get(key, 0) for key in self.left_out.keys),
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
