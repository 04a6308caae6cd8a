"""LanceDB's IVF_PQ on a disk that has nothing in memory: python lance_search.py folder (x.npy, q.npy, gt.npy in it).

Prints JSON: rows of recall, bytes, CPU and wall, one for each number of partitions and of rows read again.
"""

import json
import sys
import time
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parent.parent))
from vectors_data import anonymous, cold

PROBES = ((16, 2), (32, 2), (32, 4))


def main() -> None:
    folder = Path(sys.argv[1])
    base, asked, wanted = (np.load(folder / f"{n}.npy") for n in ("x", "q", "gt"))
    start = anonymous()
    store = lancedb.connect(str(folder / "lance"))
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(base.reshape(-1)), base.shape[1])
    began = time.process_time()
    table = store.create_table("t", pa.table({"id": np.arange(len(base)), "vector": vectors}))
    parts = next(p for p in (32, 25, 24, 16) if base.shape[1] % p == 0)
    table.create_index(num_partitions=512, num_sub_vectors=parts, metric="l2")
    built = time.process_time() - began
    del base, vectors
    files = [str(p) for p in (folder / "lance").rglob("*") if p.is_file()]
    size = sum(Path(f).stat().st_size for f in files)
    rows = {}
    for probes, refine in PROBES:

        def act(query: np.ndarray, probes: int = probes, refine: int = refine) -> np.ndarray:
            found = table.search(query).nprobes(probes).refine_factor(refine).limit(10).select(["id"])
            return found.to_arrow()["id"].to_numpy()

        row = cold(act, files, asked[:300], wanted[:300])
        rows[f"lancedb IVF_PQ, {probes} probes, refine {refine}"] = {
            **row, "private_bytes": anonymous() - start, "disk_bytes": size, "build_cpu_s": built,
        }  # fmt: skip
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
