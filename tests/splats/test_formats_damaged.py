"""Files that are torn, altered or hostile: a scene or one line, never another fault, never much memory."""

import gzip
import json
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import zstandard
from sog_files import sog_files, webp, zipped

from holdall.errors import BadInput, CorruptArtefact
from holdall.splats.formats import chunked, ply, read, splat, spz, write
from holdall.splats.made import solids
from holdall.splats.scene import Scene

FEW = 48 << 20  # bytes that reading a small file may take, whatever it claims


@pytest.fixture(scope="module")
def whole():
    """One file of each format."""
    scene = solids(300, degree=1)
    made = {"ply": ply, "compressed.ply": chunked, "splat": splat, "spz": spz}
    files = {name: b"".join(module.pieces(scene)) for name, module in made.items()}
    return files | {"4.spz": b"".join(spz.pieces(scene, 4)), "sog": zipped(sog_files()[0])}


def outcome(path, raw):
    """None for a scene that can be drawn, or the line that was said."""
    path.write_bytes(raw)
    try:
        scene = read(str(path))
        assert len(scene) and all(np.isfinite(a).all() for a in scene.arrays().values())
    except (BadInput, CorruptArtefact) as told:
        assert "\n" not in str(told) and len(str(told)) < 600
        return str(told)
    return None


def refused(path, raw, words):
    """Within few bytes of memory."""
    tracemalloc.start()
    said = outcome(path, raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert said and words in said, said
    assert peak < FEW + 8 * len(raw)


def mutations(raw, rng, count):
    """Flipped bits, cuts, pieces moved, blanks, and numbers of extremes put anywhere."""
    for k in range(count):
        new = bytearray(raw)
        at = int(rng.integers(len(raw)) if k % 3 else rng.integers(min(len(raw), 200)))  # headers more often
        kind = k % 6
        if kind == 0:
            new[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del new[at:]
        elif kind == 2:
            piece = new[at : at + int(rng.integers(1, 64))]
            to = int(rng.integers(len(raw)))
            new[to : to + int(rng.integers(2)) * len(piece)] = piece
        elif kind == 3:
            new[at : at + 8] = bytes(8)
        elif kind == 4:
            new[at : at + 4] = struct.pack(
                "<I", int(rng.choice([1 << 31, (1 << 32) - 1, 0x7FFFFFFF, 0x7FC00000]))
            )
        else:
            for _ in range(8):
                new[int(rng.integers(len(raw)))] = int(rng.integers(256))
        yield bytes(new)


@pytest.mark.parametrize("name", ["ply", "compressed.ply", "splat", "spz", "4.spz", "sog"])
def test_a_mutated_file_is_a_scene_or_one_line(whole, tmp_path, name):
    rng = np.random.default_rng(len(name))
    tracemalloc.start()
    said = [outcome(tmp_path / f"f.{name}", raw) for raw in mutations(whole[name], rng, 150)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < FEW
    assert sum(s is not None for s in said) >= 20  # else nothing was damaged


def test_what_is_inside_of_packed_files_is_doubted_too(whole, tmp_path):
    """Behind the checksums of gzip and zip: altered payloads, packed again."""
    rng = np.random.default_rng(1)
    for raw in mutations(gzip.decompress(whole["spz"]), rng, 60):
        outcome(tmp_path / "f.spz", gzip.compress(raw, 1))
    files, _ = sog_files()
    said = []
    for name in ("meta.json", "quats.webp", "shN_centroids.webp"):
        for raw in mutations(files[name], rng, 60):
            said.append(outcome(tmp_path / "f.sog", zipped(files | {name: raw})))
    assert sum(s is not None for s in said) > 60


def test_counts_are_compared_with_the_file_first(whole, tmp_path):
    head = whole["ply"].replace(b"vertex 300", b"vertex 2147483648")
    refused(tmp_path / "f.ply", head, "2,147,483,648 of 'vertex' need")
    refused(
        tmp_path / "f.ply", whole["ply"].replace(b"vertex 300", b"vertex 99999999999999999999999"), "line"
    )
    refused(tmp_path / "f.ply", whole["compressed.ply"].replace(b"chunk 2", b"chunk 1"), "1 chunks of 256")
    inner = bytearray(gzip.decompress(whole["spz"]))
    inner[8:12] = struct.pack("<I", 1 << 31)
    refused(tmp_path / "f.spz", gzip.compress(bytes(inner)), "claim to hold")
    longer = whole["4.spz"][:8] + struct.pack("<I", 1 << 31) + whole["4.spz"][12:]
    refused(tmp_path / "f.spz", longer, "claim to hold")
    files, _ = sog_files()
    meta = json.loads(files["meta.json"]) | {"count": 1 << 31}
    refused(
        tmp_path / "f.sog", zipped(files | {"meta.json": json.dumps(meta).encode()}), "16 pixels of quats"
    )


def test_bombs_are_not_unpacked(whole, tmp_path):
    count = 20_000_000
    blank = struct.pack("<4sIIBBBB", b"NGSP", 3, count, 0, 12, 0, 0)
    packer = zlib.compressobj(9, wbits=31)
    bomb = packer.compress(blank) + packer.compress(bytes(1 << 26)) + packer.flush()
    refused(tmp_path / "f.spz", bomb, "claim to hold 400 MB")
    small = struct.pack("<4sIIBBBB", b"NGSP", 3, 1, 0, 12, 0, 0) + bytes([1] * 20)
    packer = zlib.compressobj(9, wbits=31)
    bomb = packer.compress(small) + packer.compress(bytes(1 << 26)) + packer.flush()
    refused(tmp_path / "f.spz", bomb, "no end")  # honest about its Gaussian, then more than extensions need
    frame = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    table = whole["4.spz"][:48] + whole["4.spz"][48:]
    old = struct.unpack_from("<Q", table, 32)[0]
    bomb = table[:32] + struct.pack("<Q", len(frame)) + table[40:128] + frame + table[128 + old :]
    refused(tmp_path / "f.spz", bomb, "a stream of 67,108,864 bytes where 2,700 are needed")
    files, _ = sog_files()
    path = tmp_path / "bomb.sog"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in files.items():
            archive.writestr(name, bytes(1 << 25) if name == "sh0.webp" else raw)
    refused(path, path.read_bytes(), "sh0.webp in it is larger than")
    wide = bytearray(webp(np.zeros((4, 4, 4), np.uint8)))
    at = wide.index(b"VP8L") + 9
    wide[at : at + 4] = struct.pack("<I", int.from_bytes(wide[at : at + 4], "little") | 0xFFFFFFF)
    refused(path, zipped(files | {"quats.webp": bytes(wide)}), "claim to hold 1.07 GB")


@pytest.mark.parametrize(
    "name", ["../secret.webp", "/etc/passwd", "a/b.webp", "..", "s3://b/x", "a\\b", "C:x", "", 5]
)
@pytest.mark.parametrize("as_folder", [True, False])
def test_pictures_lie_beside_their_table(tmp_path, name, as_folder):
    files, _ = sog_files()
    meta = json.loads(files["meta.json"])
    meta["scales"]["files"] = [name]
    files["meta.json"] = json.dumps(meta).encode()
    for file, raw in files.items():
        (tmp_path / file).write_bytes(raw)
    (tmp_path / "s.sog").write_bytes(zipped(files))
    with pytest.raises(CorruptArtefact, match="no file beside it"):
        read(str(tmp_path if as_folder else tmp_path / "s.sog"))


def test_other_files_are_told_in_a_line(whole, tmp_path):
    path = tmp_path / "f.ply"
    ascii_ply = b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1\n"
    assert "is ascii; wanted a binary one" in outcome(path, ascii_ply)
    mesh = whole["ply"].replace(b"float opacity", b"float opulent").replace(b"float rot_3", b"float rot_9")
    assert "have no rot_3, opacity; wanted" in outcome(path, mesh)
    assert "with 9 properties f_rest_" in outcome(path, whole["ply"].replace(b"f_rest_8", b"f_rest_9"))
    assert "no zlib" not in outcome(path, gzip.compress(b"something else, zipped"))
    for raw, words in (
        (b"", "empty"),
        (b"\0" * 100, "which is none"),
        (b"ply\n", "no end"),
        (b"PK\3\4abc", "none"),
    ):
        assert words in outcome(path, raw)
    with pytest.raises(BadInput, match="a file that exists"):
        read(str(tmp_path / "nothing.ply"))
    with pytest.raises(BadInput, match=r"ends with \.compressed\.ply, \.ply, \.splat, \.spz, \.sog"):
        write(solids(3), str(tmp_path / "scene.glb"))


@pytest.mark.parametrize("name", ["means", "scales", "quats", "opacities", "sh"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_cannot_be_drawn_is_neither_read_nor_written(tmp_path, name, bad):
    scene = solids(40, degree=1)
    scene.arrays()[name].reshape(40, -1)[7] = bad
    said = outcome(tmp_path / "f.ply", b"".join(ply.pieces(scene)))
    if name == "opacities" and bad == np.inf:  # what converters from 8 bits write for an opacity of 1
        assert said is None and read(str(tmp_path / "f.ply")).opacities[7] == pytest.approx(np.log(1019))
    else:
        assert f"1 of 40 Gaussians with {name} of NaN or infinity" in said
    for ending in ("ply", "compressed.ply", "splat", "spz", "sog"):
        with pytest.raises(BadInput, match="1 of 40"):
            write(scene, str(tmp_path / f"out.{ending}"))
    assert [p.name for p in tmp_path.iterdir()] == ["f.ply"]


def test_nothing_is_no_scene(whole, tmp_path):
    empty = solids(4).take([])
    for raw in (b"".join(ply.pieces(empty)), b"".join(spz.pieces(empty))):
        assert "Gaussians" in outcome(tmp_path / "f.x", raw)
    with pytest.raises(BadInput, match="no Gaussians"):
        write(empty, str(tmp_path / "out.spz"))
    far = Scene([[0, 0, 0]], [[0, 0, 0]], [[0, 0, 0, 0]], [0], [[[0, 0, 0]]])
    assert "rotation of length 0" in outcome(tmp_path / "f.x", b"".join(ply.pieces(far)))


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "scene.ply"
    write(solids(5), str(target))
    old = target.read_bytes()

    def torn(scene):
        yield b"ply\n"
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(__import__("holdall.splats.formats", fromlist=["_WRITERS"])._WRITERS, ".ply", torn)
    with pytest.raises(OSError, match="No space"):
        write(solids(50), str(target))
    assert target.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["scene.ply"]
