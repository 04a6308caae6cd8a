"""Everything that can be wrong with a request: one clear error in OpenAI's shape, and the server goes on."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")

from server.conftest import Served, serving  # noqa: E402
from server.models import write_tiny  # noqa: E402

GOOD = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


@pytest.fixture(autouse=True)
def _goes_on(request: pytest.FixtureRequest) -> Any:
    """After each refusal a good request is answered."""
    yield
    if "served" in request.fixturenames:
        url = request.getfixturevalue("served").url
        assert httpx.post(f"{url}/v1/chat/completions", json=GOOD).status_code == 200


def fault(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    told = response.json()["error"]
    assert set(told) == {"message", "type", "param", "code"} and "\n" not in told["message"]
    return dict(told)


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"model": "gpt-4"}, 404, "gpt-4"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": ""}]}, 400, "no text"),
        ({"messages": [{"role": "king", "content": "Hi"}]}, 400, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, 400, "content"),
        ({"max_tokens": 10**9}, 400, "max_tokens"),
        ({"max_tokens": 10**30}, 400, "max_tokens"),
        ({"max_completion_tokens": 100_000}, 400, "max_completion_tokens"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": "5"}, 400, "max_tokens"),
        ({"n": 2}, 400, "wanted 1"),
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": 3}, 400, "temperature"),
        ({"stop": ["a"] * 5}, 400, "stop"),
        ({"stop": ""}, 400, "stop"),
        ({"tools": [{"type": "function"}]}, 400, "tools"),
        ({"max_token": 5}, 400, "max_token"),
        ({"messages": [{"role": "user", "content": "x" * 2000}]}, 400, "2000"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(served: Served, change: dict[str, Any], status: int, says: str) -> None:
    says = "tokens" if says == "2000" else says
    told = fault(httpx.post(f"{served.url}/v1/chat/completions", json={**GOOD, **change}), status)
    assert says in told["message"]


def test_errors_are_openais_exceptions(served: Served) -> None:
    client = served.client()
    ask = client.chat.completions.create
    with pytest.raises(openai.NotFoundError, match="gpt-4"):
        ask(**{**GOOD, "model": "gpt-4"})
    with pytest.raises(openai.BadRequestError) as wrong:
        ask(**{**GOOD, "messages": [{"role": "user", "content": "x" * 2000}]})
    assert wrong.value.code == "context_length_exceeded" and wrong.value.param == "messages"
    with pytest.raises(openai.BadRequestError, match="492"):
        ask(**{**GOOD, "max_tokens": 600, "stream": True})
    with pytest.raises(openai.BadRequestError, match="nothing"):
        client.completions.create(model="tiny", prompt="")


@pytest.mark.parametrize(
    "body",
    [b"{", b"", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"model": "tiny"}', b"{" * 5000, b"[" * 100_000,
     b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
     b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "temperature": NaN}',
     b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "seed": 1e400}'],
)  # fmt: skip
@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_malformed_json(served: Served, body: bytes, path: str) -> None:
    headers = {"content-type": "application/json"}
    told = fault(httpx.post(f"{served.url}/v1/{path}", content=body, headers=headers), 400)
    assert told["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("prompt", "says"),
    [("", "nothing"), ([], "prompt"), ([[1, 2]], "prompt"), (["a", "b"], "prompt"), ([10**6], "below"),
     ([-1], "prompt")],
)  # fmt: skip
def test_wrong_prompts(served: Served, prompt: Any, says: str) -> None:
    told = fault(httpx.post(f"{served.url}/v1/completions", json={"model": "tiny", "prompt": prompt}), 400)
    assert says in told["message"]


def test_other_paths_methods_and_types(served: Served) -> None:
    fault(httpx.get(f"{served.url}/v1/nothing"), 404)
    refused = httpx.get(f"{served.url}/v1/chat/completions")
    fault(refused, 405)
    assert refused.headers["allow"] == "POST"
    text = httpx.post(
        f"{served.url}/v1/chat/completions", content=json.dumps(GOOD), headers={"content-type": "text/plain"}
    )
    fault(text, 415)


def test_pages_of_other_sites_are_refused(served: Served) -> None:
    """A browser that was led here by a name that points to this machine says that name."""
    told = httpx.get(f"{served.url}/v1/models", headers={"host": "evil.example:8000"})
    assert fault(told, 403)["code"] == "wrong_host"
    for name in ("localhost", "127.0.0.1:1", "[::1]:8000", "LOCALHOST:8000"):
        assert httpx.get(f"{served.url}/v1/models", headers={"host": name}).status_code == 200
    assert (
        "access-control-allow-origin"
        not in httpx.options(f"{served.url}/v1/models", headers={"origin": "http://x"}).headers
    )


def test_a_large_request_is_refused_before_it_is_read(served: Served) -> None:
    url = f"{served.url}/v1/chat/completions"
    big = b'{"model": "' + b"x" * 1_500_000 + b'"}'
    fault(httpx.post(url, content=big, headers={"content-type": "application/json"}), 413)

    def pieces() -> Any:  # without a length, told piece by piece
        for _ in range(200):
            yield b" " * 10_000

    with suppress(httpx.TransportError):  # the connection may be closed while we are still sending
        fault(httpx.post(url, content=pieces(), headers={"content-type": "application/json"}), 413)


def test_a_key_is_asked_for(opened: Callable[..., Any]) -> None:
    with serving(*opened(), api_key="söme secret") as served:
        with pytest.raises(openai.AuthenticationError):
            served.client().models.list()
        headers = {"authorization": "Bearer söme secret".encode()}
        assert httpx.get(f"{served.url}/v1/models", headers=headers).status_code == 200
        for path in ("/v1/models", "/memory", "/quality", "/metrics", "/openapi.json", "/v1/nothing"):
            assert fault(httpx.get(served.url + path), 401)["code"] == "invalid_api_key"
        for path in ("/", "/health"):
            assert httpx.get(served.url + path).status_code == 200


def test_a_client_that_stops_sending_is_told_so(opened: Callable[..., Any]) -> None:
    with serving(*opened(), idle=0.5) as served:
        where = served.url.removeprefix("http://").split(":")
        with socket.create_connection((where[0], int(where[1]))) as talk:
            head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            talk.sendall(head + b"Content-Length: 100\r\n\r\n{")
            talk.settimeout(10)
            start, told = time.monotonic(), b""
            while piece := talk.recv(65536):
                told += piece
            assert b" 408 " in told.split(b"\r\n")[0] and time.monotonic() - start < 5


@pytest.mark.parametrize("slots", [1, 4])
def test_a_prompt_that_the_memory_cannot_hold(opened: Callable[..., Any], tmp_path: Path, slots: int) -> None:
    """A window of 100,000 tokens, and memory for some thousands of them: told before anything is read."""
    path = write_tiny(tmp_path / "wide", window=100_000)
    runner, tokenizer = opened(path=path, memory="60MB", slots=slots)
    assert 1000 < runner.context < 100_000
    with serving(runner, tokenizer) as served:
        long = {"model": "tiny", "prompt": "x" * (runner.context + 1)}
        told = fault(httpx.post(f"{served.url}/v1/completions", json=long), 400)
        assert told["code"] == "context_length_exceeded"
        short = {**long, "prompt": "x" * (runner.context - 10), "max_tokens": 2}
        assert httpx.post(f"{served.url}/v1/completions", json=short, timeout=60).status_code == 200
