"""The page in a real headless Chromium: a chat by keyboard, the bar of the memory, honest words about quality."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")

from server.conftest import Served, serving  # noqa: E402
from server.test_queue import Slow  # noqa: E402

PAGE = Path(__file__).parents[2] / "holdall" / "server" / "page.html"
REPORT = {"rows": {"whole": {"recall": 1.0, "bytes": 1000.0}, "kv.snapkv 50%": {"recall": 0.25, "bytes": 500.0}},
          "baseline": "whole", "units": {"bytes": "B"}, "provenance": {}}  # fmt: skip


def test_the_page_needs_nothing_from_elsewhere() -> None:
    """One file: no address in it, nothing loaded, every field labelled."""
    text = PAGE.read_text()
    assert "//" not in text and "http" not in text
    assert not re.search(r"\b(src|href)=\"(?!data:)", text) and "@import" not in text
    for field in re.findall(r"<(?:input|textarea) id=\"([^\"]+)\"", text):
        assert f'<label for="{field}"' in text


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    selenium = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no Chromium here (Debian packages chromium and chromium-driver)")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1000,900",
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield found
    found.quit()


@pytest.fixture(scope="module")
def page(opened: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    from holdall.kv import SnapKV
    from holdall.server import run

    runner, tokenizer = opened(kv=SnapKV(), kv_budget="50%", memory="1GB")
    stored = tmp_path_factory.mktemp("report") / "report.json"
    stored.write_text(json.dumps({"method": "kv.snapkv", "budget": "50%", "report": REPORT}))
    quality = run.known(runner.engine, "tiny", "50%", str(stored))
    with serving(Slow(runner, 0.005), tokenizer, quality) as served:
        yield served


def waited(browser: Any, what: Callable[[], Any], seconds: float = 20) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, seconds, poll_frequency=0.05).until(lambda _: what())


def by_id(browser: Any, name: str) -> Any:
    return browser.find_element("id", name)


def quiet(browser: Any) -> None:
    """The console has nothing to complain about."""
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.browser
def test_a_conversation_by_keyboard(browser: Any, page: Served) -> None:
    browser.get(page.url)
    waited(browser, lambda: "tiny" in by_id(browser, "model").text)
    assert browser.switch_to.active_element.get_attribute("id") == "question"
    most = by_id(browser, "most")
    most.clear()
    most.send_keys("80")
    by_id(browser, "question").send_keys("Tell me a joke.\n")
    lengths: set[int] = set()
    waited(browser, lambda: lengths.add(len(answer(browser))) or "80 tokens" in by_id(browser, "status").text)
    assert len(lengths) > 4  # it grew before our eyes
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "Tell me a joke."}], "temperature": 0}
    told = httpx.post(f"{page.url}/v1/chat/completions", json={**asked, "max_tokens": 80}).json()
    assert answer(browser) == told["choices"][0]["message"]["content"]
    assert browser.switch_to.active_element.get_attribute("id") == "question"
    quiet(browser)


def answer(browser: Any) -> str:
    script = "return [...document.querySelectorAll('.assistant span')].at(-1)?.textContent"
    return str(browser.execute_script(script) or "")


def parts(browser: Any) -> dict[str, int]:
    script = "return [...document.querySelectorAll('#bar > div')].map((d) => [d.dataset.kind, Number(d.dataset.bytes)])"
    found: dict[str, int] = {}
    for kind, size in browser.execute_script(script):
        found[kind] = found.get(kind, 0) + size
    return found


@pytest.mark.browser
def test_the_bar_shows_a_context_come_and_go(browser: Any, page: Served) -> None:
    browser.get(page.url)
    waited(browser, lambda: {"weights", "free"} <= set(parts(browser)))
    most = by_id(browser, "most")
    most.clear()
    most.send_keys("150")
    by_id(browser, "question").send_keys("A long story about a fox that went out. " * 7 + "\n")
    waited(browser, lambda: parts(browser).get("kv", 0) > 0)
    assert sum(parts(browser).values()) == 10**9
    widths = browser.execute_script(
        "return [...document.querySelectorAll('#bar > div')].reduce((s, d) => s + d.getBoundingClientRect().width, 0)"
        " / document.querySelector('#bar').getBoundingClientRect().width"
    )
    assert 0.98 < widths < 1.01
    by_id(browser, "stop").click()
    waited(browser, lambda: by_id(browser, "status").text == "stopped")
    waited(browser, lambda: parts(browser).get("kv", 0) == 0)
    assert page.service.worker.load == (0, 0)
    assert "weights" in by_id(browser, "bar").get_attribute("aria-label")
    quiet(browser)


@pytest.mark.browser
def test_quality_is_shown_or_said_to_be_unknown(
    browser: Any, page: Served, opened: Callable[..., Any]
) -> None:
    browser.get(page.url)
    waited(browser, lambda: "tiny" in by_id(browser, "model").text)
    text = by_id(browser, "quality").get_attribute("textContent")
    assert "kv.snapkv" in text and "0.25" in text and "500 B" in text and "as they came" in text
    from holdall.kv import SnapKV
    from holdall.server import run

    runner, tokenizer = opened(kv=SnapKV(), kv_budget="50%")
    with serving(
        runner, tokenizer, run.known(runner.engine, "tiny", "50%", None), api_key="secret"
    ) as locked:
        browser.get(locked.url)
        waited(browser, lambda: by_id(browser, "key").is_displayed())
        by_id(browser, "key").send_keys("secret\t")
        waited(browser, lambda: "tiny" in by_id(browser, "model").text)
        text = by_id(browser, "quality").get_attribute("textContent")
        assert "not measured" in text and "holdall measure kv.snapkv --budget 50%" in text


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_light_and_dark(browser: Any, page: Served, scheme: str) -> None:
    """Contrast of words on what they stand on, by WCAG: at least 4.5."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(page.url)
    waited(browser, lambda: "tiny" in by_id(browser, "model").text)
    for what in ("#model", "label[for=question]", "#send", "#load", "#clear", "h1"):
        colours = browser.execute_script(CONTRAST, what)
        assert contrast(*colours) >= 4.5, (what, colours)
    backs = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(rgb(backs)) > 600) == (scheme == "light")


CONTRAST = """
let it = document.querySelector(arguments[0]), text = getComputedStyle(it).color, back = 'rgba(0, 0, 0, 0)';
for (; it && back === 'rgba(0, 0, 0, 0)'; it = it.parentElement) back = getComputedStyle(it).backgroundColor;
return [text, back];
"""


def rgb(colour: str) -> list[float]:
    return [float(n) for n in re.findall(r"[\d.]+", colour)[:3]]


def contrast(a: str, b: str) -> float:
    def light(colour: str) -> float:
        parts = [c / 255 for c in rgb(colour)]
        r, g, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * blue

    low, high = sorted((light(a), light(b)))
    return (high + 0.05) / (low + 0.05)
