"""A pickle read as data: no name in it is looked up, nothing is called, so that a hostile one can do nothing.

torch.distributed.checkpoint keeps its table of contents pickled. Objects come out as `Made`: the name of what would
have been called, its arguments, and the state that would have been set.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from holdall.errors import CorruptArtefact

_MOST = 50_000_000  # opcodes


@dataclass
class Made:
    """What a call of `name` with `args` would have made; `state` was to be set on it, `items` put into it."""

    name: str
    args: Any = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)

    def __hash__(self) -> int:
        return hash((self.name, str(self.args), str(self.state)))


class _Mark:
    pass


def read(raw: bytes, path: str) -> Any:
    """What a pickle says; CorruptArtefact where it is cut short or says what no table of contents does."""
    try:
        return _Reading().run(raw)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as fault:
        raise CorruptArtefact(path, f"its pickled table of contents cannot be read ({fault})") from None


class _Reading:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, raw: bytes) -> Any:
        for n, (op, value, _) in enumerate(pickletools.genops(raw)):
            if n > _MOST:
                raise ValueError("too long")
            if op.name == "STOP":
                return self.stack.pop()
            if op.name in _CONSTANTS:
                self.stack.append(_CONSTANTS[op.name]())
            elif op.name in _VALUES:
                self.stack.append(value)
            elif op.name not in ("PROTO", "FRAME"):
                act = getattr(self, f"_{op.name.lower()}", None)
                if act is None:
                    raise ValueError(f"opcode {op.name}")
                act(value)
        raise ValueError("no end")

    def _since_mark(self) -> list[Any]:
        at = max(i for i, x in enumerate(self.stack) if isinstance(x, _Mark))
        found = self.stack[at + 1 :]
        del self.stack[at:]
        return found

    def _mark(self, _: Any) -> None:
        self.stack.append(_Mark())

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _tuple1(self, _: Any) -> None:
        self.stack[-1:] = [tuple(self.stack[-1:])]

    def _tuple2(self, _: Any) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def _tuple3(self, _: Any) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _binput(self, n: int) -> None:
        self.memo[n] = self.stack[-1]

    _long_binput = _put = _binput

    def _binget(self, n: int) -> None:
        self.stack.append(self.memo[n])

    _long_binget = _get = _binget

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _append(self, _: Any) -> None:
        value = self.stack.pop()
        self._into(self.stack[-1], [value])

    def _appends(self, _: Any) -> None:
        values = self._since_mark()
        self._into(self.stack[-1], values)

    def _into(self, holder: Any, values: list[Any]) -> None:
        (holder.items if isinstance(holder, Made) else holder).extend(values)

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set(self.stack[-1], [key, value])

    def _setitems(self, _: Any) -> None:
        pairs = self._since_mark()
        self._set(self.stack[-1], pairs)

    def _set(self, holder: Any, pairs: list[Any]) -> None:
        if isinstance(holder, Made):
            holder.items += zip(pairs[::2], pairs[1::2], strict=True)
        else:
            holder.update(zip(pairs[::2], pairs[1::2], strict=True))

    def _global(self, name: str) -> None:
        self.stack.append(Made(name.replace(" ", ".")))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(Made(f"{module}.{name}"))

    def _reduce(self, _: Any) -> None:
        args, called = self.stack.pop(), self.stack.pop()
        self.stack.append(Made(called.name, args))

    _newobj = _reduce

    def _build(self, _: Any) -> None:
        state = self.stack.pop()
        self.stack[-1].state = state


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list, "EMPTY_DICT": dict,
}  # fmt: skip
_VALUES = {
    "BININT", "BININT1", "BININT2", "INT", "LONG1", "LONG4", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE",
    "BINUNICODE8", "UNICODE", "BINBYTES", "SHORT_BINBYTES",
}  # fmt: skip
