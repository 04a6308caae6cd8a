"""A real server on loopback, in this process, with a tiny model."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from server.models import write_tiny


@dataclass
class Served:
    url: str
    service: Any
    server: Any
    thread: threading.Thread

    def client(self, **more: Any) -> Any:
        import openai

        return openai.OpenAI(**{"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, **more})

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()


@contextmanager
def serving(runner: Any, tokenizer: Any, quality: Any = None, **settings: Any) -> Iterator[Served]:
    """The routes over any runner, behind a real uvicorn on a free port."""
    import uvicorn

    from holdall.server import app, run
    from holdall.server.service import Service, Settings

    service = Service(runner, tokenizer, Settings(**{"name": "tiny", **settings}))
    told = {"model": "tiny", "weights": None, "kv": None, "kv_budget": None, "weights_report": None,
            "kv_report": None, "how": ""}  # fmt: skip
    made = app.create(service, quality or told)
    config = uvicorn.Config(
        made, http="h11", ws="none", loop="asyncio", lifespan="off", log_level="warning", access_log=False,
        timeout_graceful_shutdown=30,
    )  # fmt: skip
    up = threading.Event()
    server = run.Server(config, service, up.set)
    with run.listen("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        assert up.wait(30)
        served = Served(url, service, server, thread)
        try:
            yield served
        finally:
            served.stop()
            service.worker.close()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def opened(tiny: str) -> Callable[..., Any]:
    """A runner and its tokenizer over the tiny model, opened anew; slots=1 is one answer at a time."""

    def make(context: int | None = None, slots: int = 1, path: str = tiny, **how: Any) -> tuple[Any, Any]:
        from holdall.server.run import open_runner

        told = {"memory": None, "kv": None, "kv_budget": None, **how}
        runner, engine, _ = open_runner(path, told["memory"], told["kv"], told["kv_budget"], context, slots)
        return runner, engine.tokenizer

    return make


@pytest.fixture(scope="module", params=[1, 4], ids=["alone", "batched"])
def served(opened: Callable[..., Any], request: pytest.FixtureRequest) -> Iterator[Served]:
    """A server that asks for no key, one answer at a time and several."""
    if request.param > 1 and not sys.platform.startswith("linux"):
        pytest.skip("slots are mapped with Linux's calls")
    with serving(*opened(slots=request.param)) as found:
        yield found
