"""The page of holdall view in a real headless Chromium, one browser for all; Holdall's own rasteriser beside it."""

from __future__ import annotations

import io
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from holdall.splats import page_facts
from holdall.splats.camera import Camera, looking
from holdall.splats.made import solids
from holdall.splats.page_opened import Opened
from holdall.splats.page_serve import Server, Site
from holdall.splats.scene import Scene

UP = (0.0, 1.0, 0.0)
pytest.importorskip("numba")
ASIDE = {"place": [2.1, 1.6, 1.2], "at": [0.1, 0.3, -0.1], "up": list(UP), "degrees": 50.0}


def two() -> list[Opened]:
    """A scene and its poor copy: coarser places, other colours."""
    scene = solids(1500, 2)
    rough = replace(scene, means=np.round(scene.means * 24) / 24).with_degree(0)
    return [Opened("solids.ply", 228_000, scene), Opened("solids.hold", 12_345, rough)]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(0, page_facts.made(two(), "y")) as found:
        thread = found.begin()
        yield found
        found.shutdown()
        thread.join(10)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    selenium = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no Chromium here (Debian packages chromium and chromium-driver)")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for word in (
        "headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=520,560", "use-angle=swiftshader",
        "enable-unsafe-swiftshader", "force-color-profile=srgb", "force-device-scale-factor=1",
    ):  # fmt: skip
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield found
    found.quit()


def waited(browser: Any, script: str, seconds: float = 30) -> Any:
    """What the script gives, once that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := browser.execute_script(f"return {script}"):
            return found
        time.sleep(0.02)
    raise AssertionError(
        f"{script} never came true; the page says: {browser.find_element('id', 'fault').text}"
    )


def ready(browser: Any) -> None:
    waited(browser, "globalThis.holdall && holdall.ready()")


def seen(browser: Any) -> Any:
    """The canvas as it is on the screen: float64 [H, W, 3], 0 to 255."""
    from PIL import Image

    ready(browser)
    bare = "document.activeElement.blur(); document.getElementById('divider').style.visibility"
    browser.execute_script(
        f"{bare} = 'hidden'"
    )  # neither a frame of the focus nor the divider stands in the picture
    shot = browser.find_element("id", "view").screenshot_as_png
    browser.execute_script(f"{bare} = ''")
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(np.float64)


def press(browser: Any, *words: str) -> None:
    browser.find_element("id", "view").send_keys(*words)


def look(browser: Any, view: dict[str, Any]) -> Camera:
    """Both look from there: the page, and a camera for Holdall's own rasteriser."""
    browser.execute_script("holdall.look({...arguments[0], radius: 1})", view)
    width, height = browser.execute_script(
        "const c = document.getElementById('view'); return [c.width, c.height]"
    )
    return looking(view["place"], view["at"], view["up"], width=width, height=height, degrees=view["degrees"])


def quiet(browser: Any) -> None:
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.fixture(scope="module")
def one(browser: Any) -> Iterator[Callable[[Scene], None]]:
    """Shows a scene by itself."""
    with Server(0) as found:
        thread = found.begin()

        def show(scene: Scene) -> None:
            found.shown = page_facts.made([Opened("one.ply", 99, scene)], "y")
            browser.get(found.url)
            ready(browser)

        yield show
        found.shutdown()
        thread.join(10)


@pytest.fixture(scope="module")
def pair(browser: Any, server: Server) -> Iterator[Any]:
    browser.get(server.url)
    ready(browser)
    yield browser


@pytest.fixture
def page(pair: Any, server: Server) -> Any:
    """Both scenes, as they are when the page opens."""
    if pair.current_url != server.url or not pair.find_element("id", "fault").get_attribute("hidden"):
        pair.get(server.url)
        ready(pair)
    state = pair.execute_script("return holdall.state()")
    press(pair, "r", *("s" if state["swapped"] else ""), *("d" if state["difference"] else ""))
    ready(pair)
    return pair


@pytest.mark.browser
@pytest.mark.parametrize(("degree", "smaller"), [(0, 2.0), (2, 0.0), (3, 0.0)])
def test_it_draws_what_the_rasteriser_draws(
    browser: Any, one: Callable[[Scene], None], degree: int, smaller: float
) -> None:
    """From aside, so that a mirrored axis, a wrong order or a wrong harmonic shows; small ones show the low-pass."""
    from holdall.splats.raster import render

    scene = solids(1500, degree, seed=degree)
    means = scene.means.copy()
    means[0] = -5000.0 * np.array(
        ASIDE["place"]
    )  # one far stray must not put all others into one place of the order
    scene = replace(scene, means=means, scales=scene.scales - smaller)
    one(scene)
    camera = look(browser, ASIDE)
    shown = seen(browser)

    def levels(other: Scene) -> Any:
        return np.rint(255 * np.clip(render(other, camera, (0, 0, 0)).colour.astype(np.float64), 0, 1))

    truth = levels(scene)
    assert shown.shape == truth.shape and truth.std() > 20
    assert np.abs(shown - truth).mean() < 0.1  # of 255, both rounded to levels
    others = {
        "left": truth[:, ::-1],
        "up": truth[::-1],
        "both": truth[::-1, ::-1],
        "channels": truth[..., ::-1],
    }
    for name, wrong in others.items():
        assert np.abs(shown - wrong).mean() > 1, name
    if degree:
        assert np.abs(shown - levels(scene.with_degree(degree - 1))).mean() > 0.5
    quiet(browser)


@pytest.mark.browser
def test_the_divider_moves_and_changes_only_what_it_passes(page: Any) -> None:
    from selenium.webdriver import ActionChains, Keys

    before, handle = seen(page), page.find_element("id", "divider")
    width = before.shape[1]
    ActionChains(page).drag_and_drop_by_offset(handle, width // 4, 0).perform()
    after, at = seen(page), page.execute_script("return holdall.state().split")
    assert at == pytest.approx(0.75, abs=0.02)
    changed = np.flatnonzero(np.abs(before - after).max((0, 2)) > 0)
    assert len(changed) > 0.05 * width
    assert changed.min() >= round(0.5 * width) and changed.max() < round(at * width)
    handle.send_keys(Keys.LEFT)
    assert page.execute_script("return holdall.state().split") == pytest.approx(at - 0.02)
    assert handle.get_attribute("aria-valuenow") == str(round(100 * (at - 0.02)))
    handle.send_keys(Keys.HOME)
    packed = seen(page)
    handle.send_keys(Keys.END)
    original = seen(page)
    assert np.abs(original - packed).mean() > 1
    for picture, share in ((before, 0.5), (after, at)):
        middle = int(share * width + 0.5)
        assert (picture == np.concatenate([original[:, :middle], packed[:, middle:]], 1)).all()
    press(page, "s")
    assert (seen(page) == packed).all() and "solids.hold" in page.find_element("id", "left-name").text
    quiet(page)


@pytest.mark.browser
def test_keys_turn_zoom_and_reset(page: Any) -> None:
    from selenium.webdriver import Keys

    def state() -> dict[str, Any]:
        found: dict[str, Any] = page.execute_script("return holdall.state()")
        return found

    first = state()
    press(page, Keys.RIGHT, Keys.UP, "+")
    now = state()
    assert now["yaw"] < first["yaw"] and now["pitch"] < first["pitch"] and now["distance"] < first["distance"]
    press(page, Keys.SHIFT, Keys.LEFT)
    assert state()["at"] != first["at"] and state()["yaw"] == now["yaw"]
    press(page, "-", "r")
    assert state() == first
    page.execute_async_script("holdall.turn(3).then(arguments[0])")
    assert 0.1 < float(page.find_element("id", "rate").text) < 1000
    press(page, Keys.DOWN * 40)
    assert 1.5 < state()["pitch"] < np.pi / 2  # never over the top


@pytest.mark.browser
def test_one_finger_turns_and_two_zoom(page: Any) -> None:
    def touch(kind: str, *points: tuple[int, int]) -> None:
        told = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
        page.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": told})

    page.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 2})
    box = page.find_element("id", "view").rect
    x, y = int(box["x"]) + 100, int(box["y"]) + 100
    first = page.execute_script("return holdall.state()")
    touch("touchStart", (x, y))
    touch("touchMove", (x + 40, y + 20))
    touch("touchEnd")
    turned = page.execute_script("return holdall.state()")
    assert turned["yaw"] < first["yaw"] and turned["pitch"] > first["pitch"]
    assert turned["distance"] == first["distance"]
    touch("touchStart", (x, y), (x + 40, y))
    touch("touchMove", (x - 20, y), (x + 60, y))
    touch("touchEnd")
    zoomed = page.execute_script("return holdall.state()")
    assert zoomed["distance"] == pytest.approx(first["distance"] / 2) and zoomed["yaw"] == turned["yaw"]


@pytest.mark.browser
def test_the_difference_and_psnr_are_those_of_both_pictures(page: Any) -> None:
    from selenium.webdriver import Keys

    handle = page.find_element("id", "divider")
    handle.send_keys(Keys.END)
    a = seen(page)
    press(page, "b")
    cover = 1 - (seen(page) - a).min(2) / 255  # how much of a white ground is not seen
    press(page, "b")
    handle.send_keys(Keys.HOME)
    b = seen(page)
    press(page, "d")
    assert not handle.is_displayed() and "difference" in page.find_element("id", "left-name").text
    assert page.find_element("id", "difference").get_attribute("aria-pressed") == "true"
    assert np.abs(seen(page) - np.minimum(255, 8 * np.abs(a - b))).mean() < 3  # of 8-bit pictures, 8 times
    found = waited(page, "holdall.measured()")
    squares = ((a - b) / 255) ** 2
    assert found["whole"] == pytest.approx(-10 * np.log10(squares.mean()), abs=0.1)
    assert found["object"] == pytest.approx(-10 * np.log10(squares[cover > 0.1].mean()), abs=0.1)
    assert found["object"] < found["whole"] - 1
    assert f"{found['whole']:.2f} dB" in page.find_element("id", "here").text
    quiet(page)


@pytest.mark.browser
def test_what_the_rasteriser_measured_is_told(browser: Any, server: Server) -> None:
    from holdall.splats.quality import held_out, likeness, pictures

    shown = two()
    site = page_facts.made(shown, "y")
    thread = page_facts.judge(site, shown)
    assert thread is not None and page_facts.judge(site, shown[:1]) is None
    server.shown, before = site, server.shown
    try:
        browser.get(server.url)
        text = "document.getElementById('fixed').textContent"
        waited(browser, f"{text}.includes('on white') && {text}")
    finally:
        server.shown = before
    thread.join(30)
    cameras = held_out(shown[0].scene, page_facts.VIEWS, page_facts.WIDTH, page_facts.HEIGHT)
    wanted = likeness(*(pictures(s.scene, cameras) for s in shown))
    text = browser.execute_script(f"return {text}")
    assert f"{wanted['psnr']:.2f} dB (object {wanted['object_psnr']:.2f} dB), 4 of 320 x 240" in text


@pytest.mark.browser
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda pages: pages.update({"/scene/1": (pages["/scene/1"][0], pages["/scene/1"][1][:-16])}), "damaged"),
        (lambda pages: pages.update({"/scene/1": ("x/y", bytes(pages["/scene/1"][1]) + b"more")}), "damaged"),
        (lambda pages: pages.pop("/scene/0"), "404"),
        (lambda pages: pages.update({"/splat.frag": ("text/plain", b"#version 300 es\nvoid main( {}")}), "shaders"),
    ],
)  # fmt: skip
def test_what_arrives_broken_is_told_in_one_line(browser: Any, server: Server, spoil: Any, says: str) -> None:
    before = server.shown
    pages = dict(before.pages)
    spoil(pages)
    server.shown = Site(pages)
    try:
        browser.get(server.url)
        waited(browser, "!document.getElementById('fault').hidden")
    finally:
        server.shown = before
    line = browser.find_element("id", "fault")
    assert says in line.text and "\n" not in line.text and line.get_attribute("role") == "alert"
    assert not browser.find_element("id", "loading").is_displayed()
    browser.get_log("browser")  # a 404 is in the console, and is meant


@pytest.mark.browser
def test_a_browser_without_webgl_says_so(browser: Any, server: Server) -> None:
    script = {"source": "HTMLCanvasElement.prototype.getContext = () => null"}
    told = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", script)
    try:
        browser.get(server.url)
        assert "WebGL 2" in waited(browser, "document.getElementById('fault').textContent")
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", told)


@pytest.mark.browser
def test_it_can_be_used_on_a_phone(browser: Any, server: Server) -> None:
    screen = {"width": 360, "height": 640, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    try:
        browser.get(server.url)
        ready(browser)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
        box = browser.find_element("id", "view").rect
        assert box["width"] > 300 and box["height"] > 200
        for name in ("swap", "difference", "reset"):
            size = browser.find_element("id", name).size
            assert size["height"] >= 40 and size["width"] >= 40
        back = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert sum(map(int, re.findall(r"\d+", back)[:3])) < 120
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
