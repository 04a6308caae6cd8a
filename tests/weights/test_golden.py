"""Bytes of version 1 must decode for ever, to the same numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from holdall import unpack
from holdall.packed import Packed
from holdall.weights import Binary, BitStack, Sparse

GOLDEN = Path(__file__).parents[1] / "golden"


def test_version_one_decodes_to_the_recorded_numbers():
    wanted = np.load(GOLDEN / "weights-bitstack-v1.npz")
    model = unpack(str(GOLDEN / "weights-bitstack-v1.hold"))
    assert set(model.state) == set(wanted.files) and model.files == {"config.txt": b"kept as it is"}
    for name in wanted.files:
        np.testing.assert_allclose(model.state[name].float().numpy(), wanted[name], rtol=1e-6, atol=1e-7)
    assert str(model.state["half"].dtype) == "torch.float16"


def test_roundings_of_version_one_decode_to_the_recorded_numbers():
    wanted = np.load(GOLDEN / "weights-rtn-v1.npz")
    model = unpack(str(GOLDEN / "weights-rtn-v1.hold"))
    assert set(model.state) == set(wanted.files) and model.files == {"config.txt": b"kept as it is"}
    for name in wanted.files:
        np.testing.assert_array_equal(model.state[name].float().numpy(), wanted[name])
    assert str(model.state["row"].dtype) == "torch.bfloat16"


def test_version_one_can_be_held_at_any_of_its_sizes():
    with Packed.open(str(GOLDEN / "weights-bitstack-v1.hold")) as packed:
        _, stack = BitStack()._open(packed)
        sizes = []
        for count in range(len(stack.layout.pieces), len(stack.layout.stack) + 1):
            stack.change(int(stack._ends[count]))
            assert stack.count == count and packed.traffic <= packed.nbytes
            sizes.append(stack.nbytes)
        assert sizes == sorted(set(sizes)) and sizes[-1] == packed.nbytes


def float_net():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8),
        nn.Hardtanh(), nn.Conv2d(8, 70, 3, stride=2, bias=False), nn.BatchNorm2d(70), nn.Flatten(),
        nn.Linear(280, 9), nn.Linear(9, 3),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["reactnet", "xnorpp"])
def test_networks_of_signs_of_version_one_give_the_recorded_outputs(name):
    """With normalisations folded and shifts; and with scales of rows and columns, in half precision."""
    told = np.load(GOLDEN / f"weights-binary-{name}-v1.npz")
    with Packed.open(str(GOLDEN / f"weights-binary-{name}-v1.hold")) as packed:
        module = Binary().load(packed, float_net())
    np.testing.assert_allclose(module(torch.from_numpy(told["x"])).numpy(), told["y"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["single", "pairs-half"])
def test_sparse_nets_of_version_one_give_the_recorded_outputs(name):
    """With gaps of more than a byte, an empty row, rows that are left beside pairs, and a folded normalisation."""
    like = nn.Sequential(
        nn.Conv2d(1, 300, 1), nn.Conv2d(300, 7, 1, bias=False), nn.BatchNorm2d(7), nn.Hardtanh(),
        nn.Conv2d(7, 6, 1), nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip
    told = np.load(GOLDEN / f"weights-sparse-{name}-v1.npz")
    with Packed.open(str(GOLDEN / f"weights-sparse-{name}-v1.hold")) as packed:
        module = Sparse().load(packed, like)
    np.testing.assert_allclose(module(torch.from_numpy(told["x"])).numpy(), told["y"], rtol=1e-4, atol=1e-6)
