"""Whether those that a step waits for are alive: agent-loop workers and rollout servers.

verl's agent loops are sent off without being waited for, and the trainer polls for what they leave in TransferQueue: it would
poll for ever for the rollouts of a worker that has died. A rollout server whose engine has died fails every request, and
never answers when it is sent to sleep.
"""

import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import ray
from ray.exceptions import RayActorError

from sgpo_verl.errors import SgpoError

AGAIN = "start the same command again to resume from the last checkpoint"
AGENT_LOOP = "an agent-loop worker"


class Watch:
    """One unanswered question to each actor at a time; asking takes no time, and a busy actor may answer late."""

    def __init__(self, actors: Sequence[ray.actor.ActorHandle], what: str):
        self.what = what
        self._asked = {actor.__ray_ready__.remote(): actor for actor in actors}

    def check(self) -> None:
        """Raises SgpoError if one of them has died."""
        if not self._asked:  # ray.wait refuses an empty list
            return
        answered, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)
        for answer in answered:
            try:
                ray.get(answer)
            except RayActorError as error:
                raise died(self.what, error) from None
            actor = self._asked.pop(answer)
            self._asked[actor.__ray_ready__.remote()] = actor


def died(what: str, error: RayActorError) -> SgpoError:
    return SgpoError(f"{what} died, with the rollouts that it held ({' '.join(str(error).split())[:200]}): {AGAIN}")


def check_servers(urls: Sequence[str], timeout: float = 10.0) -> None:
    """Ask every rollout server at once. Raises SgpoError naming those that refuse or say that their engine has died.

    A server that does not answer within ``timeout`` seconds is busy, not dead.
    """
    with ThreadPoolExecutor(min(32, max(1, len(urls)))) as pool:
        said = dict(zip(urls, pool.map(lambda url: _illness(url, timeout), urls), strict=True))
    if dead := [f"{url} ({illness})" for url, illness in said.items() if illness]:
        raise SgpoError(f"rollout server died: {', '.join(dead)}; its log has the reason; {AGAIN}")


def _illness(url: str, timeout: float) -> str | None:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=timeout):
            return None
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}" if error.code >= 500 else None
    except urllib.error.URLError as error:
        return None if isinstance(error.reason, TimeoutError) else str(error.reason)
    except TimeoutError:
        return None
