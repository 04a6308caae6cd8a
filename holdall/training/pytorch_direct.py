"""PyTorch-Direct: irregular rows of a table too large for memory, straight into the batch."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from holdall.budget import Budget
from holdall.errors import BadInput, BudgetError
from holdall.kinds import Runtime, Spend
from holdall.method import Paper, knob

if TYPE_CHECKING:
    from holdall.training.pytorch_direct_session import Rows


@dataclass(frozen=True, kw_only=True)
class PyTorchDirect(Runtime):
    """Gathers rows of a feature table that lies in a file straight into the batch, and reads little more than those.

    Indices are sorted, rows that lie on neighbouring pages become one read, a row that is asked for often is read once,
    all reads are begun before one is waited for, and compiled code puts each row where it belongs: no buffer of the
    batch's size in between, no interpreter in the loop, no read-ahead. `unified(file)` gives the same as a torch
    tensor: `table[idx]` in a loop stays as it is. Good for graphs, embeddings and retrieval where a batch wants few
    rows from all over. Poor where most of the file is wanted anyhow, and where the table stays in memory: there a
    mapped file is several times faster, as it needs no system calls.

    Shapes:
        table [N, ...] of any torch dtype, indices of any shape; a batch is [*indices, ...].
    Cost:
        one system call for each run of rows (about 1 us when the page is in the kernel's cache). Memory: the batch, 64
        bytes a row for the plan, and a window for each thread. The kernel's page cache is not counted: it gives way.
    Knobs:
        sort: sort and join reads (paper: the device's own coalescing)
        gap: bytes between two rows that are read through rather than skipped
        window: bytes of a read of several rows, at most; it passes through the processor's cache
        threads: that wait for the disk, where the kernel cannot be asked for all reads at once (Linux can)
    Differs from the paper:
        the paper's GPU reads rows in host memory itself; without one the same idea is a file read into place. For a
        table in pinned memory and a CUDA device `unified` does what the paper does, with numba's kernel and circular
        shift in place of a changed PyTorch; that kernel ran in numba's simulator only. Mapping the file and copying
        from there was measured slower and counts as resident memory; so rows come by `pread`. A table in a file and a
        GPU: a batch goes through pinned memory. "CPU scalar" is any plain host tensor without dimensions.
    Example:
        >>> import numpy as np, tempfile, torch
        >>> from holdall.training import PyTorchDirect
        >>> with tempfile.TemporaryFile() as f:
        ...     np.save(f, np.arange(40_000, dtype="f4").reshape(-1, 40))
        ...     with PyTorchDirect().open(f, "2MB") as rows:
        ...         batch = rows.step(torch.tensor([[7, 999], [7, 0]]))
        ...         batch.shape, batch[0, 1, :2].tolist(), int(rows.traffic()["reads"])
        (torch.Size([2, 2, 40]), [39960.0, 39961.0], 2)

    Paper: Min et al., PyTorch-Direct: Enabling GPU Centric Data Access for Very Large Graph Neural Network Training;
        part A of Wu's dissertation (card 021).
    Test: tests/training/test_pytorch_direct.py
    """

    name: ClassVar[str] = "pytorch_direct"
    room: ClassVar[str] = "training"
    doors: ClassVar[tuple[str, ...]] = ("holdall.training.pytorch_direct_session.Rows.fetch",)
    paper: ClassVar[Paper] = Paper(
        21,
        "PyTorch-Direct: Enabling GPU Centric Data Access for Very Large Graph Neural Network Training",
        "Min, Wu, Huang, Hidayetoglu, Xiong, Ebrahimi, Chen, Hwu (2021)",
        "https://arxiv.org/abs/2101.07956",
    )

    sort: bool = knob(True, "sort and join reads", other=False, changes="traffic")
    gap: int = knob(4096, "between two rows that are read through", unit="bytes", other=0, changes="traffic")
    window: int = knob(64 << 10, "of a read of several rows", unit="bytes", other=4096, changes="traffic")
    threads: int = knob(4, "that wait for the disk at once", other=2, changes="nothing")

    def __post_init__(self) -> None:
        for name, least in (("gap", 0), ("window", 1), ("threads", 1)):
            if getattr(self, name) < least:
                raise BadInput(name, getattr(self, name), f"at least {least}")

    def open(self, artefact: Any, budget: Spend = None) -> Rows:
        """artefact: a .npy or .safetensors file ("file.safetensors:name"), a numpy memmap, or an open .npy file."""
        from holdall.training.pytorch_direct_session import Rows
        from holdall.training.pytorch_direct_table import table_of

        table, spend = table_of(artefact), Budget.parse(budget)
        limit = None if spend is None else spend.limit(table.nbytes)
        rows = Rows(self, table, limit)
        least = rows.least()
        if limit is not None and limit < least:
            rows.close()
            raise BudgetError(limit, least, who=self.full_name(), why=f"a row and {self.threads} windows")
        return rows

    def whole(self, artefact: Any) -> int:
        """Bytes of the table."""
        from holdall.training.pytorch_direct_table import table_of

        return table_of(artefact).nbytes

    @classmethod
    def rehearsal(cls) -> tuple[Any, Sequence[Any]]:
        """Batches of mostly the same rows of a table of 33 MB."""
        import numpy as np

        draw = np.random.default_rng(0)
        table = tempfile.TemporaryFile()  # noqa: SIM115  (the session opens it again; gone with its last user)
        np.save(table, draw.integers(0, 256, (1 << 16, 512), dtype=np.uint8))
        table.flush()
        steps = [np.minimum(draw.zipf(1.3, n), 1 << 16) - 1 for n in (10_000, 1, 700)]
        return table, [*steps, draw.integers(0, 1 << 16, 9_000)]


def unified(
    x: Any, device: Any = None, propagate: bool = False, budget: Spend = None, recipe: Any = None
) -> Any:
    """A table that is indexed as any tensor: `features = unified("features.npy")`, then `features[idx]` as before.

    x: a table in a file, as `open` takes it, or a host tensor. device: where batches go, by default a GPU where there
    is one. propagate: operations among such tensors give the device's tensors, not such ones. budget: of memory, for
    a table in a file. recipe: a PyTorchDirect with other knobs.
    """
    from holdall.training.pytorch_direct_tensor import made

    return made(x, device, propagate, budget, recipe or PyTorchDirect())
