"""verl's group of actor workers, seen from the step: how many ranks it has, and by what its losses divide."""

import wrapt
from transfer_queue import KVBatchMeta


def ranks_of(group) -> int:
    """Data-parallel size of the actor, found out and kept as verl itself does."""
    known = group._dispatch_info
    if "actor" not in known:
        known["actor"] = group._query_dispatch_info("actor")
    return max(known["actor"]) + 1


class ActorGroup(wrapt.ObjectProxy):
    """verl's worker group, whose losses divide by ``rollouts``: those of a mini-batch, left-out ones counted, padding not."""

    def __init__(self, group, rollouts: float):
        super().__init__(group)
        self._self_rollouts = rollouts

    def update_actor(self, batch: KVBatchMeta):
        batch.extra_info["global_batch_size"] = self._self_rollouts
        return self.__wrapped__.update_actor(batch)
