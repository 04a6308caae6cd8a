"""DiskANN on a disk that has nothing in memory: python diskann_search.py folder (x.npy, q.npy, gt.npy in it).

Prints JSON: rows of recall, bytes, CPU and wall, one for each length of the candidate list. Two threads: with one it
hangs (microsoft/DiskANN#461).
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import diskannpy
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from vectors_data import anonymous, cold

LISTS = (15, 20, 30, 60)


def built(folder: Path) -> None:
    base = np.load(folder / "x.npy")
    (folder / "diskann").mkdir()
    began = time.process_time()
    diskannpy.build_disk_index(
        data=base, distance_metric="l2", index_directory=str(folder / "diskann"), complexity=64, graph_degree=32,
        search_memory_maximum=base.nbytes * 0.1 / 2**30, build_memory_maximum=4.0, num_threads=2, pq_disk_bytes=0,
    )  # fmt: skip
    (folder / "built.json").write_text(json.dumps(time.process_time() - began))


def searched(folder: Path) -> None:
    """In a process of its own: what building leaves behind would hide what an open index holds."""
    asked, wanted = (np.load(folder / f"{n}.npy") for n in ("q", "gt"))
    where, start = folder / "diskann", anonymous()
    index = diskannpy.StaticDiskIndex(index_directory=str(where), num_threads=2, num_nodes_to_cache=0)
    files = [str(p) for p in where.iterdir()]
    size = sum(Path(f).stat().st_size for f in files)
    rows = {}
    for complexity in LISTS:
        row = cold(
            lambda q, c=complexity: index.search(q, 10, c, beam_width=2).identifiers,
            files, asked[:300], wanted[:300],
        )  # fmt: skip
        rows[f"diskannpy, L {complexity}, W 2"] = {
            **row, "private_bytes": anonymous() - start, "disk_bytes": size,
            "build_cpu_s": json.loads((folder / "built.json").read_text()),
        }  # fmt: skip
    (folder / "rows.json").write_text(json.dumps(rows))


def main() -> None:
    folder = Path(sys.argv[1])
    if sys.argv[2:] == ["searched"]:
        searched(folder)
        return
    built(folder)
    subprocess.run([sys.executable, __file__, str(folder), "searched"], check=True, stdout=sys.stderr)
    print((folder / "rows.json").read_text())  # the library prints when it ends, too


if __name__ == "__main__":
    main()
