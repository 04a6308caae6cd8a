"""OnDrive: one layer of a cache whose keys and values are a drive's, which answers queries itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from holdall.errors import BadInput
from holdall.kv.entries import Entries
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from holdall.kv.drives import Drives
else:
    torch = lazy("torch", extra="kv")


@dataclass(frozen=True, eq=False, kw_only=True)
class OnDrive(Entries):
    """keys and values are the new tokens of this step alone, which go to the drive with their queries."""

    drive: Drives

    @property
    def count(self) -> int:
        return self.tokens

    @property
    def shape(self) -> tuple[int, int, int]:
        b, h = self.keys.shape[:2]
        return b, h, self.tokens

    @property
    def whole(self) -> bool:
        return False

    @property
    def original(self) -> int:
        return self.tokens * self.elements * self.keys.element_size()

    def append(self, keys: Tensor, values: Tensor) -> Self:
        return self.but(keys=keys, values=values, seen=self.tokens + keys.shape[2])

    def attend(self, queries: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
        """Token by token: each is appended and then asks, so none sees a later one."""
        b, h, n, d = queries.shape
        new, before = self.keys.shape[2], self.tokens - self.keys.shape[2]
        self._must_see_all(mask, before, new)
        asked = queries.float().reshape(b, h, n // new, new, d)
        if scale is not None:  # the drive divides by the root of the dimension
            asked = asked * (scale * d**0.5)
        keys, values = self.keys.float().numpy(), self.values.float().numpy()
        out = torch.empty(asked.shape)
        for t in range(new):
            step = (self.layer, asked[:, :, :, t].numpy(), keys[:, :, t : t + 1], values[:, :, t : t + 1])
            out[:, :, :, t] = torch.from_numpy(self.drive.step(step))
        return out.reshape(b, h, n, -1).to(queries.dtype)

    def _must_see_all(self, mask: Tensor | None, before: int, new: int) -> None:
        """Padding and sliding windows are not for this drive: every query sees all tokens up to its own."""
        if mask is None:
            return
        seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        wanted = torch.arange(before + 1, before + new + 1)
        if (seen.sum(-1).reshape(*seen.shape[:2], -1, new) != wanted).any():
            raise BadInput("attention mask", "hidden tokens", "rows without padding, and no sliding window")

    def dense(self) -> tuple[Tensor, Tensor]:
        raise BadInput("attention", "the eager path, which wants all keys", 'attn_implementation="sdpa"')

    def take(self, kept: Tensor) -> Self:
        raise BadInput("cache", "a method that drops entries", "the drive's own")

    def rows(self, change: Any) -> Self:
        raise BadInput(
            "generate", "rows that change places (beams)", "plain generation: the drive keeps its rows"
        )
