"""tokenizer.json from a GGUF file's vocabulary, so that ids equal llama.cpp's.

transformers' own conversion picks the CodeLlama class for SmolLM2 and drops its digit splitting.
"""

from __future__ import annotations

import json
from typing import Any

from holdall.dropins.gguf import GGUF
from holdall.errors import BadInput, CorruptArtefact

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)  # token types in GGUF
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGITS = {"type": "Digits", "individual_digits": True}
_SPLITS: dict[str, list[dict[str, Any]]] = {  # what comes before the byte-level step
    "smollm": [_DIGITS],
    "gpt-2": [],
    "llama-bpe": [{"type": "Split", "pattern": {"Regex": _LLAMA3}, "behavior": "Isolated", "invert": False}],
    "qwen2": [
        {
            "type": "Split",
            "pattern": {"Regex": _LLAMA3.replace("{1,3}", "")},
            "behavior": "Isolated",
            "invert": False,
        }
    ],
}


def tokenizer_files(gguf: GGUF) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json and, if there is a template, chat_template.jinja."""
    meta = gguf.meta
    tokens, kinds = _vocabulary(gguf)
    model = meta.get("tokenizer.ggml.model")
    if model == "gpt2":
        told = _byte_level(gguf, tokens)
    elif model == "llama":
        told = _sentence_pieces(gguf, tokens)
    else:
        raise BadInput("GGUF tokenizer", str(model), "gpt2 (byte-level) or llama (sentence pieces)")
    told["added_tokens"] = [
        {
            "id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": kind != _USER,
        }
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_CONTROL, _USER, _UNKNOWN)
    ]  # fmt: skip
    names = _special_names(gguf, tokens)
    if meta.get("tokenizer.ggml.add_bos_token", model == "llama") and "bos_token" in names:
        told["post_processor"] = _start_with(names["bos_token"], tokens.index(names["bos_token"]))
    config = {**names, "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    files = {"tokenizer.json": _compact(told), "tokenizer_config.json": _compact(config)}
    template = meta.get("tokenizer.chat_template")
    if isinstance(template, str):
        files["chat_template.jinja"] = template.encode()
    return files


def _vocabulary(gguf: GGUF) -> tuple[list[str], list[int]]:
    tokens = gguf.meta.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not all(isinstance(t, str) for t in tokens):
        raise CorruptArtefact(gguf.name, "it has no vocabulary")
    kinds = gguf.meta.get("tokenizer.ggml.token_type", [_NORMAL] * len(tokens))
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise CorruptArtefact(gguf.name, "its token types do not match its tokens")
    if len(set(tokens)) != len(tokens):
        raise CorruptArtefact(gguf.name, "a token stands twice in its vocabulary")
    return tokens, kinds


def _special_names(gguf: GGUF, tokens: list[str]) -> dict[str, str]:
    """bos_token and its like, by name."""
    found = {}
    for ours, theirs in (
        ("bos", "bos"),
        ("eos", "eos"),
        ("eot", "eot"),
        ("unk", "unknown"),
        ("pad", "padding"),
    ):
        number = gguf.meta.get(f"tokenizer.ggml.{theirs}_token_id")
        if isinstance(number, int) and 0 <= number < len(tokens):
            found[f"{ours}_token"] = tokens[number]
    return found


def _byte_level(gguf: GGUF, tokens: list[str]) -> dict[str, Any]:
    split = gguf.meta.get("tokenizer.ggml.pre", "gpt-2")
    if split not in _SPLITS:
        raise BadInput("GGUF pre-tokenizer", str(split), f"one of {', '.join(_SPLITS)}")
    merges = gguf.meta.get("tokenizer.ggml.merges")
    if not isinstance(merges, list) or not all(isinstance(m, str) and " " in m[1:] for m in merges):
        raise CorruptArtefact(gguf.name, "its tokenizer has no merges")
    own_regex = not any(step["type"] == "Split" for step in _SPLITS[split])
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": own_regex}
    cuts = [m.index(" ", 1) for m in merges]
    return _told(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[[m[:cut], m[cut + 1 :]] for m, cut in zip(merges, cuts, strict=True)],
        pre_tokenizer={"type": "Sequence", "pretokenizers": [*_SPLITS[split], level]},
        decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        ignore_merges=split == "llama-bpe",
    )


def _sentence_pieces(gguf: GGUF, tokens: list[str]) -> dict[str, Any]:
    """SPM merges whichever neighbours make the piece with the best score: as BPE, merges ranked by score."""
    scores = gguf.meta.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise CorruptArtefact(gguf.name, "its token scores do not match its tokens")
    if gguf.meta.get("tokenizer.ggml.add_space_prefix", True):
        raise BadInput("GGUF tokenizer", "add_space_prefix", "a sentence-piece model without a leading space")
    ids = {token: i for i, token in enumerate(tokens)}
    merges = []
    for token, i in ids.items():
        for cut in range(1, len(token)):
            left, right = ids.get(token[:cut]), ids.get(token[cut:])
            if left is not None and right is not None:
                merges.append((-scores[i], i, left, right))
    merges.sort()
    return _told(
        vocab=ids,
        merges=[[tokens[left], tokens[right]] for *_, left, right in merges],
        normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        decoder={
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        byte_fallback=True,
        unk_token=_special_names(gguf, tokens).get("unk_token"),
    )


def _told(
    *,
    vocab: dict[str, int],
    merges: list[list[str]],
    decoder: dict[str, Any],
    normalizer: dict[str, Any] | None = None,
    pre_tokenizer: dict[str, Any] | None = None,
    ignore_merges: bool = False,
    byte_fallback: bool = False,
    unk_token: str | None = None,
) -> dict[str, Any]:
    bpe = {
        "type": "BPE", "dropout": None, "unk_token": unk_token, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": byte_fallback, "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges, "vocab": vocab, "merges": merges,
    }  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": None, "decoder": decoder, "model": bpe,
    }  # fmt: skip


def _start_with(token: str, number: int) -> dict[str, Any]:
    """Put the start token in front when special tokens are asked for."""
    start, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [start, text],
        "pair": [start, text, second],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }


def _compact(told: Any) -> bytes:
    return json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()
