"""verl's replay buffers, with an eye on those who fill them; in the async modes, counting rollouts instead of prompts.

An async step trains on the groups that are finished, whichever batch they were drawn for, so groups of several sizes wait
side by side. verl asks for so many prompts; here that means as many rollouts as those would have had, exactly.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

from sgpo_verl.binding.dataloader import ROLLOUT_N


def fitting(sizes: Sequence[int], rollouts: int) -> list[int] | None:
    """Places of groups whose sizes sum to exactly ``rollouts``, the earliest that do; None if no choice of them does."""
    wanted = (1 << (rollouts + 1)) - 1
    sums = [1]  # of the groups from a place on, the sums that a choice of them can have, as bits
    for size in reversed(sizes):
        sums.append((sums[-1] | sums[-1] << size) & wanted)
    if not sums[-1] >> rollouts & 1:
        return None
    chosen, left = [], rollouts
    for place, size in enumerate(sizes):
        if size <= left and sums[len(sizes) - place - 1] >> (left - size) & 1:
            chosen.append(place)
            left -= size
    return chosen


def closest(sizes: Sequence[int], rollouts: int) -> list[int]:
    """As ``fitting``, of the largest sum up to ``rollouts`` that there is."""
    return next(chosen for wanted in range(rollouts, -1, -1) if (chosen := fitting(sizes, wanted)) is not None)


class WatchedBuffer(ReplayBuffer):
    """verl's buffer. watch: called at every poll, raises if what the step waits for will never come. diagnose: called when
    verl gives up on a step, raises if it knows why. leaving: called with the rows of groups that are dropped, and which of
    these groups had finished. sizes: rollouts that each group of the step was submitted with."""

    def __init__(
        self,
        *args,
        watch: Callable[[], None],
        diagnose: Callable[[], None],
        leaving: Callable[[KVBatchMeta, set[str]], None],
        sizes: Mapping[str, int],
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.watch, self.diagnose, self.leaving, self.sizes = watch, diagnose, leaving, sizes
        self._evicted: list[int] = []

    def take_evicted(self) -> list[int]:
        """Sizes of the groups dropped since this was last asked."""
        evicted, self._evicted = self._evicted, []
        return evicted

    def done(self) -> int:
        """Groups that wait here to be trained on."""
        return len(self.finished_keys["train"]) + len(self.failure_keys["train"])

    def on_their_way(self) -> int:
        """Groups that are being sampled."""
        return len(self.pending_keys["train"]) + len(self.running_keys["train"])

    def _evict_terminal_groups(self, global_steps, partition_id, eviction_reasons):
        stale, filtered, failed, _ = eviction_reasons
        if evicted := sorted(stale | filtered | failed):
            self._evicted += self._submitted(evicted, partition_id)
        return super()._evict_terminal_groups(global_steps, partition_id, eviction_reasons)

    def _submitted(self, uids: Sequence[str], partition_id: str) -> list[int]:
        """Rollouts that each of these groups was submitted with, failed ones included."""
        return [self.sizes[uid] for uid in uids]

    def _clear_groups(self, partition_id, uids):
        if uids and partition_id == "train":
            tags = {k: tag for k, tag in self.partitions[partition_id].items() if k.split("_")[0] in uids}
            batch = KVBatchMeta(partition_id=partition_id, keys=list(tags), tags=list(tags.values()))
            self.leaving(batch, uids & self.finished_keys[partition_id])
        super()._clear_groups(partition_id, uids)

    def sample(self, *args, **kwargs):
        try:
            return super().sample(*args, **kwargs)
        except RuntimeError:
            self.diagnose()
            raise

    def _wait_for_next_poll(self, partition_id: str, last_debug_time: float) -> float:
        self.watch()
        return super()._wait_for_next_poll(partition_id, last_debug_time)


class GroupBuffer(WatchedBuffer, ReplayBufferAsync):
    """verl's staleness control, eviction and order of age are kept.

    rollouts_per_prompt: what verl's count of prompts is worth; None: groups are counted, as verl does.
    """

    rollouts_per_prompt: float | None = None
    _owed = 0  # rollouts that the updates so far lack

    def _submitted(self, uids, partition_id):
        return submitted_sizes(uids, partition_id)  # sizes are forgotten at a crash, groups on their way are not

    def _has_enough_samples(self, global_steps, partition_id, batch_size, sampleable_keys) -> bool:
        if partition_id == "val" or self.rollouts_per_prompt is None:
            return super()._has_enough_samples(global_steps, partition_id, batch_size, sampleable_keys)
        fresh_enough = super()._has_enough_samples(global_steps, partition_id, 0, sampleable_keys)
        return fresh_enough and self._choose(partition_id, sampleable_keys, batch_size) is not None

    def _select_prompt_uids(self, partition_id, sampleable_keys, batch_size):
        selected, partition, steps = super()._select_prompt_uids(partition_id, sampleable_keys, batch_size)
        if partition_id != "val" and self.rollouts_per_prompt is not None:
            selected = self._choose(partition_id, sampleable_keys, batch_size)
            assert selected is not None, "verl asks after _has_enough_samples said so"
            sizes = self._size(partition_id)
            self._owed += round(batch_size * self.rollouts_per_prompt) - sum(sizes[uid] for uid in selected)
        return selected, partition, steps

    def get_sampleable_count(self, global_steps: int, partition_id: str) -> int:
        count = super().get_sampleable_count(global_steps, partition_id)
        if self.rollouts_per_prompt is None:
            return count
        leaving = self._terminal_eviction_reasons(global_steps, partition_id)
        sizes = self._size(partition_id)
        sampleable = self._sampleable_terminal_keys(partition_id, leaving)
        return int(sum(sizes[uid] for uid in sampleable) / self.rollouts_per_prompt)

    def _choose(self, partition_id: str, uids: set[str], prompts: int) -> list[str] | None:
        """The oldest groups worth ``prompts`` prompts, or None if more have to finish first.

        Where no choice of groups is exact, the closest from below, and the next update gets what this one lacks: to wait
        for a fitting group would end the overlap of rollout and training.
        """
        assert self.rollouts_per_prompt is not None, "asked only where rollouts are counted"
        wanted = round(prompts * self.rollouts_per_prompt) + self._owed
        size = self._size(partition_id)
        oldest_first = sorted(uids, key=lambda uid: (self.prompt_global_steps[partition_id].get(uid, 0), uid))
        sizes = [size[uid] for uid in oldest_first]
        places = fitting(sizes, wanted)
        if places is None and sum(sizes) >= wanted:
            places = closest(sizes, wanted)
        return [oldest_first[place] for place in places] if places else None

    def _size(self, partition_id: str) -> dict[str, int]:
        """Sessions that each group has rows of."""
        sessions = defaultdict(set)
        for key in self.partitions[partition_id]:
            uid, session, _ = key.rsplit("_", 2)
            sessions[uid].add(session)
        return defaultdict(int, {uid: len(of) for uid, of in sessions.items()})


def submitted_sizes(uids: Sequence[str], partition_id: str) -> list[int]:
    """Rollouts that each of these groups was submitted with, as TransferQueue holds them."""
    data = tq.kv_batch_get(keys=list(uids), partition_id=partition_id, select_fields=[ROLLOUT_N])
    return [int(n) for n in data[ROLLOUT_N]]
