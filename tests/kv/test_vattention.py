"""Contexts that grow page by page: the card's six properties, and what the manager promises besides."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from holdall import BadInput, BudgetError
from holdall.checks import runtime
from holdall.cli.run import kv_method
from holdall.kv import Geometry, VAttention
from holdall.kv.slot_load import Arrival, arrivals, follow, measure, replay, within
from holdall.kv.slots import Slots

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="maps pages with Linux's calls")
SMALL = Geometry(
    layers=2, heads=2, dim=32
)  # 256 bytes a token in each of 4 tensors: 16 tokens a page of 4 kB
S, B, PAGE = 512, 8, 4096
PLAIN = VAttention(slots=B, length=S, page=PAGE, background=False)
LOAD = arrivals(64, S, S / 5, gap=8, seed=1)


def small(budget: Any = None, **knobs: Any) -> Slots:
    return PLAIN.but(**knobs).open(SMALL, budget)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [G*H, D] over k, v [T, H, D]."""
    h = k.shape[1]
    return scaled_dot_product_attention(
        q.view(1, h, -1, q.shape[-1]), *(t.transpose(0, 1)[None] for t in (k, v))
    )


def peak_need(load: Sequence[Arrival], cost: Callable[[int], int]) -> int:
    return max(sum(cost(n) for n in m.lengths) for m in replay(load, B))


@pytest.mark.parametrize("knobs", [{}, {"sliced": True}, {"background": True}, {"reclaim": "at once"}])
def test_attention_is_that_of_a_static_cache_bit_by_bit(knobs: dict[str, Any]) -> None:
    lot = torch.Generator().manual_seed(0)
    static = torch.zeros(2, 2, B, S, 2, 32)  # keys and values, layers
    with small(**knobs) as slots:
        before = [0] * B
        for moment in replay(LOAD[:24], B):
            follow(slots, moment)
            for slot, n in enumerate(moment.lengths):
                start = 0 if slot in moment.ended or n < before[slot] else before[slot]
                for half, tensors in enumerate((slots.keys, slots.values)):
                    for layer in range(2):
                        new = torch.randn(n - start, 2, 32, generator=lot)
                        static[half, layer, slot, start:n] = new
                        tensors[layer][slot, start:n] = new
                if n and slot % 3 == 0:
                    q = torch.randn(4, 32, generator=lot)
                    mine = attend(q, slots.keys[1][slot, :n], slots.values[1][slot, :n])
                    assert torch.equal(mine, attend(q, static[0, 1, slot, :n], static[1, 1, slot, :n]))
            before = list(moment.lengths)


@pytest.mark.parametrize("reclaim", ["deferred", "gradual", "at once"])
def test_resident_memory_is_what_is_needed_and_a_page_a_tensor_and_slot(reclaim: str) -> None:
    """The card's load: 64 requests of 2,048 tokens at most and a fifth of that on average, all slots busy."""
    thin, load = Geometry(layers=2, heads=1, dim=32), arrivals(64, 2048, 2048 / 5, gap=20)
    method = PLAIN.but(length=2048, reclaim=reclaim)
    needed = peak_need(load, lambda n: n * thin.token)
    static = method.whole(thin)
    assert sum(a.length for a in load) / len(load) == pytest.approx(0.2 * 2048, rel=0.05)
    with method.open(thin, needed + B * 4 * PAGE) as slots:
        highest = 0
        for moment in replay(load, B):
            follow(slots, moment)
            if slots.nbytes > highest:
                highest = slots.resident()
                assert highest == slots.nbytes  # the kernel's count is ours
        assert slots.traffic()["refused"] == 0
    assert 0.9 * needed <= highest <= needed + B * 4 * PAGE and highest <= 0.35 * static, (
        needed,
        highest,
        static,
    )


def test_addresses_never_change_and_nothing_is_copied() -> None:
    with small() as slots:
        slots.step([10])
        first = slots.keys[0][0, :10]
        first[:] = 4.0
        for n in range(11, S + 1, 7):
            slots.step([n, n // 2])
            assert slots.keys[0][0, :n].data_ptr() == first.data_ptr()
        assert (slots.keys[0][0, :10] == 4).all() and slots.traffic()["copied"] == 0


def test_deferred_reclamation_maps_five_times_less() -> None:
    went = {}
    load = arrivals(200, S, S / 5, gap=12, seed=2)
    for reclaim in ("deferred", "at once"):
        with small(reclaim=reclaim) as slots:
            for moment in replay(load, B):
                follow(slots, moment)
            told = slots.traffic()
            went[reclaim] = told["mapped"] + told["unmapped"]
    assert went["at once"] >= 5 * went["deferred"], went


def test_decode_attention_beats_gathering_from_blocks() -> None:
    geometry, t, block = Geometry(layers=1, heads=3, dim=64), 1024, 16
    with VAttention(slots=4, length=2048).open(geometry) as slots:
        slots.step([t] * 4)
        for tensor in (slots.keys[0], slots.values[0]):
            tensor[:, :t] = torch.randn(4, t, 3, 64)
        pools = [torch.randn(4 * t // block, block, 3, 64) for _ in range(2)]
        table = torch.randperm(4 * t // block).view(4, -1)
        q = torch.randn(4, 9, 64)

        def ours() -> None:
            for slot in range(4):
                attend(q[slot], slots.keys[0][slot, :t], slots.values[0][slot, :t])

        def paged() -> None:
            for slot in range(4):
                attend(q[slot], *(p[table[slot]].view(t, 3, 64) for p in pools))

        assert 1.2 * fastest(ours) <= fastest(paged)


def fastest(act: Callable[[], None]) -> float:
    found = []
    for _ in range(12):
        start = time.process_time()
        act()
        found.append(time.process_time() - start)
    return min(found)


def test_half_of_the_peak_demand_makes_requests_wait_and_overruns_nothing() -> None:
    with small() as slots:
        half = peak_need(LOAD, slots.cost) // 2
    with small(half, background=True) as slots:
        waited = answered = 0
        for moment in replay(LOAD, B, within(slots)):
            follow(slots, moment)
            waited, answered = waited + moment.waiting, answered + len(moment.ended)
            assert slots.nbytes <= slots.budget <= half
        assert slots.resident() <= half and slots.traffic()["peak_bytes"] <= half
        assert waited > 0 and answered == len(LOAD) and slots.traffic()["refused"] == 0


def test_a_step_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    with small(10 * 4 * PAGE) as slots:  # ten blocks of 16 tokens
        slots.step([40, 16])
        slots.keys[0][0, :40] = 2.0
        before = slots.traffic()
        with pytest.raises(BudgetError) as caught:
            slots.step([120, 60])
        assert caught.value.least == 12 * 4 * PAGE
        after = slots.traffic()
        assert after["refused"] == 1 and after["mapped"] == before["mapped"] and slots.lengths[:2] == [40, 16]
        slots.step([100, 48])
        assert (slots.keys[0][0, :40] == 2).all() and slots.resident() == 10 * 4 * PAGE


def test_pages_of_ended_requests_are_reused_and_taken_back_from_the_highest_slot() -> None:
    with small(12 * 4 * PAGE) as slots:
        slots.step([64, 64, 64])  # four blocks each: all of the pool
        slots.step([0, 64, 0])
        assert slots.free == 8 * 4 * PAGE and slots.resident() == 12 * 4 * PAGE
        assert slots.lowest() == 0
        slots.step([60, 64, 0])
        assert slots.traffic()["mapped"] == 12 and slots.traffic()["unmapped"] == 0  # warm
        slots.step([60, 100, 0])  # three more, which slot 2 does not need
        assert [s.mapped for s in slots.pool.slots[:3]] == [4, 7, 1]
        assert slots.traffic()["unmapped"] == 3 and slots.resident() == 12 * 4 * PAGE


def test_what_is_worth_least_is_taken_back_first() -> None:
    with small(f"{6 * PLAIN.page * 4}B", slots=4) as slots:  # six blocks of 16 tokens
        slots.step([16, 16, 16, 16])
        for slot, worth in ((0, 1), (3, 2), (1, 3)):
            slots.release(slot, worth=worth)
        slots.step([0, 0, 64, 0])  # four of six: one of the three has to go
        assert [slots.kept(i) for i in (0, 1, 3)] == [0, 16, 16]
        slots.step([0, 0, 80, 0])
        assert [slots.kept(i) for i in (0, 1, 3)] == [0, 16, 0]


def test_gradual_reclamation_spares_the_slot_that_is_next() -> None:
    with small(reclaim="gradual") as slots:
        slots.step([64, 64, 64])
        for left in (3, 2, 1, 0, 0):
            slots.step([0, 64, 0])
            assert [s.mapped for s in slots.pool.slots[:3]] == [4, 4, left]


def test_the_thread_maps_what_the_next_steps_need() -> None:
    with small(background=True) as slots:
        slots.step([15, 200])
        first = slots.traffic()
        assert (
            first["mapped_ahead"] == 1 + 1 + 2
        )  # ten steps on, both need one more; two for the slot that is next
        for n in range(16, 150):
            slots.step([n, 200])
            assert (
                slots.traffic()["mapped"] - slots.traffic()["mapped_ahead"]
            ) == 14  # none in the caller's way
        assert slots.pool.slots[2].mapped == 2 and slots.lowest() == 2
        slots.step([150, 200, 30])  # a new prompt finds its two blocks mapped
        assert slots.traffic()["mapped"] - slots.traffic()["mapped_ahead"] == 14


def test_a_prefix_is_the_same_memory_in_many_slots_until_it_is_written() -> None:
    with small() as slots:
        slots.step([72])  # 4.5 pages
        for layer in range(2):
            slots.keys[layer][0, :72] = torch.arange(72.0)[:, None, None]
            slots.values[layer][0, :72] = -torch.arange(72.0)[:, None, None]
        alone = slots.resident()
        prefix = slots.share(0, 72)
        assert (
            slots.resident() == alone + 4 * PAGE
        )  # what stands in no whole page stands twice: in slot and prefix
        for slot in (1, 2, 3):
            slots.attach(slot, prefix)
        assert slots.lengths[:4] == [72] * 4
        assert slots.resident() <= alone + 4 * slots.block  # and not three times as much again
        for slot in range(4):
            assert (slots.keys[1][slot, :72, 0, 0] == torch.arange(72.0)).all()
            assert (slots.values[0][slot, :72, 0, 0] == -torch.arange(72.0)).all()
        slots.step([80, 90, 72, 72])
        slots.keys[0][1, 72:90] = 5.0  # behind the prefix: its own page
        assert (slots.keys[0][2, 64:72, 0, 0] == torch.arange(64.0, 72)).all() and slots.traffic()[
            "copied"
        ] == 0
        slots.step([80, 20, 72, 72])  # slot 1 goes back into the prefix,
        slots.step([80, 25, 72, 72])  # and writes there
        assert slots.traffic()["copied"] == 3
        slots.keys[0][1, 20:25] = 9.0
        assert (slots.keys[0][1, :20, 0, 0] == torch.arange(20.0)).all()
        assert (slots.keys[0][0, :72, 0, 0] == torch.arange(72.0)).all()
        assert slots.resident() <= slots.nbytes <= slots.budget


def test_a_prefix_outlives_its_slots_and_goes_when_it_is_dropped() -> None:
    with small() as slots:
        slots.step([64])
        slots.keys[0][0, :64] = 3.0
        prefix = slots.share(0, 50)
        slots.release(0)
        slots.step([0, 16])
        slots.attach(0, prefix)
        assert (slots.keys[0][0, :50] == 3).all() and slots.lengths[0] == 50
        slots.drop(prefix)
        with pytest.raises(BadInput):
            slots.attach(3, prefix)
        assert (slots.keys[0][0, :50] == 3).all()
        slots.release(0)
        assert slots.pool.prefixes == [] and slots.resident() == slots.nbytes == slots.block
    with small(5 * 4 * PAGE) as slots:
        slots.step([64])
        with pytest.raises(BudgetError):  # no room for the copy
            slots.share(0, 64)
        assert slots.resident() == 4 * 4 * PAGE


@pytest.mark.parametrize("knobs", [{}, {"sliced": True}, {"background": True}])
def test_a_context_begins_with_what_stands_in_a_slot(knobs: dict[str, Any]) -> None:
    with small(slots=3, **knobs) as slots:
        slots.step([50, 0, 0])
        for tensor in [*slots.keys, *slots.values]:
            tensor[0, :50] = torch.randn(50, 2, 32, generator=torch.Generator().manual_seed(1))
        before = [t[0, :50].clone() for t in [*slots.keys, *slots.values]]
        slots.begin(1, 37, 0)  # of one that is busy
        assert slots.lengths[:2] == [50, 37] and slots.kept(1) == 37
        slots.release(0)
        assert slots.kept(0) == 50
        slots.begin(0, 41, 0)  # of one that ended, where it is
        slots.step([60, 38, 0])
        for i, tensor in enumerate([*slots.keys, *slots.values]):
            assert torch.equal(tensor[0, :41], before[i][:41]) and torch.equal(tensor[1, :37], before[i][:37])
        for wrong in ((1, 5, 0), (2, 61, 0), (2, -1, 0)):
            with pytest.raises(BadInput, match="slot"):
                slots.begin(*wrong)


def test_what_others_needed_no_longer_stands_there_even_where_pages_came_back() -> None:
    with small(f"{6 * PLAIN.page * 4}B", slots=2) as slots:  # six blocks of 16 tokens
        slots.step([0, 64])
        slots.keys[0][1, :64] = 7.0
        slots.release(1)
        assert slots.kept(1) == 64
        slots.step([60, 0])  # four blocks: two of the other's go
        assert slots.kept(1) == 32 and not slots.keys[0][1, 32:].any()
        slots.release(0)
        slots.begin(1, 20, 1)
        slots.step([0, 64])  # there again, and empty
        assert (slots.keys[0][1, :20] == 7.0).all() and not slots.keys[0][1, 32:].any()
        slots.release(1)
        with pytest.raises(BudgetError):
            slots.step([16, 90])
        slots.step([96, 0])
        assert slots.kept(1) == 0
        with pytest.raises(BadInput):
            slots.begin(1, 1, 1)


def test_a_slot_gives_back_what_the_next_one_has_no_use_for() -> None:
    with small(slots=2) as slots:
        slots.step([300, 0])
        slots.release(0)
        held = slots.nbytes
        slots.begin(0, 0, 0, room=40)
        spare = slots.method.extra * slots.block
        assert slots.nbytes == slots.cost(40) + spare < held and slots.kept(0) == 0
        slots.step([40, 0])
        assert slots.resident() == slots.cost(40) + spare


def test_a_copy_for_which_there_is_no_room_changes_nothing() -> None:
    with small(f"{6 * PLAIN.page * 4}B", slots=2) as slots:
        slots.step([64, 0])
        slots.keys[1][0, :64] = 3.0
        slots.release(0)
        with pytest.raises(BudgetError):
            slots.begin(1, 50, 0)
        assert slots.lengths == [0, 0] and slots.kept(0) >= 50 and (slots.keys[1][0, :50] == 3.0).all()


@pytest.mark.parametrize("door", ["hide", "map", "show"])
def test_a_kernel_that_refuses_in_the_middle_of_a_copy_loses_nothing(
    door: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from holdall.kv.virtual import Region

    with small() as slots:
        slots.step([70])
        slots.values[1][0, :70] = torch.arange(70.0)[:, None, None]
        prefix = None if door == "show" else slots.share(0, 70)
        real, calls = getattr(Region, door), [0]

        def fails_once(self: Region, *args: Any) -> None:
            calls[0] += 1
            if calls[0] == 3:
                raise OSError(12, "no memory")
            real(self, *args)

        monkeypatch.setattr(Region, door, fails_once)
        with pytest.raises(OSError, match="no memory"):
            if prefix is None:
                slots.share(0, 70)
            else:
                slots.step([10])
                slots.step([20])
        monkeypatch.undo()
        assert (slots.values[1][0, :64, 0, 0] == torch.arange(64.0)).all()
        assert slots.resident() <= slots.nbytes


def test_sliced_tensors_need_smaller_blocks() -> None:
    deep = Geometry(layers=16, heads=2, dim=32)
    with PLAIN.open(deep) as apart, PLAIN.but(sliced=True).open(deep) as together:
        for slots in (apart, together):
            slots.step([3, 3])
        assert apart.resident() == 2 * 32 * PAGE and together.resident() == 2 * 2 * 3 * PAGE
        assert together.keys[5].shape == apart.keys[5].shape and together.keys[5].stride(1) == 16 * 64


@dataclass(frozen=True, kw_only=True)
class Greedy(VAttention):
    """Ignores its budget."""

    def open(self, artefact: Geometry, budget: Any = None) -> Slots:
        return super().open(artefact, None)


class Lasting(Slots):
    """Gives nothing back."""

    def close(self) -> None:
        self._open = False


@dataclass(frozen=True, kw_only=True)
class Leaky(VAttention):
    """Opens slots that last."""

    def open(self, artefact: Geometry, budget: Any = None) -> Slots:
        kept.append(Lasting(self, artefact, self.whole(artefact)))
        return kept[-1]


kept: list[Slots] = []


@dataclass(frozen=True, kw_only=True)
class Careless(VAttention):
    """Goes on where the kernel has no memory left, as if it had been given some."""

    def open(self, artefact: Geometry, budget: Any = None) -> Slots:
        slots = super().open(artefact, budget)
        real = slots.pool.grow

        def grow(slot: int, blocks: int) -> None:
            with suppress(OSError):
                real(slot, blocks)

        slots.pool.grow = grow  # type: ignore[method-assign]
        return slots


@pytest.mark.parametrize(
    ("cls", "check", "told"),
    [
        (Greedy, runtime.check_budget_is_kept, "bytes for"),
        (Leaky, runtime.check_closing_gives_the_memory_back, "after it was closed"),
        (Careless, runtime.check_a_page_that_cannot_be_had_is_an_error_and_no_leak, "swallowed"),
    ],
)
def test_the_checks_of_runtimes_catch_those_that_break_them(cls: Any, check: Any, told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        check(cls)
    while kept:
        kept.pop().pool.close()


def test_mistakes_are_told() -> None:
    with small() as slots:
        for wrong in ([S + 1], [-1], [1] * (B + 1)):
            with pytest.raises(BadInput, match="lengths"):
                slots.step(wrong)
        slots.step([5])
        for slot, tokens in ((0, 6), (1, 1), (0, 0)):
            with pytest.raises(BadInput, match="prefix"):
                slots.share(slot, tokens)
    for act in (lambda: slots.keys, lambda: slots.nbytes, lambda: slots.release(0)):
        with pytest.raises(BadInput, match="closed"):
            act()
    for knobs in ({"page": 5000}, {"reclaim": "never"}, {"slots": 0}, {"extra": -1}):
        with pytest.raises(BadInput):
            VAttention(**knobs)
    with pytest.raises(BudgetError) as caught:
        PLAIN.open(SMALL, 100)
    assert caught.value.least == 4 * PAGE
    with pytest.raises(BadInput):
        Geometry(layers=0, heads=1, dim=1)
    with pytest.raises(BadInput, match="selector"):  # it holds contexts of many requests, not a part of one
        kv_method("kv.vattention", None, [])


@pytest.mark.slow
def test_measuring_it_counts_what_the_kernel_holds() -> None:
    report = measure(VAttention(), "35%", quick=True)
    static, ours = report.rows["static"], report.rows["kv.vattention"]
    assert ours["needed_bytes"] <= ours["resident_bytes"] <= 0.35 * static["resident_bytes"]
    assert static["resident_bytes"] == VAttention().whole(Geometry(layers=30, heads=3, dim=64))
    with pytest.raises(BudgetError):
        measure(VAttention(), "1%", quick=True)
