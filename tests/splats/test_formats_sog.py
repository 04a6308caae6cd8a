"""Scenes as pictures: SOG of both versions, zipped and loose."""

import json

import numpy as np
import pytest
from sog_files import sog_files, zipped

from holdall.splats.formats import known, read


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
