"""A shared network as a file: the array, a lambda a tensor, what is not shared, and the seed that says the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from holdall.errors import BadInput, CorruptArtefact
from holdall.optional import lazy
from holdall.packed import Packed
from holdall.weights.kept import keep, put_back
from holdall.weights.sharing import NAME, share, shareable, sharing_of
from holdall.weights.sharing_map import Map
from holdall.weights.stored import section

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="weights")


def written(module: torch.nn.Module, method: Mapping[str, Any], seed: int, half: bool = False) -> Packed:
    """half: the array and what is not shared in half precision."""
    sharing = sharing_of(module)
    psi = sharing.psi.detach().cpu().float().numpy().astype(np.float16 if half else np.float32)
    if not np.isfinite(psi).all():
        raise BadInput("the shared array", "numbers that are not finite as they are stored", "finite ones")
    scales = np.array([s.scale for s in sharing.segments.values()], np.float32)
    state = {n: t for n, t in module.state_dict().items() if n != NAME}
    segments, rule = sharing.segments, sharing.map
    blank = {n: s.blank for n, s in segments.items() if s.blank >= 0}
    meta = {
        "room": "weights", "method": dict(method), "map": rule.kind, "chunk": rule.chunk, "seed": seed,
        "biases": bool(method["biases"]), "half": half, "blank": blank,
        "shapes": _digest({n: s.shape for n, s in segments.items()}),
    }  # fmt: skip
    return Packed({"psi": psi, "scales": scales, **keep(state, half)}, meta)


def restored(packed: Packed, like: torch.nn.Module) -> torch.nn.Module:
    """A copy of the module, evaluated, that reads its weights from the array of the file."""
    scales, psi = section(packed, "scales"), section(packed, "psi")
    kind, chunk, seed, shapes = (packed.meta.get(k) for k in ("map", "chunk", "seed", "shapes"))
    biases, half = (packed.meta.get(k) is True for k in ("biases", "half"))
    tensors = shareable(like, biases)
    if shapes != _digest({n: tuple(t.shape) for n, t in tensors.items()}):
        raise BadInput(
            "module", type(like).__name__, "the one that was trained, with the same names and shapes"
        )
    if scales.dtype != np.float32 or scales.shape != (len(tensors),) or not (scales > 0).all():
        raise CorruptArtefact("section 'scales'", f"{scales.dtype} {scales.shape}, {len(tensors)} tensors")
    if psi.dtype != (np.float16 if half else np.float32) or psi.ndim != 1:
        raise CorruptArtefact("section 'psi'", f"{psi.dtype} {psi.shape}")
    if not (np.isfinite(scales).all() and np.isfinite(psi).all()):
        raise CorruptArtefact("the shared array", "numbers that are not finite")
    blank = packed.meta.get("blank")
    if not isinstance(blank, dict) or any(n not in tensors or type(r) is not int for n, r in blank.items()):
        raise CorruptArtefact("the header", f"blank rows {blank}")
    if any(tensors[n].ndim != 2 or not 0 <= r < len(tensors[n]) for n, r in blank.items()):
        raise CorruptArtefact("the header", f"blank rows {blank}")
    try:
        Map(kind, psi.size, chunk, seed)  # type: ignore[arg-type]
    except BadInput as fault:
        raise CorruptArtefact("the header", str(fault)) from fault
    if not (len(tensors) if kind == "local" else 1) <= psi.size <= sum(t.numel() for t in tensors.values()):
        raise CorruptArtefact("section 'psi'", f"{psi.size} numbers for {len(tensors)} tensors")
    known = {n: (float(v), blank.get(n, -1)) for n, v in zip(tensors, scales, strict=True)}
    module = share(like, psi.size, seed, map=kind, chunk=chunk, biases=biases, known=known)  # type: ignore[arg-type]
    put_back(packed, {n: t for n, t in module.state_dict().items() if n != NAME}, half)
    sharing_of(module).psi.data.copy_(torch.from_numpy(psi.astype(np.float32)))
    return module.eval()


def _digest(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return xxhash.xxh3_64_hexdigest(" ".join(f"{n} {tuple(s)}" for n, s in shapes.items()))
