"""What to keep, what to put on disk and what to work out again: from one measured step to the shortest next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_INFINITE = float("inf")


@dataclass(frozen=True)
class Layer:
    """One block: FLOPs of its forward pass, bytes of its inner activations, of its parameters (fp32), of its input."""

    flops: float
    activations: int
    parameters: int
    input: int


@dataclass(frozen=True)
class Rates:
    """Measured, a second: FLOPs, bytes read from disk, bytes written to it, parameters updated. halves: the disk reads
    and writes in turn, not at once. rest: seconds of a step outside of blocks, forwards; backwards it is twice that.
    """

    flops: float
    read: float
    write: float
    adam: float
    halves: bool = False
    rest: float = 0.0


@dataclass(frozen=True)
class Plan:
    """Numbers of the blocks whose parameters stay, whose activations stay in memory, and go to disk; `seconds` of a
    step, as predicted; swapped: bytes of inner activations that are not worked out again."""

    staying: frozenset[int]
    kept: frozenset[int]
    on_disk: frozenset[int]
    seconds: float
    swapped: int


def order(layers: Sequence[Layer]) -> list[int]:
    """By the work that a byte saves, most first; of equals the last block first, whose bytes are held the shortest."""
    return sorted(range(len(layers)), key=lambda i: (-layers[i].flops / max(layers[i].activations, 1), -i))


def seconds(
    layers: Sequence[Layer],
    rates: Rates,
    states: int,
    staying: Sequence[int],
    on_disk: int,
    saved: float,
) -> tuple[float, float]:
    """T_f and T_b of a step. states: parameters that are updated; on_disk: bytes of activations there, both ways;
    saved: FLOPs that are not done again."""
    flops = sum(layer.flops for layer in layers)
    paged = sum(layer.parameters for i, layer in enumerate(layers) if i not in set(staying))

    def disk(read: float, write: float) -> float:
        ways = read / rates.read, write / rates.write
        return sum(ways) if rates.halves else max(ways)

    forward = max(flops / rates.flops + rates.rest, disk(paged, on_disk))
    again = flops - saved
    backward = max(
        (2 * flops + again) / rates.flops + 2 * rates.rest,
        disk(paged + on_disk + 12 * states, 12 * states),
        states / rates.adam,
    )
    return forward, backward


def choose(
    layers: Sequence[Layer],
    rates: Rates,
    states: int,
    memory: float = _INFINITE,
    share: float | None = None,
    disk: bool = True,
    all_stay: bool = False,
) -> Plan:
    """The plan with the shortest step. memory: bytes that parameters and inner activations may take. share: keep this
    share of the activations and no other; None: what is best. disk: whether activations may go there.
    all_stay: parameters of all blocks do, in any case."""
    found = []
    for stay in [len(layers)] if all_stay else range(len(layers) + 1):
        left = memory - sum(layer.parameters for layer in layers[:stay])
        if left < 0 and stay and not all_stay:
            break
        prefixes = _prefixes(layers, rates, states, frozenset(range(stay)), left, share, disk)
        found += prefixes if share is None else prefixes[-1:]
    return min(found, key=lambda plan: (plan.seconds, len(plan.on_disk), -len(plan.kept)))


def _prefixes(
    layers: Sequence[Layer],
    rates: Rates,
    states: int,
    staying: frozenset[int],
    left: float,
    share: float | None,
    disk: bool,
) -> list[Plan]:
    """Plans that keep nothing, the best block, the best two and so on, in memory first and then on disk."""
    most = _INFINITE if share is None else share * sum(layer.activations for layer in layers) + 0.5
    kept: list[int] = []
    away: list[int] = []
    found = []
    for i in (None, *order(layers)):
        if i is not None:
            inside = left - sum(layers[k].activations for k in kept) >= layers[i].activations
            if not inside and not disk:
                break
            (kept if inside else away).append(i)
        swapped = sum(layers[k].activations for k in (*kept, *away))
        if swapped > most:
            break
        stored = sum(layers[k].activations for k in away)
        saved = sum(layers[k].flops for k in (*kept, *away))
        t = sum(seconds(layers, rates, states, sorted(staying), stored, saved))
        found.append(Plan(staying, frozenset(kept), frozenset(away), t, swapped))
    return found
