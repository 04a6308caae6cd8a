"""Names of vectors, through additions and removals, against a list."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdall.errors import BadInput, CorruptArtefact
from holdall.vectors.ids import Ids

CHANGES = st.lists(st.tuples(st.sampled_from("+-"), st.integers(0, 40)), max_size=6)


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(["counted", "numbers", "strings"]), count=st.integers(1, 50), changes=CHANGES)
def test_they_are_those_of_a_list(kind, count, changes):
    def named(first, n):
        numbers = list(range(first, first + n))
        return {
            "counted": None,
            "numbers": [7 * i - 90 for i in numbers],
            "strings": [f"é{i}" for i in numbers],
        }[kind]

    used = count
    ids = Ids.of(named(0, count), count)
    truth = named(0, count) or list(range(count))
    for what, n in changes:
        if what == "+" and n:
            ids = ids.more(named(used, n), n, used)
            truth = truth + (named(used, n) or list(range(used, used + n)))
            used += n
        elif what == "-" and truth:
            keep = np.random.default_rng(n).random(len(truth)) < 0.6
            keep[0] = True
            ids, truth = ids.kept(keep), [t for t, k in zip(truth, keep, strict=True) if k]
        ids = Ids.of_sections({k: np.asarray(v) for k, v in ids.sections().items()}, ids.count)
        assert ids.count == len(truth) and ids.at(np.arange(len(truth))).tolist() == truth
        absent = "nobody" if kind == "strings" else 10**9
        assert ids.rows([*truth, absent]).tolist() == [*range(len(truth)), -1]
        assert ids.at(np.array([[0, -1]])).tolist() == [[truth[0], "" if kind == "strings" else -1]]
    if kind == "counted":
        assert ids.names is None  # they take a bit each


def test_what_is_no_list_of_ids_is_refused():
    ids = Ids.of(["a", "b"], 2)
    for act in (
        lambda: Ids.of([1, 1], 2), lambda: Ids.of([1], 2), lambda: Ids.of([1.5, 2], 2), lambda: Ids.of([[1], [2]], 2),
        lambda: Ids.of(np.array([1, 2**63], np.uint64), 2), lambda: ids.more(["b"], 1, 2), lambda: ids.more([3], 1, 2),
    ):  # fmt: skip
        with pytest.raises(BadInput):
            act()
    counted = Ids(3).kept(np.array([True, False, True]))
    assert counted.more([1], 1, 3).at(np.arange(3)).tolist() == [0, 2, 1]  # taken again by name
    with pytest.raises(BadInput):
        counted.more([2], 1, 3)


def test_forged_sections_are_refused():
    counted = Ids(9).kept(np.arange(9) % 2 == 0).sections()
    text = Ids.of(["a", "bc"], 2).sections()
    for sections, count in (
        ({"ids": np.zeros(3)}, 3), ({"ids": np.arange(3)}, 4), (counted, 4),
        (counted | {"ids/size": np.array([17])}, 5), (text | {"ids/ends": np.array([2, 1])}, 2),
        (counted | {"ids/size": np.array([-1])}, 5), (text, 3),
        (text | {"ids/text": np.full(3, 255, np.uint8)}, 2),
    ):  # fmt: skip
        with pytest.raises(CorruptArtefact):
            Ids.of_sections(sections, count)
