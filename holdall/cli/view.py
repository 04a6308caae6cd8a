"""holdall view: scenes side by side, in a page on this machine."""

from __future__ import annotations

import json as json_module
from typing import Annotated

import typer

Scenes = Annotated[
    list[str],
    typer.Argument(metavar="SCENE...", help="One or two: .hold, .ply, .splat, .spz, .sog; paths or URLs."),
]
Port = Annotated[int, typer.Option(help="On loopback; 0 takes one that is free.", min=0, max=65535)]
NoOpen = Annotated[bool, typer.Option("--no-open", help="Open no browser; the address is printed.")]
Up = Annotated[
    str | None,
    typer.Option(help="Where up is: x, y, z, -x, -y, -z; none: as its views were held, without them -y."),
]
JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object when it is ready, for machines.")]


def register(app: typer.Typer) -> None:
    app.command("view")(view)


def view(scenes: Scenes, port: Port = 0, no_open: NoOpen = False, up: Up = None, json: JSON = False) -> None:
    """Show one or two scenes of 3D Gaussians in a browser, under one camera with a divider between them.

    `holdall view scene.ply scene.hold`: the original left, the packed one right. Ctrl-C stops.
    """
    from holdall.errors import BadInput
    from holdall.splats import page_facts
    from holdall.splats.page_opened import opened
    from holdall.splats.page_serve import Server

    if len(scenes) > 2:
        raise BadInput("scenes", f"{len(scenes)}", "one or two")
    with Server(port) as server:  # a port that is taken is told before anything slow
        shown = [opened(url) for url in scenes]
        server.shown = page_facts.made(shown, up)
        page_facts.judge(server.shown, shown)
        if json:
            print(json_module.dumps({"url": server.url, "scenes": list(scenes)}), flush=True)
        else:
            print(f"{' and '.join(s.name for s in shown)}: {server.url}  Ctrl-C stops", flush=True)
        if not no_open and _has_screen():
            import webbrowser

            webbrowser.open(server.url)
        server.serve_forever()


def _has_screen() -> bool:
    """On a machine without one, a browser of the terminal would take the terminal."""
    import os
    import sys

    return sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
