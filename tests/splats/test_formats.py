"""Files of scenes: what was written comes back, each codec within its own steps, and the numbers stand where they
belong."""

import io
import json
import struct
import zipfile

import numpy as np
import pytest

from holdall.errors import BadInput
from holdall.splats.formats import known, ply, read, spz, write
from holdall.splats.formats.values import mirrored, sigmoid, smallest_three, whole_four
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
    import gzip

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


def webp(pixels):
    """Lossless WebP of uint8 [high, wide, 4]."""
    from PIL import Image

    made = io.BytesIO()
    Image.fromarray(pixels).save(made, "WEBP", lossless=True, exact=True)
    return made.getvalue()


def sog_files(version=2):
    """A scene of 5 Gaussians with harmonics of degree 1, by hand: (files, what must be read)."""
    rng = np.random.default_rng(5)
    n, side = 5, 4
    low, high = [-1.0, -2.0, 0.0], [1.0, 0.5, 3.0]

    def plane(columns):
        pixels = np.full((side, side, 4), 255, np.uint8)
        pixels.reshape(-1, 4)[:n, : columns.shape[1]] = columns
        return webp(pixels)

    fine, coarse = rng.integers(0, 256, (2, n, 3))
    three, which = rng.integers(90, 166, (n, 3)), rng.integers(0, 4, n)
    sizes, colours, labels = (
        rng.integers(0, 9, (n, 3)),
        rng.integers(0, 9, (n, 4)),
        np.array([0, 1, 63, 64, 65]),
    )
    colours[0, 3] = 0  # a Gaussian that is not seen still has its colour
    centroids = np.zeros((2, 64 * 3, 4), np.uint8)
    centroids[..., :3] = rng.integers(0, 9, (2, 64 * 3, 3))
    centroids[..., 3] = 255
    files = {
        "means_l.webp": plane(fine), "means_u.webp": plane(coarse), "scales.webp": plane(sizes),
        "quats.webp": plane(np.concatenate([three, 252 + which[:, None]], 1)), "sh0.webp": plane(colours),
        "shN_centroids.webp": webp(centroids), "shN_labels.webp": plane(np.stack([labels, 0 * labels], 1)),
    }  # fmt: skip
    lists = [sorted(rng.standard_normal(9)) for _ in range(3)]
    logs = np.array(low) + (np.array(high) - low) * (fine + 256 * coarse) / 65535
    rest = centroids[..., :3].reshape(128, 3, 3)[labels]
    means = {"mins": low, "maxs": high, "files": ["means_l.webp", "means_u.webp"]}
    parts = {"scales": ["scales.webp"], "sh0": ["sh0.webp"], "shN": ["shN_centroids.webp", "shN_labels.webp"]}
    if version == 2:
        meta = {"version": 2, "count": n, "means": means, "quats": {"files": ["quats.webp"]}}
        meta |= {p: {"codebook": c, "files": f} for (p, f), c in zip(parts.items(), lists, strict=True)}
        meta["shN"] |= {"count": 70, "bands": 1}
        scales, dc, rest = (np.array(c)[i] for c, i in zip(lists, (sizes, colours[:, :3], rest), strict=True))
        opacity = np.clip(colours[:, 3], 0.25, None) / 255
    else:
        ends = {
            "scales": ([-9, -8, -7], [-1, -2, -3]),
            "sh0": ([-1, -1, -1, -4], [1, 2, 3, 6]),
            "shN": (-0.5, 0.75),
        }
        meta = {"means": means | {"shape": [n, 3]}, "quats": {"files": ["quats.webp"]}}
        meta |= {p: {"mins": ends[p][0], "maxs": ends[p][1], "files": f} for p, f in parts.items()}
        scales = np.array([-9, -8, -7]) + np.array([8, 6, 4]) * sizes / 255
        first = np.array([-1, -1, -1, -4]) + np.array([2, 3, 4, 10]) * colours / 255
        dc, opacity, rest = first[:, :3], sigmoid(first[:, 3]), -0.5 + 1.25 * rest / 255
    files["meta.json"] = json.dumps(meta).encode()
    places = np.sign(logs) * (np.exp(np.abs(logs)) - 1)
    quats = whole_four((three / 255 * 2 - 1) / np.sqrt(2), which)
    sh = np.concatenate([dc[:, None], rest], 1)
    return files, Scene(places, scales, quats, np.log(opacity / (1 - opacity)), sh)


def zipped(files):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, raw in files.items():
            archive.writestr(name, raw)
    return made.getvalue()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("as_folder", [True, False])
def test_sog(tmp_path, version, as_folder):
    files, wanted = sog_files(version)
    if as_folder:
        for name, raw in files.items():
            (tmp_path / name).write_bytes(raw)
        found = [read(str(tmp_path)), read(str(tmp_path / "meta.json"))]
        assert known(str(tmp_path), b"") == "sog"
    else:
        (tmp_path / "s.sog").write_bytes(zipped(files))
        found = [read(str(tmp_path / "s.sog"))]
    for scene in found:
        for name, array in wanted.arrays().items():
            np.testing.assert_allclose(scene.arrays()[name], array, rtol=2e-6, atol=2e-6, err_msg=name)


def test_sog_whose_writer_left_out_the_first_number(tmp_path):
    files, wanted = sog_files()
    meta = json.loads(files["meta.json"])
    book = meta["scales"]["codebook"]
    book[0] = None
    files["meta.json"] = json.dumps(meta).encode()
    (tmp_path / "s.sog").write_bytes(zipped(files))
    changed = read(str(tmp_path / "s.sog")).scales != wanted.scales
    expected = book[1] + (book[1] - book[-1]) / 255
    assert np.allclose(read(str(tmp_path / "s.sog")).scales[changed & (wanted.scales < book[1])], expected)


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
