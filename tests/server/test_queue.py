"""Queue, cancelling, timeouts and shutdown: memory comes back, nobody waits for ever, answers end properly."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")

from cli.processes import COMMAND, ENV  # noqa: E402
from server.conftest import Served, serving  # noqa: E402

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 400, "temperature": 0}


class Slow:
    """A runner whose steps take at least some time, so that there is a middle to be interrupted in."""

    def __init__(self, runner: Any, seconds: float = 0.01):
        self._runner, self._seconds = runner, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def step(self) -> Any:
        time.sleep(self._seconds)
        return self._runner.step()


def eventually(what: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.02)


def begun(served: Served, **more: Any) -> Any:
    """A stream whose first piece has come."""
    stream = served.client().chat.completions.create(**{**ASK, **more}, stream=True)
    next(stream), next(stream)
    return stream


@pytest.fixture(params=[1, 2], ids=["alone", "batched"])
def slow(opened: Callable[..., Any], request: pytest.FixtureRequest) -> Any:
    if request.param > 1 and not sys.platform.startswith("linux"):
        pytest.skip("slots are mapped with Linux's calls")
    runner, tokenizer = opened(slots=request.param)
    return Slow(runner), tokenizer


def test_a_client_that_goes_away_frees_its_slot(slow: Any) -> None:
    with serving(*slow) as served:
        worker, slots = served.service.worker, served.service.runner.slots
        streams = [begun(served) for _ in range(slots)]
        assert worker.load == (slots, 0)
        eventually(lambda: sum(worker.memory.kv.values()) > 0)  # it is looked at ten times a second
        for stream in streams:
            stream.close()
        eventually(lambda: worker.load == (0, 0))
        assert worker.counts.cancelled == slots and worker.counts.new_tokens < 200 * slots
        eventually(lambda: "in use" not in worker.memory.kv and "whole" not in worker.memory.kv)
        with pytest.raises(httpx.ReadTimeout):  # not a stream: gone while everything is still being made
            httpx.post(f"{served.url}/v1/chat/completions", json=ASK, timeout=0.4)
        eventually(lambda: worker.load == (0, 0) and worker.counts.cancelled == slots + 1)
        assert served.client().chat.completions.create(**{**ASK, "max_tokens": 3}).choices[0].message.content


def test_a_full_queue_says_when_to_come_again(slow: Any) -> None:
    with serving(*slow, queue=1) as served:
        slots = served.service.runner.slots
        running = [begun(served) for _ in range(slots)]
        waiting = threading.Thread(target=begun, args=(served,))
        waiting.start()
        eventually(lambda: served.service.worker.load == (slots, 1))
        with pytest.raises(openai.RateLimitError, match="queue") as full:
            served.client().chat.completions.create(**ASK)
        assert 1 <= int(full.value.response.headers["retry-after"]) <= 60
        assert served.service.worker.counts.refused == 1
        for stream in running:
            stream.close()
        waiting.join(20)
        assert not waiting.is_alive()


def test_a_client_that_leaves_the_queue_is_forgotten(slow: Any) -> None:
    with serving(*slow) as served:
        running = [begun(served) for _ in range(served.service.runner.slots)]
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{served.url}/v1/chat/completions", json=ASK, timeout=0.3)
        eventually(lambda: served.service.worker.load == (len(running), 0))
        for stream in running:
            stream.close()


def test_too_slow_is_told_before_and_in_the_middle(slow: Any) -> None:
    with serving(*slow, timeout=0.5) as served:
        with pytest.raises(openai.APIStatusError) as late:
            served.client().chat.completions.create(**ASK)
        assert late.value.status_code == 504
        stream = begun(served)
        with pytest.raises(openai.APIError, match=r"0\.5 seconds"):
            list(stream)
        eventually(lambda: served.service.worker.load == (0, 0))


def test_a_fault_of_the_engine_is_one_answer_lost(slow: Any, caplog: pytest.LogCaptureFixture) -> None:
    runner, tokenizer = slow
    steps = runner.step

    def broken() -> Any:
        runner.step = steps
        raise ZeroDivisionError("a bug")

    with serving(runner, tokenizer) as served:
        runner.step = broken
        with pytest.raises(openai.InternalServerError) as lost:
            served.client().chat.completions.create(**{**ASK, "max_tokens": 3})
        assert "a bug" not in str(lost.value) and "a bug" in caplog.text
        runner.step = lambda: (setattr(runner, "step", steps), (_ for _ in ()).throw(MemoryError))[1]
        with pytest.raises(openai.InternalServerError, match="out of memory"):
            served.client().chat.completions.create(**{**ASK, "max_tokens": 3})
        assert (
            served.client().chat.completions.create(**{**ASK, "max_tokens": 3}).usage.completion_tokens == 3
        )


def test_shutdown_lets_answers_finish(slow: Any) -> None:
    with serving(*slow, grace=20) as served:
        stream = begun(served, max_tokens=60)
        served.server.should_exit = True
        eventually(lambda: not served.service.worker.alive)
        rest = list(stream)
        assert rest[-1].choices[0].finish_reason == "length"
        served.thread.join(10)
        assert not served.thread.is_alive()


def test_shutdown_ends_with_a_proper_error(slow: Any) -> None:
    with serving(*slow, grace=0.3) as served:
        stream, told = begun(served), []

        def waits() -> None:
            told.append(httpx.post(f"{served.url}/v1/chat/completions", json=ASK, timeout=30))

        other = threading.Thread(target=waits)
        other.start()
        eventually(lambda: sum(served.service.worker.load) == 2)
        start = time.monotonic()
        served.server.should_exit = True
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
        other.join(10)
        assert told[0].status_code == 503 and told[0].json()["error"]["code"] == "shutting_down"
        served.thread.join(10)
        assert not served.thread.is_alive() and time.monotonic() - start < 5


def test_a_second_signal_ends_answers_at_once(slow: Any) -> None:
    with serving(*slow, grace=60) as served:
        stream = begun(served)
        start = time.monotonic()
        served.server.handle_exit(signal.SIGINT, None)
        eventually(lambda: not served.service.worker.alive)
        served.server.handle_exit(signal.SIGINT, None)
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
        served.thread.join(10)
        assert not served.thread.is_alive() and time.monotonic() - start < 5


def test_a_client_that_does_not_read_is_let_go(slow: Any) -> None:
    """The network takes nothing more: after `idle` seconds the answer is given up, and its memory is free."""
    from holdall.server.metrics import Metrics
    from holdall.server.schemas import ChatRequest
    from holdall.server.stream import EventStream, Form

    async def stuck(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def silent() -> Any:
        await asyncio.Event().wait()

    async def answer(service: Any) -> None:
        ticket = await service.begin(ChatRequest.model_validate(ASK))
        news = await service.told(ticket)
        stream = EventStream(service, ticket, news, Form(service, True), False, Metrics(service.worker))
        await stream({}, silent, stuck)

    with serving(*slow, idle=0.3) as served:
        asyncio.run(asyncio.wait_for(answer(served.service), 10))
        eventually(lambda: served.service.worker.load == (0, 0))
        assert served.service.worker.counts.cancelled == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_engine_thread_is_told(slow: Any) -> None:
    """What must not happen, a fault outside of any request, ends in 503 and not in silence."""
    runner, tokenizer = slow
    with serving(runner, tokenizer) as served:
        stream = begun(served)
        runner.memory = lambda: 1 / 0
        with pytest.raises(openai.APIError):
            list(stream)
        eventually(lambda: httpx.get(f"{served.url}/health").status_code == 503)
        with pytest.raises(openai.InternalServerError):
            served.client().chat.completions.create(**ASK)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "how"), [(signal.SIGINT, []), (signal.SIGTERM, ["--kv", "50%"])])
def test_the_real_process(tiny: str, number: int, how: list[str]) -> None:
    """`holdall serve` with a key from the environment: answers, then a signal in the middle of a stream."""
    words = [*COMMAND, "serve", tiny, "--port", "0", "--json", "--memory", "300MB", *how]
    work = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**ENV, "HOLDALL_API_KEY": "secret"}
    )  # fmt: skip
    try:
        assert work.stdout is not None
        told = json.loads(work.stdout.readline())
        assert told["model"] == "tiny" and told["context"] == 512
        client = openai.OpenAI(base_url=told["api"], api_key="secret", max_retries=0)
        stream = client.chat.completions.create(**{**ASK, "max_tokens": 300}, stream=True)
        next(stream)
        work.send_signal(number)
        assert sum(bool(c.choices[0].delta.content) for c in stream) > 250
        out, err = work.communicate(timeout=60)
        assert work.returncode == 0 and err == "" and out == ""
    finally:
        work.kill()
        work.wait()


def test_the_import_stays_light() -> None:
    script = (
        "import sys, holdall.cli; print([m for m in ('fastapi', 'uvicorn', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ})
    assert done.stdout.strip() == "[]", done.stderr
