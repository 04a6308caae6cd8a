"""What each stage of ZeRO needs, by arithmetic: bytes of a worker, elements on the wire, seconds of a step.

Plain functions without torch. `planned(7.5e9, 64)` is the paper's table; `planned(n, workers, **FP32)` is that of a
model in float32 with AdamW.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from holdall.errors import BadInput, BudgetError

FP32 = {"weight": 4, "gradient": 4, "states": 8}
MIXED = {
    "weight": 2,
    "gradient": 2,
    "states": 12,
}  # the paper's: float32 copy, momentum and variance beside float16
EIGHT_BIT = {"weight": 2, "gradient": 2, "states": 6}  # float32 copy and two moments in a byte each
VOLUMES = (
    2,
    2,
    2,
    3,
)  # elements sent and received by a worker in a step, for each parameter, times (n - 1) / n


@dataclass(frozen=True)
class Plan:
    """One stage. weights, gradients, states: bytes that a worker holds; sent: elements that it sends in a step;
    seconds: of a step, where a bandwidth was given."""

    stage: int
    workers: int
    weights: float
    gradients: float
    states: float
    sent: float
    seconds: float | None = None

    @property
    def total(self) -> float:
        """Bytes of a worker, without activations and buffers."""
        return self.weights + self.gradients + self.states


def planned(
    parameters: float,
    workers: int,
    *,
    weight: float = MIXED["weight"],
    gradient: float = MIXED["gradient"],
    states: float = MIXED["states"],
    bandwidth: float | None = None,
    compute: float = 0.0,
    overlap: bool = True,
) -> tuple[Plan, Plan, Plan, Plan]:
    """The four stages, for a number of parameters (tied ones once).

    weight, gradient, states: bytes a parameter. bandwidth: bytes a second of a worker's link; compute: seconds that a
    step computes; overlap: whether both go on at once.

    >>> [round(plan.total / 1e9, 1) for plan in planned(7.5e9, 64)]
    [120.0, 31.4, 16.6, 1.9]
    """
    if parameters < 0 or workers < 1 or min(weight, gradient, states, compute) < 0:
        raise BadInput(
            "plan", f"{parameters} parameters, {workers} workers", "sizes of at least 0 and a worker"
        )
    if bandwidth is not None and bandwidth <= 0:
        raise BadInput("bandwidth", bandwidth, "bytes a second, more than 0")
    n, others = workers, (workers - 1) / workers
    found = []
    for stage, volume in enumerate(VOLUMES):
        sent = volume * parameters * others
        wire = None if bandwidth is None else sent * weight / bandwidth
        found.append(
            Plan(
                stage=stage,
                workers=n,
                weights=weight * parameters / (n if stage == 3 else 1),
                gradients=gradient * parameters / (n if stage >= 2 else 1),
                states=states * parameters / (n if stage >= 1 else 1),
                sent=sent,
                seconds=None if wire is None else max(compute, wire) if overlap else compute + wire,
            )
        )
    return found[0], found[1], found[2], found[3]


def lowest(plans: Sequence[Plan], memory: float, beside: float = 0.0) -> Plan:
    """The lowest stage that fits into a worker's memory with `beside` bytes (activations, buffers) beside it."""
    for plan in plans:
        if plan.total + beside <= memory:
            return plan
    least = min(plan.total for plan in plans) + beside
    raise BudgetError(memory, round(least), who="a worker of training.zero", why="stage 3")


def activations(
    hidden: int, batch: int, sequence: int, layers: int, *, checkpointed: bool = False, parallel: int = 1
) -> float:
    """Elements of a transformer's activations, the paper's estimate. checkpointed: only the input of each layer is
    kept, and one layer is computed again at a time. parallel: of how many workers each keeps a part of the inputs
    (P_a)."""
    layer = hidden * batch * sequence
    if not checkpointed:
        return 12.0 * layer * layers
    return layer * layers / parallel + 12.0 * layer
