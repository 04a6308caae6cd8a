"""The server as the real `openai` client sees it: over HTTP, from a real uvicorn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")

from server.conftest import Served, serving  # noqa: E402

ASK = [{"role": "user", "content": "Tell me a joke."}]


def chat(client: Any, **more: Any) -> Any:
    how = {"model": "tiny", "messages": ASK, "max_tokens": 24, "temperature": 0, **more}
    return client.chat.completions.create(**how)


def joined(chunks: Any) -> str:
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def test_an_answer_is_the_engines(served: Served) -> None:
    """The same tokens as `Engine.generate`, through the model's own chat template."""
    from holdall.engine import Engine

    told = chat(served.client())
    engine = Engine.open(served.service.runner.engine.source.path)
    assert told.choices[0].message.content == "".join(engine.generate(ASK[0]["content"], 24))
    assert told.choices[0].finish_reason == "length"
    prompt = len(engine.tokenizer.chat(ASK))
    assert (told.usage.prompt_tokens, told.usage.completion_tokens) == (prompt, 24)
    assert told.usage.total_tokens == prompt + 24 and told.model == "tiny"


@pytest.mark.parametrize(
    "how", [{}, {"temperature": 0.9, "seed": 5}, {"stop": "R"}, {"top_p": 0.5, "seed": 1}]
)
def test_a_stream_is_the_same_answer_in_pieces(served: Served, how: dict[str, Any]) -> None:
    whole = chat(served.client(), max_tokens=40, **how)
    chunks = list(
        chat(served.client(), max_tokens=40, stream=True, stream_options={"include_usage": True}, **how)
    )
    assert joined(chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    ends = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert ends[-1] == whole.choices[0].finish_reason and set(ends[:-1]) == {None}
    told = chunks[-1].usage.model_dump(exclude={"prompt_tokens_details"})
    assert told == whole.usage.model_dump(exclude={"prompt_tokens_details"}) and not chunks[-1].choices
    assert len({c.id for c in chunks}) == 1
    if not how:
        assert len(chunks) > 20  # piece by piece, not all at the end


def test_completions_take_text_and_tokens(served: Served) -> None:
    client = served.client()
    how = {"model": "tiny", "max_tokens": 16, "temperature": 0}
    text = client.completions.create(prompt="Once upon", **how)
    ids = served.service.tokenizer.encode("Once upon", special=True)
    assert client.completions.create(prompt=ids, **how).choices[0].text == text.choices[0].text
    assert client.completions.create(prompt=["Once upon"], **how).choices[0].text == text.choices[0].text
    chunks = list(client.completions.create(prompt="Once upon", stream=True, **how))
    assert "".join(c.choices[0].text for c in chunks) == text.choices[0].text != ""
    assert text.usage.prompt_tokens == len(ids)


def test_a_second_turn_reads_only_what_is_new(opened: Callable[..., Any]) -> None:
    """The same answers as a server gives that reads everything again, and the metrics tell what was not read."""
    talk: dict[bool, list[Any]] = {True: [], False: []}
    for reuse in talk:
        runner, tokenizer = opened(slots=4)
        runner.batch.reuse = reuse
        passes: list[int] = []
        runner.engine.net.register_forward_pre_hook(lambda _m, args, p=passes: p.append(args[0].shape[1]))
        with serving(runner, tokenizer) as served:
            messages = [{"role": "system", "content": "Answer in one word."}, *ASK]
            for question in ("And another?", "Why?", "Thank you."):
                passes.clear()
                told = chat(served.client(), messages=messages, max_tokens=9)
                said = told.choices[0].message.content
                talk[reuse].append(
                    (said, told.usage.prompt_tokens, told.usage.prompt_tokens_details.cached_tokens)
                )
                read = sum(n for n in passes if n > 1)
                assert read == talk[reuse][-1][1] - talk[reuse][-1][2]  # measured in the passes, not claimed
                messages += [{"role": "assistant", "content": said}, {"role": "user", "content": question}]
            figures = httpx.get(f"{served.url}/metrics").text
            total = sum(cached for *_, cached in talk[reuse])
            assert f"holdall_reused_tokens_total {float(total)}" in figures
    assert [turn[:2] for turn in talk[True]] == [turn[:2] for turn in talk[False]]
    assert [cached for *_, cached in talk[False]] == [0, 0, 0] and talk[True][0][2] == 0
    for before, turn in zip(talk[True], talk[True][1:], strict=False):
        assert turn[2] >= before[1] + 8  # the prompt before it, and the answer but its last token


def test_a_stream_tells_what_it_reused(opened: Callable[..., Any]) -> None:
    with serving(*opened(slots=2)) as served:
        chat(served.client(), max_tokens=4)
        how = {"stream": True, "stream_options": {"include_usage": True}}
        last = list(chat(served.client(), max_tokens=4, **how))[-1]
        assert last.usage.prompt_tokens_details.cached_tokens == last.usage.prompt_tokens - 1


def test_the_seed_tells_the_answer(served: Served) -> None:
    client = served.client()

    def told(**how: Any) -> str:
        return str(chat(client, temperature=1.0, **how).choices[0].message.content)

    assert told(seed=3) == told(seed=3) != told(seed=4)
    assert len({told() for _ in range(4)}) > 1
    for top_p in (1e-6, 5e-324):  # only the best token is left
        assert told(seed=3, top_p=top_p) == chat(client).choices[0].message.content
    assert (
        chat(client, temperature=5e-324).choices[0].message.content == chat(client).choices[0].message.content
    )


def test_a_stop_string_ends_the_answer_before_itself(served: Served) -> None:
    client = served.client()
    plain = chat(client, max_tokens=60).choices[0].message.content
    stop = plain[20:23]  # spans tokens: here each character is one
    cut = chat(client, max_tokens=60, stop=[stop, "\0never"])
    assert cut.choices[0].message.content == plain[: plain.index(stop)]
    assert cut.choices[0].finish_reason == "stop" and cut.usage.completion_tokens < 60


def test_content_in_parts_and_developer_messages(served: Served) -> None:
    client = served.client()
    parts = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "Tell me "}, {"type": "text", "text": "a joke."}],
        }
    ]
    assert chat(client, messages=parts).choices[0].message.content == chat(client).choices[0].message.content
    a, b = ([{"role": role, "content": "Be brief."}, *ASK] for role in ("developer", "system"))
    assert (
        chat(client, messages=a).choices[0].message.content
        == chat(client, messages=b).choices[0].message.content
    )


def test_models_are_listed(served: Served) -> None:
    client = served.client()
    (only,) = client.models.list().data
    assert only.id == "tiny" and client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_sixty_four_at_once_are_all_answered_the_same_as_alone(served: Served) -> None:
    alone = {i: chat(served.client(), seed=i % 8, temperature=0.8, max_tokens=12) for i in range(8)}

    async def everybody() -> list[Any]:
        base = {"base_url": f"{served.url}/v1", "api_key": "none", "max_retries": 0}
        async with openai.AsyncOpenAI(**base) as client:
            how = {"model": "tiny", "messages": ASK, "max_tokens": 12, "temperature": 0.8}
            return await asyncio.gather(
                *(client.chat.completions.create(seed=i % 8, stream=False, **how) for i in range(64))
            )

    for i, told in enumerate(asyncio.run(everybody())):
        assert told.choices[0].message.content == alone[i % 8].choices[0].message.content
    assert served.service.worker.load == (0, 0) and served.service.worker.counts.refused == 0


def test_a_kv_method_and_a_budget(opened: Callable[..., Any]) -> None:
    """A long prompt is held in a quarter, and the memory shown is what the cache really holds."""
    from holdall.kv import SnapKV

    runner, tokenizer = opened(kv=SnapKV(), kv_budget="25%", memory="1GB")
    step = runner.step
    runner.step = lambda: (time.sleep(0.02), step())[1]  # a small model is quick: there must be time to ask
    long = [{"role": "user", "content": "Once there was a fox. " * 18}]
    with serving(runner, tokenizer) as served:
        seen = 0
        for _ in chat(served.client(), messages=long, max_tokens=60, stream=True):
            now = httpx.get(f"{served.url}/memory").json()
            held = sum(p["bytes"] for p in now["parts"] if p["kind"] == "kv")
            assert sum(p["bytes"] for p in now["parts"]) == now["total"] == 10**9
            if held:
                seen += 1
                assert held < 0.6 * now["kv_full"]
        assert seen
        deadline = time.monotonic() + 5
        while any(p["kind"] == "kv" for p in httpx.get(f"{served.url}/memory").json()["parts"]):
            assert time.monotonic() < deadline
            time.sleep(0.02)
