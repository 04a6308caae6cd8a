"""A model whose matrices are `Coded`, as a file: what a rounding method needs besides its rounding.

Sections: `file/<name>` (tokenizer, config), `w/<i>` for tensor number i where it is coded, else `t/<i>` (half precision
where that can hold it). `kernels` in the header are the widths, and whether of palettes, so that what multiplies them
can be compiled before memory is counted. A method made of these writes `encode`, and has `decode` and `held` in a line
each.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.budget import Budget
from holdall.errors import BadInput, BudgetError, CorruptArtefact
from holdall.kinds import Spend
from holdall.method import Method
from holdall.optional import lazy
from holdall.packed import Packed
from holdall.weights.coded import WIDTHS, Coded
from holdall.weights.coded_bytes import held_bytes
from holdall.weights.model import Model
from holdall.weights.stored import describe, described, file_sections, files_of, section

if TYPE_CHECKING:
    import torch

    from holdall.weights.packed_linear import Held
else:
    torch = lazy("torch", extra="weights")


def write(
    method: Method, x: Model, coded: Mapping[str, Coded], *, entropy: bool = True, **more: Any
) -> Packed:
    """The file of a model. coded: by tensor name; more: what the method keeps in the header."""
    arrays: dict[str, Any] = file_sections(x)
    for i, (name, tensor) in enumerate(x.state.items()):
        if name in coded:
            arrays |= coded[name].sections(f"w/{i}", coded=entropy)
        else:
            arrays[f"t/{i}"] = plain(name, tensor)
    kinds = [
        list(k) for k in sorted({(b.bits, b.table is not None) for c in coded.values() for b in c.bands})
    ]
    size = {"original_bytes": x.nbytes, "elements": x.elements, "kernels": kinds}
    return Packed(arrays, {"room": "weights", "method": method.to_dict(), **size, **describe(x), **more})


def compile_for(packed: Packed) -> None:
    """Compile, or load, the kernels that the file's matrices need."""
    from holdall.weights.coded_linear import CodedMatrix

    told = packed.meta.get("kernels")
    for bits, table in itertools.product(WIDTHS, (False, True)):
        if isinstance(told, list) and [bits, table] in told:
            values = np.zeros(1 << bits) if table else None
            coded = Coded.of(np.zeros((16, 64), np.uint8), bits, scale=np.ones(16), table=values)
            CodedMatrix(coded).multiply(torch.zeros(1, 64))


def plain(name: str, tensor: torch.Tensor) -> np.ndarray:
    """Half precision, or float32 where that cannot hold it; whole numbers as they are."""
    if not tensor.is_floating_point():
        return tensor.detach().numpy()
    finite(name, tensor)
    half = tensor.detach().half()
    return half.numpy() if bool(half.isfinite().all()) else tensor.detach().float().numpy()


def finite(name: str, tensor: torch.Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise BadInput(f"tensor {name}", "NaN or infinity", "finite weights")


def read(packed: Packed) -> tuple[Model, dict[str, Coded]]:
    """(the tensors that are not coded, and the files; those that are)."""
    state, coded, held = {}, {}, set(packed.arrays)
    for i, (name, dtype, shape) in enumerate(described(packed)):
        if f"w/{i}" not in held:
            state[name] = _plain(section(packed, f"t/{i}"), name, dtype, shape)
            continue
        found = Coded.of_sections({f"w/{i}": section(packed, f"w/{i}")}, f"w/{i}")
        if found.shape != shape or "float" not in dtype:
            raise CorruptArtefact(f"tensor {name}", f"{found.shape} where {dtype} {shape} was written")
        coded[name] = found
    return Model(state, files_of(packed), str(packed.meta.get("name", "model"))), coded


def _plain(array: np.ndarray, name: str, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    if array.shape != shape or (array.dtype.kind == "f") != ("float" in dtype):
        raise CorruptArtefact(
            f"tensor {name}", f"{array.dtype} {array.shape} where {dtype} {shape} was written"
        )
    return torch.from_numpy(array.copy()).to(getattr(torch, dtype))


def decode(packed: Packed) -> Model:
    """All tensors, in their order and types."""
    shell, coded = read(packed)
    state = {}
    for name, dtype, _ in described(packed):
        if name in coded:
            state[name] = torch.from_numpy(coded.pop(name).dense()).to(getattr(torch, dtype))
        else:
            state[name] = shell.state[name]
    return Model(state, shell.files, shell.name)


def held(packed: Packed, memory: Spend = None) -> tuple[Model, dict[str, Held]]:
    """The plain tensors, and the matrices that stay packed; BudgetError if they take more than `memory`."""
    from holdall.weights.coded_linear import CodedMatrix

    asked = Budget.parse(memory)
    if asked is not None:
        original, elements = packed.meta.get("original_bytes"), packed.meta.get("elements")
        if type(original) is not int or type(elements) is not int or min(original, elements) < 1:
            raise CorruptArtefact("the header", "it does not say how large the original was")
        limit, least = asked.limit(original, elements), resident(packed)
        if least > limit:
            raise BudgetError(limit, least, who=str(packed.meta["method"]["method"]), why="what was packed")
    shell, coded = read(packed)
    return shell, {name: CodedMatrix(matrix) for name, matrix in coded.items()}


def resident(packed: Packed) -> int:
    """Bytes that the weights take once they are opened: entropy coding saves disk, not memory."""
    total = 0
    for name in packed.arrays:
        if name.startswith("w/"):
            total += held_bytes(section(packed, name))
        elif name.startswith("t/"):
            total += 2 * section(packed, name).nbytes  # half precision becomes float32
    return total
