"""The matrices of a model, and what calibration text says about each of them; without text, they count alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from holdall.optional import lazy
from holdall.weights import coded_file
from holdall.weights.scaling import Walk, windows
from holdall.weights.sensitivity import Errors, Felt, Looked, feel

if TYPE_CHECKING:
    import torch

    from holdall.weights.model import Model
else:
    torch = lazy("torch", extra="weights")


@dataclass
class Known:
    """One matrix. An error e [I] of row o costs share[o] e^T gram e + looked[o] sum(slope e^2), as far as is known.

    gram: None where nothing is known; share: [O], ones then. looked, slope: of tables, how often each row is looked up
    per token, and what its columns mean there. salience: by width, [O].
    """

    weight: np.ndarray
    gram: torch.Tensor | None = None
    share: np.ndarray = field(default_factory=lambda: np.zeros(0))
    looked: np.ndarray | None = None
    slope: torch.Tensor | None = None
    salience: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def moments(self) -> torch.Tensor | None:
        """What all rows are fitted to: the head's part, and how often a row is looked up on average."""
        if self.gram is None or self.slope is None or self.looked is None:
            return self.gram
        return self.gram + torch.diag(self.slope) * float(self.looked.mean())


def matrices(x: Model) -> dict[str, np.ndarray]:
    """Everything that is rounded: each matrix of finite floats, float32 [O, I]."""
    found = {}
    for name, tensor in x.state.items():
        if tensor.is_floating_point() and tensor.ndim == 2 and tensor.numel():
            coded_file.finite(name, tensor)
            found[name] = tensor.detach().float().numpy()
    return found


def calibrate(
    x: Model,
    count: int,
    length: int,
    errors: Errors | None = None,
    *,
    weighted: bool = True,
    kind: str = "first",
) -> dict[str, Known]:
    """Every matrix, with what `count` windows of `length` tokens of the model's calibration text say about it.

    Where the model comes with `moments` these are taken instead, and no text.
    """
    known = {n: Known(w, share=np.ones(len(w))) for n, w in matrices(x).items()}
    if x.moments:
        for name in known.keys() & x.moments.keys():
            _in_outputs(known[name], x.moments[name])
        return known
    if count < 1 or not {"config.json", "tokenizer.json"} <= set(x.files):
        return known
    tokens = windows(x, count, length)
    module = x.skeleton()
    if module.get_output_embeddings() is None:
        _encoder(x, tokens, known)
        return known
    felt, looked = feel(x, tokens, errors, weighted=weighted, kind=kind)
    tables, heads = x.embeddings(), [n for n in felt if n not in known]
    for name, found in felt.items():
        if name in known:
            _take(known[name], found)
    if tables and tables[0] in known:
        _table(known[tables[0]], felt[heads[0]] if heads else None, looked)
    return known


def _take(known: Known, felt: Felt) -> None:
    known.gram, known.share = felt.gram, felt.share.numpy()
    known.salience = {width: s.numpy() for width, s in felt.salience.items()}


def _table(known: Known, head: Felt | None, looked: Looked) -> None:
    """A table is looked up in; where no linear of the head has a matrix of its own, it is the head too."""
    if head is not None:
        _take(known, head)
    else:
        known.gram = torch.zeros(known.weight.shape[1], known.weight.shape[1])
    known.looked, known.slope = (looked.counts / looked.counts.sum()).numpy(), looked.slope


def _encoder(x: Model, tokens: torch.Tensor, known: dict[str, Known]) -> None:
    """No loss of its own: second moments of the inputs, in units of what each output's energy is."""
    for seen in Walk(x.build(), tokens, 0).statistics():
        for name, found in seen.items():
            if name in known:
                _in_outputs(known[name], found.gram)


def _in_outputs(known: Known, gram: torch.Tensor) -> None:
    """In units of what an output's energy is."""
    weight = torch.from_numpy(known.weight)
    known.gram = gram / (float(((weight @ gram) * weight).sum(1).mean()) or 1.0)
