"""A small model cut out of a large one, on which methods are tried in seconds instead of hours.

Its layers are some of the large one's, evenly spread and whole; its vocabulary is the tokens that the texts use most,
in the same proportion, so that tables weigh what they weigh there. Text is given to it as numbers of tokens.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput
from holdall.optional import lazy
from holdall.weights.model import Model
from holdall.weights.perplexity import compare, embedding_quality, spread
from holdall.weights.stored import file_sections
from holdall.weights.texts import calibration_text, held_out_text

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="weights")

_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")
_CHARACTERS = 600_000  # of a text that are looked at
_RUNS = {"config.json", "tokenizer.json"}


@dataclass(frozen=True)
class Sample:
    """model: the small model, or `of` itself. judged: windows [N, L] of held-out text, None where no model runs."""

    model: Model
    of: Model
    judged: torch.Tensor | None

    @property
    def whole(self) -> bool:
        return self.model is self.of

    def limit(self, size: int) -> int:
        """The bytes that it may take for the whole to take `size`: as many bits a number, beside its files."""
        return self._moved(size, self.of, self.model)

    def up(self, size: int) -> int:
        """About what the whole takes where it takes `size`."""
        return self._moved(size, self.model, self.of)

    def _moved(self, size: int, a: Model, b: Model) -> int:
        if self.whole:
            return size
        return max(1, round((size - _beside(a)) * b.elements / a.elements + _beside(b)))

    def lost(self, back: Model) -> dict[str, float]:
        """What decoded weights cost. `lost` orders methods: KL, 1 - cosine, or the share of the squares of weights."""
        return judge(self.model, back, self.judged)


def judge(x: Model, back: Model, tokens: torch.Tensor | None) -> dict[str, float]:
    if tokens is None:
        from holdall.weights.quality import loss

        return {"lost": loss(x, back)}
    reference, module = x.build(), back.build()
    if reference.get_output_embeddings() is None:
        found = embedding_quality(reference, module, tokens)
        return {"lost": 1 - found["cosine"], **found}
    found = compare(reference, module, tokens)
    return {"lost": found["kl"], **{k: found[k] for k in ("perplexity_ratio", "top1")}}


def texts(x: Model) -> tuple[str, str]:
    """(what is learned from, what is judged on); the last fifth of a text of the user's."""
    if x.calibration is None:
        return calibration_text(), held_out_text()
    cut = len(x.calibration) * 4 // 5
    return x.calibration[:cut], x.calibration[cut:]


def windows(x: Model, count: int, length: int) -> torch.Tensor | None:
    """Held-out text as the whole model reads it."""
    if not set(x.files) >= _RUNS:
        return None
    return spread(_ids(x, texts(x)[1]), count, length)


def _ids(x: Model, text: str) -> list[int]:
    ids = x.tokenizer().encode(text[:_CHARACTERS])
    if len(ids) < 2 and x.calibration is not None:
        wanted = "some thousand words: four fifths to learn from, the last one to judge on"
        raise BadInput("calibration text", f"{len(ids)} tokens in a part of it", wanted)
    x.check_tokens(ids)
    return ids


def sample(x: Model, most: int, count: int, length: int) -> Sample:
    """At most about `most` numbers of the model, or all of it where it is small or cannot be cut.

    count, length: of the windows that are judged.
    """
    if not set(x.files) >= _RUNS:
        return Sample(x, x, None)
    cut = _cut(x, most) if x.elements > most else None
    if cut is None:
        return Sample(x, x, windows(x, count, length))
    model, ids = cut
    return Sample(model, x, spread(ids, count, length))


def _beside(x: Model) -> int:
    return sum(a.nbytes for a in file_sections(x).values())


def _cut(x: Model, most: int) -> tuple[Model, list[int]] | None:
    """The small model and the held-out text in its tokens; None where layers are not where they usually are."""
    key = next((k for k in _COUNTS if type(x.config.get(k)) is int), None)
    tables = x.embeddings()
    if key is None or not tables:
        return None
    layers, vocabulary = x.config[key], len(x.state[tables[0]])
    count = max(2, round(layers * most / x.elements))
    if count >= layers:
        return None
    kept = np.linspace(0, layers - 1, count).round().astype(int).tolist()
    learned, judged = (_ids(x, t) for t in texts(x))
    tokens = _tokens(learned, judged, vocabulary, vocabulary * count // layers)
    config = {**x.config, key: count, "vocab_size": len(tokens)}
    config |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    if isinstance(config.get("layer_types"), list):
        config["layer_types"] = [config["layer_types"][i] for i in kept]
    where = {t: i for i, t in enumerate(tokens)}
    mine = [[where[t] for t in ids if t in where] for ids in (learned, judged)]
    files = {"config.json": json.dumps(config).encode(), "tokenizer.json": _numbers(len(tokens))}
    made = Model({}, files, f"{x.name}, {count} of {layers} layers", " ".join(map(str, mine[0])))
    made.state = _state(x, made, kept, layers, tokens)
    expected = {n: p.shape for n, p in made.skeleton().state_dict().items()}
    if any(expected.get(n, t.shape) != t.shape for n, t in made.state.items()) or min(map(len, mine)) < 2:
        return None
    return made, mine[1]


def _state(x: Model, made: Model, kept: list[int], layers: int, tokens: list[int]) -> dict[str, torch.Tensor]:
    """The tensors of kept layers; of those that have a row for each token, the rows of the kept ones."""
    expected = {n: p.shape for n, p in made.skeleton().state_dict().items()}
    state = {}
    for name, tensor in x.state.items():
        moved = _moved(name, kept, layers)
        if moved is not None:
            fewer = moved in expected and len(expected[moved]) and len(expected[moved]) == tensor.ndim
            cut = fewer and expected[moved][0] == len(tokens) < len(tensor)
            state[moved] = tensor[tokens] if cut else tensor
    return state


def _tokens(learned: list[int], judged: list[int], vocabulary: int, count: int) -> list[int]:
    """The most frequent tokens of both texts, and others evenly spread where those are fewer than `count`."""
    frequent = [t for t, _ in Counter(learned + judged).most_common(count)]
    others = np.setdiff1d(np.arange(vocabulary), frequent)
    rest = max(0, min(count - len(frequent), len(others)))
    return sorted({*frequent, *others[np.linspace(0, len(others) - 1, rest).astype(int)].tolist()})


def _moved(name: str, kept: list[int], layers: int) -> str | None:
    """The name in the small model; None for a layer that is left out."""
    parts = name.split(".")
    at = next((i for i, p in enumerate(parts) if p.isdigit()), None)
    if at is None or int(parts[at]) >= layers:
        return name
    if int(parts[at]) not in kept:
        return None
    parts[at] = str(kept.index(int(parts[at])))
    return ".".join(parts)


def _numbers(count: int) -> bytes:
    """A tokenizer whose text is numbers of tokens."""
    told: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {str(i): i for i in range(count)}, "unk_token": "0"},
    }  # fmt: skip
    return json.dumps(told).encode()
