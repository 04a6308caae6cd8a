"""UnifiedTensor: a table in host memory or in a file that is indexed as if it were where the work is."""

from __future__ import annotations

import os
from typing import Any, Self

import numpy as np
import torch
from torch.nn import functional as F

from holdall.errors import BadInput
from holdall.training.pytorch_direct_table import table_of

_READS = {torch.Tensor.__getitem__: (0, 1), torch.Tensor.index_select: (0, 2), torch.index_select: (0, 2)}
_READS |= {F.embedding: (1, 0), torch.embedding: (0, 1)}
_PLAIN = torch.overrides.get_default_nowrap_functions()


class UnifiedTensor(torch.Tensor):
    """A host tensor that takes part in a device's work.

    Rows (`table[idx]`, `index_select`, `embedding`) are gathered straight into a batch on `device`. Of other
    operations: with a tensor that is on a device, all is computed there; with plain host tensors, on the host; among
    unified tensors and scalars only, the result is unified again, or on the device where `propagate`. A table that is
    in a file cannot be written.
    """

    _rows: Any
    _aim: torch.device
    _propagate: bool
    _seen: Any

    @staticmethod
    def over(host: Any, aim: torch.device, propagate: bool, rows: Any = None) -> UnifiedTensor:
        self = torch.Tensor._make_subclass(UnifiedTensor, host.detach(), host.requires_grad)
        self._rows, self._aim, self._propagate, self._seen = rows, aim, propagate, None
        return self

    def propagated(self, on: bool = True) -> Self:
        """Whether operations among unified tensors give the device's tensors from now on."""
        self._propagate = on
        return self

    def traffic(self) -> dict[str, float]:
        """What the gathers read; nothing for a table in memory."""
        return dict(self._rows.traffic()) if self._rows is not None else {}

    def close(self) -> None:
        if self._rows is not None:
            self._rows.close()

    def __getitems__(self, rows: Any) -> Any:
        """For a DataLoader: a batch of rows, of which its `collate_fn` is to keep its hands off."""
        return self[rows]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func in _PLAIN:
                return func(*args, **kwargs)
            found = _asked(func, args, kwargs)
            if found is not None:
                return _gathered(*found)
            return _computed(func, args, kwargs)


def made(x: Any, device: Any, propagate: bool, budget: Any, recipe: Any) -> UnifiedTensor:
    """As `unified` says."""
    aim = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(x, torch.Tensor):
        if x.device.type != "cpu":
            raise BadInput("table", str(x.device), "a tensor in host memory")
        host = x.detach().pin_memory() if aim.type == "cuda" else x
        return UnifiedTensor.over(host, aim, propagate)
    table = table_of(x)
    rows = recipe.open(table, budget)
    try:
        shape = (table.rows, *table.shape)
        with os.fdopen(os.dup(rows.fileno()), "rb") as f:
            mapped = (
                np.memmap(f, np.uint8, "c", table.start, (table.nbytes,))
                if table.nbytes
                else np.empty(0, "u1")
            )
        host = torch.from_numpy(mapped).view(table.dtype).reshape(shape)
    except BaseException:
        rows.close()
        raise
    return UnifiedTensor.over(host, aim, propagate, rows)


def _asked(func: Any, args: Any, kwargs: Any) -> tuple[UnifiedTensor, Any] | None:
    """The table and the rows, where the call is for rows."""
    options = [
        v for k, v in kwargs.items() if k != "norm_type"
    ]  # of `embedding`; those that are off are not there
    if func not in _READS or len(args) <= max(_READS[func]) or any(options):
        return None
    table, rows = (args[i] for i in _READS[func])
    if _READS[func] == (0, 2) and args[1] != 0:
        return None
    if not isinstance(table, UnifiedTensor) or not table.dim() or table.requires_grad:
        return None
    if isinstance(rows, int | np.integer) and not isinstance(rows, bool):
        return table, np.int64(rows)
    if isinstance(rows, list | torch.Tensor | np.ndarray):
        told = rows if isinstance(rows, torch.Tensor) else torch.as_tensor(np.asarray(rows))
        whole = not told.is_floating_point() and told.dtype != torch.bool
        return (table, told.as_subclass(torch.Tensor)) if whole or not told.numel() else None
    return None


def _gathered(table: UnifiedTensor, rows: Any) -> Any:
    if table._rows is not None:
        given = table._rows.step(rows)
        if table._aim.type == "cpu":
            return given
        return (given.pin_memory() if table._aim.type == "cuda" else given).to(table._aim, non_blocking=True)
    host = table.as_subclass(torch.Tensor)
    if table._aim.type == "cuda":
        from holdall.training.pytorch_direct_device import alias, gather

        table._seen = alias(host, table._aim) if table._seen is None else table._seen
        rows = torch.as_tensor(rows)
        return gather(table._seen, rows.reshape(-1)).reshape(*rows.shape, *host.shape[1:])
    rows = torch.as_tensor(rows).long()
    return host[rows.cpu()].to(table._aim)


def _computed(func: Any, args: Any, kwargs: Any) -> Any:
    """Where the rules place it."""
    tensors = [x for x in _leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    own = [x for x in tensors if isinstance(x, UnifiedTensor)]
    name = getattr(func, "__name__", "")
    writes = (
        kwargs.get("out") is not None or name == "__setitem__" or (name[-1:] == "_" and name[-2:] != "__")
    )
    written = kwargs.get("out") if kwargs.get("out") is not None else args[0] if args else None
    if writes and isinstance(written, UnifiedTensor) and written._rows is not None:
        raise BadInput("table", name or "written to", "reading only: it is a file (clone() gives a copy)")
    away = [x.device for x in tensors if not isinstance(x, UnifiedTensor) and x.device.type != "cpu"]
    beside = any(not isinstance(x, UnifiedTensor) and x.dim() for x in tensors)
    aim = own[0]._aim if own else torch.device("cpu")
    to = away[0] if away else aim if own[0]._propagate and not beside else torch.device("cpu")
    given = func(*_mapped(args, to), **_mapped(kwargs, to))
    if away or beside or own[0]._propagate:
        return given
    return _wrapped(given, aim, own[0]) if not writes else given


def _leaves(x: Any) -> Any:
    if isinstance(x, tuple | list):
        for y in x:
            yield from _leaves(y)
    elif isinstance(x, dict):
        yield from _leaves(list(x.values()))
    else:
        yield x


def _mapped(x: Any, to: torch.device) -> Any:
    """The same arguments with unified tensors as plain ones at that place."""
    if isinstance(x, UnifiedTensor):
        plain = x.as_subclass(torch.Tensor)
        return plain if to.type == "cpu" else plain.to(to)
    if isinstance(x, tuple | list):
        return type(x)(_mapped(y, to) for y in x)
    return {k: _mapped(v, to) for k, v in x.items()} if isinstance(x, dict) else x


def _wrapped(given: Any, aim: torch.device, like: UnifiedTensor) -> Any:
    if (
        isinstance(given, torch.Tensor)
        and not isinstance(given, UnifiedTensor)
        and given.device.type == "cpu"
    ):
        return _kept(given, aim, like)
    if type(given) in (tuple, list):
        return type(given)(_wrapped(x, aim, like) for x in given)
    return given


def _kept(given: Any, aim: torch.device, like: UnifiedTensor) -> UnifiedTensor:
    """A result that is unified again; what it was computed from stays in its history."""
    made: UnifiedTensor = given.as_subclass(UnifiedTensor)
    made._rows, made._aim, made._propagate, made._seen = None, aim, like._propagate, None
    return made
