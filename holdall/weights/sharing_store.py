"""The one array that a network's weights are read from, and the scaling of its gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput
from holdall.optional import lazy
from holdall.weights.sharing_map import Map, Segment, naive_places

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="weights")

SCALINGS = ("mean", "count", "none")
TILE = 1 << 18  # weights that exist at a time where a tensor is read in parts: a megabyte


class Sharing:
    """psi and how weights are read from it.

    Gradients are added to `psi.grad` in place, already scaled, each tensor's (or tile's) as it becomes known: a dense
    gradient a tensor would cost its number times m. So `torch.autograd.grad(loss, psi)` has nothing to give.
    """

    def __init__(
        self, psi: torch.nn.Parameter, map: Map, segments: Mapping[str, Segment], scaling: str = "mean"
    ):
        if scaling not in SCALINGS:
            raise BadInput("scaling", scaling, " or ".join(SCALINGS))
        self.psi, self.map, self.segments, self.scaling = psi, map, dict(segments), scaling
        self._gamma: torch.Tensor | None = None
        self.watched: dict[int, tuple[torch.Tensor, Segment]] | None = None  # read tensors, by where they lie

    def start(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """psi from given weights: sums over those that share an entry, of the spread that one of them has.

        With one weight an entry these are the weights themselves.
        """
        from holdall.weights.sharing_kernels import scatter, spot

        total, none = np.zeros(self.map.params, np.float32), np.zeros(0, np.float32)
        for name, s in self.segments.items():
            flat = tensors[name].detach().cpu().float().reshape(-1).contiguous().numpy()
            scatter(spot(self.map, s), total, none, np.float32(1 / s.scale), s.start, flat)
        self.psi.data.copy_(torch.from_numpy(total / np.sqrt(np.maximum(self.loads(), 1), dtype=np.float32)))

    def read(self, segment: Segment, first: int = 0, count: int | None = None) -> torch.Tensor:
        """`count` weights of a tensor, from its first on, as a flat tensor without history."""
        count = segment.count - first if count is None else count
        return _blanked(self._read(segment, first, count), segment, first)

    def _read(self, segment: Segment, first: int, count: int) -> torch.Tensor:
        psi = self.psi.detach()
        if not fast(psi):
            parts = [
                segment.scale * sign.to(psi) * psi[index]
                for index, sign, _ in self._places(segment, first, count)
            ]
            return torch.cat(parts) if parts else psi.new_empty(0)
        from holdall.weights.sharing_kernels import gather, spot

        out = torch.empty(count)
        at = spot(self.map, segment)
        gather(at, psi.numpy(), np.float32(segment.scale), segment.start + first, out.numpy())
        return out

    def add(self, segment: Segment, given: torch.Tensor, first: int = 0) -> None:
        """The gradient of a tensor's weights from the first on, to that of psi."""
        grad, gamma = self._grad(), self.gamma
        flat = _blanked(given.detach().reshape(-1).to(grad.dtype), segment, first)
        if not fast(grad):
            for index, sign, part in self._places(segment, first, flat.numel()):
                pieces = segment.scale * sign.to(grad) * flat[part]
                grad.index_add_(0, index, (pieces * gamma[index]).to(grad) if gamma.numel() else pieces)
            return
        from holdall.weights.sharing_kernels import scatter, spot

        at, start = spot(self.map, segment), segment.start + first
        scatter(at, grad.numpy(), gamma.numpy(), np.float32(segment.scale), start, flat.contiguous().numpy())

    def read_rows(self, segment: Segment, rows: torch.Tensor) -> torch.Tensor:
        """Rows [N, width] of a table."""
        psi, width = self.psi.detach(), segment.shape[1]
        if not fast(psi):
            parts = [self.read(segment, int(r) * width, width) for r in rows]
            return torch.stack(parts) if parts else psi.new_empty(0, width)
        from holdall.weights.sharing_kernels import gather_rows, spot

        out = torch.empty(len(rows), width)
        at, scale = spot(self.map, segment), np.float32(segment.scale)
        gather_rows(at, psi.numpy(), scale, segment.start, rows.long().contiguous().numpy(), out.numpy())
        out[rows == segment.blank] = 0
        return out

    def add_rows(self, segment: Segment, rows: torch.Tensor, given: torch.Tensor) -> None:
        grad, gamma, width = self._grad(), self.gamma, segment.shape[1]
        rows, given = rows[rows != segment.blank], given[rows != segment.blank]
        if not fast(grad):
            for row, part in zip(rows, given, strict=True):
                self.add(segment, part, int(row) * width)
            return
        from holdall.weights.sharing_kernels import scatter_rows, spot

        at, scale = spot(self.map, segment), np.float32(segment.scale)
        flat = given.detach().float().contiguous().numpy()
        ids = rows.long().contiguous().numpy()
        scatter_rows(at, grad.numpy(), gamma.numpy(), scale, segment.start, ids, flat)

    @property
    def gamma(self) -> torch.Tensor:
        """What gradients are multiplied by, [m]; empty for none."""
        if self._gamma is None:
            squares = self.squares()
            if self.scaling == "none":
                squares = squares[:0]
            top = self.loads() if self.scaling == "count" else np.ones(1)
            self._gamma = torch.from_numpy(
                np.divide(top, squares, where=squares > 0, out=0 * squares)
            ).float()
        self._gamma = self._gamma.to(self.psi.device)
        return self._gamma

    def loads(self) -> np.ndarray:
        """How many weights read each entry of psi."""
        return self._tallied(lambda segment: 1.0).astype(np.int64)

    def squares(self) -> np.ndarray:
        """The sum of lambda squared over the weights that read each entry."""
        return self._tallied(lambda segment: segment.scale**2)

    def _tallied(self, value: Any) -> np.ndarray:
        from holdall.weights.sharing_kernels import spot, tally

        total = np.zeros(self.map.params)
        for s in self.segments.values():
            tally(spot(self.map, s), total, float(value(s)), s.start, s.count)
        return total

    def _grad(self) -> torch.Tensor:
        if self.psi.grad is None:
            self.psi.grad = torch.zeros_like(self.psi)
        return self.psi.grad

    def _places(
        self, segment: Segment, first: int, count: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, slice]]:
        """Places and signs a tile at a time, where there is no kernel (other devices, other types)."""
        for a in range(0, count, TILE):
            b = min(a + TILE, count)
            j = torch.arange(segment.start + first + a, segment.start + first + b, device=self.psi.device)
            index, sign = naive_places(self.map, j, segment)
            yield index, sign, slice(a, b)


def _blanked(flat: torch.Tensor, segment: Segment, first: int) -> torch.Tensor:
    """With zeros for the row that stays zero, as far as it is among the weights from `first` on."""
    if segment.blank < 0:
        return flat
    width = segment.shape[1]
    a, b = (min(max(r * width - first, 0), flat.numel()) for r in (segment.blank, segment.blank + 1))
    return torch.cat([flat[:a], torch.zeros_like(flat[a:b]), flat[b:]]) if a < b else flat


def fast(tensor: torch.Tensor) -> bool:
    """Whether the kernels take it."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous()
