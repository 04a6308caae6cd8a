"""The sort of the stack: by estimated gain, or as the paper does, by trying every block of every level alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from holdall.optional import lazy
from holdall.weights.iavd import Block
from holdall.weights.stack import by_gain, by_perplexity, groups

if TYPE_CHECKING:
    import torch

    from holdall.weights.encoder import Encoder
    from holdall.weights.model import Model
else:
    torch = lazy("torch", extra="weights")

SORT_WINDOWS, SORT_WINDOW = 4, 256  # the paper takes 32 sequences of 2048 tokens


def sort(cut: Encoder, x: Model) -> list[int]:
    """The stack behind the first blocks; by gain where that is asked, or where there is no model to run."""
    levels = groups(cut.layout.pieces, cut.depths, cut.recipe.lead)
    if cut.recipe.sort == "gain" or not {"config.json", "tokenizer.json"} <= set(x.files):
        return by_gain(levels, cut.gain)
    from holdall.weights.model import Model
    from holdall.weights.perplexity import mean_loss
    from holdall.weights.scaling import windows

    state = {n: t.detach().float().clone() if t.is_floating_point() else t for n, t in cut.state.items()}
    for i in range(len(cut.layout.pieces)):
        _rows(cut, state, i).copy_(_dense(cut, i, 0))
    module = Model(state, x.files, x.name).build()
    tokens = windows(x, SORT_WINDOWS, SORT_WINDOW, skip=SORT_WINDOW)
    change = {1: torch.Tensor.add_, -1: torch.Tensor.sub_}

    def by(sign: int, i: int, block: int) -> None:
        with torch.no_grad():
            change[sign](_rows(cut, state, i), _dense(cut, i, block))

    return by_perplexity(
        levels,
        lambda i, block: by(1, i, block),
        lambda i, block: by(-1, i, block),
        lambda: float(np.exp(mean_loss(module, tokens))),
    )


def _rows(cut: Encoder, state: dict[str, torch.Tensor], i: int) -> torch.Tensor:
    piece = cut.layout.pieces[i]
    return state[cut.layout.tensors[piece.tensor][0]][piece.start : piece.stop]


def _dense(cut: Encoder, i: int, block: int) -> torch.Tensor:
    piece = cut.layout.pieces[i]
    return Block.from_bytes(cut.blocks[i][block], piece.rows, piece.columns, piece.rank).dense()
