"""Work in order, here and in processes; and a SPANN that workers build is the one that is built alone."""

import numpy as np
import pytest

from holdall.errors import BadInput
from holdall.parts.workers import in_order
from holdall.vectors import SPANN
from holdall.vectors.quality import real


def square(x):
    return x * x


@pytest.mark.parametrize(("jobs", "engine"), [(1, "processes"), (2, "processes")])
def test_results_come_in_order(jobs, engine):
    taken = []

    def items():
        for x in range(30):
            taken.append(x)
            yield x

    found = in_order(square, items(), jobs, engine)
    assert next(found) == (0, 0) and len(taken) < 12  # a few for each worker, not all
    assert list(found) == [(x, x * x) for x in range(1, 30)]
    with pytest.raises(BadInput, match="engine"):
        list(in_order(square, [1], 2, "threads"))


@pytest.mark.parametrize(
    ("layout", "engine"), [("codes", "processes"), ("lists", "processes"), ("lists", "ray")]
)
def test_workers_build_the_same(layout, engine):
    vectors, _ = real()
    found = []
    for jobs in (1, 2):
        method = SPANN(
            layout=layout, build_bytes=300_000, jobs=jobs, engine=engine if jobs > 1 else "processes"
        )
        with method.build(vectors) as index:
            arrays = {n: np.asarray(a).tobytes() for n, a in index.folder.arrays.items()}
            found.append(
                (arrays, [index.folder.read(n, 0, index.folder.size(n)) for n in index.folder.files])
            )
    assert found[0] == found[1]
