"""SPZ of all versions: steps, axes, records, far places."""

import gzip
import struct

import numpy as np
import pytest

from holdall.errors import BadInput
from holdall.splats.formats import known, spz
from holdall.splats.formats.values import mirrored, sigmoid
from holdall.splats.made import solids
from holdall.splats.scene import Scene


@pytest.fixture(scope="module", params=[0, 1, 2, 3])
def scene(request):
    return solids(515, degree=request.param, seed=request.param)


def turn(a: Scene, b: Scene) -> np.ndarray:
    """Angles between the rotations of two scenes, in degrees."""
    one, two = (s.quats.astype(float) / np.linalg.norm(s.quats, axis=1, keepdims=True) for s in (a, b))
    return np.degrees(2 * np.arccos(np.clip(np.abs((one * two).sum(1)), 0, 1)))


@pytest.mark.parametrize("version", [3, 4])
def test_spz_within_its_steps(scene, version):
    raw = b"".join(spz.pieces(scene, version))
    assert known("x", raw) == "spz"
    found = spz.read(raw, "s.spz")
    assert np.abs(found.means - scene.means).max() <= 0.5001 / 4096
    assert np.abs(found.scales - np.clip(scene.scales, -10, 255 / 16 - 10)).max() <= 0.5001 / 16
    assert np.abs(sigmoid(found.opacities) - sigmoid(scene.opacities)).max() < 0.51 / 255
    assert np.abs(found.sh[:, 0] - scene.sh[:, 0]).max() < 0.51 / 255 / 0.15
    assert turn(found, scene).max() < 0.25
    assert np.abs(found.sh[:, 1:4] - scene.sh[:, 1:4]).max(initial=0) <= 4.6 / 128
    assert np.abs(found.sh[:, 4:] - scene.sh[:, 4:]).max(initial=0) <= 8.6 / 128


def test_spz_looks_up_where_scenes_look_down():
    """The file's y and z point the other way, and rotations and harmonics turn with them."""
    scene = Scene([[1, 2, 3]], [[-1, -2, -3]], [[0.9, 0.1, 0.2, 0.3]], [0], np.zeros((1, 4, 3)))
    scene.sh[0, 1:, 0] = [0.5, 0.25, -0.5]  # y, z, x
    raw = b"".join(spz.pieces(scene, 4))
    as_stored = spz.read(raw, "s.spz", axes="RDF")  # told to turn nothing
    np.testing.assert_allclose(as_stored.means, [[1, -2, -3]])
    np.testing.assert_allclose(as_stored.sh[0, 1:, 0], [-0.5, -0.25, -0.5])
    wanted = np.array([0.9, 0.1, -0.2, -0.3]) / np.linalg.norm([0.9, 0.1, 0.2, 0.3])
    np.testing.assert_allclose(as_stored.quats[0], wanted, atol=2e-3)
    np.testing.assert_allclose(spz.read(raw, "s.spz").means, scene.means)


def test_mirrored_axes_mirror_what_is_seen():
    """Harmonics along a direction, and a Gaussian's shape, both seen in the mirror."""
    scene = solids(20, degree=3)
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(3)
    direction /= np.linalg.norm(direction)
    for signs in [(1, -1, -1), (-1, 1, 1), (1, 1, -1), (-1, -1, 1)]:
        other = Scene(**mirrored(dict(scene.arrays()), *signs))
        seen = np.einsum("k,nkc->nc", harmonics(direction * signs), other.sh)
        np.testing.assert_allclose(seen, np.einsum("k,nkc->nc", harmonics(direction), scene.sh), atol=1e-5)
        flip = np.diag(signs)
        np.testing.assert_allclose(shapes(other), flip @ shapes(scene) @ flip, atol=1e-5)


def harmonics(d):
    """The sixteen of degree 0 to 3 in the order and with the signs that scenes have, from their polynomials."""
    x, y, z = d
    return np.array([
        0.2820948, -0.4886025 * y, 0.4886025 * z, -0.4886025 * x, 1.0925484 * x * y, -1.0925484 * y * z,
        0.3153916 * (2 * z * z - x * x - y * y), -1.0925484 * x * z, 0.5462742 * (x * x - y * y),
        -0.5900436 * y * (3 * x * x - y * y), 2.8906114 * x * y * z, -0.4570458 * y * (4 * z * z - x * x - y * y),
        0.3731763 * z * (2 * z * z - 3 * x * x - 3 * y * y), -0.4570458 * x * (4 * z * z - x * x - y * y),
        1.4453057 * z * (x * x - y * y), -0.5900436 * x * (x * x - 3 * y * y),
    ])  # fmt: skip


def shapes(scene):
    """Covariances [N, 3, 3]."""
    w, x, y, z = (scene.quats / np.linalg.norm(scene.quats, axis=1, keepdims=True)).T.astype(float)
    turned = np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]).transpose(2, 0, 1)  # fmt: skip
    wide = turned * np.exp(scene.scales)[:, None, :]
    return wide @ wide.transpose(0, 2, 1)


@pytest.mark.parametrize("told, turned", [(6, [1, 2, 3]), (4, [1, -2, -3]), (5, [-1, 2, 3])])
def test_spz_that_names_its_axes(told, turned):
    """Without the record a file is RUB; with it, what it says."""
    scene = Scene([[1, -2, -3]], [[-1, -2, -3]], [[1, 0, 0, 0]], [0], np.zeros((1, 1, 3)))
    raw = b"".join(spz.pieces(scene, 4))  # which stores 1, 2, 3
    record = struct.pack("<III", 0xDEAD0001, 4, 99) + struct.pack("<III", 0xADBE0003, 4, told)
    longer = (
        raw[:14]
        + bytes([2])
        + raw[15:16]
        + struct.pack("<I", 32 + len(record))
        + raw[20:32]
        + record
        + raw[32:]
    )
    np.testing.assert_allclose(spz.read(longer, "s.spz").means[0], turned)


@pytest.mark.parametrize("version", [1, 2])
def test_spz_of_the_first_versions(version):
    """Half floats, and rotations of three bytes."""
    places = np.array([[1.5, -2.25, 3.0], [0.5, 0.25, -8]])
    fixed = (places * 4096).astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    positions = places.astype("<f2").tobytes() if version == 1 else fixed
    raw = (
        struct.pack("<4sIIBBBB", b"NGSP", version, 2, 0, 12, 0, 0) + positions + bytes([255, 51])
    )  # opacities
    raw += bytes([0, 255, 51, 128, 128, 128]) + bytes([160, 0, 255] * 2)  # colours, scales
    raw += bytes([255, 128, 128, 128, 128, 128])
    found = spz.read(gzip.compress(raw), "old.spz")
    np.testing.assert_allclose(found.means, places * [1, -1, -1])
    np.testing.assert_allclose(found.scales[0], [0, -10, 255 / 16 - 10])
    np.testing.assert_allclose(sigmoid(found.opacities), [254.75 / 255, 0.2], atol=1e-6)
    np.testing.assert_allclose(found.sh[0, 0], (np.array([0, 255, 51]) / 255 - 0.5) / 0.15, rtol=1e-5)
    np.testing.assert_allclose(found.quats, [[0, 1, 0, 0], [1, 0, 0, 0]], atol=5e-3)


def test_far_places_do_not_wrap_round():
    """24 bits hold 2,048 units with 12 bits after the point; writers that kept 12 whatever came moved scenes."""
    scene = solids(9)
    scene.means[0, 0], scene.means[1, 1] = 2050.0, -500_000
    found = spz.read(b"".join(spz.pieces(scene)), "far.spz")
    assert np.abs(found.means - scene.means).max() <= 0.5 / 16 * 1.01
    scene.means[2, 2] = 1e7
    with pytest.raises(BadInput, match="scale it down"):
        b"".join(spz.pieces(scene))
