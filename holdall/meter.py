"""The only stopwatch: seconds, peak memory, bytes moved, joules."""

from __future__ import annotations

import gc
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from holdall.memory import release

_SELF = Path("/proc/self")
_SAMPLE_SECONDS = 0.005


class Meter:
    """Measures a block of code in this process.

        with Meter() as m:
            ...
        m.figures()

    After the block: seconds (wall), cpu_seconds (all threads), peak_bytes (highest resident memory above what
    was resident when the block began, by the kernel's own high-water mark on Linux, else sampled every 5 ms),
    read_bytes and written_bytes (through system calls; memory-mapped pages are not seen by the kernel's
    counter), device_read_bytes (what really came from the disk), gpu_peak_bytes (0 without CUDA), and joules
    with joules_how, "measured" (a hardware counter) or "modelled" (codecarbon's power figure for this CPU).
    """

    def __init__(self, joules: bool = False):
        self._want_joules = joules
        self.seconds = self.cpu_seconds = 0.0
        self.peak_bytes = self.read_bytes = self.written_bytes = self.device_read_bytes = (
            self.gpu_peak_bytes
        ) = 0
        self.joules: float | None = None
        self.joules_how = ""

    def __enter__(self) -> Self:
        self._tracker = _tracker() if self._want_joules else None
        gc.collect()
        release()  # a later block could hide in pages that an earlier one left behind
        self._io = _io()
        self._peak = _Peak()
        _gpu_reset()
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, _e: object, _t: TracebackType | None) -> None:
        self.seconds = time.perf_counter() - self._wall
        self.cpu_seconds = time.process_time() - self._cpu
        self.peak_bytes = self._peak.stop()
        self.gpu_peak_bytes = _gpu_peak()
        now = _io()
        self.read_bytes = now.get("rchar", 0) - self._io.get("rchar", 0)
        self.written_bytes = now.get("wchar", 0) - self._io.get("wchar", 0)
        self.device_read_bytes = now.get("read_bytes", 0) - self._io.get("read_bytes", 0)
        if self._tracker is not None:
            self._tracker.stop()
            self.joules = self._tracker.final_emissions_data.energy_consumed * 3.6e6  # kWh
            self.joules_how = "measured" if _rapl() else "modelled"

    def figures(self) -> dict[str, float]:
        """The figures as a report's row."""
        row = {
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "peak_bytes": self.peak_bytes,
            "read_bytes": self.read_bytes,
            "written_bytes": self.written_bytes,
        }
        if self.gpu_peak_bytes:
            row["gpu_peak_bytes"] = self.gpu_peak_bytes
        if self.joules is not None:
            row["joules"] = self.joules
        return row


def resident_bytes() -> int:
    """Resident memory of this process now."""
    return _status("VmRSS") or _psutil_rss()


class _Peak:
    """Highest resident memory since it was made, above the level at that time."""

    def __init__(self) -> None:
        self.base = resident_bytes()
        self._kernel = _reset_high_water()
        self._high = self.base
        self._done = threading.Event()
        if not self._kernel:
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()

    def _sample(self) -> None:
        while not self._done.wait(_SAMPLE_SECONDS):
            self._high = max(self._high, _psutil_rss())

    def stop(self) -> int:
        if self._kernel:
            self._high = _status("VmHWM")
        else:
            self._done.set()
            self._thread.join()
            self._high = max(self._high, _psutil_rss())
        return max(0, self._high - self.base)


def _reset_high_water() -> bool:
    try:
        (_SELF / "clear_refs").write_text("5")
    except OSError:  # not Linux, or a sandbox that hides it
        return False
    return _status("VmHWM") > 0


def _status(field: str) -> int:
    try:
        for line in (_SELF / "status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _psutil_rss() -> int:
    import psutil

    return psutil.Process().memory_info().rss


def _io() -> dict[str, int]:
    try:
        lines = (_SELF / "io").read_text().splitlines()
    except OSError:
        return {}
    return {k: int(v) for k, v in (line.split(": ") for line in lines)}


def _gpu_reset() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _gpu_peak() -> int:
    torch = sys.modules.get("torch")
    return torch.cuda.max_memory_allocated() if torch is not None and torch.cuda.is_available() else 0


def _rapl() -> bool:
    return any(Path("/sys/class/powercap").glob("intel-rapl*/energy_uj"))


def _tracker() -> Any:
    """codecarbon's offline tracker: it asks no network and writes no file."""
    from holdall.optional import need

    carbon = need("codecarbon", "joules")
    tracker = carbon.OfflineEmissionsTracker(
        country_iso_code="USA",
        output_methods=[],
        log_level="error",
        allow_multiple_runs=True,
        measure_power_secs=1,
    )
    tracker.start()
    return tracker
