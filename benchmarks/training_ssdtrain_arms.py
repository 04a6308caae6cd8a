"""What the benchmark of SSDTrain is beside: naive hooks, recomputation; and the models that are trained."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).parents[1]))

from holdall.parts.paging import Arena
from holdall.training.ssdtrain import offloaded
from holdall.weights import Model
from tests.small_gpt import GPT, windows

TEXT = "".join(p.read_text() for p in sorted(Path(torch.nn.__file__).parent.glob("modules/*.py"))[:12])
Arm = Callable[[torch.nn.Module, str], contextlib.AbstractContextManager[Any]]
SLOW = 60e6  # bytes a second


class Naive:
    """A file for each saved tensor, as tutorials do it, or a span past the page cache; nothing goes on meanwhile."""

    def __init__(self, folder: str, direct: bool):
        self.arena = Arena(folder) if direct else None
        self.folder = tempfile.TemporaryDirectory(dir=folder)
        self.count = self.written = 0

    def pack(self, x: torch.Tensor) -> Any:
        self.written += x.nbytes
        self.count += 1
        if self.arena is not None:
            span = self.arena.place(x.nbytes)
            self.arena.write(span, x.detach().contiguous()).result()
            return span, x.shape, x.dtype
        path = f"{self.folder.name}/{self.count}.pt"
        torch.save(x.detach(), path)
        return path

    def unpack(self, kept: Any) -> torch.Tensor:
        if self.arena is None:
            return torch.load(kept, weights_only=True)
        span, shape, dtype = kept
        out = torch.empty(shape, dtype=dtype)
        self.arena.read(span, out).result()
        self.arena.free(span)
        return out

    def __enter__(self) -> Naive:
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, self.unpack)
        self.hooks.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.hooks.__exit__(None, None, None)
        self.folder.cleanup()
        if self.arena is not None:
            self.arena.close()


class Recomputed(contextlib.AbstractContextManager["Recomputed"]):
    """Each block under torch's checkpointing."""

    def __init__(self, model: Any):
        self.blocks = model.blocks

    def __enter__(self) -> Recomputed:
        for block in self.blocks:
            real = block.forward
            block.forward = lambda x, real=real: checkpoint(real, x, use_reentrant=False)
        return self

    def __exit__(self, *_: object) -> None:
        for block in self.blocks:
            del block.forward


ARMS: dict[str, Arm] = {
    "keep": lambda m, folder: contextlib.nullcontext(),
    "offload": lambda m, folder: offloaded(m, folder=folder),
    "offload, all": lambda m, folder: offloaded(m, folder=folder, choose="all"),
    "offload, window 16 MB": lambda m, folder: offloaded(m, folder=folder, choose="all", window=16 << 20),
    "recompute": lambda m, folder: Recomputed(m),
    "naive": lambda m, folder: Naive(folder, direct=False),
    "naive, direct": lambda m, folder: Naive(folder, direct=True),
    "counted": lambda m, folder: Counted(folder, direct=False),
    "offload, slow disk": lambda m, folder: offloaded(m, folder=folder, rate=SLOW),
    "offload, all, slow disk": lambda m, folder: offloaded(m, folder=folder, rate=SLOW, choose="all"),
}


class Asked(torch.nn.Module):
    """A language model of transformers that answers with its loss."""

    def __init__(self, inner: Any):
        super().__init__()
        self.inner = inner

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.inner(input_ids=ids, labels=ids, use_cache=False).loss


class Counted(Naive):
    """What naive hooks would write."""

    def pack(self, x: torch.Tensor) -> Any:
        self.written += x.nbytes
        return x if x.is_leaf else x.detach()

    def unpack(self, kept: Any) -> torch.Tensor:
        return kept


def made(args: Any, batch: int) -> tuple[Any, Any]:
    torch.manual_seed(0)
    if args.model == "smollm2":
        told = Model.read("smollm2")
        ids = torch.tensor(told.tokenizer().encode(TEXT)[: batch * args.length]).view(batch, args.length)
        inner = told.build(torch.float32).train().requires_grad_(True)
        inner.model.layers = inner.model.layers[: args.layers]
        return Asked(inner), (ids,)
    model = GPT(d=args.d, layers=args.layers, heads=args.d // 64, context=args.length)
    return model, next(iter(windows(TEXT, 1, batch, args.length)))
