"""Pictures are real images, and the page needs nothing from elsewhere."""

import re

import numpy as np
import pytest

from holdall.errors import BadInput
from holdall.picture import curves
from holdall.report import Report


def test_png_and_self_contained_page(tmp_path):
    lines = {"stack <b>": [(2e6, 5.0), (1e6, 9.0), (3e6, 4.0)], "original": [(9e6, 3.5)]}
    table = Report({"original": {"bytes": 9e6}, "stack <b>": {"bytes": 3e6}}, "original")
    png, page = tmp_path / "a.png", tmp_path / "a.html"
    curves(
        lines,
        str(png),
        title="t & u",
        x="file (bytes)",
        y="perplexity",
        log_y=True,
        page=str(page),
        table=table,
    )
    from matplotlib.image import imread

    pixels = imread(png)
    assert pixels.shape[0] > 300 and pixels.shape[1] > 500 and np.std(pixels) > 0.05
    text = page.read_text()
    assert text.count("<svg") == 1 and "x0.333" in text and "stack &lt;b&gt;" in text and "t &amp; u" in text
    assert not re.findall(r'(?:src|href)="(?!#)[^"]+"', text), "the page loads something from elsewhere"


def test_panels_tell_lines_apart_in_grey_and_floors_from_methods(tmp_path):
    from matplotlib.colors import to_rgb
    from matplotlib.image import imread

    from holdall.picture import Panel, _styles, panels

    names = ["a", "floor", "b", "c", "d"]
    styles = _styles(names, ("floor",))
    bright = [float(np.dot(to_rgb(styles[n]["color"]), (0.299, 0.587, 0.114))) for n in ("a", "b", "c", "d")]
    assert bright == sorted(bright) and min(np.diff(bright)) > 0.1 and bright[-1] < 0.85
    assert [styles[n]["linestyle"] for n in names] == ["-", "--", "-", "-", "-"]
    assert len(set(to_rgb(styles["floor"]["color"]))) == 1, "grey"
    assert len({styles[n]["marker"] for n in names}) == len(names)
    lines = {n: [(5.0, 0.1 * i), (25.0, 0.2 * i)] for i, n in enumerate(names, 1)}
    sizes = []
    for count in (1, 2, 3):
        where = tmp_path / f"{count}.png"
        shown = [Panel(f"panel {i}", "recall", lines, level=1.0, log_y=i == 1) for i in range(count)]
        panels(shown, str(where), title="t", x="bytes (%)", floors=("floor",), level="whole")
        pixels = imread(where)
        assert np.std(pixels) > 0.05
        sizes.append(pixels.shape[:2])
    assert sizes[1][1] > 1.9 * sizes[0][1] and sizes[2][0] > 1.5 * sizes[1][0]
    with pytest.raises(BadInput):
        panels([], str(tmp_path / "none.png"), title="t", x="bytes (%)")
    assert not (tmp_path / "none.png").exists()
