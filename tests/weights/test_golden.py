"""Bytes of version 1 must decode for ever, to the same numbers."""

from pathlib import Path

import numpy as np

from holdall import unpack
from holdall.packed import Packed
from holdall.weights import BitStack

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
