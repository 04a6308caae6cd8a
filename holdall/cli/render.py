"""holdall render: a picture or a film of a scene, packed or not."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from holdall.cli.output import JSON, as_json

Scene = Annotated[
    str, typer.Argument(metavar="SCENE", help="A .hold file, or .ply, .splat, .spz, .sog; a path or URL.")
]
Out = Annotated[
    str,
    typer.Option(
        "--output", "-o", help="A picture (.png) or a film (.mp4, which needs [film]; .webp, .gif)."
    ),
]
Which = Annotated[
    str, typer.Option("--camera", help="orbit: one turn around it; or the number of a view, from 0.")
]
Views = Annotated[
    str | None, typer.Option(help="A NeRF transforms.json: its views; of a film with --camera orbit, all.")
]
Size = Annotated[
    str | None, typer.Option(help="Of pictures, in pixels; none: of the views, or 640x480.", metavar="WxH")
]
Frames = Annotated[int, typer.Option(help="Of one turn.", min=1, max=100_000)]
Rate = Annotated[int, typer.Option(help="Frames a second.", min=1, max=240)]
Time = Annotated[
    float | None, typer.Option(help="Of a packed scene that moves: 0 is its first moment, 1 its last.")
]
Up = Annotated[
    str | None,
    typer.Option(help="Where up is: x, y, z, -x, -y, -z; none: as its views were held, without them -y."),
]
Ground = Annotated[str, typer.Option("--background", help="black, white, or red,green,blue from 0 to 1.")]

_MOST = 1 << 26  # pixels of a picture


def register(app: typer.Typer) -> None:
    app.command("render")(render)


def render(
    scene: Scene,
    output: Out,
    camera: Which = "orbit",
    views: Views = None,
    size: Size = None,
    frames: Frames = 48,
    rate: Rate = 24,
    time: Time = None,
    up: Up = None,
    background: Ground = "black",
    json: JSON = False,
) -> None:
    """Draw a scene of 3D Gaussians: a picture, or a film of a turn around it.

    `holdall render scene.hold -o turn.mp4`, `holdall render scene.ply --camera 3 --views transforms.json -o view.png`.
    """
    from holdall.errors import human_bytes
    from holdall.meter import Meter
    from holdall.places import size as bytes_of
    from holdall.splats import film
    from holdall.splats.page_opened import opened

    kind = film.ending(output)
    ground, sides = _background(background), _sides(size)
    found = opened(scene, time).scene
    single = kind in film.PICTURES
    cameras = _cameras(found, camera, views, sides, 1 if single else frames, up)
    with Meter() as meter:
        if single:
            film.picture(found, cameras[0], output, ground)
        else:
            film.film(found, cameras, output, ground, rate, _progress)
    shown = 1 if single else len(cameras)
    row = {"input": scene, "output": output, "bytes": bytes_of(output), "pictures": shown,
           "width": cameras[0].width, "height": cameras[0].height, **meter.figures()}  # fmt: skip
    if json:
        as_json(row)
    else:
        size_told = f"{cameras[0].width}x{cameras[0].height}"
        print(
            f"{scene} -> {output}  {shown} of {size_told}  {human_bytes(row['bytes'])}  {meter.seconds:.1f} s"
        )


def _cameras(
    scene: Any, which: str, views: str | None, sides: tuple[int, int] | None, count: int, up: str | None
) -> list[Any]:
    """As asked: a turn, all views in their order, or one of them."""
    from holdall.errors import BadInput
    from holdall.splats import film

    given = _read(views) if views is not None else list(scene.cameras)
    if which == "orbit" and views is None:
        return film.turning(scene, count, *(sides or (640, 480)), up)
    if which != "orbit":
        if not which.isdecimal() or int(which) >= len(given):
            there = f"0 to {len(given) - 1}" if given else "give --views transforms.json for others"
            raise BadInput("--camera", which, f"orbit, or the number of a view ({there})")
        given = [given[int(which)]]
    return [film.sized(c, *sides) for c in given] if sides else given


def _read(url: str) -> list[Any]:
    from holdall.errors import BadInput
    from holdall.splats.posed import cameras_of
    from holdall.verbs import text_of

    found = cameras_of(text_of(url))
    if not found:
        raise BadInput("--views", url, "a transforms.json with at least one view")
    return found


def _sides(text: str | None) -> tuple[int, int] | None:
    from holdall.errors import BadInput

    if text is None:
        return None
    wide, _, high = text.lower().partition("x")
    if not (wide.isdecimal() and high.isdecimal() and 0 < int(wide) * int(high) <= _MOST):
        raise BadInput("--size", text, f"width x height in pixels, such as 640x480, at most {_MOST:,} in all")
    return int(wide), int(high)


def _background(text: str) -> tuple[float, float, float]:
    from holdall.errors import BadInput

    named = {"black": (0.0, 0.0, 0.0), "white": (1.0, 1.0, 1.0)}
    if text in named:
        return named[text]
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        red = green = blue = -1.0
    if not all(0 <= part <= 1 for part in (red, green, blue)):
        raise BadInput("--background", text, "black, white, or three numbers from 0 to 1: 0.2,0.2,0.3")
    return red, green, blue


def _progress(now: int, all: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{now} of {all}", end="\n" if now == all else "", file=sys.stderr, flush=True)
