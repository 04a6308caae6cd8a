"""holdall fit-scene: posed photographs become a compact scene."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from holdall.cli.output import JSON, as_json
from holdall.cli.pack import Sets

Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="PHOTOS", help="A folder with NeRF's transforms.json or COLMAP's sparse/0; a path or URL."
    ),
]
With = Annotated[
    str | None,
    typer.Option(
        "--with",
        help="A method that learns from photographs; by default splats.compact3dgs, or splats.compact_moving of "
        "photographs with times.",
        metavar="METHOD",
    ),
]
Out = Annotated[str, typer.Option("--output", "-o", help="The .hold file.")]
Memory = Annotated[str | None, typer.Option("--memory", help='What this process may hold: "2GB".')]
BudgetText = Annotated[
    str | None, typer.Option("--budget", "-b", help='Of the file: "500kB"; none: as it comes.')
]
Held = Annotated[
    int, typer.Option("--hold-back", help="One of so many photographs is held out to judge by; 0: none.")
]
Ground = Annotated[
    str,
    typer.Option("--background", help="Behind clear pixels: black, white, or red,green,blue from 0 to 1."),
]
Start = Annotated[int, typer.Option(help="Gaussians to begin with.", min=1)]
Most = Annotated[int, typer.Option(help="Gaussians at all.", min=1)]


def register(app: typer.Typer) -> None:
    loose = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("fit-scene", context_settings=loose)(fit_scene)


def fit_scene(
    photos: Inputs,
    output: Out,
    with_: With = None,
    memory: Memory = None,
    budget: BudgetText = None,
    hold_back: Held = 8,
    background: Ground = "white",
    start: Start = 4000,
    most: Most = 100_000,
    sets: Sets = None,
    json: JSON = False,
) -> None:
    """Learn a compact scene of 3D Gaussians from photographs whose cameras are known.

    Options of a method are its fields: `holdall fit-scene photos/ --memory 2GB --steps 3000 -o scene.hold`.
    Photographs whose frames have a "time" (0 to 1) become a scene that moves.
    What is told of quality is measured on photographs that are held out, drawn from what is unpacked from the file.
    """
    from holdall.budget import Budget
    from holdall.cli.knobs import separate
    from holdall.cli.render import _background
    from holdall.errors import BadInput
    from holdall.meter import Meter
    from holdall.places import size

    given, options = separate(photos, sets or ())
    method, spare = _method(with_ or "splats.compact3dgs", options)
    given += spare
    if len(given) != 1:
        raise BadInput("photographs", " ".join(given) or "none", "one folder, or one transforms.json")
    Budget.parse(budget)
    limit = _bytes(memory)
    _writable(output)
    with Meter() as meter:
        shots = _photos(given[0], hold_back, _background(background), limit)
        if with_ is None and all(shots.cameras[i].time is not None for i in shots.train):
            method, _ = _method("splats.compact_moving", options)
        scene, packed = method.fit(shots, budget, memory=limit, start=start, most=most)
        packed.save(output)
        row = {"input": given[0], "output": output, "photographs": len(shots.train), "gaussians": len(scene)}
    row |= {"bytes": size(output), "method": method.full_name(), **meter.figures(), **_judged(scene, shots)}
    if json:
        as_json(row)
    else:
        print(_line(row))


def _method(name: str, options: list[Any]) -> tuple[Any, list[str]]:
    from holdall.cli.knobs import configured
    from holdall.errors import BadInput
    from holdall.registry import get, methods

    cls = get(name)
    if not hasattr(cls, "fit") or cls.room != "splats":
        able = ", ".join(n for n, c in methods("splats").items() if hasattr(c, "fit"))
        raise BadInput("--with", name, f"a method that learns from photographs: {able}")
    found: tuple[Any, list[str]] = configured(cls, options)
    return found


def _bytes(memory: str | None) -> int | None:
    from holdall.budget import Budget
    from holdall.errors import BadInput

    asked = Budget.parse(memory)
    if asked is not None and asked.bytes is None:
        raise BadInput("--memory", memory, 'a size ("2GB")')
    return None if asked is None else asked.bytes


def _writable(output: str) -> None:
    """Told before the work, not after it."""
    from holdall.errors import BadInput
    from holdall.files import is_local, local_path

    if is_local(output) and not local_path(output).parent.is_dir():
        raise BadInput("output", output, f"a folder that exists ({local_path(output).parent} does not)")


def _photos(where: str, hold_back: int, ground: tuple[float, float, float], limit: int | None) -> Any:
    from holdall.splats.posed import read_photos

    if limit is None:
        return read_photos(where, hold_back, ground)
    from holdall.memory import return_early
    from holdall.splats.compact3dgs_work import for_photos

    return_early()
    return read_photos(where, hold_back, ground, for_photos(limit))


def _judged(scene: Any, shots: Any) -> dict[str, Any]:
    """PSNR and SSIM on what was held out."""
    import numpy as np

    from holdall.splats.moving import Moving
    from holdall.splats.quality import psnr, ssim
    from holdall.splats.raster import render

    errors, likes = [], []
    for i in shots.held_out:
        camera = shots.cameras[i]
        now = scene.at(camera.time) if isinstance(scene, Moving) else scene
        shown = np.clip(render(now, camera, shots.background).colour, 0, 1).astype(np.float64)
        true = shots.image(i).astype(np.float64)
        errors.append(float(((shown - true) ** 2).mean()))
        likes.append(ssim(shown, true))
    if not errors:
        return {"held_out": 0}
    return {"held_out": len(errors), "psnr": psnr(float(np.mean(errors))), "ssim": float(np.mean(likes))}


def _line(row: dict[str, Any]) -> str:
    from holdall.errors import human_bytes

    seen = f"  {row['psnr']:.2f} dB on {row['held_out']} held out" if row["held_out"] else ""
    return (
        f"{row['photographs']} photographs -> {row['output']}  {row['gaussians']:,} Gaussians  "
        f"{human_bytes(row['bytes'])}{seen}  {row['seconds']:.0f} s  peak {human_bytes(row['peak_bytes'])}"
    )
