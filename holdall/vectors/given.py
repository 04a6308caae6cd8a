"""What an index is built from, and how a state of one is written: what methods and their open indexes share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.vectors.folder import Change
from holdall.vectors.ids import Ids
from holdall.vectors.source import Vectors
from holdall.vectors.where import Attributes

if TYPE_CHECKING:
    from holdall.vectors.base import VectorIndex

State = tuple[dict[str, np.ndarray], dict[str, Any]]  # of a method: arrays, and what stands in the header


@dataclass(frozen=True)
class Given:
    """What an index is built from. limit: bytes of memory that it may hold."""

    vectors: Vectors
    ids: Ids
    attributes: Attributes | None
    limit: int | None

    @property
    def beside(self) -> int:
        """Bytes of memory that ids and attributes take."""
        return self.ids.nbytes + (0 if self.attributes is None else self.attributes.nbytes)

    def facts(self) -> dict[str, Any]:
        x = self.vectors
        told = {"dim": x.dim, "raw_bytes": x.nbytes, "elements": x.elements, "limit": self.limit}
        return {**told, "used": x.count}

    def commit(self, change: Change, recipe: VectorIndex, own: State) -> None:
        written(change, recipe, self.ids, self.attributes, self.facts(), own)


def written(
    change: Change,
    recipe: VectorIndex,
    ids: Ids,
    attributes: Attributes | None,
    facts: Mapping[str, Any],
    own: State,
) -> None:
    """Commit a state. facts: dim, raw_bytes, elements, limit, used (where counting ids has come to)."""
    arrays, told = own
    sections = {**arrays, **ids.sections(), **({} if attributes is None else attributes.sections())}
    meta = {"room": "vectors", "method": recipe.to_dict(), "count": ids.count, **facts, **told}
    change.commit(sections, meta)
