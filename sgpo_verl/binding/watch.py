"""Whether the actors that a step waits for are alive.

verl's agent loops are sent off without being waited for, and the trainer polls for what they leave in TransferQueue: it would
poll for ever for the rollouts of a worker that has died.
"""

from collections.abc import Sequence

import ray
from ray.exceptions import RayActorError

from sgpo_verl.errors import SgpoError


class Watch:
    """One unanswered question to each actor at a time; asking takes no time, and a busy actor may answer late."""

    def __init__(self, actors: Sequence[ray.actor.ActorHandle], what: str):
        self.what = what
        self._asked = {actor.__ray_ready__.remote(): actor for actor in actors}

    def check(self) -> None:
        """Raises SgpoError if one of them has died."""
        answered, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)
        for answer in answered:
            try:
                ray.get(answer)
            except RayActorError as error:
                raise SgpoError(
                    f"{self.what} died, with the rollouts that it held ({' '.join(str(error).split())[:200]}): start the same "
                    "command again to resume from the last checkpoint"
                ) from None
            actor = self._asked.pop(answer)
            self._asked[actor.__ray_ready__.remote()] = actor
