"""Folders as 4DGaussians writes them: point_cloud.ply, the still Gaussians, beside deformation.pth, what moves them.

    x = read("output/scene/point_cloud/iteration_14000")
    write(x, "unpacked")                                   # planes must lie along the world's axes

Which heads are used is told by a `cfg_args` in the folder or up to two above it; without one the repository's defaults
are taken: places, sizes and rotations move, opacities and colours do not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput, CorruptArtefact
from holdall.files import atomic_write, is_local, local_path, open_stream
from holdall.optional import lazy
from holdall.places import is_file, is_folder
from holdall.splats.hexplane import HEADS, PAIRS, TRUNK, HexScene, depth

if TYPE_CHECKING:
    from numpy.typing import NDArray

torch = lazy("torch", extra="splats")

CLOUD, MOTION, FLAGS = "point_cloud.ply", "deformation.pth", "cfg_args"
_NAMES = {"means": "pos", "scales": "scales", "quats": "rotations", "opacities": "opacity", "sh": "shs"}
_OFF = {"means": "no_dx", "scales": "no_ds", "quats": "no_dr", "opacities": "no_do", "sh": "no_dshs"}
_USUAL = ("means", "scales", "quats")
_OTHER = ("no_grid", "empty_voxel", "static_mlp", "apply_rotation")
_NET = "deformation_net."


def known(url: str) -> bool:
    folder = url.rstrip("/")
    return is_folder(url) and is_file(f"{folder}/{MOTION}") and is_file(f"{folder}/{CLOUD}")


def read(url: str) -> HexScene:
    """BadInput for a folder of another sort, CorruptArtefact for a damaged one."""
    from holdall.splats.formats import read as read_scene

    if not known(url):
        raise BadInput("moving scene", url, f"a folder with {CLOUD} and {MOTION}, as 4DGaussians writes it")
    folder = url.rstrip("/")
    state = _state(f"{folder}/{MOTION}")
    heads = _heads(folder)
    still = read_scene(f"{folder}/{CLOUD}")
    if "sh" in heads:
        still = still.with_degree(3)
    planes, clock = _planes(state, folder)
    layers = _layers(state, heads, folder)
    return HexScene(still, planes, layers, _frame(state, folder), clock).checked()


def _state(path: str) -> dict[str, NDArray[Any]]:
    from holdall.checkpoints.exchange import read_torch

    try:
        state = read_torch(path)
    except CorruptArtefact:
        raise
    except OSError as fault:  # torch says so of an archive that is cut short
        raise CorruptArtefact(path, "torch does not open it") from fault
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise BadInput("deformation", path, "the state of a network: tensors by name")
    return {str(k): v.float().numpy() for k, v in state.items()}


def _heads(folder: str) -> tuple[str, ...]:
    """By the flags that training was given, if they are there."""
    up = [
        folder,
        *(str(Path(folder).parents[i]) for i in (0, 1) if is_local(folder) and len(Path(folder).parents) > i),
    ]
    path = next((f"{f}/{FLAGS}" for f in up if is_file(f"{f}/{FLAGS}")), None)
    if path is None:
        return _USUAL
    with open_stream(path) as file:
        text = file.read(1 << 20).decode(errors="replace")
    told = {k: v == "True" for k, v in re.findall(r"(\w+)=(True|False)", text)}
    odd = [flag for flag in _OTHER if told.get(flag)]
    if odd:
        raise BadInput("4DGaussians scene", f"one that was trained with {', '.join(odd)}", "one without")
    return tuple(name for name in HEADS if not told.get(_OFF[name], name not in _USUAL))


def _planes(state: Mapping[str, Any], folder: str) -> tuple[Any, tuple[float, float]]:
    """Rows of time that no moment reaches (time goes from the middle of the planes to their end) are left away."""
    scales = 1 + max(
        (int(k.split(".")[3]) for k in state if re.match(_NET + r"grid\.grids\.\d+\.\d+$", k)), default=-1
    )
    if not scales:
        raise BadInput(
            "deformation", f"{folder}/{MOTION}, which has no planes", "planes of features (grid.grids)"
        )
    planes, clock = [], (-1.0, 1.0)
    for s in range(scales):
        six = []
        for i, pair in enumerate(PAIRS):
            plane = state.get(f"{_NET}grid.grids.{s}.{i}")
            if plane is None or plane.ndim != 4 or plane.shape[0] != 1:
                raise BadInput(
                    "deformation", f"{folder}/{MOTION}: planes of another sort", "[1, h, rows, columns]"
                )
            if pair[1] == 3:
                first = (plane.shape[2] - 1) // 2
                rest = plane.shape[2] - 1 - first
                clock = (2 * ((plane.shape[2] - 1) / 2 - first) / max(rest, 1) - 1, 1.0)
                plane = plane[:, :, first:]
            six.append(plane[0])
        planes.append(tuple(six))
    return tuple(planes), clock


def _frame(state: Mapping[str, Any], folder: str) -> NDArray[Any]:
    box = state.get(f"{_NET}grid.aabb")
    if box is None or box.shape != (2, 3):
        raise BadInput("deformation", f"{folder}/{MOTION}, which has no box", "grid.aabb of two corners")
    return np.concatenate(
        [(box[0] + box[1]) / 2, np.eye(3, dtype=np.float32).reshape(-1), (box[1] - box[0]) / 2]
    )


def _layers(state: Mapping[str, Any], heads: tuple[str, ...], folder: str) -> dict[str, NDArray[Any]]:
    found = {}
    for name in (TRUNK, *heads):
        stem = _NET + ("feature_out." if name == TRUNK else f"{_NAMES[name]}_deform.")
        numbers = sorted(
            int(k[len(stem) :].split(".")[0]) for k in state if k.startswith(stem) and k.endswith("weight")
        )
        if not numbers:
            raise BadInput(
                "deformation", f"{folder}/{MOTION}, which has no {stem}", "layers of a deformation"
            )
        for i, number in enumerate(numbers):
            for part, word in (("w", "weight"), ("b", "bias")):
                if f"{stem}{number}.{word}" not in state:
                    raise BadInput(
                        "deformation", f"{folder}/{MOTION}, without {stem}{number}.{word}", "all layers"
                    )
                found[f"{name}/{i}/{part}"] = state[f"{stem}{number}.{word}"]
    return found


def state_of(x: HexScene) -> dict[str, NDArray[Any]]:
    """Names and shapes of 4DGaussians; BadInput where its network has no such thing."""
    if not np.array_equal(x.frame[3:12].reshape(3, 3), np.eye(3, dtype=np.float32)):
        raise BadInput(
            "planes", "ones along axes of their own", "planes along x, y and z, as 4DGaussians has them"
        )
    half, low = x.frame[12:], (x.clock[0] + 1) / 2
    found = {f"{_NET}grid.aabb": np.stack([x.frame[:3] - half, x.frame[:3] + half])}
    for s, six in enumerate(x.planes):
        for i, (pair, plane) in enumerate(zip(PAIRS, six, strict=True)):
            if pair[1] == 3:
                rows = plane.shape[1]
                more = rows - 1 - round(2 * low * (rows - 1))
                plane = np.concatenate([np.repeat(plane[:, :1], max(more, 0), 1), plane], 1)
            found[f"{_NET}grid.grids.{s}.{i}"] = plane[None]
    for name in (TRUNK, *HEADS):
        for i in range(depth(x.layers, name)):
            stem = f"feature_out.{2 * i}" if name == TRUNK else f"{_NAMES[name]}_deform.{2 * i + 1}"
            found[f"{_NET}{stem}.weight"] = x.layers[f"{name}/{i}/w"]
            found[f"{_NET}{stem}.bias"] = x.layers[f"{name}/{i}/b"]
    return found


def write(x: HexScene, url: str) -> None:
    """A new folder of the same sort; with a cfg_args that tells which heads move."""
    from holdall.checkpoints.exchange import write_torch
    from holdall.splats.formats import write as write_scene

    state = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in state_of(x).items()}
    if not is_local(url) or local_path(url).exists():
        raise BadInput("output", url, "a folder on this machine that does not exist yet")
    folder = local_path(url)
    part = folder.with_name(f".{folder.name}.part")
    part.mkdir()
    try:
        write_scene(x.still, str(part / CLOUD))
        write_torch(state, str(part / MOTION))
        flags = ", ".join(f"{_OFF[h]}={not depth(x.layers, h)}" for h in HEADS)
        with atomic_write(str(part / FLAGS)) as file:
            file.write(f"Namespace({flags})".encode())
            file.publish()
        part.rename(folder)
    except BaseException:
        for left in part.iterdir():
            left.unlink()
        part.rmdir()
        raise
