"""What holdall view serves: the buffers of scenes, and to whom."""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from holdall.splats import page_facts, page_records
from holdall.splats.made import solids
from holdall.splats.page_opened import Opened
from holdall.splats.page_serve import FILES, Server

SCENES = [solids(300, 2), solids(40, 0)]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(0, page_facts.made([Opened(f"{i}.ply", 9, s) for i, s in enumerate(SCENES)])) as found:
        thread = found.begin()
        yield found
        found.shutdown()
        thread.join(10)


def turned(q: Any, v: Any) -> Any:
    """v turned by the quaternion q = (w, u): another formula than the matrix of the product."""
    w, u = q[0], q[1:]
    return v + 2 * np.cross(u, np.cross(u, v) + w * v)


def naive_covariance(scales: Any, quat: Any) -> Any:
    q = np.asarray(quat, np.float64) / np.linalg.norm(np.asarray(quat, np.float64))
    axes = [turned(q, e) for e in np.eye(3)]
    return sum(np.exp(2 * float(s)) * np.outer(a, a) for s, a in zip(scales, axes, strict=True))


@pytest.mark.parametrize(("count", "degree"), [(1, 0), (3, 1), (63, 2), (40, 3)])
def test_records_hold_what_shaders_read(count: int, degree: int) -> None:
    scene = solids(count, degree, seed=count)
    found = page_records.records(scene)
    assert found.shape == (count, page_records.texels(degree), 4) and found.dtype == np.uint32
    floats = found.view("<f4")
    assert (floats[:, 0, :3] == scene.means).all()
    np.testing.assert_allclose(floats[:, 0, 3], 1 / (1 + np.exp(-scene.opacities.astype(float))), rtol=1e-6)
    for i in range(count):
        wanted = naive_covariance(scene.scales[i], scene.quats[i])
        six = floats[i, 1:3].reshape(-1)[:6]
        np.testing.assert_allclose(six, wanted[np.triu_indices(3)], rtol=1e-5, atol=1e-6 * wanted.max())
    halves = found[:, 2:].reshape(count, -1)[:, 2:].copy().view("<f2").reshape(count, -1, 4)
    near = scene.sh.astype(np.float16)
    assert (halves[:, : near.shape[1], :3] == near).all() and not halves[:, near.shape[1] :].any()


def test_records_of_what_is_huge_stay_finite() -> None:
    scene = solids(5, 3)
    wild = replace(
        scene,
        scales=scene.scales + 300,
        sh=scene.sh * 1e9,
        opacities=scene.opacities * 1e6,
        quats=scene.quats * 1e-30,
    )
    found = page_records.records(wild)
    assert np.isfinite(found.view("<f4")[:, :2]).all() and np.isfinite(found[:, 3:].copy().view("<f2")).all()


def asked(
    server: Server, path: str, host: str | None = None, verb: str = "GET"
) -> tuple[int, dict[str, str], bytes]:
    line = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    try:
        line.request(verb, path, headers={"Host": host or f"127.0.0.1:{server.server_port}"})
        answer = line.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        line.close()


def test_it_serves_what_was_given_and_nothing_else(server: Server) -> None:
    status, headers, body = asked(server, "/")
    assert status == 200 and b"<canvas" in body and headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in headers["content-security-policy"] and "unsafe" not in str(headers)
    assert (
        headers["cross-origin-resource-policy"] == "same-origin"
        and headers["x-content-type-options"] == "nosniff"
    )
    assert (
        "access-control-allow-origin" not in headers
        and "server" in headers
        and "Python" not in headers["server"]
    )
    facts = server.shown.find("/scenes.json")
    assert facts is not None and len(asked(server, "/scene/0")[2]) == 300 * 7 * 16
    assert asked(server, "/scene/1")[2] == page_records.records(SCENES[1]).tobytes()
    for path in (
        "/scene/2",
        "/../page_serve.py",
        "/%2e%2e/page_serve.py",
        "//etc/passwd",
        "/page/page.js",
        "/scene/-1",
    ):
        assert asked(server, path)[0] == 404, path
    assert asked(server, "/page.js", verb="HEAD")[2] == b"" and asked(server, "/", verb="POST")[0] == 501


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "0.0.0.0", "[::1"]
)
def test_a_page_elsewhere_that_points_its_name_here_gets_nothing(server: Server, host: str) -> None:
    for path in ("/", "/scene/0", "/scenes.json", "/quality.json"):
        status, _, body = asked(server, path, host or " ")
        assert status == 403 and b"127.0.0.1" in body and len(body) < 100
    assert asked(server, "/", "localhost")[0] == asked(server, "/", "localhost:81")[0] == 200


def test_it_listens_on_loopback_only(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1" and server.url == f"http://127.0.0.1:{server.server_port}/"


def test_the_page_needs_nothing_from_elsewhere() -> None:
    """No address in any of its files, nothing loaded but its own, every control named."""
    for file in FILES.iterdir():
        assert not re.search(r"https?:|@import|url\((?!data:)|eval\(|innerHTML", file.read_text()), file
    page = (FILES / "index.html").read_text()
    assert set(re.findall(r'(?:src|href)="(?!data:)([^"]+)"', page)) <= {p.name for p in FILES.iterdir()}
    assert "<style" not in page and "style=" not in page and re.search(r'role="slider"[^>]*aria-label', page)
