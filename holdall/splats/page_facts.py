"""What the page is told of scenes before they come, and the PSNR that it cannot measure by itself."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from holdall.errors import HoldallError
from holdall.splats.camera import NEAR
from holdall.splats.page_opened import DEGREES, ball, places, upwards
from holdall.splats.page_records import TEXEL, records, texels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from holdall.splats.page_opened import Opened
    from holdall.splats.page_serve import Site

VIEWS, WIDTH, HEIGHT = 4, 320, 240  # a second or two of one core, while the page is up already


def facts(shown: Sequence[Opened], up: str | None = None) -> dict[str, Any]:
    """For `scenes.json`: sizes, lengths of buffers, and the first camera."""
    first = shown[0].scene
    above = upwards(first, up)
    middle, radius = ball([first])
    place = places(first, 1, above)[0]
    return {
        "scenes": [
            {
                "name": one.name,
                "bytes": one.bytes,
                "count": len(one.scene),
                "degree": one.scene.degree,
                "texels": texels(one.scene.degree),
                "length": len(one.scene) * texels(one.scene.degree) * TEXEL,
            }
            for one in shown
        ],
        "start": {
            "place": place.tolist(),
            "at": middle.tolist(),
            "up": above.tolist(),
            "degrees": DEGREES,
            "radius": radius,
        },
        "near": NEAR,
    }


def made(shown: Sequence[Opened], up: str | None = None) -> Site:
    """All that the page asks for."""
    from holdall.splats.page_serve import site

    return site(facts(shown, up), [records(one.scene) for one in shown])


def judge(site: Site, shown: Sequence[Opened]) -> threading.Thread | None:
    """Both drawn by Holdall's rasteriser from held-out places, on white, in a thread; the site tells it after."""
    if len(shown) < 2:
        return None
    thread = threading.Thread(target=_judged, args=(site, *(one.scene for one in shown)), daemon=True)
    thread.start()
    return thread


def _judged(site: Site, truth: Any, packed: Any) -> None:
    from holdall.splats.quality import held_out, likeness, pictures

    failed = {"state": "none", "why": "could not be measured: the terminal says why"}
    try:
        cameras = held_out(truth, VIEWS, WIDTH, HEIGHT)
        found = likeness(pictures(truth, cameras), pictures(packed, cameras))
        told = {"state": "measured", "views": VIEWS, "size": f"{WIDTH} x {HEIGHT}"}
        site.quality = {**told, "psnr": found["psnr"], "object": found["object_psnr"]}
    except HoldallError as fault:
        failed = {"state": "none", "why": str(fault)}
    finally:
        if site.quality["state"] == "measuring":
            site.quality = failed
