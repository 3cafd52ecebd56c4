"""Requests to a fleet, against real HTTP servers in this process that answer as told. (Real vLLM: test_endpoint.py.)"""

import asyncio
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from sgpo_verl.binding import fleet
from sgpo_verl.binding.fleet import Fleet, PromptFailed, http_session, openai_dialect, served_model, sglang_dialect
from sgpo_verl.config import load_settings
from sgpo_verl.endpoints import base_url
from sgpo_verl.errors import SgpoError

PARAMETERS = {"temperature": 1.0, "top_k": -1}


class FakeServer:
    """Answers POSTs with ``replies`` in turn, then with ``n`` samples each; remembers what was asked."""

    def __init__(self, *replies, pause=0.0):
        self.replies, self.pause, self.asked, self.headers = list(replies), pause, [], []

    async def answer(self, request):
        body = await request.json()
        self.asked.append(body)
        self.headers.append(dict(request.headers))
        await asyncio.sleep(self.pause)
        if self.replies:
            status, headers, text = self.replies.pop(0)
            return web.Response(status=status, headers=headers, text=text)
        if request.path == "/generate":
            n = body["sampling_params"]["n"]
            samples = [{"output_ids": [i, 7], "text": "x"} for i in range(n)]
            return web.json_response(samples if n > 1 else samples[0])
        return web.json_response({"choices": [{"index": i, "token_ids": [i]} for i in reversed(range(body["n"]))]})

    @asynccontextmanager
    async def running(self):
        app = web.Application()
        app.router.add_post("/v1/completions", self.answer)
        app.router.add_post("/generate", self.answer)
        models = {"data": [{"id": "toy"}, {"id": "other"}]}
        app.router.add_get("/v1/models", lambda request: asyncio.sleep(0, web.json_response(models)))
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        finally:
            await runner.cleanup()


DIALECT = openai_dialect("toy", PARAMETERS, lambda prompt: 12, lambda text: [ord(c) for c in text])
DOWN = "http://127.0.0.1:9"  # the discard port: nobody listens


def sample(*servers, more_urls=(), dialect=DIALECT, timeout=20.0, times=1, key=None):
    """What ``times`` requests for two samples each gave, one after another."""

    async def go():
        async with _all(servers) as urls, http_session(key) as session:
            pool = Fleet(session, [*more_urls, *urls], dialect, timeout)
            return [await pool.sample([1, 2, 3], 2, 5) for _ in range(times)]

    return asyncio.run(go())


@asynccontextmanager
async def _all(servers):
    if not servers:
        yield []
        return
    async with servers[0].running() as url, _all(servers[1:]) as urls:
        yield [url, *urls]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(fleet, "PATIENCE", 1.5)
    monkeypatch.setattr(fleet, "LONGEST_REST", 0.05)


def test_one_request_asks_for_all_samples_with_the_trainings_parameters():
    server = FakeServer()
    assert sample(server) == [[[0], [1]]]
    assert server.asked == [
        {
            "model": "toy",
            "prompt": [1, 2, 3],
            "n": 2,
            "max_tokens": 12,
            "seed": 5,
            "return_token_ids": True,
            **PARAMETERS,
        }
    ]


def test_a_server_that_sends_text_only_is_understood():
    text = '{"choices": [{"index": 0, "text": "ab"}, {"index": 1, "text": ""}]}'
    assert sample(FakeServer((200, {}, text))) == [[[97, 98], []]]


def test_sglang_is_asked_in_its_own_way():
    server = FakeServer()
    assert sample(server, dialect=sglang_dialect(PARAMETERS, lambda prompt: 12)) == [[[0, 7], [1, 7]]]
    assert server.asked == [{"input_ids": [1, 2, 3], "sampling_params": {**PARAMETERS, "n": 2, "max_new_tokens": 12}}]


def test_sglang_answers_a_single_sample_without_a_list():
    dialect = sglang_dialect(PARAMETERS, lambda prompt: 12)
    assert dialect.parse({"output_ids": [4]}) == [[4]]


def test_errors_of_the_server_are_tried_again():
    assert sample(FakeServer((500, {}, "oops"), (502, {}, "bad gateway"))) == [[[0], [1]]]


def test_a_busy_server_is_asked_again_for_as_long_as_the_prompt_has_time():
    server = FakeServer(*[(429, {"Retry-After": "0"}, "slow down")] * 10)
    assert sample(server) == [[[0], [1]]]
    assert len(server.asked) == 11


def test_a_dead_server_is_left_alone_and_the_other_takes_over():
    server = FakeServer()
    assert sample(server, more_urls=[DOWN], times=3) == [[[0], [1]]] * 3
    assert len(server.asked) == 3


def test_work_goes_to_the_server_with_less_to_do():
    servers = FakeServer(pause=0.05), FakeServer(pause=0.05)

    async def go():
        async with _all(servers) as urls, http_session() as session:
            pool = Fleet(session, urls, DIALECT, 20.0)
            await asyncio.gather(*[pool.sample([1], 2, i) for i in range(10)])

    asyncio.run(go())
    assert [len(server.asked) for server in servers] == [5, 5]


def test_no_server_left_ends_the_pass():
    with pytest.raises(SgpoError, match=r"no inference server answers .*run again to go on"):
        sample(more_urls=[DOWN])


def test_what_fails_everywhere_is_the_prompts_failure():
    with pytest.raises(PromptFailed, match=r"could not be sampled .*HTTP 500: oops"):
        sample(FakeServer(*[(500, {}, "oops")] * 10))


def test_a_prompt_that_the_server_refuses_is_not_tried_again():
    server = FakeServer((400, {}, "prompt is\n too long"))
    with pytest.raises(PromptFailed, match="HTTP 400: prompt is too long"):
        sample(server)
    assert len(server.asked) == 1


def test_no_answer_in_time_is_the_prompts_failure():
    with pytest.raises(PromptFailed, match=r"no answer within sgpo\.profile\.timeout=0\.2 s"):
        sample(FakeServer(pause=5.0), timeout=0.2)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((401, {}, "who are you"), "HTTP 401: who are you; .*OPENAI_API_KEY"),
        ((404, {}, "no model toy"), r"HTTP 404: no model toy; .*sgpo\.profile\.endpoint_model"),
        ((200, {}, "{}"), "answered without 'choices'"),
        ((200, {}, "[]"), "answered without"),
        ((200, {}, '{"choices": [{"index": 0}]}'), "answered without 'text'"),
    ],
)
def test_what_no_prompt_would_fare_better_with_ends_the_pass(reply, message):
    with pytest.raises(SgpoError, match=message):
        sample(FakeServer(reply))


def test_too_few_samples_are_a_failure_and_not_counted_as_n():
    with pytest.raises(PromptFailed, match="gave 1 samples of 2"):
        sample(FakeServer((200, {}, '{"choices": [{"index": 0, "token_ids": [1]}]}')))


def test_an_answer_that_is_no_json_is_tried_again():
    assert sample(FakeServer((200, {}, "<html>"))) == [[[0], [1]]]


def test_the_key_is_sent_as_a_bearer_token():
    server = FakeServer()
    sample(server, key="secret")
    assert server.headers[0]["Authorization"] == "Bearer secret"


def model_of(wanted, server=None):
    async def go():
        async with (server or FakeServer()).running() as url, http_session() as session:
            return await served_model(session, url, wanted, 0.1)

    return asyncio.run(go())


def test_the_model_is_found_by_name():
    assert model_of("other") == {"id": "other"}
    with pytest.raises(SgpoError, match=r"sgpo\.profile\.endpoint_model=mine: .* serves toy, other"):
        model_of("mine")
    with pytest.raises(SgpoError, match=r"serves toy, other; choose one with sgpo\.profile\.endpoint_model"):
        model_of(None)


def test_an_address_without_a_server_is_named():
    async def go():
        async with http_session() as session:
            await served_model(session, DOWN, None, 0.1)

    with pytest.raises(SgpoError, match=r"127\.0\.0\.1:9: no server answers there"):
        asyncio.run(go())


@pytest.mark.parametrize(
    "text", ["http://host:8000", "http://host:8000/", "http://host:8000/v1", "http://host:8000/v1/"]
)
def test_an_address_may_end_in_v1_or_not(text):
    assert base_url(text) == "http://host:8000"


@pytest.mark.parametrize("text", ["host:8000", "ftp://host", "http://", "http://host:port", ""])
def test_what_is_no_address_is_refused_by_name(text):
    with pytest.raises(
        SgpoError, match=r"^sgpo\.profile\.endpoints: .* is not an address such as http://host:8000/v1$"
    ):
        load_settings({"profile": {"endpoints": ["http://good", text]}})
