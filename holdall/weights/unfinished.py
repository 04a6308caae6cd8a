"""Work that may be killed: a folder beside the output where finished parts wait, so that the next run goes on.

Parts are `.hold` files, each written whole or not at all; `key` says of what inputs they were made, and parts of others
are thrown away. Hidden states lie in plain files in half precision (float32 where that overflows).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import xxhash

from holdall.errors import CorruptArtefact
from holdall.files import is_local, local_path
from holdall.packed import Packed
from holdall.weights.model import Model
from holdall.weights.stored import absorb


class Unfinished:
    """Finished parts in a folder."""

    def __init__(self, folder: Path, key: str):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        told = folder / "inputs.json"
        if not told.exists() or told.read_text() != key:
            self.drop()
            told.with_suffix(".new").write_text(key)
            told.with_suffix(".new").replace(told)

    def drop(self) -> None:
        """Throw away what is there, but not what it was made of."""
        for old in self.folder.iterdir():
            if old.name != "inputs.json":
                old.unlink()

    def get(self, name: str) -> Packed | None:
        """A part that is there and whole."""
        path = self.folder / f"{name}.hold"
        if not path.exists():
            return None
        try:
            return Packed.open(str(path), lazy=False)
        except CorruptArtefact:  # it is only scratch: made again
            return None

    def put(self, name: str, part: Packed) -> None:
        part.save(str(self.folder / f"{name}.hold"))

    def states(self, name: str, shape: tuple[int, int, int]) -> States:
        return States(self.folder / f"{name}.states", shape)


class States:
    """Hidden states [N, L, H] of N windows, on disk."""

    def __init__(self, path: Path, shape: tuple[int, int, int]):
        self.path, self.shape = path, shape

    def whole(self) -> bool:
        return self.path.exists()

    def fill(self, made: Callable[[], Iterator[torch.Tensor]]) -> None:
        """Write what `made` gives, [some, L, H] at a time; it is asked again where half precision overflows."""
        new = self.path.with_suffix(".new")
        for kind in (torch.float16, torch.float32):
            with new.open("wb") as file:
                for states in made():
                    held = states.to(kind)
                    if kind is torch.float16 and not bool(held.isfinite().all()):
                        break
                    held.contiguous().numpy().tofile(file)
                else:
                    file.flush()
                    os.fsync(file.fileno())
                    break
        new.replace(self.path)

    def rows(self, which: list[int]) -> torch.Tensor:
        """float32 [len(which), L, H]."""
        count, each = self.shape[0], self.shape[1] * self.shape[2]
        wide = 2 if self.path.stat().st_size == 2 * count * each else 4
        kind = np.float16 if wide == 2 else np.float32
        parts = [np.fromfile(self.path, kind, each, offset=i * each * wide) for i in which]
        return torch.from_numpy(np.stack(parts)).float().reshape(len(which), *self.shape[1:])

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)


def digest(model: Model, tokens: torch.Tensor, limit: int | None) -> str:
    """Of a model, the text that it learns from, and its budget."""
    total = xxhash.xxh3_128()
    absorb(total, model.state.items())
    total.update(tokens.numpy().tobytes())
    total.update(f"{limit} {torch.__version__}".encode())
    return total.hexdigest()


@contextmanager
def unfinished(to: str | None, inputs: dict[str, object]) -> Iterator[Unfinished]:
    """Beside a local output, and swept only when the work is done; elsewhere a temporary folder."""
    key = json.dumps(inputs, sort_keys=True)
    if to is None or not is_local(to):
        with tempfile.TemporaryDirectory() as passing:
            yield Unfinished(Path(passing) / "parts", key)
        return
    path = local_path(to)
    folder = path.with_name(path.name + ".unfinished")
    yield Unfinished(folder, key)
    shutil.rmtree(folder)  # not where it failed: the next run goes on
