"""Requests that share passes: each gets what it gets alone, and the memory is never overrun."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as t
from transformers import DynamicCache

from holdall import BadInput, BudgetError, HoldallError
from holdall.batching import Batch, Given, Request
from holdall.engine_text import Chooser

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="maps pages with Linux's calls")
_SHAPE: dict[str, Any] = {
    "vocab_size": 101, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "pad_token_id": 0, "eos_token_id": None, "bos_token_id": None,
}  # fmt: skip
_SLIDES = {
    "head_dim": 8, "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}  # fmt: skip
_KINDS: dict[str, Callable[[], Any]] = {
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**_SHAPE)),
    "qwen": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**_SHAPE)),
    "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**_SHAPE, sliding_window=20)),
    "gemma": lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**_SHAPE, **_SLIDES)),
    "wide": lambda: t.LlamaForCausalLM(t.LlamaConfig(**_SHAPE, head_dim=16)),
    "wide gemma": lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**_SHAPE, **{**_SLIDES, "head_dim": 32})),
    "gpt2": lambda: t.GPT2LMHeadModel(
        t.GPT2Config(vocab_size=101, n_embd=48, n_layer=3, n_head=6, n_positions=512, pad_token_id=0)
    ),
}
_SMALL: dict[str, Any] = {"slots": 4, "length": 128, "page": 4096}


def make(kind: str = "llama", dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    net = _KINDS[kind]().eval().to(dtype)
    with torch.no_grad():  # weights as they are drawn attend to everything alike; these look somewhere
        for name, p in net.named_parameters():
            if any(part in name for part in ("q_proj.weight", "k_proj.weight", "c_attn.weight")):
                p.mul_(8)
    return net


def prompt(tokens: int, seed: int = 0) -> list[int]:
    return torch.randint(1, 101, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def alone(net: Any, ids: list[int], most: int) -> list[int]:
    """What transformers' own cache gives, token by token."""
    cache, given, now = DynamicCache(config=net.config), [], ids
    for _ in range(most):
        scores = net(torch.tensor([now]), past_key_values=cache).logits[0, -1]
        given.append(int(scores.argmax()))
        now = given[-1:]
    return given


def gather(batch: Batch, into: dict[Any, list[int]] | None = None) -> dict[Any, list[int]]:
    found: dict[Any, list[int]] = {} if into is None else into
    while batch.busy:
        for given in batch.step():
            assert given.fault is None
            if given.token is not None:
                found.setdefault(given.key, []).append(given.token)
    return found


@pytest.mark.parametrize("kind", list(_KINDS))
@pytest.mark.parametrize("knobs", [{}, {"sliced": True}, {"reclaim": "at once"}])
def test_each_request_gets_what_it_gets_alone(kind: str, knobs: dict[str, Any]) -> None:
    net = make(kind)
    prompts = {i: prompt(n, i) for i, n in enumerate((1, 40, 17, 3, 64, 25, 9))}
    batch = Batch.open(net, chunk=13, **_SMALL, **knobs)
    for i, ids in prompts.items():
        batch.submit(i, Request(ids, 12 + 3 * i))
    found = gather(batch)
    assert found == {i: alone(net, ids, 12 + 3 * i) for i, ids in prompts.items()}
    assert batch.running == batch.waiting == 0
    batch.close()


def test_requests_join_and_leave_between_steps() -> None:
    net, found = make(), {}
    batch = Batch.open(net, chunk=8, **_SMALL)
    for i in range(12):
        batch.submit(i, Request(prompt(5 + 2 * i, i), 4 + i % 5))
        for given in batch.step():
            found.setdefault(given.key, []).append(given.token)
    gather(batch, found)
    assert found == {i: alone(net, prompt(5 + 2 * i, i), 4 + i % 5) for i in range(12)}
    assert batch.slots.traffic()["mapped"] <= 12  # slots of ended requests are used again as they are
    batch.close()


def test_a_long_prompt_does_not_hold_up_the_others() -> None:
    batch = Batch.open(make(), chunk=10, **_SMALL)
    batch.submit("short", Request(prompt(4), 30))
    assert [g.key for g in batch.step()] == ["short"]
    batch.submit("long", Request(prompt(95), 5))
    for _ in range(9):
        assert [g.key for g in batch.step()] == ["short"]
    assert sorted(str(g.key) for g in batch.step()) == ["long", "short"]
    batch.close()


def test_little_memory_makes_requests_wait_and_is_never_overrun() -> None:
    net = make()
    requests = {i: Request(prompt(20 + 5 * (i % 4), i), 20) for i in range(9)}
    with_all = Batch.open(net, **_SMALL)
    cost = with_all.slots.cost(60)
    with_all.close()
    batch = Batch.open(net, 2 * cost, **_SMALL)
    for i, request in requests.items():
        batch.submit(i, request)
    found: dict[Any, list[int]] = {}
    waited = 0
    while batch.busy:
        for given in batch.step():
            found.setdefault(given.key, []).append(given.token or 0)
        waited += batch.waiting
        assert batch.slots.nbytes <= 2 * cost and batch.running <= 3
    assert batch.slots.resident() <= 2 * cost and waited
    assert found == {i: alone(net, list(r.ids), 20) for i, r in requests.items()}
    batch.close()


def test_what_never_fits_is_refused_at_once() -> None:
    net = make()
    probe = Batch.open(net, **_SMALL)
    one = probe.slots.cost(40)
    probe.close()
    batch = Batch.open(net, one, **_SMALL)
    with pytest.raises(BudgetError) as caught:
        batch.submit("big", Request(prompt(60), 40))
    assert int(str(caught.value.least)) > one
    for tokens, most in ((120, 20), (0, 5), (5, 0)):
        with pytest.raises(BadInput, match="request"):
            batch.submit("x", Request(prompt(tokens), most))
    assert not batch.busy
    small = Request(prompt(30), 10)
    assert batch.admits(small)
    batch.submit("small", small)
    assert not batch.admits(small)
    with pytest.raises(BadInput, match="key"):
        batch.submit("small", small)
    assert len(gather(batch)["small"]) == 10 and batch.admits(small)
    batch.close()


def test_cancelling_frees_a_slot_and_leaves_the_others_alone() -> None:
    net = make()
    batch = Batch.open(net, **_SMALL)
    for i in range(6):
        batch.submit(i, Request(prompt(10 + i, i), 15))
    found: dict[Any, list[int]] = {}
    for _ in range(6):
        for given in batch.step():
            found.setdefault(given.key, []).append(given.token or 0)
    free = batch.slots.free
    batch.cancel(1)  # runs
    batch.cancel(5)  # waits
    batch.cancel("nobody")
    assert batch.slots.free > free and batch.running == 3 and batch.waiting == 1
    gather(batch, found)
    assert len(found.pop(1)) < 15 and 5 not in found
    assert found == {i: alone(net, prompt(10 + i, i), 15) for i in (0, 2, 3, 4)}
    assert batch.slots.free == batch.slots.budget
    batch.close()


def test_answers_end_at_the_models_token_or_at_ones_own() -> None:
    net = make()
    told = alone(net, prompt(20), 30)
    end = told[7]
    first = told.index(end)
    batch = Batch.open(net, eos=[end], **_SMALL)
    batch.submit(0, Request(prompt(20), 30))
    news: list[Given] = []
    while batch.busy:
        news += batch.step()
    assert [g.token for g in news] == [*told[:first], None] and [g.end for g in news] == [None] * first + [
        "stop"
    ]
    batch.close()
    batch = Batch.open(net, **_SMALL)
    batch.submit(0, Request(prompt(20), 30, stop=lambda token: token == end))
    news = []
    while batch.busy:
        news += batch.step()
    assert [g.token for g in news] == told[: first + 1] and news[-1].end == "stop"
    batch.close()


def test_each_request_draws_by_itself_and_a_fault_ends_one_only() -> None:
    net = make()

    def broken(scores: torch.Tensor) -> int:
        raise HoldallError("no token")

    def drawn(companions: int) -> list[int]:
        batch = Batch.open(net, **_SMALL)
        batch.submit("me", Request(prompt(12), 20, Chooser(0.9, seed=4)))
        for i in range(companions):
            batch.submit(i, Request(prompt(9 + i, i), 20, Chooser(1.3, seed=i)))
        batch.submit("broken", Request(prompt(9), 5, broken))
        mine, faults = [], []
        while batch.busy:
            for given in batch.step():
                faults += [given.key] if given.fault else []
                mine += [given.token] if given.key == "me" else []
        batch.close()
        assert faults == ["broken"]
        return mine

    assert drawn(0) == drawn(2) and len(drawn(0)) == 20


def counted(net: Any) -> list[int]:
    """Tokens of each pass over a prompt from now on."""
    sizes: list[int] = []
    net.register_forward_pre_hook(
        lambda _m, args: sizes.append(args[0].shape[1]) if args[0].shape[1] > 1 else None
    )
    return sizes


def answered(batch: Batch, key: Any, request: Request) -> tuple[list[int], int]:
    """An answer that nothing runs beside, and how much of its prompt was not read again."""
    batch.submit(key, request)
    news: list[Given] = []
    while batch.busy:
        news += batch.step()
    assert all(g.reused == 0 for g in news[1:])
    return [g.token for g in news if g.token is not None], news[0].reused


@pytest.mark.parametrize("kind", list(_KINDS))
@pytest.mark.parametrize("knobs", [{}, {"sliced": True}])
def test_a_second_turn_reads_only_what_is_new(kind: str, knobs: dict[str, Any]) -> None:
    net = make(kind)
    batch, sizes = Batch.open(net, **{**_SMALL, **knobs}), counted(net)
    first = prompt(40)
    told, reused = answered(batch, 1, Request(first, 9))
    assert reused == 0 and sizes == [40]
    second = [*first, *told, *prompt(11, 5)]
    again, reused = answered(batch, 2, Request(second, 12))
    assert reused == 48 and sizes == [40, 12]  # the last token given was never read
    assert again == alone(net, second, 12)
    third = [*second[:45], *prompt(20, 6)]  # the user changed what was asked: a copy, and the other stays
    again, reused = answered(batch, 3, Request(third, 8))
    assert reused == 45 and again == alone(net, third, 8)
    fourth = [*second, *alone(net, second, 12), 3, 4]
    again, reused = answered(batch, 4, Request(fourth, 5))
    assert reused == len(fourth) - 3 and again == alone(net, fourth, 5)
    same, reused = answered(batch, 5, Request(fourth, 5))
    assert reused == len(fourth) - 1 and same == again  # one token is always read: its scores are needed
    batch.close()


def test_a_shared_beginning_is_read_once_for_all_who_wait() -> None:
    net = make()
    batch, sizes = Batch.open(net, chunk=16, **{**_SMALL, "slots": 6}), counted(net)
    system, found = prompt(50, 9), {}
    requests = {i: Request([*system, *prompt(4 + i, i)], 10 + i) for i in range(5)}
    for i, request in requests.items():
        batch.submit(i, request)
    reused = {}
    while batch.busy:
        for given in batch.step():
            reused[given.key] = reused.get(given.key, 0) + given.reused
            found.setdefault(given.key, []).append(given.token)
    assert found == {i: alone(net, list(r.ids), r.most) for i, r in requests.items()}
    assert reused == {0: 0, 1: 50, 2: 50, 3: 50, 4: 50}
    assert sizes[:5] == [16, 16, 16, 6, 5 + 1]  # the second one's own tokens, and the next of the first one
    batch.close()


def test_without_reuse_everything_is_read() -> None:
    net = make()
    batch = Batch.open(net, reuse=False, **_SMALL)
    for key in range(3):
        assert answered(batch, key, Request(prompt(40), 6)) == (alone(net, prompt(40), 6), 0)
    batch.close()


@pytest.mark.parametrize("reclaim", ["deferred", "gradual", "at once"])
def test_reuse_never_takes_what_is_promised_and_answers_stay_the_same(reclaim: str) -> None:
    """Conversations of several turns over a memory for two of them: what is gone is read again."""
    net = make()
    probe = Batch.open(net, **_SMALL)
    cost = probe.slots.cost(128)
    probe.close()
    batch = Batch.open(net, 2 * cost, chunk=32, **_SMALL, reclaim=reclaim)
    talks, total = {i: prompt(20 + 3 * i, i) for i in range(5)}, 0
    for turn in range(3):
        for i in sorted(talks, reverse=turn % 2 == 1):  # who spoke last goes on first
            batch.submit(i, Request(talks[i], 6))
        found: dict[Any, list[int]] = {}
        while batch.busy:
            for given in batch.step():
                total += given.reused
                found.setdefault(given.key, []).append(given.token or 0)
            assert batch.slots.nbytes <= 2 * cost
        assert batch.slots.resident() <= 2 * cost
        for i, ids in talks.items():
            assert found[i] == alone(net, ids, 6)
            talks[i] = [*ids, *found[i], *prompt(5, 50 * turn + i)]
    assert total > 0 if reclaim != "at once" else total == 0
    assert batch.slots.free == batch.slots.budget
    batch.close()


def test_what_stays_is_the_conversations_of_late() -> None:
    net = make()
    batch = Batch.open(net, **{**_SMALL, "slots": 3})
    for i in range(4):  # the first one's slot is taken for the fourth
        answered(batch, i, Request(prompt(30, i), 4))
    assert [answered(batch, 9, Request([*prompt(30, i), 7], 2))[1] for i in (3, 2, 1)] == [30, 30, 30]
    assert answered(batch, 9, Request([*prompt(30, 0), 7], 2))[1] < 5
    batch.close()


def test_a_pass_that_fails_leaves_nothing_wrong_behind() -> None:
    net = make()
    batch = Batch.open(net, chunk=16, **_SMALL)
    batch.submit(1, Request(prompt(40), 5))
    batch.step()

    def broken(*_: Any) -> None:
        raise RuntimeError("in the middle")

    hook = net.model.layers[1].register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError):
        batch.step()
    hook.remove()
    batch.cancel(1)
    assert answered(batch, 2, Request(prompt(40), 5)) == (alone(net, prompt(40), 5), 16)
    batch.close()


def test_half_precision_runs() -> None:
    net = make(dtype=torch.bfloat16)
    batch = Batch.open(net, chunk=16, **_SMALL)
    for i in range(3):
        batch.submit(i, Request(prompt(30, i), 8))
    assert batch.slots.keys[0].dtype == torch.bfloat16
    assert all(len(tokens) == 8 for tokens in gather(batch).values())
    batch.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_compiled_while_somebody_waits(dtype: torch.dtype) -> None:
    from holdall.kv import slot_attention
    from holdall.server.batched import compiled
    from holdall.weights import kernels

    compiled()
    used = (slot_attention.attend, slot_attention.write, kernels.few)
    before = [len(kernel.signatures) for kernel in used]
    batch = Batch.open(make("wide", dtype), **_SMALL)
    for i in range(3):
        batch.submit(i, Request(prompt(5, i), 4))
    gather(batch)
    batch.close()
    assert [len(kernel.signatures) for kernel in used] == before


def test_attention_that_cannot_be_followed_is_refused() -> None:
    net = make()
    net.set_attn_implementation("eager")
    with pytest.raises(BadInput, match="sdpa"):
        Batch.open(net, **_SMALL)


@pytest.mark.slow
def test_eight_at_a_time_on_a_real_model() -> None:
    from holdall.weights.model import Model
    from holdall.weights.texts import held_out_text

    model = Model.read("smollm2")
    net, ids = model.build(), model.tokenizer().encode(held_out_text()[:8000])
    prompts = {i: ids[150 * i : 150 * i + 30 + 11 * i] for i in range(8)}
    batch = Batch.open(net, "50%", chunk=64)
    for i, mine in prompts.items():
        batch.submit(i, Request(mine, 8))
    assert gather(batch) == {i: alone(net, mine, 8) for i, mine in prompts.items()}
    batch.close()
