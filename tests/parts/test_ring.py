"""The ring: slots never overlap, room comes back in order, the one that fills waits for the one that empties."""

import random
import threading

import numpy as np
import pytest

from holdall.errors import BadInput, BudgetError, HoldallError
from holdall.parts.ring import BLOCK, Ring


@pytest.mark.parametrize("capacity", [BLOCK, 5 * BLOCK, 7 * BLOCK + 100])
def test_slots_never_overlap_and_keep_what_was_put_in(capacity):
    """Against a truth that only remembers which bytes are held."""
    rng = random.Random(capacity)
    ring, held, wraps = Ring(capacity), [], 0
    base, last = ring._memory.ctypes.data, -1
    for n in range(2000):
        nbytes = rng.choice([1, 3, 63, BLOCK - 1, BLOCK, rng.randint(1, capacity)])
        nbytes = min(nbytes, capacity)
        try:
            slot = ring.take(nbytes, timeout=0)
        except HoldallError:
            victim = held.pop(0 if rng.random() < 0.7 else rng.randrange(len(held)))
            assert (victim[0] == victim[1]).all(), "somebody wrote into a slot that was held"
            ring.free(victim[0])
            continue
        start = slot.ctypes.data - base
        assert len(slot) == nbytes and start % BLOCK == 0
        for other, _ in held:
            at = other.ctypes.data - base
            assert start >= at + len(other) or start + nbytes <= at
        wraps += start <= last
        last = start
        slot[:] = n % 251
        held.append((slot, n % 251))
        assert sum(len(s) for s, _ in held) <= ring.held <= ring.most <= capacity
    assert wraps > 20
    for slot, value in held:
        assert (slot == value).all()
        ring.free(slot)
    assert ring.held == 0
    ring.free(ring.take(capacity, timeout=0))  # all of it, in one piece, wherever the last one ended


def test_room_comes_back_in_the_order_in_which_it_was_taken():
    ring = Ring(3 * BLOCK)
    a, b, c = (ring.take(BLOCK) for _ in range(3))
    ring.free(c)
    ring.free(b)
    with pytest.raises(HoldallError, match="full"):
        ring.take(1, timeout=0)
    ring.free(a)
    assert ring.held == 0 and len(ring.take(3 * BLOCK, timeout=0)) == 3 * BLOCK


def test_a_stream_larger_than_the_ring_goes_through_in_order():
    ring, given, got = Ring(4 * BLOCK), [], []
    arrived, queue = threading.Semaphore(0), []

    def empty():
        while True:
            arrived.acquire()
            slot = queue.pop(0)
            if slot is None:
                return
            got.append(bytes(slot))
            ring.free(slot)

    reader = threading.Thread(target=empty)
    reader.start()
    rng = random.Random(0)
    for n in range(300):
        slot = ring.take(rng.randint(1, 4 * BLOCK), timeout=10)
        slot[:] = n % 256
        given.append(bytes(slot))
        queue.append(slot)
        arrived.release()
    queue.append(None)
    arrived.release()
    reader.join(10)
    assert got == given and ring.waited > 0 and ring.most <= 4 * BLOCK


def test_closing_wakes_who_waits():
    ring = Ring(BLOCK)
    ring.take(BLOCK)
    said = []

    def wait():
        with pytest.raises(HoldallError) as caught:
            ring.take(1)
        said.append(str(caught.value))

    waiting = threading.Thread(target=wait)
    waiting.start()
    ring.close("the disk is full")
    waiting.join(10)
    assert said == ["the disk is full"]


def test_misuse_is_an_error():
    ring = Ring(2 * BLOCK, memory=bytearray(2 * BLOCK))
    with pytest.raises(BudgetError) as caught:
        ring.take(2 * BLOCK + 1)
    assert caught.value.least == 2 * BLOCK + 1
    with pytest.raises(BudgetError):
        ring.take(0)
    with pytest.raises(BadInput):
        Ring(0)
    slot = ring.take(5)
    ring.free(slot)
    with pytest.raises(BadInput):
        ring.free(slot)
    with pytest.raises(BadInput):
        ring.free(np.zeros(5, np.uint8))
