"""What fits and how long a step takes, before anything is bought: the arithmetic of ZeRO-Offload."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """device, host: bytes that have to be there; plain: what the device would hold without offload. fits: whether
    `device` is within the budget. serial, overlapped, delayed: seconds of a step one after the other, with copies
    beside backward and update, and with the update beside the next step too."""

    device: int
    host: int
    plain: int
    fits: bool
    serial: float
    overlapped: float
    delayed: float


def plan(
    parameters: int,
    activations: int,
    budget: int | None,
    *,
    link: float,
    adam: float,
    compute: float,
    backward: float | None = None,
    bucket: int = 1 << 17,
    tile: int = 1 << 17,
    bytes_each: int = 2,
    owners: int = 1,
    largest: int = 0,
) -> Estimate:
    """parameters: of the model; activations: bytes; link: bytes a second each way; adam: parameters a second that one
    owner updates; compute: seconds of forward and backward, of which `backward` (two thirds) hides copies; bucket,
    tile: elements; bytes_each: of a weight on the device; largest: elements of the largest tensor, whose gradient is
    there beside the buckets."""
    weights, bucket = bytes_each * parameters, min(bucket, parameters)
    device = weights + 2 * bytes_each * bucket + bytes_each * largest + activations
    mine = -(-parameters // owners)
    host = (12 + bytes_each) * mine + 2 * bytes_each * min(tile, mine)
    hidden = backward if backward is not None else compute * 2 / 3
    one_way = bytes_each * mine / link
    last_bucket, last_tile = bytes_each * bucket / owners / link, bytes_each * min(tile, mine) / link
    update = mine / adam
    down = compute + max(0.0, one_way - hidden - last_bucket) + last_bucket
    up = max(update, one_way) + (last_tile if update >= one_way else min(tile, mine) / adam)
    return Estimate(
        device=device,
        host=host,
        plain=16 * parameters + activations,
        fits=budget is None or device <= budget,
        serial=compute + 2 * one_way + update,
        overlapped=down + up,
        delayed=max(down, update) + one_way,
    )
