"""Requests to a fleet of inference servers: one request per prompt asks for all its samples, so the prompt is computed once.

A request goes to the server with the fewest under way. A server that drops it or answers with an error rests for a
while, and the request goes to another; what is the prompt's own fault, or fails everywhere, is the prompt's failure.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from sgpo_verl.errors import SgpoError

logger = logging.getLogger("sgpo_verl")

TRIES = 4  # of one prompt, on errors that may be its own doing
PATIENCE = 120.0  # seconds without any server that answers, before the pass stops
LONGEST_REST = 30.0  # seconds


class PromptFailed(Exception):
    """This prompt could not be sampled or scored; the others go on."""


@dataclass
class Server:
    """url: without a path. under_way: requests. failures: in a row. rests_until, silent_since: on the monotonic clock, the
    latter None while it answers anything at all."""

    url: str
    under_way: int = 0
    rests_until: float = 0.0
    failures: int = 0
    silent_since: float | None = None


@dataclass(frozen=True)
class Dialect:
    """How a kind of server is asked. body(prompt_ids, n, seed) -> JSON; parse(JSON) -> token ids of the n samples."""

    path: str
    body: Callable[[Sequence[int], int, int], dict[str, Any]]
    parse: Callable[[Any], list[list[int]]]


def openai_dialect(model: str, parameters: Mapping[str, Any], max_tokens: Callable, encode: Callable) -> Dialect:
    """``/v1/completions`` of vLLM, or of anything that speaks it. encode: text -> token ids, where a server sends text only."""

    def body(prompt_ids: Sequence[int], n: int, seed: int) -> dict[str, Any]:
        asked = {"model": model, "prompt": list(prompt_ids), "n": n, "max_tokens": max_tokens(prompt_ids), "seed": seed}
        return asked | {**parameters, "return_token_ids": True}

    def parse(answer: Any) -> list[list[int]]:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        return [c["token_ids"] if c.get("token_ids") is not None else encode(c["text"]) for c in choices]

    return Dialect("/v1/completions", body, parse)


def sglang_dialect(parameters: Mapping[str, Any], max_tokens: Callable) -> Dialect:
    """SGLang's own ``/generate``, which answers with token ids. It samples without a seed per request."""

    def body(prompt_ids: Sequence[int], n: int, seed: int) -> dict[str, Any]:
        sampling = {**parameters, "n": n, "max_new_tokens": max_tokens(prompt_ids)}
        return {"input_ids": list(prompt_ids), "sampling_params": sampling}

    def parse(answer: Any) -> list[list[int]]:
        return [sample["output_ids"] for sample in (answer if isinstance(answer, list) else [answer])]

    return Dialect("/generate", body, parse)


@asynccontextmanager
async def http_session(key: str | None = None):
    """A session without a limit on connections. key: sent as a bearer token."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30)
    async with aiohttp.ClientSession(
        timeout=timeout, connector=aiohttp.TCPConnector(limit=0), headers=headers
    ) as session:
        yield session


class Fleet:
    """Servers that all serve one model. timeout: seconds that a prompt may take, waiting for a busy server included."""

    def __init__(self, session: aiohttp.ClientSession, urls: Sequence[str], dialect: Dialect, timeout: float):
        self.session, self.dialect, self.timeout = session, dialect, timeout
        self.servers = [Server(url) for url in urls]

    async def sample(self, prompt_ids: Sequence[int], n: int, seed: int) -> list[list[int]]:
        """Token ids of n samples. Raises PromptFailed with the reason; SgpoError if no server answers any more."""
        body = self.dialect.body(prompt_ids, n, seed)
        deadline = time.monotonic() + self.timeout
        reason, tries = "", 0
        while tries < TRIES:
            server = await self._free_server()
            left = deadline - time.monotonic()
            if left <= 0:
                break
            server.under_way += 1
            try:
                status, retry_after, answer = await self._post(server, body, left)
            except asyncio.TimeoutError:
                raise PromptFailed(f"no answer within sgpo.profile.timeout={self.timeout:g} s") from None
            except (aiohttp.ClientError, OSError, ValueError) as error:
                reason = f"{server.url}: {type(error).__name__}: {error}"
                server.silent_since = server.silent_since or time.monotonic()
                self._rest(server)
                self._stop_if_none_is_left(reason)
                # Nobody there to take it says nothing about the prompt; a connection that breaks off may be its doing.
                tries += not isinstance(error, aiohttp.ClientConnectorError)
                continue
            finally:
                server.under_way -= 1
            server.silent_since = None
            if status == 200:
                server.failures = 0
                return self._parse(answer, n, server)
            reason = f"{server.url}: HTTP {status}: {_message(answer)}"
            if status not in (408, 409, 425, 429) and status < 500:
                self._refused(status, reason)
            busy = status in (429, 503)
            self._rest(server, retry_after)
            tries += not busy  # a busy server says nothing about the prompt: it may ask until its time is up
        raise PromptFailed(f"could not be sampled ({reason})")

    async def _post(self, server: Server, body: dict, seconds: float) -> tuple[int, float | None, Any]:
        """(HTTP status, seconds to wait as the server says, JSON of a good answer or text of a bad one)."""
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=min(30, seconds))
        async with self.session.post(server.url + self.dialect.path, json=body, timeout=timeout) as answer:
            if answer.status == 200:
                return 200, None, await answer.json(content_type=None)
            wait = answer.headers.get("Retry-After", "")
            return answer.status, float(wait) if wait.isdigit() else None, await answer.text()

    def _parse(self, answer: Any, n: int, server: Server) -> list[list[int]]:
        try:
            samples = self.dialect.parse(answer)
        except (KeyError, TypeError, AttributeError) as error:
            raise SgpoError(
                f"{server.url}{self.dialect.path}: answered without {error}; is it such a server?"
            ) from None
        if len(samples) != n:
            raise PromptFailed(f"{server.url}: gave {len(samples)} samples of {n}")
        return samples

    def _refused(self, status: int, reason: str) -> None:
        """What no other prompt would fare better with ends the pass; the rest is this prompt's failure."""
        if status in (401, 403):
            raise SgpoError(f"{reason}; put the key into the environment variable OPENAI_API_KEY")
        if status in (404, 405):
            raise SgpoError(f"{reason}; check the address, and sgpo.profile.endpoint_model")
        raise PromptFailed(reason)

    def _rest(self, server: Server, seconds: float | None = None) -> None:
        """Send it nothing for a while, longer each time; requests that fail together count once."""
        if (now := time.monotonic()) < server.rests_until:
            return
        server.failures += 1
        rest = min(0.5 * 2**server.failures, LONGEST_REST) if seconds is None else seconds
        server.rests_until = now + rest

    async def _free_server(self) -> Server:
        """The awake server with the fewest requests; waits for one."""
        while True:
            now = time.monotonic()
            awake = [s for s in self.servers if s.rests_until <= now]
            if awake:
                return min(awake, key=lambda s: s.under_way)
            await asyncio.sleep(min(s.rests_until for s in self.servers) - now + 0.01)

    def _stop_if_none_is_left(self, reason: str) -> None:
        """Raises SgpoError if every server has been silent for longer than PATIENCE."""
        limit = time.monotonic() - PATIENCE
        if all(s.silent_since is not None and s.silent_since < limit for s in self.servers):
            raise SgpoError(f"no inference server answers ({reason}); what was sampled is kept: run again to go on")


def _message(text: str) -> str:
    """The server's words, in one line."""
    return " ".join(text.split())[:200]


async def served_model(session: aiohttp.ClientSession, url: str, wanted: str | None, patience: float) -> dict[str, Any]:
    """The entry of ``/v1/models`` for the model ``wanted``, or for the only one there is.

    patience: seconds to wait for a first answer. Raises SgpoError if there is none, or no such model.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            async with session.get(f"{url}/v1/models", timeout=aiohttp.ClientTimeout(total=30)) as answer:
                if answer.status in (401, 403):
                    raise SgpoError(
                        f"{url}: HTTP {answer.status}; put the key into the environment variable OPENAI_API_KEY"
                    )
                answer.raise_for_status()
                models = (await answer.json(content_type=None))["data"]
                names = [str(model["id"]) for model in models]
                break
        except (OSError, asyncio.TimeoutError, aiohttp.ClientConnectionError) as error:
            if time.monotonic() > deadline:
                raise SgpoError(f"{url}: no server answers there ({type(error).__name__}: {error})") from None
            logger.debug("%s does not answer yet: %s", url, error)
            await asyncio.sleep(1)
        except (aiohttp.ClientError, ValueError, KeyError, TypeError) as error:
            raise SgpoError(
                f"{url}/v1/models: not an OpenAI-compatible server ({type(error).__name__}: {error})"
            ) from None
    if wanted is None and len(names) > 1:
        raise SgpoError(f"{url}: serves {', '.join(names)}; choose one with sgpo.profile.endpoint_model")
    if not names or (wanted is not None and wanted not in names):
        raise SgpoError(f"sgpo.profile.endpoint_model={wanted}: {url} serves {', '.join(names) or 'no model'}")
    return models[names.index(wanted) if wanted else 0]
