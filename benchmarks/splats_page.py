"""The page of `holdall view` in a headless Chromium, whose GL is software here: frames a second, loading, a screenshot.

    OMP_NUM_THREADS=1 python benchmarks/splats_page.py [--parts frames,like,shot] [--repeats 3]

frames: of real scenes alone and beside their .hold of a tenth of the bytes, and of half a million Gaussians made by
rule: seconds until all is drawn, and frames a second over one turn, each with an order of its own and waited for.
like: the page's pictures beside those of Holdall's rasteriser. shot: results/splats_page.png. Rows are merged into
results/splats_page.json. Needs the Debian packages chromium and chromium-driver, and ../shared/data.
"""

from __future__ import annotations

import argparse
import io
import lzma
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from keeping import keeper
from PIL import Image
from selenium import webdriver

from holdall import pack
from holdall.splats import page_facts
from holdall.splats.camera import looking
from holdall.splats.formats import read, write
from holdall.splats.made import solids
from holdall.splats.page_opened import Opened, opened
from holdall.splats.page_serve import Server, Site

HERE = Path(__file__).parent
RESULTS, SHOT = HERE / "results" / "splats_page.json", HERE / "results" / "splats_page.png"
SHARED = HERE.parents[1] / "shared" / "data" / "splats"
REAL = {"playbot_31k": "playbot_31k.ply.xz", "massa": "massa.ply.xz", "biker": "biker.spz"}
SIZE = "const c = document.getElementById('view'); return [c.width, c.height]"
READY = "return Boolean(globalThis.holdall && holdall.ready())"


keep = keeper(RESULTS, 28)


def plain(name: str, folder: str) -> Opened:
    """A real scene as the float32 .ply that training would have left."""
    source, target = SHARED / REAL[name], Path(folder) / f"{name}.ply"
    if not target.exists():
        if source.suffix == ".xz":
            target.write_bytes(lzma.decompress(source.read_bytes()))
        else:
            write(read(str(source)), str(target))
    return opened(str(target))


def packed(scene: Opened, folder: str) -> Opened:
    """The scene as `holdall pack --budget 10%` leaves it."""
    target = str(Path(folder) / f"{Path(scene.name).stem}.hold")
    pack(str(Path(folder) / scene.name), "splats.coded", "10%", to=target)
    return opened(target)


def browser(width: int, height: int) -> Any:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for word in (
        "headless=new", "no-sandbox", "disable-dev-shm-usage", f"window-size={width},{height}",
        "use-angle=swiftshader", "enable-unsafe-swiftshader", "force-color-profile=srgb",
    ):  # fmt: skip
        options.add_argument(f"--{word}")
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    found.set_script_timeout(600)
    return found


def load(driver: Any, server: Server, shown: list[Opened], bits: int = 16) -> float:
    """Seconds from the page's address to the first whole picture. bits: the order has 2^bits places."""
    site = page_facts.made(shown)
    kind, order = site.find("/order.js") or ("", b"")
    assert b"1 << 16" in order
    server.shown = Site(
        {**site.pages, "/order.js": (kind, order.replace(b"1 << 16", f"1 << {bits}".encode()))}
    )
    start = time.perf_counter()
    driver.get(server.url)
    while not driver.execute_script(READY):
        time.sleep(0.02)
        fault = driver.find_element("id", "fault").text
        if fault:
            raise SystemExit(fault)
    return time.perf_counter() - start


def frames(driver: Any, server: Server, folder: str, repeats: int) -> None:
    cases = {name: [plain(name, folder)] for name in REAL}
    for name in ("playbot_31k", "biker"):
        cases[f"{name} and .hold"] = [cases[name][0], packed(cases[name][0], folder)]
    made = solids(500_000, 3)
    cases["500,000 made by rule"] = [Opened("solids.ply", made.nbytes, made)]
    script = "const done = arguments[1]; holdall.turn(arguments[0]).then(done)"
    for name, shown in cases.items():
        ready = load(driver, server, shown)
        count = 4 if len(shown[0].scene) > 200_000 else 12
        seconds = [driver.execute_async_script(script, count) / count for _ in range(repeats)]
        size = driver.execute_script(SIZE)
        told = page_facts.facts(shown)["scenes"]
        row = {
            "gaussians": sum(len(s.scene) for s in shown), "degree": shown[0].scene.degree,
            "canvas": f"{size[0]}x{size[1]}", "megabytes": sum(s["length"] for s in told) / 1e6,
            "ready_seconds": ready, "frames_per_second": 1 / min(seconds),
            "frames_per_second_worst": 1 / max(seconds),
        }  # fmt: skip
        row["gl"] = driver.execute_script(GL)
        row["load_average"] = os.getloadavg()[0]
        keep("frames", name, row)


GL = """
const gl = document.createElement('canvas').getContext('webgl2');
return gl.getParameter(gl.getExtension('WEBGL_debug_renderer_info').UNMASKED_RENDERER_WEBGL);
"""


def like(driver: Any, server: Server, folder: str) -> None:
    """Distances in levels of 255 between the canvas and Holdall's rasteriser; also with more places in the order."""
    from holdall.splats.raster import render

    for name, bits in [*((name, 16) for name in REAL), ("playbot_31k", 22)]:
        shown = plain(name, folder)
        load(driver, server, [shown], bits=bits)
        start = page_facts.facts([shown])["start"]
        width, height = driver.execute_script(SIZE)
        shot = driver.find_element("id", "view").screenshot_as_png
        page = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(float)
        camera = looking(
            start["place"], start["at"], start["up"], width=width, height=height, degrees=start["degrees"]
        )
        apart = np.abs(page - 255 * np.clip(render(shown.scene, camera, (0, 0, 0)).colour, 0, 1))
        row = {
            "canvas": f"{width}x{height}", "mean_levels": float(apart.mean()),
            "p999_levels": float(np.quantile(apart, 0.999)), "most_levels": float(apart.max()),
        }  # fmt: skip
        keep("like", name if bits == 16 else f"{name}, {1 << bits:,} places", row)


def shot(driver: Any, server: Server, folder: str) -> None:
    shown = [plain("playbot_31k", folder)]
    shown.append(packed(shown[0], folder))
    load(driver, server, shown)
    thread = page_facts.judge(server.shown, shown)  # type: ignore[arg-type]
    assert thread is not None
    thread.join()
    driver.execute_script("holdall.turn(1)")
    for text in ("here", "fixed"):
        while "dB" not in driver.find_element("id", text).text:
            time.sleep(0.1)
    driver.save_screenshot(str(SHOT))
    print(f"{SHOT}: {driver.find_element('id', 'here').text}; {driver.find_element('id', 'fixed').text}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", default="frames,like,shot")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    parts = given.parts.split(",")
    with tempfile.TemporaryDirectory() as folder, Server(0) as server:
        server.begin()
        driver = browser(1000, 900)
        try:
            if "frames" in parts:
                frames(driver, server, folder, given.repeats)
            if "like" in parts:
                like(driver, server, folder)
            if "shot" in parts:
                shot(driver, server, folder)
        finally:
            driver.quit()
            server.shutdown()


if __name__ == "__main__":
    main()
