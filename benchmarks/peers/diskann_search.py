"""DiskANN on a disk that has nothing in memory: python diskann_search.py folder (x.npy, q.npy, gt.npy in it).

Prints JSON: rows of recall, bytes, CPU and wall, one for each length of the candidate list. Two threads: with one it
hangs (microsoft/DiskANN#461).
"""

import json
import sys
import time
from pathlib import Path

import diskannpy
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from vectors_data import anonymous, cold

LISTS = (15, 20, 30, 60)


def main() -> None:
    folder = Path(sys.argv[1])
    base, asked, wanted = (np.load(folder / f"{n}.npy") for n in ("x", "q", "gt"))
    raw, where = base.nbytes, folder / "diskann"
    where.mkdir()
    began = time.process_time()
    diskannpy.build_disk_index(
        data=base, distance_metric="l2", index_directory=str(where), complexity=64, graph_degree=32,
        search_memory_maximum=raw * 0.1 / 2**30, build_memory_maximum=4.0, num_threads=2, pq_disk_bytes=0,
    )  # fmt: skip
    built = time.process_time() - began
    del base
    start = anonymous()
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
            **row, "private_bytes": anonymous() - start, "disk_bytes": size, "build_cpu_s": built,
        }  # fmt: skip
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
