"""Attention computed where the keys and values live: in files, by a process that reads only the pages it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from holdall.budget import Budget
from holdall.errors import BadInput, BudgetError
from holdall.kinds import Runtime, Spend
from holdall.kv.drive_model import PIECE, Task
from holdall.method import Paper, knob

if TYPE_CHECKING:
    from holdall.kv.drives import Drives


@dataclass(frozen=True, kw_only=True)
class InstInfer(Runtime):
    """Keeps the context on disk and asks for attention there: only a query goes out and only its answer comes back.

    A process of its own stands for a drive that can compute. It owns page-aligned files and answers with SparF: a few
    channels of all keys tell which tokens matter, and of these alone keys and values are read. For contexts larger than
    memory. Poor where the context fits into memory, or on a disk without a processor beside it: this machine's
    processor then does the drive's work, and every page comes through the kernel. What a real drive would take is only
    computed (`holdall.kv.drive_model`, labelled so).

    Shapes: q [B, H, G, D]; k, v [B, H, T, D]; out [B, H, G, D].
    Cost: over the link 2 q + k + v for each layer and token, whatever the length S. On disk 3 S D numbers a head (keys
    twice). Read per head: the pages of r channels of all S tokens, and those of k tokens' keys and values.
    Knobs:
        channels: share of the channels whose products are summed first, r / D (paper: chosen for 1/8 of the bytes)
        tokens: share of the tokens that are attended to, k / S (paper: chosen for 1/8 of the bytes)
        by: what is chosen: "token", or "page", all tokens of the pages whose tokens matter most together: what is read
            anyway is attended to (paper: token)
        local: latest tokens that are always attended to
        dense: contexts of up to so many tokens are read whole
        columns: neighbouring channels in one page of the channel-indexed copy (paper: 2 to 8)
        copy: keep the channel-indexed copy; without it the first step reads every page of the keys
        page: bytes of a page, at which files are read (paper: 4,096)
        lanes: files that groups of tokens are spread over, the flash channels of a drive (paper: 8)
        placement: "striped", groups in turn along the tokens, or "random"
        drives: processes that the heads are split over (paper: 1 or 2)
        bits: of a stored number (paper: 16)
    Differs from the paper: the drive is a process, flash channels are files, and there is no garbage collection: a
    session is one task, and its space is free when it closes. Query heads that share a key/value head share channels
    (by their mean share of |q|) and tokens (by their mean weight), so that one page serves all of them. The default
    chooses whole pages: a sixteenth of the tokens lay in half of them, and three quarters of what was read was thrown
    away; `InstInfer(by="token", tokens=1/16)` is the paper's.
    Example:
        >>> import numpy as np
        >>> from holdall.kv import InstInfer
        >>> from holdall.kv.drive_model import Task
        >>> lot = np.random.default_rng(0)
        >>> with InstInfer(dense=64).open(Task(layers=1, heads=2, dim=64)) as drive:
        ...     drive.step((0, None, *lot.normal(size=(2, 1, 2, 600, 64))))
        ...     q, k, v = lot.normal(size=(3, 1, 2, 1, 64))
        ...     out = drive.step((0, q, k, v))
        >>> out.shape
        (1, 2, 1, 64)

    Paper: 053, Pan et al., InstInfer: In-Storage Attention Offloading for Cost-Effective Long-Context LLM Inference
    Test: tests/kv/test_instinfer.py
    """

    name: ClassVar[str] = "instinfer"
    room: ClassVar[str] = "kv"
    measured_by: ClassVar[str] = "drive_quality"
    paper: ClassVar[Paper] = Paper(
        53,
        "InstInfer: In-Storage Attention Offloading for Cost-Effective Long-Context LLM Inference",
        "Pan et al., HPCA 2025",
        "https://arxiv.org/abs/2409.04992",
    )
    skips: ClassVar[dict[str, str]] = {
        "check_closing_gives_the_memory_back": "memory is the drives' own; its tests count processes and files",
        "check_a_page_that_cannot_be_had_is_an_error_and_no_leak": "pages are read in another process, where no patch"
        " reaches; its tests make the drive's reads fail",
    }

    channels: float = knob(1 / 8, "share of channels that guess, r / D", other=1 / 2)
    tokens: float = knob(0.27, "share of tokens that are attended to, k / S", paper=1 / 16, other=1 / 2)
    by: str = knob("page", 'what is chosen: "page" or "token"', paper="token", other="token")
    local: int = knob(32, "latest tokens, which are always attended to", unit="tokens", other=64)
    dense: int = knob(256, "contexts up to this are read whole", unit="tokens", other=4096)
    columns: int = knob(2, "neighbouring channels in a page", unit="channels", other=8, changes="traffic")
    copy: bool = knob(True, "keep the channel-indexed copy of the keys", other=False, changes="traffic")
    page: int = knob(4096, "a page", unit="bytes", other=8192)
    lanes: int = knob(8, "flash channels of a drive, one file each", other=3, changes="traffic")
    placement: str = knob(
        "striped", '"striped" along the tokens, or "random"', other="random", changes="traffic"
    )
    drives: int = knob(1, "processes that heads are split over", other=2, changes="traffic")
    bits: int = knob(16, "of a stored number: 16 or 32", unit="bits", other=32)

    def __post_init__(self) -> None:
        for name in ("channels", "tokens"):
            if not 0 < getattr(self, name) <= 1:
                raise BadInput(name, getattr(self, name), "a share above 0 and at most 1")
        for name, least in (("local", 0), ("dense", 0), ("columns", 1), ("lanes", 1), ("drives", 1)):
            if getattr(self, name) < least:
                raise BadInput(name, getattr(self, name), f"at least {least}")
        if self.by not in ("page", "token"):
            raise BadInput("by", self.by, '"page" or "token"')
        if self.bits not in (16, 32) or self.placement not in ("striped", "random"):
            raise BadInput(
                "bits or placement", f"{self.bits}, {self.placement}", '16 or 32, "striped" or "random"'
            )
        if self.page < 512 or self.page & (self.page - 1):
            raise BadInput("page", self.page, "a power of two from 512 on")

    def open(self, artefact: Task, budget: Spend = None) -> Drives:
        """Drives for that task; the budget is what they may hold in memory, beside their files."""
        from holdall.kv.drives import Drives

        row, item = artefact.dim * self.bits // 8, self.bits // 8
        if self.page % row or artefact.dim % self.columns or self.page % (self.columns * item):
            wanted = f"a dimension that divides pages of {self.page} bytes and is a multiple of {self.columns} channels"
            raise BadInput("dimension", artefact.dim, wanted)
        spend, least = Budget.parse(budget), self.least(artefact)
        if spend is not None and (limit := spend.limit(self.whole(artefact))) < least:
            raise BudgetError(
                limit, least, who=self.full_name(), why="what waits for pages, and one head at work"
            )
        return Drives(self, artefact)

    def least(self, task: Task) -> int:
        """Bytes that the drives hold at most: buffers of all layers, a piece of a prompt, one head at work."""
        item, columns = self.bits // 8, self.columns if self.copy else task.dim
        waiting = self.page // item * (1 + task.dim // columns)  # numbers of a head that wait for pages
        heads = task.rows * task.heads
        piece = 8 * heads * PIECE * task.dim * item
        return task.layers * heads * waiting * item + piece + 24 * task.length * task.dim + (1 << 20)

    def whole(self, artefact: Task) -> int:
        """Bytes of all keys and values, in memory."""
        t = artefact
        return 2 * t.layers * t.rows * t.heads * t.length * t.dim * self.bits // 8

    @classmethod
    def rehearsal(cls) -> tuple[Any, Sequence[Any]]:
        """A prompt, and tokens after it, in two layers."""
        from holdall.kv.drive_quality import rehearsed

        return rehearsed()
