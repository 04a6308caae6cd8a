"""Schemathesis on the server's own description: right and wrong requests of every kind, and it goes on serving."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")
schemathesis = pytest.importorskip("schemathesis")

from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from schemathesis import checks  # noqa: E402
from server.conftest import Served, serving  # noqa: E402


@pytest.fixture(scope="module")
def fuzzed(opened: Callable[..., Any]) -> Iterator[Served]:
    """A short context, so that what is right is answered quickly."""
    with serving(*opened(context=64, slots=2), answer=4) as served:
        yield served


@pytest.fixture(scope="module")
def description(fuzzed: Served) -> Any:
    return schemathesis.openapi.from_url(f"{fuzzed.url}/openapi.json")


PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{name}", "/health", "/memory", "/quality",
         "/metrics")  # fmt: skip


def test_the_description_has_all_paths(description: Any) -> None:
    assert {o.ok().path for o in description.get_all_operations()} == set(PATHS)


@pytest.mark.parametrize(
    ("mode", "path"), [*(("positive", path) for path in PATHS), *(("negative", path) for path in PATHS[:2])]
)
def test_never_a_fault_of_the_server(fuzzed: Served, description: Any, mode: str, path: str) -> None:
    """No 5xx, and every status, type and body is one that the description promises.

    What is right by the description may still be too long, empty, or of another model: that it is refused is no
    fault, so that one check is left out. Requests without fields can hardly be wrong.
    """
    (operation,) = (o.ok() for o in description.get_all_operations() if o.ok().path == path)
    cases = operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode))

    @settings(max_examples=100, deadline=None, database=None, derandomize=True,
              phases=[Phase.generate], suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(case=cases)
    def fuzz(case: Any) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str) and len(case.body) % 3:
            case.body["model"] = "tiny"  # most get past the first gate
        case.call_and_validate(excluded_checks=[checks.positive_data_acceptance], timeout=30)

    fuzz()
    assert httpx.get(f"{fuzzed.url}/health").status_code == 200
    assert fuzzed.service.worker.counts.failed == 0


def test_after_all_that_it_still_answers(fuzzed: Served) -> None:
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
    told = httpx.post(f"{fuzzed.url}/v1/chat/completions", json=asked)
    assert told.status_code == 200 and told.json()["usage"]["completion_tokens"] == 3
    assert fuzzed.service.worker.load == (0, 0)
    httpx.get(f"{fuzzed.url}/nowhere")
    figures = httpx.get(f"{fuzzed.url}/metrics").text
    assert "holdall_failed_total 0.0" in figures and 'path="other",status="404"' in figures
