"""States of training from and to what others write: safetensors, torch.distributed.checkpoint, a plain torch.save file.

Nothing is unpickled on the way in: `torch.load` runs with `weights_only=True`, and the pickled table of contents of
torch.distributed.checkpoint is read as data (`pickles.py`).
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from typing import Any

from holdall import places
from holdall.checkpoints import pickles
from holdall.checkpoints.pickles import Made
from holdall.errors import BadInput, CorruptArtefact
from holdall.files import Reader, atomic_write, is_local, local_path, open_reader, open_stream
from holdall.optional import lazy, need

torch = lazy("torch", extra="checkpoints")

_METADATA = ".metadata"


def read(url: str) -> Any:
    """The state in a file or folder, whichever of the three kinds it is."""
    if places.is_file(f"{url.rstrip('/')}/{_METADATA}"):
        return read_dcp(url)
    if places.is_folder(url) or url.endswith(".safetensors"):
        return {"model": read_safetensors(url)}
    return read_torch(url)


def read_safetensors(url: str) -> dict[str, Any]:
    """Names to tensors, of one file or of all in a folder (as Hugging Face keeps large models)."""
    from holdall.dropins import safetensors

    if not places.is_folder(url):
        return safetensors.read(url)[0]
    files = places.glob(f"{url.rstrip('/')}/*.safetensors")
    if not files:
        raise BadInput("folder", url, "one with .safetensors files")
    found: dict[str, Any] = {}
    for file in files:
        new = safetensors.read(file)[0]
        twice = sorted(found.keys() & new.keys())
        if twice:
            raise BadInput("folder", url, f"files with each tensor once; {twice[0]} is in two")
        found.update(new)
    return found


def write_safetensors(tensors: Mapping[str, Any], url: str) -> None:
    """One file that any tool reads. Nested names are joined with dots; what is no tensor cannot be in it."""
    from holdall.dropins import safetensors

    safetensors.write(_flat(tensors, ""), url)


def _flat(tensors: Any, prefix: str) -> dict[str, Any]:
    if isinstance(tensors, torch.Tensor):
        return {prefix: tensors}
    if not isinstance(tensors, Mapping):
        raise BadInput(
            f"{prefix or 'tensors'} for a safetensors file", type(tensors).__name__, "tensors, nested by name"
        )
    found: dict[str, Any] = {}
    for name, value in tensors.items():
        found.update(_flat(value, f"{prefix}.{name}" if prefix else str(name)))
    return found


def read_torch(url: str) -> Any:
    """What `torch.save` wrote: tensors, numbers and text; other objects in it are refused."""
    try:
        if is_local(url):
            if not local_path(url).is_file():
                raise BadInput("file", url, "a file that exists")
            return torch.load(local_path(url), map_location="cpu", weights_only=True)
        with open_stream(url) as f:
            return torch.load(io.BytesIO(f.read()), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as fault:
        why = " ".join(str(fault).split("Please file")[0].split())[:200]
        raise BadInput("torch file", url, f"one of tensors, numbers and text only ({why})") from None
    except (RuntimeError, EOFError) as fault:
        raise CorruptArtefact(url, str(fault).splitlines()[0]) from None


def write_torch(state: Any, url: str) -> None:
    """A file for `torch.load(..., weights_only=True)`, whole or not at all."""
    with atomic_write(url) as f:
        plain = _Plain(f)
        try:
            torch.save(state, plain)
        except RuntimeError:  # torch says that it wrote too little, and not why
            if plain.fault is None:
                raise
            raise plain.fault from None
        f.publish()


class _Plain:
    """What torch.save wants of a file."""

    def __init__(self, f: atomic_write):
        self._file = f
        self.fault: OSError | None = None

    def write(self, piece: Any) -> int:
        try:
            self._file.write(piece)
        except OSError as fault:
            self.fault = self.fault or fault
            raise
        return len(piece)

    def flush(self) -> None:
        pass


def read_dcp(url: str) -> Any:
    """A folder of torch.distributed.checkpoint, of any number of ranks, as one nested state."""
    url = url.rstrip("/")
    with open_reader(f"{url}/{_METADATA}") as reader:
        table = pickles.read(reader.read(0, reader.size), reader.name)
    readers: dict[str, Reader] = {}
    try:
        told = _state(table)
        tensors = {name: _empty(m) for name, m in told["state_dict_metadata"].items()}
        for index, info in told["storage_data"].items():
            where, index = _state(info), _state(index)
            name = where["relative_path"]
            if "/" in name or name.startswith(".."):
                raise ValueError(f"a file {name!r} outside of the folder")
            if name not in readers:
                readers[name] = open_reader(f"{url}/{name}")
            raw = readers[name].read(where["offset"], where["offset"] + where["length"])
            value = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
            tensors[index["fqn"]] = _put(tensors[index["fqn"]], index.get("offset"), value)
        return _nested(tensors, told.get("planner_data") or {})
    except (
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
        EOFError,
        pickle.UnpicklingError,
    ) as fault:
        why = " ".join(str(fault).split())[:200]
        raise CorruptArtefact(url, f"no whole checkpoint of torch.distributed ({why})") from None
    finally:
        for one in readers.values():
            one.close()


def write_dcp(state: Any, url: str) -> None:
    """A folder for `torch.distributed.checkpoint.load`, from this process alone."""
    dcp = need("torch.distributed.checkpoint", "checkpoints")
    if is_local(url):
        writer: Any = dcp.FileSystemWriter(local_path(url))
    else:
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

        writer = FsspecWriter(url)
    dcp.save(state, storage_writer=writer, no_dist=True)


def _state(made: Any) -> Any:
    if not isinstance(made, Made) or not isinstance(made.state, dict):
        raise ValueError("a table of contents of another make")
    return made.state


def _size(made: Any) -> tuple[int, ...]:
    return tuple(made.args[0]) if isinstance(made, Made) else tuple(made)


def _empty(made: Made) -> Any:
    if made.name.endswith(".BytesStorageMetadata"):
        return None
    told = _state(made)
    dtype = getattr(torch, told["properties"].state[0].name.removeprefix("torch."))
    return torch.empty(_size(told["size"]), dtype=dtype)


def _put(tensor: Any, offset: Any, value: Any) -> Any:
    """A stored box into its tensor; what is no tensor as it is."""
    if not isinstance(tensor, torch.Tensor):
        return value
    begin = _size(offset) if offset is not None else (0,) * tensor.dim()
    place = tuple(slice(o, o + n) for o, n in zip(begin, value.shape, strict=True))
    tensor[place].copy_(value)
    return tensor


def _nested(tensors: Mapping[str, Any], paths: Mapping[str, Any]) -> Any:
    """Flat names back into dicts and lists (a path's whole numbers are places in a list)."""
    top: dict[Any, Any] = {}
    for name, value in tensors.items():
        path = paths.get(name, (name,))
        at = top
        for key in path[:-1]:
            at = at.setdefault(key, {})
        at[path[-1]] = value
    lists = {tuple(path[:i]) for path in paths.values() for i, key in enumerate(path) if isinstance(key, int)}
    return _listed(top, (), lists)


def _listed(node: Any, path: tuple[Any, ...], lists: set[tuple[Any, ...]]) -> Any:
    if not isinstance(node, dict):
        return node
    found = {k: _listed(v, (*path, k), lists) for k, v in node.items()}
    return [found[k] for k in sorted(found)] if path in lists else found
