"""What is compared in benchmarks of checkpoints: the run whose state is saved, and the ways to save it."""

from __future__ import annotations

import os
import sysconfig
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from checkpoints_rows import synced

from holdall.checkpoints.bytecheckpoint import ByteCheckpoint
from holdall.checkpoints.copying import DeepCopy
from holdall.checkpoints.datastates import DataStates
from holdall.checkpoints.none import TorchSave
from holdall.checkpoints.state import flatten

Rest = tuple[
    Callable[[], Any], Callable[[], Any]
]  # `ready` before the update, and what waits until it is durable
Way = Callable[[Any, Path], Rest]
KEEPERS: dict[str, Any] = {}
OURS = {
    "TorchSave (none)": (TorchSave(keep=1), None),
    "DeepCopy (copying)": (DeepCopy(keep=1), None),
    "bytecheckpoint, 64 MB": (ByteCheckpoint(keep=1), "64MB"),
    "datastates ring, 64 MB": (DataStates(how="ring", keep=1), "64MB"),
    "datastates ring, all of it": (DataStates(how="ring", keep=1), "600MB"),
    "datastates fork": (DataStates(how="fork", keep=1), "600MB"),
}


class Job:
    """A model, its optimizer and batches of text."""

    def __init__(self) -> None:
        import transformers

        torch.manual_seed(0)
        sizes = {
            "hidden_size": 640,
            "intermediate_size": 1707,
            "num_hidden_layers": 8,
            "num_attention_heads": 10,
        }
        config = transformers.LlamaConfig(**sizes, vocab_size=4096, tie_word_embeddings=True, use_cache=False)
        self.model = transformers.LlamaForCausalLM(config)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        library = Path(sysconfig.get_paths()["stdlib"])
        text = b"".join(p.read_bytes() for p in sorted(library.glob("a*.py")))
        self.text, self.at = torch.frombuffer(bytearray(text), dtype=torch.uint8).long(), 0
        self.run()
        self.optimizer.step()

    def run(self) -> float:
        """Forward and backward: seconds."""
        began = time.perf_counter()
        batch = self.text[self.at : self.at + 256].view(2, 128)
        self.at = (self.at + 256) % (len(self.text) - 256)
        self.optimizer.zero_grad()
        self.model(input_ids=batch, labels=batch).loss.backward()
        return time.perf_counter() - began

    def state(self) -> Any:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.at}


def flat(state: Any) -> dict[str, torch.Tensor]:
    return dict(flatten(state).leaves)


def raw(state: Any, folder: Path) -> None:
    with (folder / "raw").open("wb", buffering=0) as f:
        for t in flat(state).values():
            data = t.reshape(-1).view(torch.uint8).numpy().data
            for start in range(0, len(data), 1 << 20):
                f.write(data[start : start + (1 << 20)])
        os.fsync(f.fileno())


def ways() -> dict[str, Way]:
    nothing: Callable[[], Any] = lambda: None  # noqa: E731

    def ended(act: Callable[[Any, Path], Any]) -> Way:
        def save(state: Any, folder: Path) -> Rest:
            act(state, folder)
            return nothing, lambda: synced(folder)

        return save

    def later(state: Any, folder: Path) -> Rest:
        future = dcp.async_save(state, checkpoint_id=folder / "a")
        return nothing, lambda: (future.result(), synced(folder))

    def ours(name: str) -> Way:
        def save(state: Any, folder: Path) -> Rest:
            method, memory = OURS[name]
            kept = KEEPERS.get(name) or KEEPERS.setdefault(name, method.open(str(folder), memory))
            receipt = kept.save(int(kept.traffic()["saves"]) + 1 if "saves" in kept.traffic() else 1, state)
            return kept.ready, receipt.wait

        return save

    def tensors(state: Any, folder: Path) -> None:
        safetensors.torch.save_file(flat(state), folder / "a.safetensors")

    theirs = {
        "raw write + fsync, 1 MiB": ended(raw),
        "torch.save": ended(lambda s, f: torch.save(s, f / "a.pt")),
        "safetensors save_file": ended(tensors),
        "dcp.save": ended(lambda s, f: dcp.save(s, checkpoint_id=f / "a")),
        "dcp.async_save": later,
    }
    return theirs | {name: ours(name) for name in OURS}


class Children:
    """The most private memory that processes forked from this one held at a time, sampled."""

    def __enter__(self) -> Children:
        self.most, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        listed = Path(f"/proc/self/task/{os.getpid()}/children")
        while not self._over.wait(0.02):
            held = 0
            for task in listed.parent.parent.glob("*/children"):
                for pid in task.read_text().split():
                    try:
                        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                    except OSError:  # it has ended
                        continue
                    held += sum(int(x.split()[1]) << 10 for x in lines if x.startswith("Private_Dirty"))
            self.most = max(self.most, held)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
