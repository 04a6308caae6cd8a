"""A folder of checkpoints: data in a folder for each save, and one small file that makes it a checkpoint.

12.checkpoint       what is where, for the step 12; its renaming is the moment at which the step is there
12-5f0c.data/       model_0, optim_0, loader_0, extra_0, model_1, ...: safetensors files
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import xxhash

from holdall import places
from holdall.checkpoints.bytecheckpoint_meta import Stored
from holdall.checkpoints.planning import Item
from holdall.errors import BadInput, CorruptArtefact
from holdall.files import _filesystem, atomic_write, is_local, local_path, open_reader

_FORMAT = 1
_TAGS = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "uint16": "U16", "uint32": "U32", "uint64": "U64", "complex64": "C64",
}  # fmt: skip


def tag(dtype: Any) -> str:
    """safetensors' name of a torch type; "" where it has none, and bytes are written."""
    return _TAGS.get(str(dtype).removeprefix("torch."), "")


def header(items: Sequence[Item], tags: Mapping[str, str], tree: bytes | None) -> bytes:
    """Of a safetensors file with these boxes, and a tree as bytes behind them."""
    head: dict[str, Any] = {"__metadata__": {"holdall": "part of a checkpoint", "format": "pt"}}
    at = 0
    for item in items:
        place = ",".join(map(str, item.box.offset))
        known = tags[item.name]
        shape = list(item.box.lengths) if known else [item.nbytes]
        entry = {"dtype": known or "U8", "shape": shape, "data_offsets": [at, at + item.nbytes]}
        head[f"{item.name}[{place}]"] = entry
        at += item.nbytes
    if tree is not None:
        head["tree.json"] = {"dtype": "U8", "shape": [len(tree)], "data_offsets": [at, at + len(tree)]}
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class Folder:
    """What is there, and how more comes."""

    def __init__(self, url: str):
        self.url = url.rstrip("/") if url != "/" else url
        if is_local(url):
            where = local_path(self.url)
            if where.exists() and not where.is_dir():
                raise BadInput("folder", url, "a folder, new or not; this is a file")
            where.mkdir(parents=True, exist_ok=True)

    def data(self, token: str) -> str:
        return f"{self.url}/{token}.data"

    def begin(self, token: str) -> None:
        """The folder of a save that is about to be written."""
        if is_local(self.url):
            local_path(self.data(token)).mkdir(exist_ok=True)

    def steps(self) -> list[int]:
        if not is_local(self.url):
            _filesystem(self.url)[0].invalidate_cache()
        names = (
            p.rsplit("/", 1)[-1].removesuffix(".checkpoint") for p in places.glob(f"{self.url}/*.checkpoint")
        )
        return sorted(int(n) for n in names if n.isdigit())

    def read(self, step: int) -> tuple[dict[str, Any], str]:
        """Contents as told, checked, and the URL of the data."""
        path = f"{self.url}/{step}.checkpoint"
        told, rest = self._first(step, whole=True)
        try:
            if told["format"] != _FORMAT:
                raise CorruptArtefact(
                    path, f"format {told['format']} is not known to this Holdall: upgrade it"
                )
            if xxhash.xxh3_128_hexdigest(rest) != told["xxh3"]:
                raise ValueError("it does not match its checksum")
            if "/" in str(told["data"]):
                raise ValueError("its data lies elsewhere")
            return json.loads(rest), self.data(str(told["data"]))
        except (ValueError, KeyError, TypeError) as fault:
            raise CorruptArtefact(path, f"its table of contents is torn or altered ({fault})") from None

    def _first(self, step: int, whole: bool = False) -> tuple[Any, bytes]:
        """The first line, and what follows."""
        path = f"{self.url}/{step}.checkpoint"
        with open_reader(path) as reader:
            raw = reader.read(0, reader.size if whole else min(reader.size, 4096))
        first, _, rest = raw.partition(b"\n")
        try:
            return json.loads(first), rest
        except ValueError:
            raise CorruptArtefact(path, "its first line is torn or altered") from None

    def publish(self, stored: Stored, token: str, keep: int) -> None:
        rest = json.dumps(stored.to_dict(), separators=(",", ":")).encode()
        told = {"format": _FORMAT, "data": token, "xxh3": xxhash.xxh3_128_hexdigest(rest)}
        with atomic_write(f"{self.url}/{stored.step}.checkpoint") as f:
            f.write(json.dumps(told).encode() + b"\n" + rest)
            f.publish()
        for old in self.steps()[:-keep] if keep else []:
            self._remove(f"{self.url}/{old}.checkpoint")
        self.sweep()

    def drop(self, token: str) -> None:
        self._remove(self.data(token))

    def sweep(self) -> None:
        """Remove data that no checkpoint names: of killed saves, of steps that were written again or let go."""
        named, unclear = set(), tuple[str, ...]()
        for step in self.steps():
            try:
                named.add(self.data(self._first(step)[0]["data"]))
            except (
                CorruptArtefact,
                KeyError,
                TypeError,
            ):  # damaged: what it names may be all that is left of it
                unclear += (f"{self.url}/{step}-",)
        for folder in self._folders():
            if folder not in named and not folder.startswith(unclear):
                self._remove(folder)

    def _folders(self) -> list[str]:
        if is_local(self.url):
            return [f"{self.url}/{p.name}" for p in local_path(self.url).glob("*.data")]
        fs, path = _filesystem(self.url)
        if not fs.isdir(path):
            return []
        fs.invalidate_cache()
        names = (p["name"].rstrip("/").rsplit("/", 1)[-1] for p in fs.ls(path, detail=True))
        return [f"{self.url}/{name}" for name in names if name.endswith(".data")]

    def _remove(self, url: str) -> None:
        if is_local(url):
            where = local_path(url)
            if where.is_dir():
                shutil.rmtree(where)
            else:
                where.unlink(missing_ok=True)
            return
        fs, path = _filesystem(url)
        if fs.exists(path):
            fs.rm(path, recursive=True)
