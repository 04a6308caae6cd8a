"""What goes where at a load: names, shapes and types of a state beside those of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from holdall.checkpoints.bytecheckpoint_meta import Stored
from holdall.checkpoints.bytecheckpoint_parts import Piece
from holdall.checkpoints.bytecheckpoint_ranks import Ranks
from holdall.checkpoints.bytecheckpoint_state import Taken, empty, kind, lacking, named
from holdall.errors import BadInput, HoldallError

POLICIES = ("strict", "partial", "model")


def matched(taken: Taken, stored: Stored, missing: str) -> tuple[dict[str, list[Piece]], list[str]]:
    """Stored names to the parts that they fill, and these names as the state has them; BadInput where names, shapes
    or types do not go together. What a rank had of its own goes to a rank that was not there from rank 0."""
    parts: dict[str, list[Piece]] = {}
    found, absent = list[str](), list[str]()
    for name, part in taken.parts.items():
        if missing == "model" and kind(name) != "model":
            continue
        own = found_as(name, stored)
        if own is None:
            absent.append(name)
            continue
        dtype, shape, *_ = stored.basics[own]
        if list(part.shape) != list(shape):
            raise BadInput(f"shape of {name}", tuple(part.shape), f"{tuple(shape)}, as it was saved")
        if str(part.data.dtype) != f"torch.{dtype}":
            raise BadInput(f"type of {name}", str(part.data.dtype), f"torch.{dtype}, as it was saved")
        parts.setdefault(stored.alias.get(own, own), []).append(part)
        found.append(name)
    if absent and missing != "partial":
        raise BadInput("tensors", _some(absent), 'names that are in the checkpoint, or missing="partial"')
    return parts, found


def added(
    top: Mapping[Any, Any], trees: Sequence[tuple[Any, Any]], stored: Stored, parts: dict[str, list[Piece]]
) -> dict[str, Any]:
    """New tensors by stored name, for what a state has an empty dict for; `parts` has them, too."""
    made: dict[str, Any] = {}
    for name in dict.fromkeys(n for key, node in trees if key in top for n in lacking(top[key], node)):
        real = stored.alias.get(name, name)
        if real not in made:
            made[real] = empty(stored.basics[real])
            parts.setdefault(real, []).append(Piece(made[real], made[real].shape))
        made[name] = made[real]
    return made


def found_as(name: str, stored: Stored) -> str | None:
    """The stored name: a rank's own, else rank 0's, else what all had (torch.distributed.checkpoint keeps it so)."""
    base = name.rpartition("@")[0] or name
    return next((n for n in (name, f"{base}@0", base) if n in stored.basics), None)


def complete(fault: Exception | None, names: Sequence[str], trees: Any, missing: str, ranks: Ranks) -> None:
    """All ranks go on, or none: an error of one is raised on all. Strict: all ranks together want every tensor of
    model and optimizer; policy model: every one of the model."""
    kinds = {"strict": ("model", "optim"), "model": ("model",)}.get(missing, ())
    wanted = {n for key, node in trees if kind(str(key)) in kinds for n in named(node)}

    def decide(said: Sequence[Any]) -> list[Any]:
        bad = [f"rank {r}: {s[0]}" for r, s in enumerate(said) if s[0] is not None]
        if bad:
            raise HoldallError(bad[0])
        left = sorted(wanted.difference(*(s[1] for s in said)))
        if left:
            raise BadInput(
                "state", f"no tensor {_some(left)}", 'all that the checkpoint has, or missing="partial"'
            )
        return [None] * len(said)

    try:
        told = None if fault is None else str(fault)
        ranks.together([told, list(names) if kinds else []], decide, "it compares states")
    except HoldallError as failed:
        raise fault or failed from None


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
