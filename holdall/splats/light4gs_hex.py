"""The model that planes are coded with: two small nets (planes of places, planes of time), widths to begin from, and
the hyperprior, which is made of a plane's loudness by a third net that only the packing side needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from holdall.splats.hexplane import TIMED
from holdall.splats.light4gs_gauss import LEAST, OCTAVE, Getter, Putter
from holdall.splats.light4gs_net import Expecting, base_widths, cost
from holdall.splats.light4gs_planes import COARSE, FEATURES, HYPER, ORDER, Contexts, Plane, moments

Shape = tuple[int, int, int]
_START = -1.0 * OCTAVE  # LEAST + this much: the width that a hyperprior is expected with at first
_MAPS = 3


def sequence(scales: int) -> list[Plane]:
    """All planes, as they are coded."""
    return [(s, i) for s in range(scales) for i in ORDER]


def _shape(x: Tensor) -> Shape:
    return x.shape[0], x.shape[1], x.shape[2]


def hyper_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    return HYPER, -(-shape[1] // COARSE), -(-shape[2] // COARSE)


class Sender:
    """Says in a few numbers how loud a plane is where. Trained with the rest; never stored."""

    def __init__(self, hidden: int = 8, seed: int = 0):
        draw = torch.Generator().manual_seed(seed)
        self.parts = [
            (torch.randn(hidden, _MAPS, generator=draw) * 0.5).requires_grad_(),
            torch.zeros(hidden, 1).requires_grad_(),
            (torch.randn(HYPER, hidden, generator=draw) * 0.3).requires_grad_(),
        ]

    def __call__(self, x: Tensor) -> Tensor:  # [h, rows, columns] -> [HYPER, ...]
        maps = torch.stack([x.abs().mean(0), (x * x).mean(0).clamp_max(1e4), x.abs().amax(0).clamp_max(100)])
        pooled = avg_pool2d(maps[None], COARSE, ceil_mode=True, count_include_pad=False)[0]
        flat = (1 + pooled).log2().reshape(_MAPS, -1)
        one, bias, two = self.parts
        return (two @ (one @ flat + bias).relu()).reshape(hyper_shape(x.shape))


@dataclass
class PlaneModel:
    """base: of each plane, widths to begin from [h]; hyper_base [2, HYPER]: of the hyperprior, by kind of plane."""

    scales: int
    without: frozenset[str] = frozenset()
    hidden: int = 16
    seed: int = 0
    base: dict[Plane, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.nets = [Expecting(len(FEATURES), self.hidden, self.seed + i) for i in range(2)]
        self.senders = [Sender(seed=self.seed + 5 + i) for i in range(2)]
        self.hyper_base = torch.full((2, HYPER), _START - LEAST * OCTAVE).requires_grad_()

    def params(self) -> list[Tensor]:
        found = [p for net in self.nets for p in net.parts.values()]
        return [*found, *(p for sender in self.senders for p in sender.parts), self.hyper_base]

    def begin(self, values: Mapping[Plane, Any]) -> None:
        """Widths to begin from, of what planes are now."""
        for plane, v in values.items():
            self.base[plane] = torch.from_numpy(base_widths(v, (1, 2))).double()

    @property
    def factorised(self) -> bool:
        """Whether nothing is known but each feature's width."""
        return self.without >= {"hyper", "coarse", "intra", "inter"}

    def _base(self, plane: Plane, like: Tensor) -> Tensor:
        return self.base[plane].to(like)[:, None, None].expand_as(like)

    def sent(self, values: Mapping[Plane, Tensor], draw: torch.Generator | None) -> dict[Plane, Tensor]:
        """The hyperprior: with noise to learn by, or whole numbers (with gradients straight through)."""
        if "hyper" in self.without:
            return {}
        found = {}
        for plane, v in values.items():
            z = self.senders[plane[1] in TIMED](v)
            if draw is not None:
                found[plane] = z + torch.rand(z.shape, generator=draw) - 0.5
            else:
                found[plane] = z + (z.round() - z).detach()
        return found

    def bits(
        self,
        values: Mapping[Plane, Tensor],
        steps: Mapping[Plane, Tensor],
        draw: torch.Generator | None = None,
        only: Sequence[Plane] | None = None,
    ) -> dict[str, Tensor]:
        """What planes [h, rows, columns], in steps, would take; by plane ("0/1") and for the hyperprior ("hyper").
        only: of these."""
        asked = sequence(self.scales) if only is None else only
        z = self.sent({plane: values[plane] for plane in asked}, draw)
        known = Contexts(values, steps, z, False, self.without)
        found = {"hyper": torch.zeros(())}
        for plane in asked:
            v, kind = values[plane], int(plane[1] in TIMED)
            flat, base = v.reshape(-1), self._base(plane, v).reshape(-1)
            if self.factorised:
                middles, widths = torch.zeros_like(flat), base
            else:
                middles, widths = self.nets[kind](known.of(plane, v).reshape(len(FEATURES), -1), base)
            found[f"{plane[0]}/{plane[1]}"] = cost(flat, middles, widths).sum()
            if plane in z:
                wide = self.hyper_base[kind][:, None].expand(HYPER, z[plane][0].numel())
                found["hyper"] = found["hyper"] + cost(z[plane].reshape(HYPER, -1), wide * 0, wide).sum()
        return found

    def fit(
        self, values: Mapping[Plane, Tensor], steps: Mapping[Plane, Tensor], rounds: int, rate: float
    ) -> float:
        """Learns to expect these whole numbers; bits at the end."""
        self.begin({k: v.detach() for k, v in values.items()})
        teach = torch.optim.Adam(self.params(), lr=rate)
        count, total = sum(v.numel() for v in values.values()), 0.0
        for i in range(rounds if not self.factorised else 0):
            for group in teach.param_groups:
                group["lr"] = rate * min(1.0, 2 * (1 - i / rounds) + 0.05)
            loss: Any = sum(self.bits(values, steps).values())
            (loss / count).backward()
            teach.step()
            teach.zero_grad()
            total = float(loss.detach())
        return total

    # whole numbers only

    def _expected(
        self, plane: Plane, known: Contexts, own: Tensor, which: Tensor, rows: slice = slice(None)
    ) -> tuple[Any, Any]:
        base = self._base(plane, own)[which]
        if self.factorised:
            return np.zeros(len(base), np.int64), base.numpy().astype(np.int64)
        return self.nets[plane[1] in TIMED].exact(known.of(plane, own, rows)[:, which[:, rows]], base)

    def _hyper_width(self, kind: int, shape: Sequence[int]) -> Any:
        wide = self.hyper_base.detach().round().clamp(0, 64).long()[kind]
        return wide[:, None].expand(HYPER, shape[1] * shape[2]).reshape(-1).numpy()

    @torch.no_grad()
    def write(
        self, values: Mapping[Plane, Tensor], steps: Mapping[Plane, Tensor]
    ) -> tuple[Putter, dict[str, float]]:
        """(the coder that has them, bits by plane)."""
        whole = {k: v.double().round() for k, v in values.items()}
        z = {k: v.double() for k, v in self.sent({k: v.float() for k, v in whole.items()}, None).items()}
        put, spent, before = Putter(), {}, 0.0
        known = Contexts(whole, steps, z, True, self.without)
        for plane in sequence(self.scales):
            own = whole[plane]
            if plane in z:
                flat = z[plane].reshape(-1).numpy().astype(np.int64)
                wide = self._hyper_width(int(plane[1] in TIMED), z[plane].shape)
                put.put(flat, np.zeros(len(flat), np.int64), wide)
            when = moments(_shape(own), plane[1] in TIMED)
            order = torch.argsort(when.reshape(-1), stable=True)
            every = torch.ones_like(own, dtype=torch.bool)
            middles, widths = self._expected(plane, known, own, every)
            at = order.numpy()
            put.put(own.reshape(-1).numpy().astype(np.int64)[at], middles[at], widths[at])
            spent[f"{plane[0]}/{plane[1]}"], before = put.bits - before, put.bits
        return put, spent

    @torch.no_grad()
    def read(
        self, get: Getter, shapes: Mapping[Plane, Shape], steps: Mapping[Plane, Tensor]
    ) -> dict[Plane, Tensor]:
        found: dict[Plane, Tensor] = {}
        z: dict[Plane, Tensor] = {}
        known = Contexts(found, steps, z, True, self.without)
        for plane in sequence(self.scales):
            shape, kind = shapes[plane], int(plane[1] in TIMED)
            if "hyper" not in self.without:
                wide = self._hyper_width(kind, hyper_shape(shape))
                sent = get.get(np.zeros(len(wide), np.int64), wide)
                z[plane] = torch.from_numpy(sent).double().reshape(hyper_shape(shape))
            own, when = torch.zeros(shape, dtype=torch.float64), moments(shape, bool(kind))
            for moment in range(int(when.max()) + 1):
                which, row = when == moment, moment // 4
                rows = slice(max(0, row - 2), row + 1) if kind else slice(None)
                middles, widths = self._expected(plane, known, own, which, rows)
                own[which] = torch.from_numpy(get.get(middles, widths)).double()
            found[plane] = own
        return found
