"""Scenes as pictures: SOG of both versions, zipped and loose."""

import json

import numpy as np
import pytest
from sog_files import sog_files, zipped

from holdall.splats.formats import known, pictures, read, write
from holdall.splats.formats.values import by_nearness, sigmoid
from holdall.splats.made import solids


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


@pytest.mark.parametrize("n, degree", [(1, 3), (3, 0), (700, 1), (2100, 2)])
def test_written_sog_is_read_within_its_steps(tmp_path, n, degree):
    scene = solids(n, degree=degree, seed=n)
    write(scene, str(tmp_path / "s.sog"))
    assert known("x", (tmp_path / "s.sog").read_bytes()) == "sog"
    found, wanted = read(str(tmp_path / "s.sog")), scene.take(by_nearness(scene.means))
    step = np.ptp(np.log1p(np.abs(scene.means)) * np.sign(scene.means), axis=0) / 65535
    assert (np.abs(found.means - wanted.means) <= 0.51 * step * (1 + np.abs(wanted.means)) + 1e-6).all()
    assert np.abs(sigmoid(found.opacities) - sigmoid(wanted.opacities)).max() < 0.51 / 255
    one, two = (s.quats / np.linalg.norm(s.quats, axis=1, keepdims=True) for s in (found, wanted))
    assert np.abs((one * two).sum(1)).min() > 1 - 1e-4  # a fifth of a degree would be 1.5e-6
    for a, b in ((found.scales, wanted.scales), (found.sh[:, 0], wanted.sh[:, 0])):
        assert np.sqrt(np.mean((a - b) ** 2)) <= np.ptp(b) / 255 / np.sqrt(12)  # no worse than an even grid
    if degree:
        assert np.sqrt(np.mean((found.sh[:, 1:] - wanted.sh[:, 1:]) ** 2)) < (
            0.02 if n < 1025 else 0.6 * wanted.sh[:, 1:].std()
        )


def test_the_same_scene_gives_the_same_bytes():
    made = [b"".join(pictures.pieces(solids(1500, degree=1))) for _ in range(2)]
    assert made[0] == made[1]


def naive_palette(x, k, rounds):
    """k-means over all entries at once."""
    centres = x[np.random.default_rng(0).choice(len(x), k, replace=False)]
    for _ in range(rounds):
        mine = ((x[:, None] - centres) ** 2).sum(2).argmin(1)
        centres = np.stack([x[mine == i].mean(0) if (mine == i).any() else c for i, c in enumerate(centres)])
    return centres, ((x[:, None] - centres) ** 2).sum(2).argmin(1)


def test_a_palette_in_two_levels_is_nearly_as_good():
    x = solids(1500, degree=2).sh[:, 1:].reshape(1500, -1)
    palette, labels = pictures.paletted(x, 120)
    assert len(palette) <= 120 and len(np.unique(labels)) > 90
    ours = np.mean((palette[labels] - x) ** 2)
    centres, mine = naive_palette(x, len(palette), 12)
    assert ours < 1.25 * np.mean((centres[mine] - x) ** 2) < 0.5 * x.var()


def test_lists_of_numbers_follow_where_numbers_are():
    """Half the error of an even grid on a bell, and exact where there are few values."""
    bell = np.random.default_rng(0).standard_normal((20_000, 3)).astype(np.float32)
    places, book = pictures.listed(bell)
    even = np.ptp(bell) / 255 / np.sqrt(12)
    assert np.sqrt(np.mean((np.array(book)[places] - bell) ** 2)) < 0.75 * even
    few = np.float32([[-3, 0.25, 7], [7, 7, -3]])
    places, book = pictures.listed(few)
    np.testing.assert_allclose(np.array(book)[places], few, atol=0.03)
    places, book = pictures.listed(np.full((5, 3), 2.5, np.float32))
    assert (np.array(book)[places] == 2.5).all()
