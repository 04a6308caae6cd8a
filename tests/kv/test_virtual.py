"""Addresses without memory: what is mapped, what the kernel holds for it, and what is shared."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
import torch

from holdall import BadInput
from holdall.kv import virtual
from holdall.kv.virtual import Region, memory_file, resident
from holdall.meter import resident_bytes

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="maps pages with Linux's calls")
K = 1 << 10


def test_a_reservation_larger_than_the_machine_costs_nothing() -> None:
    before = resident_bytes()
    region = Region(1 << 42, 64 * K)
    flat = region.tensor(torch.float32)
    assert flat.numel() == 1 << 40 and flat[1 << 39].item() == 0  # reading takes no memory either
    assert resident([region]) == 0 and resident_bytes() - before < 16 << 20
    region.close()


def test_pages_come_where_they_are_mapped_and_go_when_they_are_unmapped() -> None:
    region = Region(1 << 20, 64 * K)
    flat = region.tensor(torch.float32)
    region.map(128 * K, 192 * K)
    assert resident([region]) == 192 * K
    flat[32 * K : 80 * K] = 1.5
    assert resident([region]) == 192 * K  # writing into what is mapped brings no more
    region.map(128 * K, 64 * K)
    assert flat[32 * K].item() == 1.5  # mapping again changes nothing
    region.unmap(128 * K, 128 * K)
    assert resident([region]) == 64 * K
    assert flat[32 * K].item() == 0 and flat[64 * K].item() == 1.5
    region.close()
    assert (
        resident([region]) == 0 and flat.sum().item() == 0
    )  # the tensor outlives the session: zeros, no crash


@pytest.mark.parametrize("page", [4 * K, 64 * K, 2048 * K])
def test_page_groups_are_aligned_and_huge_pages_stay_out_of_small_ones(page: int) -> None:
    region = Region(8 << 20, page)
    assert region.start % page == 0
    region.map(page, page)
    region.tensor(torch.uint8)[page] = 1
    assert resident([region]) == page
    told = Path("/proc/self/smaps").read_text().split(f"{region.start:x}-", 1)[1]
    huge, flags = (re.search(rf"^{field}:(.*)$", told, re.M) for field in ("AnonHugePages", "VmFlags"))
    assert huge is not None and flags is not None
    assert ("nh" in flags[1].split()) == (page < 2048 * K)
    assert int(huge[1].split()[0]) * K in ({0, page} if page == 2048 * K else {0})
    region.close()


def test_shown_pages_are_the_same_memory_and_counted_once() -> None:
    region = Region(1 << 20, 64 * K)
    flat = region.tensor(torch.float32)
    file = memory_file(128 * K)
    os.pwrite(file, torch.full((32 * K,), 7.0).numpy(), 0)
    for at in (0, 256 * K, 512 * K):
        region.show(at, 128 * K, file, 0)
    assert (flat[: 32 * K] == 7).all() and (flat[64 * K : 96 * K] == 7).all()
    flat[0] = 3
    assert flat[64 * K].item() == flat[128 * K].item() == 3
    assert resident([region], [file]) == 128 * K
    region.hide(256 * K, 128 * K)
    assert flat[64 * K].item() == 0 and flat[128 * K].item() == 3
    region.close()
    os.close(file)
    assert resident([region]) == 0


def test_an_old_kernel_is_served_by_touching(monkeypatch: pytest.MonkeyPatch) -> None:
    region = Region(256 * K, 64 * K)
    flat = region.tensor(torch.uint8)
    flat[64 * K] = 9
    monkeypatch.setattr(virtual, "_populates", lambda: False)
    region.map(64 * K, 64 * K)
    assert resident([region]) == 64 * K and flat[64 * K].item() == 9
    region.close()


def test_a_child_process_holds_nothing_back() -> None:
    region = Region(256 * K, 64 * K)
    flat = region.tensor(torch.uint8)
    region.map(0, 64 * K)
    flat[0] = 5
    child = os.fork()
    if child == 0:
        os._exit(int(flat[0].item()))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0 and flat[0].item() == 5
    region.close()


@pytest.mark.parametrize(
    ("nbytes", "page"), [(1 << 20, 3000), (1 << 20, 2 * K), (1 << 24, 4096 * K), (100, 4 * K)]
)
def test_pages_of_other_sizes_are_refused(nbytes: int, page: int) -> None:
    with pytest.raises(BadInput, match="page group"):
        Region(nbytes, page)


def test_a_fault_of_the_kernel_is_told() -> None:
    region = Region(256 * K, 64 * K)
    with pytest.raises(OSError, match="madvise"):
        region.map(1, 64 * K)  # not at the beginning of a page
    region.close()
