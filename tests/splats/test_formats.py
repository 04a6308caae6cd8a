"""Files of scenes: what was written comes back, each codec within its own steps, and the numbers stand where they
belong."""

import numpy as np
import pytest
from sog_files import sog_files, zipped

from holdall.splats.formats import known, ply, read, spz, write
from holdall.splats.formats.values import sigmoid, smallest_three, whole_four
from holdall.splats.made import solids
from holdall.splats.scene import C0, Scene


@pytest.fixture(scope="module", params=[0, 1, 2, 3])
def scene(request):
    return solids(515, degree=request.param, seed=request.param)  # two whole chunks and three more


def in_order_of(found: Scene, wanted: Scene) -> Scene:
    """`found` in the order of `wanted`, by nearest means."""
    order = [int(np.abs(found.means - mean).sum(1).argmin()) for mean in wanted.means]
    assert len(set(order)) == len(wanted)
    return found.take(order)


def turn(a: Scene, b: Scene) -> np.ndarray:
    """Angles between the rotations of two scenes, in degrees."""
    one, two = (s.quats.astype(float) / np.linalg.norm(s.quats, axis=1, keepdims=True) for s in (a, b))
    return np.degrees(2 * np.arccos(np.clip(np.abs((one * two).sum(1)), 0, 1)))


def test_ply_keeps_every_bit(scene, tmp_path):
    write(scene, str(tmp_path / "s.ply"))
    found = read(str(tmp_path / "s.ply"))
    for name, array in scene.arrays().items():
        np.testing.assert_array_equal(found.arrays()[name], array)
    assert (tmp_path / "s.ply").stat().st_size < scene.nbytes + 2000


def test_ply_lists_red_before_green(tmp_path):
    """f_rest is numbered by channel, then by coefficient; a reader that mixes them up gives rainbows."""
    sh = np.arange(9 * 3, dtype=np.float32).reshape(1, 9, 3)  # coefficient k of channel c is 3k + c
    write(Scene([[0, 0, 0]], [[0, 0, 0]], [[1, 0, 0, 0]], [0], sh), str(tmp_path / "one.ply"))
    head, body = (tmp_path / "one.ply").read_bytes().split(b"end_header\n")
    names = [line.split()[2] for line in head.decode().splitlines() if line.startswith("property")]
    row = dict(zip(names, np.frombuffer(body, "<f4"), strict=True))
    assert [row[f"f_dc_{c}"] for c in range(3)] == [0, 1, 2]
    assert [row[f"f_rest_{i}"] for i in range(8)] == [3 * k for k in range(1, 9)]  # red
    assert [row[f"f_rest_{i}"] for i in range(16, 24)] == [3 * k + 2 for k in range(1, 9)]  # blue


@pytest.mark.parametrize("order, kind", [("<", "f4"), (">", "f4"), ("<", "f8")])
def test_ply_of_any_order_of_properties(tmp_path, order, kind):
    scene = solids(7, degree=1)
    columns = dict.fromkeys(("nx", "ny", "nz"), np.full(7, 9.0))
    for name, wanted in {
        "means": "x y z",
        "scales": "scale_0 scale_1 scale_2",
        "quats": "rot_0 rot_1 rot_2 rot_3",
    }.items():
        columns |= dict(zip(wanted.split(), scene.arrays()[name].T, strict=True))
    columns["opacity"] = scene.opacities
    columns |= {f"f_dc_{c}": scene.sh[:, 0, c] for c in range(3)}
    columns |= {f"f_rest_{3 * c + k}": scene.sh[:, 1 + k, c] for c in range(3) for k in range(3)}
    names = sorted(columns, key=lambda n: n[::-1])
    rows = np.empty(7, [(n, order + kind) for n in names])
    for n in names:
        rows[n] = columns[n]
    word = {"<": "little", ">": "big"}[order]
    lines = [
        "ply",
        f"format binary_{word}_endian 1.0",
        "comment made up",
        "element before 2",
        "property uchar a",
    ]
    lines += ["element vertex 7", *(f"property {'float' if kind == 'f4' else 'double'} {n}" for n in names)]
    lines += ["element face 1", "property list uchar int vertex_indices", "end_header\n"]
    (tmp_path / "odd.ply").write_bytes(
        "\r\n".join(lines).encode() + b"zz" + rows.tobytes() + b"\3" + bytes(12)
    )
    found = read(str(tmp_path / "odd.ply"))
    for name, array in scene.arrays().items():
        np.testing.assert_array_equal(found.arrays()[name], array)


def test_splat_within_its_bytes(scene, tmp_path):
    write(scene, str(tmp_path / "s.splat"))
    found = read(str(tmp_path / "s.splat"))
    assert (tmp_path / "s.splat").stat().st_size == 32 * len(scene)
    np.testing.assert_array_equal(found.means, scene.means)
    np.testing.assert_allclose(found.scales, scene.scales, atol=2e-6)
    assert np.abs(sigmoid(found.opacities) - sigmoid(scene.opacities)).max() < 0.51 / 255
    seen = np.clip(0.5 + C0 * scene.sh[:, 0], 0, 1)
    assert np.abs(0.5 + C0 * found.sh[:, 0] - seen).max() < 0.51 / 255
    assert found.degree == 0 and turn(found, scene).max() < 1.3


def test_compressed_ply_within_its_chunks(scene, tmp_path):
    write(scene, str(tmp_path / "s.compressed.ply"))
    found = in_order_of(read(str(tmp_path / "s.compressed.ply")), scene)
    spans = np.ptp(scene.means, axis=0) / [2047, 1023, 2047]
    assert (np.abs(found.means - scene.means) <= 0.51 * spans).all()
    assert (np.abs(found.scales - scene.scales) <= 0.51 * np.ptp(scene.scales, axis=0) / 1023).all()
    assert np.abs(sigmoid(found.opacities) - sigmoid(scene.opacities)).max() < 0.51 / 255
    assert (np.abs(found.sh[:, 0] - scene.sh[:, 0]) <= 0.51 * np.ptp(scene.sh[:, 0], axis=0) / 255).all()
    assert np.abs(found.sh[:, 1:] - scene.sh[:, 1:]).max(initial=0) <= 8 / 256
    assert turn(found, scene).max() < 0.2


def test_harmonics_of_compressed_ply_reach_their_ends(tmp_path):
    """-4 and 4 come back as they are, 0 a 64th beside it: what readers make of bytes 0, 255 and 128."""
    scene = solids(3, degree=1)
    scene.sh[:, 1:, 0] = np.array([-4, 4, 0])[:, None]
    write(scene, str(tmp_path / "s.compressed.ply"))
    found = in_order_of(read(str(tmp_path / "s.compressed.ply")), scene)
    np.testing.assert_array_equal(found.sh[:, 1:, 0], np.repeat([[-4], [4], [1 / 64]], 3, 1))


def test_smallest_three_gives_rotations_back():
    quats = np.concatenate([np.random.default_rng(0).standard_normal((50, 4)), 1e-30 * np.eye(4), -np.eye(4)])
    unit = quats / np.linalg.norm(quats, axis=1, keepdims=True)
    back = whole_four(*smallest_three(quats.astype(np.float32)))
    np.testing.assert_allclose(np.abs((back * unit).sum(1)), 1, atol=1e-6)


def test_known_by_content_first(tmp_path):
    scene = solids(300)
    heads = {
        "ply": b"".join(ply.pieces(scene)),
        "spz": b"".join(spz.pieces(scene)),
        "sog": zipped(sog_files()[0]),
    }
    for name, head in heads.items():
        assert known("whatever.splat", head) == name
        assert known("no ending", head) == name
    assert known("a.splat", b"\1" * 64) == "splat"
    assert known("a.ply", b"\1" * 64) is None
    assert known("a.spz", b"\x1f\x8b" + b"\1" * 64) is None
    assert known("a.zip", b"PK\3\4" + b"\1" * 64) is None
    assert known(str(tmp_path), b"") is None


def test_through_a_url():
    scene = solids(30)
    write(scene, "memory://room/scene.spz")
    assert len(read("memory://room/scene.spz")) == 30
