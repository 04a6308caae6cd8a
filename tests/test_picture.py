"""Pictures are real images, and the page needs nothing from elsewhere."""

import re

import numpy as np

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
