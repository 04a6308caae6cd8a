"""Numbers as files keep them: opacities in a byte, rotations as their three smallest parts, colours, mirrored axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_OTHERS = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
SIXTEEN = (
    "y z x xy yz 1 xz 1 y xyz y z x z x"  # after the first harmonic: the axes whose mirroring turns its sign
)


def bytes_of(values: NDArray[Any]) -> NDArray[Any]:
    """uint8, rounded, of numbers that should be 0 to 255."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def logits(levels: NDArray[Any]) -> NDArray[Any]:
    """Opacities from bytes. The end levels stand for the middle of their cells, half as wide: 1 has no logit."""
    share = np.clip(levels.astype(np.float64), 0.25, 254.75) / 255
    return np.log(share / (1 - share))


def levels(opacities: NDArray[Any]) -> NDArray[Any]:
    """Bytes from opacities."""
    return bytes_of(255 * sigmoid(opacities))


def sigmoid(x: NDArray[Any]) -> NDArray[Any]:
    return 0.5 * (1 + np.tanh(0.5 * x.astype(np.float64)))  # never overflows


def smallest_three(quats: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """([N, 3], which [N]): of each rotation, the parts but its largest, with that one made positive."""
    unit = quats.astype(np.float64)
    unit = unit / np.abs(unit).max(1, keepdims=True)  # before the squares, which may underflow
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    which = np.abs(unit).argmax(1)
    unit *= np.where(np.take_along_axis(unit, which[:, None], 1) < 0, -1, 1)
    return np.take_along_axis(unit, _OTHERS[which], 1), which


def whole_four(three: NDArray[Any], which: NDArray[Any]) -> NDArray[Any]:
    """The rotations [N, 4] back."""
    quats = np.zeros((len(three), 4))
    np.put_along_axis(quats, _OTHERS[which], three, 1)
    largest = np.sqrt(np.maximum(0, 1 - (three**2).sum(1)))
    np.put_along_axis(quats, which[:, None], largest[:, None], 1)
    return quats


def mirrored(arrays: dict[str, Any], x: int, y: int, z: int) -> dict[str, Any]:
    """A scene's arrays with axes turned round where the sign is -1: means, quats and sh change, scales do not."""
    sign = {"x": x, "y": y, "z": z, "1": 1}
    terms = SIXTEEN.split()[: arrays["sh"].shape[1] - 1]
    harmonics = [1] + [int(np.prod([sign[axis] for axis in term])) for term in terms]
    return arrays | {
        "means": arrays["means"] * np.array([x, y, z], np.float32),
        "quats": arrays["quats"] * np.array([1, y * z, x * z, x * y], np.float32),
        "sh": arrays["sh"] * np.array(harmonics, np.float32)[:, None],
    }


def channels_first(rest: NDArray[Any]) -> NDArray[Any]:
    """[N, K, 3] to [N, 3K]: all of red, then green, then blue, as PLY files number f_rest_0, f_rest_1, ..."""
    return rest.transpose(0, 2, 1).reshape(len(rest), 3 * rest.shape[1])


def channels_last(flat: NDArray[Any]) -> NDArray[Any]:
    """[N, 3K] of red, green, blue to [N, K, 3]."""
    return flat.reshape(len(flat), 3, flat.shape[1] // 3).transpose(0, 2, 1)


def with_first(dc: NDArray[Any], rest: NDArray[Any] | None = None) -> NDArray[Any]:
    """sh float32 [N, K, 3] from its first coefficients [N, 3] and the others [N, K-1, 3]."""
    first = dc[:, None, :].astype(np.float32)
    return first if rest is None else np.concatenate([first, rest], 1, dtype=np.float32)


def by_nearness(means: NDArray[Any]) -> NDArray[Any]:
    """An order in which neighbours follow each other (along Morton's curve, 10 bits an axis), so that planes and
    chunks of neighbours are alike."""
    low = means.min(0).astype(np.float64)
    span = means.max(0) - low
    cells = ((means - low) / np.where(span > 0, span, 1) * 1023).astype(np.uint64)
    key = np.zeros(len(means), np.uint64)
    for bit in range(10):
        for axis in range(3):
            one = (cells[:, axis] >> np.uint64(bit)) & np.uint64(1)
            key |= one << np.uint64(3 * bit + axis)
    return np.argsort(key, kind="stable")
