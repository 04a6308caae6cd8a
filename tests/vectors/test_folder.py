"""An index folder: killed while it changes, read while it changes, changed by two."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from deadly import DEADLY

from holdall.errors import BadInput, CorruptArtefact
from holdall.vectors import Nothing
from holdall.vectors.folder import Folder, changing
from holdall.vectors.quality import real

KILLED = (
    DEADLY
    + """
import sys
import numpy as np
from holdall.vectors import Nothing
from holdall.vectors.folder import Change
what, n, url = sys.argv[1], int(sys.argv[2]), sys.argv[3]
x = np.load(os.path.join(os.path.dirname(url), "x.npy"))
with Nothing().open(url) as index:
    os.fsync, os.replace, Change.append = deadly(os.fsync), deadly(os.replace), deadly(Change.append)
    index.add(x, np.arange(10_000, 10_000 + len(x))) if what == "add" else index.remove(np.arange(0, 900))
print(calls[0])
"""
)


@pytest.mark.parametrize("what", ["add", "remove"])
def test_killed_at_any_moment_it_is_what_it_was_or_what_it_became(tmp_path, what):
    vectors, queries = real()
    url = str(tmp_path / "v.index")
    np.save(tmp_path / "x.npy", vectors[1000:])
    with Nothing().build(vectors[:1000], to=url) as index:
        states = {1000: index.search(queries, 5).ids}
    became = 600 + 1000 if what == "add" else 100
    for n in range(1, 12):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, what, str(n), url], capture_output=True, text=True, check=False
        )
        with Nothing().open(url) as index:
            found = index.search(queries, 5).ids
            index.folder.check()
            if index.count == 1000:
                assert np.array_equal(found, states[1000]) and done.returncode == -signal.SIGKILL
                continue
            assert index.count == became
            break
    else:
        raise AssertionError("it never got through")
    assert n > 3  # so some were killed before
    with Nothing().open(url) as index:  # what a killed change left is no hindrance
        index.add(vectors[:1], [99_999])
        index.folder.check()
    named = {"lock", "index.hold", *Folder.open(url).files}
    assert {p.name for p in Path(url).iterdir()} == named


READS = """
import sys
import numpy as np
from holdall.vectors import Nothing
url, flag = sys.argv[1:]
import pathlib
seen, rounds = set(), 0
with Nothing().open(url) as old:
    first = old.search(np.zeros(64, "f4"), 3)
    print("ready", flush=True)
    while not pathlib.Path(flag).exists() or rounds < 3:
        with Nothing().open(url) as fresh:
            fresh.search(np.zeros(64, "f4"), 3)
            seen.add(fresh.count)
        again = old.search(np.zeros(64, "f4"), 3)
        assert (again.ids == first.ids).all() and (again.distances == first.distances).all()
        rounds += 1
print(sorted(seen))
"""


def test_readers_go_on_while_it_changes(tmp_path):
    vectors, _ = real()
    url, flag = str(tmp_path / "v.index"), tmp_path / "done"
    with Nothing().build(vectors, to=url) as index:
        reader = subprocess.Popen(
            [sys.executable, "-c", READS, url, str(flag)], stdout=subprocess.PIPE, text=True
        )
        assert reader.stdout is not None and reader.stdout.readline() == "ready\n"
        counts = {index.count}
        for i in range(8):
            index.add(vectors[:50], np.arange(50) + 10_000 * (i + 1))
            counts.add(index.count)
            index.remove(np.arange(200 * i, 200 * i + 180))  # its file is written again on the way
            counts.add(index.count)
            time.sleep(0.02)
        flag.touch()
        out, _ = reader.communicate(timeout=60)
    assert reader.returncode == 0
    assert set(map(int, out.strip("[]\n").split(","))) <= counts


def test_one_changes_at_a_time_and_knows_what_is_there(tmp_path):
    vectors, _ = real()
    url = str(tmp_path / "v.index")
    with Nothing().build(vectors, to=url) as mine, Nothing().open(url) as other:
        with changing(url), pytest.raises(BadInput, match="no other process"):
            mine.add(vectors[:1])
        other.add(vectors[:1])
        with pytest.raises(BadInput, match="changed since"):
            mine.add(vectors[:2])
        assert mine.count == len(vectors) + 1  # and from now on it knows
        mine.add(vectors[:2])
    with Nothing().open(url) as index:
        assert index.count == len(vectors) + 3


def test_what_was_begun_and_given_up_is_not_there(tmp_path):
    vectors, _ = real()
    broken = vectors.copy()
    broken[1500, 3] = np.inf
    with pytest.raises(BadInput, match="row 1500"):
        Nothing().build(broken, to=str(tmp_path / "v.index"))
    assert os.listdir(tmp_path) == []
    with pytest.raises(BadInput, match="folder that exists"):
        Nothing().build(vectors, to=str(tmp_path / "no" / "v.index"))
    Nothing().build(vectors, to=str(tmp_path / "v.index")).close()
    with pytest.raises(BadInput, match="already"):
        Nothing().build(vectors, to=str(tmp_path / "v.index"))
    (tmp_path / "v.index" / "rows-1").unlink()
    with pytest.raises((BadInput, CorruptArtefact)), Nothing().open(str(tmp_path / "v.index")) as index:
        index.search(vectors[0], 1)
