"""Palettes of weights that learn: what `palettize_` puts between a parameter and the module that uses it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.utils import parametrize

from holdall.weights.coded import Coded
from holdall.weights.dkm import ROUNDS, STOP, Heft, dkm, gap, naive_dkm, repaired, unique
from holdall.weights.line_kmeans import exact, nearest, plus_plus
from holdall.weights.saved_tensors import saved

TAU = 0.1  # of the squared gap between centroids
_LEAST_SCALE = 2.0**-14
_PRIOR = 0.01  # of the mean cost, added to each row's and column's


class Palette(torch.nn.Module):
    """Weights [O, ...] -> as many numbers from tables of 2**bits; soft in training, the nearest centroid otherwise.

    rows: that share a table, 0 for all. group: columns that are in units of their root mean square, 0 for whole rows,
    None: none are. share: tau, in squared mean gaps between centroids. fast: maps of the different values alone, else
    of all weights (then `Saving` pays). felt: (rows [O], columns [I]), what an error costs; centroids go where it does.
    """

    centroids: torch.Tensor  # [tables, 2**bits]
    scale: torch.Tensor  # [O, ceil(I / group)]; empty where nothing is scaled

    def __init__(
        self, w: torch.Tensor, bits: int, *, rows: int = 0, group: int | None = None, start: str = "exact",
        seed: int = 0, share: float = TAU, rounds: int = ROUNDS, stop: float = STOP, hard: bool = False,
        fast: bool = True, half: torch.dtype = torch.bfloat16,
        felt: tuple[np.ndarray, np.ndarray] | None = None,
    ):  # fmt: skip
        super().__init__()
        self.bits, self.rows, self.share, self.rounds, self.stop = bits, rows or len(w), share, rounds, stop
        self.hard, self.fast, self.short = hard, fast, half
        flat = w.detach().reshape(len(w), -1).float()
        self.group = 0 if group is None else min(group or flat.shape[1], flat.shape[1])
        self.register_buffer("scale", _sizes(flat, self.group) if self.group else torch.zeros(0))
        self.heft = (
            None if felt is None else _heft(*felt, self.scale.numpy() if self.group else None, self.group)
        )
        units = self._units(flat)
        found = [started(p, bits, start, seed + i, half, self._part(i)) for i, p in self._parts(units)]
        self.register_buffer("centroids", torch.stack(found))
        self._next: torch.Tensor | None = None
        self._version = -1

    def _parts(self, x: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        yield from enumerate(x.split(self.rows))

    def _part(self, i: int) -> Heft | None:
        return None if self.heft is None else self.heft.part(i * self.rows, (i + 1) * self.rows)

    def _each(self, like: torch.Tensor) -> torch.Tensor:
        """The scale of each weight, as far as it differs within a row."""
        scale = self.scale.to(like.dtype)
        columns = like.shape[1]
        return scale if self.group >= columns else scale.repeat_interleave(self.group, 1)[:, :columns]

    def _units(self, x: torch.Tensor) -> torch.Tensor:
        return x / self._each(x) if self.group else x

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return self.nearest(w)
        if w._version != self._version:  # a pass that is done again finds the centroids that it found before
            self.settle()
            self._version = w._version
        flat = w.reshape(len(w), -1)
        made = [
            self._soft(part, self.centroids[i], self._part(i)) for i, part in self._parts(self._units(flat))
        ]
        self._next = torch.stack([c for _, c in made])
        hat = made[0][0] if len(made) == 1 else torch.cat([h for h, _ in made])
        return (hat * self._each(flat) if self.group else hat).reshape(w.shape)

    def _soft(
        self, x: torch.Tensor, centroids: torch.Tensor, heft: Heft | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        how = (self.share * gap(centroids) ** 2, self.rounds, self.stop, self.hard, heft)
        with torch.autocast("cpu", enabled=False):  # sums are float32 whatever products are
            if self.fast:
                with saved(x):
                    hat, c = dkm(x, centroids, *how, self.short)
            else:
                rounded = x.to(self.short)
                with saved(rounded):
                    hat, c = naive_dkm(rounded, centroids, *how)
        return hat.to(x.dtype), repaired(c)

    def settle(self) -> None:
        """The centroids of the last pass are where the next one begins."""
        if self._next is not None:
            self.centroids.copy_(self._next)
            self._next = None

    def _load_from_state_dict(self, *told: Any) -> None:
        self._next = None
        super()._load_from_state_dict(*told)

    def nearest(self, w: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.coded(w).dense()).reshape(w.shape).to(w.dtype)

    def coded(self, w: torch.Tensor) -> Coded:
        """As it is stored: the nearest centroid in half precision."""
        self.settle()
        x = self._units(w.detach().reshape(len(w), -1).float())
        scale, parts = self.scale.numpy(), []
        for i, part in self._parts(x):
            table = np.sort(self.centroids[i].numpy()).astype(np.float16)
            codes = nearest(table.astype(np.float64), part.numpy()).astype(np.uint8)
            rows = np.arange(i * self.rows, i * self.rows + len(part))
            own = scale[rows] if self.group else None
            parts.append((rows, Coded.of(codes, self.bits, scale=own, table=table, group=self.group)))
        return parts[0][1] if len(parts) == 1 else Coded.mixed(parts)


def _sizes(x: torch.Tensor, group: int) -> torch.Tensor:
    """The root mean square of each group of columns, as half precision holds it."""
    squares = torch.stack([part.square().mean(1) for part in x.split(group, 1)], 1)
    return squares.sqrt().clamp(min=_LEAST_SCALE).half().float()


def _heft(rows: np.ndarray, columns: np.ndarray, scale: np.ndarray | None, group: int) -> Heft:
    """Around one, and nowhere nothing: what no text has told of counts a little."""
    made = []
    for told in (rows, columns):
        mean = float(told.mean())
        made.append((told / mean + _PRIOR if mean > 0 else np.ones_like(told)).astype(np.float32))
    units = np.ones((len(rows), 1)) if scale is None else np.square(scale) / np.square(scale).mean()
    return Heft(made[0], made[1], np.maximum(units, 1e-12).astype(np.float32), group or len(columns))


def started(
    x: torch.Tensor, bits: int, start: str, seed: int, half: torch.dtype, heft: Heft | None = None
) -> torch.Tensor:
    """Centroids [2**bits], by what k-means finds for the 16-bit values."""
    values, counts, _ = unique(x.to(half).contiguous().view(torch.int16), half, heft)
    order = values.argsort()
    told = values[order].numpy(), counts[order].numpy()
    found = exact(*told, 1 << bits) if start == "exact" else plus_plus(*told, 1 << bits, seed)
    return torch.from_numpy(found).float()


def put_palettes(
    module: torch.nn.Module, bits: int | dict[str, int], table_bits: int, *,
    felt: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None, **knobs: Any,
) -> None:  # fmt: skip
    """On the weights of linears, convolutions and embeddings. bits: one for all, or by parameter name, like felt."""
    made: dict[int, Palette] = {}
    for path, owner in list(module.named_modules(remove_duplicate=False)):
        if not isinstance(owner, torch.nn.Linear | torch.nn.Conv2d | torch.nn.Embedding):
            continue
        if parametrize.is_parametrized(owner, "weight"):
            continue
        weight: Any = owner.weight
        if isinstance(bits, dict):
            width = bits.get(f"{path}.weight")
        else:
            width = table_bits if isinstance(owner, torch.nn.Embedding) else bits
        if id(weight) not in made:
            if width is None or not weight.numel():
                continue
            known = (felt or {}).get(f"{path}.weight")
            made[id(weight)] = Palette(weight, width, felt=known, **knobs).train(owner.training)
        parametrize.register_parametrization(owner, "weight", made[id(weight)], unsafe=True)


def palettes(module: torch.nn.Module) -> dict[str, tuple[Palette, torch.nn.Parameter]]:
    """By parameter name: (the palette, the weights that learn); shared ones under their first name."""
    found: dict[str, tuple[Palette, torch.nn.Parameter]] = {}
    seen = set()
    for path, owner in module.named_modules(remove_duplicate=False):
        if parametrize.is_parametrized(owner, "weight"):
            held: Any = owner.parametrizations
            palette, original = held.weight[0], held.weight.original
            if isinstance(palette, Palette) and id(palette) not in seen:
                seen.add(id(palette))
                found[f"{path}.weight" if path else "weight"] = (palette, original)
    return found
