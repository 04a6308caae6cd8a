"""SPANN killed while it builds, adds and removes: it goes on, or is what it was, and never answers wrong."""

import json
import subprocess
import sys

import pytest
from deadly import DEADLY

KILLS = (
    DEADLY
    + """
import json, shutil, sys
import numpy as np
from holdall.vectors import SPANN
from holdall.vectors.folder import Change
from holdall.vectors.scratch import Buckets, Scratch
from holdall.vectors.quality import real, naive_search

layout, folder = sys.argv[1:]
vectors, queries = real()
vectors, queries = vectors[:800], queries[:20]
method = SPANN(layout=layout, build_bytes=120_000, ratio=0.1, list_bytes=6_000, cells=40, code_bytes=8)


def forked(act, at):
    "Whether it got through without having been killed at its n-th write."
    global n
    n = at
    pid = os.fork()
    if pid == 0:
        Buckets.add, Change.append = deadly(Buckets.add), deadly(Change.append)
        os.fsync, os.replace = deadly(os.fsync), deadly(os.replace)
        try:
            act()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return False
    assert os.WEXITSTATUS(status) == 0
    return True


def content(url):
    with SPANN().open(url) as index:
        arrays = {n: np.asarray(a).tobytes() for n, a in index.folder.arrays.items()}
        files = {n: index.folder.read(n, 0, index.folder.size(n)) for n in index.folder.files}
        return arrays, files, index.search(queries, 5).ids


whole, url = f"{folder}/whole", f"{folder}/killed"
method.build(vectors[:500], to=whole).close()
wanted = content(whole)
told = {"build": 0, "resumed": 0, "change": 0}
draw = np.random.default_rng(0)
while True:  # each time a little later, going on from what was done
    told["build"] += 1
    at = int(draw.integers(1, 5 + {"lists": 30, "codes": 3}[layout] * told["build"]))
    if os.path.exists(f"{url}/building/done.json"):
        told["resumed"] += 1 if json.load(open(f"{url}/building/done.json"))["steps"] else 0
    if forked(lambda: method.build(vectors[:500], to=url).close(), at):
        break
    assert not os.path.exists(f"{url}/index.hold") or content(url)[2].tolist() == wanted[2].tolist()
    if os.path.exists(f"{url}/index.hold"):
        shutil.rmtree(url)  # it was killed behind the commit: begin again
found = content(url)
assert found[0] == wanted[0] and found[1] == wanted[1] and np.array_equal(found[2], wanted[2])

def add():
    with SPANN().open(url) as index:
        index.add(vectors[500:650], np.arange(500, 650))
def add_much():
    with SPANN().open(url) as index:
        index.add(np.concatenate([vectors] * 2) + 0.5, np.arange(5000, 5000 + 2 * len(vectors)))
def remove():
    with SPANN().open(url) as index:
        index.remove(np.arange(200))
for act in (add, remove, add_much):
    with SPANN().open(url) as index:
        before, ids = index.count, index.search(queries, 5).ids
    at = 1
    while not forked(act, at):
        with SPANN().open(url) as index:
            index.folder.check()
            if index.count != before:
                break
            assert np.array_equal(index.search(queries, 5).ids, ids)
        told["change"] += 1
        at += int(draw.integers(1, {"lists": 16, "codes": 3}[layout]))
with SPANN().open(url) as index:
    index.folder.check()
    assert index.count == 500 + 150 - 200 + 2 * len(vectors)
    index.recipe = index.recipe.but(probes=10_000, prune=1e30, rerank=500.0)
    kept = np.concatenate([vectors[200:650], np.concatenate([vectors] * 2) + 0.5])
    away = naive_search(kept, queries, 5, "l2")[0]
    assert np.allclose(index.search(queries, 5).distances, away, rtol=1e-3)
    index.remove([5000])  # the next change takes away what killed ones left
    named = {"lock", "index.hold", *index.folder.files}
assert set(os.listdir(url)) == named, os.listdir(url)
print(json.dumps(told))
"""
)


@pytest.mark.parametrize("layout", ["lists", "codes"])
def test_killed_at_many_moments(tmp_path, layout):
    done = subprocess.run(
        [sys.executable, "-c", KILLS, layout, str(tmp_path)],
        capture_output=True, text=True, check=False, env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["build"] >= 3 and told["resumed"] >= 1 and told["change"] >= 4
