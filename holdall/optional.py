"""Optional packages, resolved when they are used, with the hint that installs them."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from holdall.errors import NeedsExtra


def need(package: str, extra: str) -> ModuleType:
    """Import `package` now, or say which extra brings it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as missing:
        if missing.name and missing.name.split(".")[0] == package.split(".")[0]:
            raise NeedsExtra(package.split(".")[0], extra) from missing
        raise


class lazy(ModuleType):
    """A module that is imported at its first attribute access, so that listing methods loads no torch."""

    def __init__(self, package: str, extra: str):
        super().__init__(package)
        self.__dict__["_extra"] = extra

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):  # doctest, inspect and pickle probe for dunders
            raise AttributeError(attribute)
        return getattr(need(self.__name__, self.__dict__["_extra"]), attribute)
