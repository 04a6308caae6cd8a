"""Layouts cover every tensor; plans write each element once and evenly; reads give everyone what it wants."""

import itertools
import math
import random

import numpy as np
import pytest

from holdall.checkpoints import boxes, planning
from holdall.checkpoints.layouts import Layout
from holdall.checkpoints.planning import Item
from holdall.errors import BadInput

SHAPES = {
    "embed_tokens.weight": (49, 6),
    **{
        f"layers.{i}.{n}": s
        for i in range(4)
        for n, s in {"q_proj.weight": (6, 6), "down_proj.weight": (6, 15), "norm.weight": (7,)}.items()
    },
    "norm.weight": (7,),
    "lm_head.weight": (49, 6),
}
LAYOUTS = [
    Layout(), Layout(dp=4), Layout(dp=3, zero=1), Layout(dp=3, zero=3), Layout(tp=2), Layout(tp=2, dp=2, zero=3),
    Layout(pp=2, dp=2, zero=2), Layout(tp=3, pp=2), Layout(tp=2, pp=2, dp=2, zero=3),
    Layout(pp=2, dp=3, zero=3, tied=("lm_head.weight", "embed_tokens.weight")),
]  # fmt: skip


def counts(held):
    found = {n: np.zeros(s, int) for n, s in SHAPES.items()}
    for name, box in held:
        found[name][box.slices()] += 1
    return found


def plan_of(layout, rank):
    held = {k: layout.held(rank, SHAPES, k) for k in ("model", "optim")}
    return [Item(f"{k}/{h.name}", b, 4, k) for k, hs in held.items() for h in hs for b in h.boxes()]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_ranks_hold_all_and_no_more_than_the_layout_says(layout):
    for kind in ("model", "optim"):
        flat = layout.zero == 3 or (layout.zero and kind == "optim")
        found = counts(
            (h.name, b) for r in range(layout.world) for h in layout.held(r, SHAPES, kind) for b in h.boxes()
        )
        for name, seen in found.items():
            copies = (1 if flat else layout.dp) * (2 if name in layout.tied and layout.pp > 1 else 1)
            if layout.axis(name, SHAPES[name]) is None:
                copies *= layout.tp
            assert (seen == copies).all(), (kind, name)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_each_element_is_written_once_by_one_that_holds_it(layout):
    plans = [plan_of(layout, r) for r in range(layout.world)]
    given = planning.deal(plans)
    assert len(given) == layout.world
    for kind in ("model", "optim"):
        found = counts((i.name.removeprefix(kind + "/"), i.box) for g in given for i in g if i.kind == kind)
        assert all((seen == 1).all() for seen in found.values())
    for own, plan in zip(given, plans, strict=True):
        for item in own:
            mine = [p.box for p in plan if p.name == item.name]
            assert not boxes.uncovered(item.box, mine), "a rank is to write what it does not hold"


def test_replicas_are_dealt_evenly():
    plans = [plan_of(Layout(dp=4), r) for r in range(4)]
    assert planning.imbalance(planning.deal(plans)) <= 1.1
    lopsided = [Item("one", boxes.whole((1000, 10)), 4, "model"), Item("two", boxes.whole((3,)), 4, "model")]
    assert planning.imbalance(planning.deal([lopsided] * 4)) <= 1.1  # one tensor is nearly all


def test_replicas_go_around_what_is_fixed():
    alone = Item("mine", boxes.whole((600,)), 4, "model")
    both = [Item(f"s{i}", boxes.whole((100,)), 4, "model") for i in range(6)]
    given = planning.deal([[alone, *both], both])
    assert sum(i.nbytes for i in given[0]) == sum(i.nbytes for i in given[1]) == 2400


def test_each_byte_is_read_by_one_rank():
    rng = random.Random(3)
    stored = [(boxes.whole((40, 8)), 4), (boxes.whole((33,)), 2)]
    for dp, once in itertools.product((1, 4), (True, False)):
        wants = [[(0, stored[0][0]), (1, stored[1][0])] for _ in range(dp)]
        reads = planning.share(stored, wants, 64, once)
        total = sum(r.box.elements * stored[r.entry][1] for r in reads)
        assert total == (1 if once else dp) * (40 * 8 * 4 + 33 * 2)
        loads = [sum(r.box.elements * stored[r.entry][1] for r in reads if r.reader == i) for i in range(dp)]
        assert max(loads) - min(loads) <= 128
    for _ in range(30):  # any wants at all: what is taken is what was wanted, and the reader has read it
        wants = []
        for _ in range(3):
            low = [rng.randrange(n) for n in (40, 8)]
            wants.append(
                [
                    (
                        0,
                        boxes.Box(
                            tuple(low),
                            tuple(rng.randint(1, n - o) for n, o in zip((40, 8), low, strict=True)),
                        ),
                    )
                ]
            )
        found = np.zeros((3, 40, 8), int)
        for read in planning.share(stored, wants, 100):
            assert read.reader in {r for r, _ in read.takers}
            for rank, box in read.takers:
                assert not boxes.minus(box, read.box)
                found[rank][box.slices()] += 1
        for rank, [(_, box)] in enumerate(wants):
            expected = np.zeros((40, 8), int)
            expected[box.slices()] = 1
            assert np.array_equal(found[rank], expected)


def test_rounds_hold_what_the_window_allows():
    reads = planning.share([(boxes.whole((64, 8)), 4)], [[(0, boxes.whole((64, 8)))]] * 2, 128)
    found = planning.rounds(reads, 2, lambda r: r.box.elements * 4, 256)
    assert sorted(itertools.chain(*found)) == sorted(reads) and len(found) == 4
    for some in found:
        for rank in range(2):
            assert sum(r.box.elements * 4 for r in some if r.reader == rank) <= 256


@pytest.mark.parametrize(
    ("world", "machine", "fanout"), [(1, 8, 8), (7, 2, 2), (64, 8, 3), (1000, 8, 8), (10_000, 8, 8)]
)
def test_a_tree_reaches_all_and_no_rank_hears_many(world, machine, fanout):
    tree = planning.Tree(world, machine, fanout)
    found = [0]
    for rank in found:
        for child in tree.children(rank):
            assert tree.parent(child) == rank
            found.append(child)
        assert len(tree.children(rank)) <= machine - 1 + fanout
    assert sorted(found) == list(range(world))
    assert tree.height(0) <= 2 + math.log(max(world / machine, 1), fanout) + 1


def test_plans_are_cached_by_what_they_depend_on():
    cache = planning.Cache(most=2)
    a, b = (planning.digest(plan_of(layout, 0)) for layout in (Layout(dp=2), Layout(dp=2, zero=3)))
    assert a != b and a == planning.digest(plan_of(Layout(dp=2), 0))
    assert cache.get(a) is None
    cache.put(a, "plan")
    assert cache.get(a) == "plan" and (cache.hits, cache.misses) == (1, 1)
    cache.put(b, 2)
    cache.put("c", 3)
    assert cache.get(a) is None


def test_layouts_that_make_no_sense():
    for wrong in ({"tp": 0}, {"zero": 4}):
        with pytest.raises(BadInput):
            Layout(**wrong)


def test_tied_names_are_written_once_where_all_that_hold_them_tie_them():
    first, second = (
        Item("a", boxes.whole((4, 2)), 4, "model"),
        Item("b", boxes.whole((4, 2)), 4, "model", "a"),
    )
    left, tied = planning.aliases([[first, second], [first, second]])
    assert left == [[first], [first]] and tied == {"b": "a"}
    loose = second._replace(alias="")
    left, tied = planning.aliases([[first, second], [loose]])  # a last stage that holds only the second
    assert left == [[first, loose], [loose]] and tied == {}


def test_files_are_split_and_boxes_cut():
    items = [Item("a", boxes.whole((100, 10)), 4, "model"), Item("b", boxes.whole((7,)), 4, "optim")]
    found = planning.files(items, 3, 1000, 2000)
    assert [name for name, _ in found] == ["model_3", "model_3.1", "optim_3"]
    cut = [i for _, some in found for i in some]
    assert max(i.nbytes for i in cut) <= 1000 and sum(i.nbytes for i in cut) == 4028
    assert all(sum(i.nbytes for i in some) <= 2000 for _, some in found)
