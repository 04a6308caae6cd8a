"""GGUF's tokenizer settings from tokenizer.json: the way back of `gguf_tokenizer`, and for files of the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from holdall.dropins.gguf_tokenizer import _BYTE, _CONTROL, _NORMAL, _SPLITS, _UNUSED, _USER
from holdall.dropins.tokenizer import Tokenizer, json_file
from holdall.errors import BadInput

_WANTED = "a byte-level or sentence-piece tokenizer.json that llama.cpp knows"
_NAMES = (("bos", "bos"), ("eos", "eos"), ("eot", "eot"), ("unknown", "unk"), ("padding", "pad"))


def vocabulary(files: Mapping[str, bytes], size: int) -> dict[str, Any]:
    """Settings by key, without "tokenizer.ggml."; size: rows of the embedding table."""
    Tokenizer(files)  # one clear line if it is no tokenizer
    told = json_file(files, "tokenizer.json")
    model = told.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise BadInput("tokenizer", "no vocabulary of tokens and numbers", _WANTED)
    found = _pieces(told, model) if model.get("byte_fallback") else _byte_level(told, model)
    tokens, kinds = _tokens(told, model["vocab"], size)
    if model.get("byte_fallback"):
        kinds = [_BYTE if len(t) == 6 and t[:3] == "<0x" else k for t, k in zip(tokens, kinds, strict=True)]
        found["scores"] = _scores(tokens, found.pop("merges"))
    found |= {"tokens": tokens, "token_type": kinds, "add_space_prefix": False}
    return found | _special(files, told, tokens)


def _tokens(told: dict[str, Any], vocab: dict[str, int], size: int) -> tuple[list[str], list[int]]:
    """(tokens, their types) by number; numbers that no token has are unused ones."""
    added = {t["id"]: t for t in told.get("added_tokens", [])}
    by_id = {i: t for t, i in vocab.items()} | {i: t["content"] for i, t in added.items()}
    if by_id and max(by_id) >= size:
        raise BadInput("tokenizer", f"token number {max(by_id)}", f"one for a model of {size} tokens")
    kinds = [
        (_CONTROL if added[i]["special"] else _USER) if i in added else _NORMAL if i in by_id else _UNUSED
        for i in range(size)
    ]
    return [by_id.get(i, f"[PAD{i}]") for i in range(size)], kinds


def _byte_level(told: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    before = told.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before]) if before.get("type") == "Sequence" else [before]
    if not steps or steps[-1].get("type") != "ByteLevel" or model.get("type") != "BPE":
        raise BadInput("tokenizer", f"{model.get('type')} behind {before.get('type')}", _WANTED)
    plain = json.dumps(steps[:-1], sort_keys=True)
    name = next((n for n, s in _SPLITS.items() if json.dumps(s, sort_keys=True) == plain), None)
    if name is None:
        shown = ", ".join(str(s.get("type")) for s in steps[:-1])
        raise BadInput("tokenizer", f"a way to split text ({shown})", f"one of {', '.join(_SPLITS)}")
    return {"model": "gpt2", "pre": name, "merges": [" ".join(m) for m in _merges(model)]}


def _pieces(told: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    wanted = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    if told.get("normalizer") != wanted:
        raise BadInput("tokenizer", "sentence pieces with another normalizer", _WANTED)
    return {"model": "llama", "merges": _merges(model)}


def _merges(model: dict[str, Any]) -> list[list[str]]:
    return [m if isinstance(m, list) else m.split(" ") for m in model.get("merges", [])]


def _scores(tokens: list[str], merges: list[list[str]]) -> list[float]:
    """llama.cpp merges whatever gives the best score: the earlier a merge, the better its result."""
    rank: dict[str, int] = {}
    for i, (left, right) in enumerate(merges):
        rank.setdefault(left + right, i)
    order = {r: i for i, r in enumerate(sorted(rank.values()))}  # small whole numbers, exact in float32
    return [-float(order[rank[t]]) if t in rank else -float(len(order)) for t in tokens]


def _special(files: Mapping[str, bytes], told: dict[str, Any], tokens: list[str]) -> dict[str, Any]:
    config, settings = json_file(files, "tokenizer_config.json"), json_file(files, "config.json")
    where = {t: i for i, t in enumerate(tokens)}
    found: dict[str, Any] = {}
    for theirs, ours in _NAMES:
        value = config.get(f"{ours}_token")
        text = value.get("content") if isinstance(value, dict) else value
        number = where.get(text) if isinstance(text, str) else settings.get(f"{ours}_token_id")
        if isinstance(number, int) and 0 <= number < len(tokens):
            found[f"{theirs}_token_id"] = number
    template = Tokenizer(files).template
    if template is not None:
        found["chat_template"] = template  # this one stands beside the others as "tokenizer.chat_template"
    first = tokens[found["bos_token_id"]] if "bos_token_id" in found else None
    return {
        **found,
        "add_bos_token": first is not None and first in json.dumps(_starts(told), ensure_ascii=False),
    }


def _starts(told: dict[str, Any]) -> Any:
    """What the tokenizer puts before and after a text when it is asked for special tokens."""
    after = told.get("post_processor") or {}
    steps = after.get("processors", [after])
    return [s.get("single") for s in steps if s.get("type") == "TemplateProcessing"]
