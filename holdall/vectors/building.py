"""From vectors to an open index, and from a folder to one; whichever method it is."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdall.budget import Budget
from holdall.errors import BadInput, CorruptArtefact
from holdall.files import is_local, local_path
from holdall.kinds import Spend
from holdall.method import Method
from holdall.vectors.folder import STATE, Change, Folder, changing
from holdall.vectors.given import Given
from holdall.vectors.ids import Ids
from holdall.vectors.source import Vectors
from holdall.vectors.where import Attributes

if TYPE_CHECKING:
    from holdall.vectors.base import VectorIndex
    from holdall.vectors.shelf import Shelf


def built(
    recipe: VectorIndex,
    source: Any,
    budget: Spend,
    ids: Any,
    attributes: Any,
    to: str | None,
    made: Callable[[Change, Given], None] | None = None,
) -> Shelf:
    """made: in place of the recipe's own, where that is to know more."""
    if to is not None and is_local(to) and (local_path(to) / STATE).exists():
        raise BadInput("output", to, "a new folder: an index is there already")
    vectors = recipe.source(source)
    limit = recipe.allowed(vectors, budget)
    names = Ids.of(vectors.ids if ids is None else ids, vectors.count)
    table = Attributes.of(vectors.attributes() if attributes is None else attributes, vectors.count)
    with contextlib.ExitStack() as undo:
        if to is None:
            folder = undo.enter_context(tempfile.TemporaryDirectory(prefix="holdall-index-"))
            to = str(Path(folder) / "v.index")
        with changing(to) as change:
            (made or recipe.made)(change, Given(vectors, names, table, limit))
        shelf = recipe.shelf(Folder.open(to), limit)
        shelf.own = undo.pop_all()  # a temporary folder goes when the shelf is closed
        shelf.tune()
    return shelf


def taken(source: Any, name: str | None = None) -> Vectors:
    """A path or URL, an array, or what is `Vectors` already. name: which array or column of a file."""
    if isinstance(source, Vectors):
        return source
    return Vectors.open(source, name) if isinstance(source, str) else Vectors.of(source)


def opened(url: str, memory: Spend = None) -> Shelf:
    """Whatever method wrote it. memory: shares and bits are of the vectors in it."""
    from holdall.vectors.base import VectorIndex

    folder = Folder.open(url)
    try:
        recipe = Method.from_dict(folder.meta.get("method", {}))
        told = folder.meta
        raw, numbers = told.get("raw_bytes"), told.get("elements")
        if not isinstance(recipe, VectorIndex) or type(raw) is not int or type(numbers) is not int:
            raise CorruptArtefact(url, "it is no index of vectors")
        asked = Budget.parse(memory)
        limit = told.get("limit") if asked is None else asked.limit(raw, numbers)
        return recipe.shelf(folder, limit if type(limit) is int else None)
    except BaseException:
        folder.close()
        raise
