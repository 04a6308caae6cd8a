"""The error tree. A user's mistake raises one of these, in one line, with what to do next."""

from __future__ import annotations

from functools import partial
from typing import Any, Self


class HoldallError(Exception):
    """Everything that Holdall raises on purpose."""

    _given: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **named: Any) -> Self:
        self = super().__new__(cls)
        self._given = (args, named)
        return self

    def __reduce__(
        self,
    ) -> tuple[Any, ...]:  # worker processes send errors home; the message alone is not enough
        args, named = self._given
        return partial(type(self), **named), args

    def __init__(self, message: str = ""):
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:  # KeyError would print its repr, OSError nothing
        return self.message


class BudgetError(HoldallError):
    """The budget cannot be met; `least` is the smallest that can, in `unit`."""

    def __init__(self, asked: object, least: Any, unit: str = "bytes", who: str = "", why: str = ""):
        self.asked, self.least, self.unit, self.who, self.why = asked, least, unit, who, why
        holder = f"the least that {who} can hold" if who else "the least that can be held"
        reason = f" ({why})" if why else ""
        super().__init__(f"asked {_amount(asked, unit)}; {holder} is {_amount(least, unit)}{reason}")


class BadInput(HoldallError, ValueError):
    """`what` was given as `got`, and `wanted` would have been right."""

    def __init__(self, what: str, got: object, wanted: str):
        self.what, self.got, self.wanted = what, got, wanted
        shown = " ".join((got if isinstance(got, str) else repr(got)).split())
        super().__init__(f"{what}: got {shown[:200]}; wanted {wanted}")


class UnknownMethod(HoldallError, KeyError):
    """No method of that name; `near` are the names it may have meant."""

    def __init__(self, name: str, near: list[str]):
        self.name, self.near = name, near
        hint = f"did you mean {' or '.join(near)}?" if near else "`holdall methods` lists them"
        super().__init__(f"no method called {name!r}; {hint}")


class CorruptArtefact(HoldallError, OSError):
    """The file at `path` is torn, altered or hostile."""

    def __init__(self, path: object, why: str):
        self.path, self.why = str(path), why
        super().__init__(f"{path} is damaged: {why}; fetch or pack it again")


class NeedsExtra(HoldallError, ImportError):
    """An optional package is missing."""

    def __init__(self, package: str, extra: str):
        self.package, self.extra = package, extra
        super().__init__(f"this needs the package {package}: pip install 'holdall[{extra}]'")


def human_bytes(n: float) -> str:
    """1234567 -> '1.23 MB' (decimal units, as disks and budgets are sold)."""
    size, unit = float(n), "B"
    for bigger in ("kB", "MB", "GB", "TB"):
        if abs(size) < 1000:
            break
        size, unit = size / 1000, bigger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"


def _amount(n: object, unit: str) -> str:
    if unit == "bytes" and isinstance(n, int | float):
        return f"{human_bytes(n)} ({n:,.0f} bytes)" if n >= 1000 else f"{n:,.0f} bytes"
    return f"{n} {unit}".strip()
