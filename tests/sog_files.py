"""Small .sog scenes, written by hand from the description of the format."""

import io
import json
import zipfile

import numpy as np

from holdall.splats.formats.values import sigmoid, whole_four
from holdall.splats.scene import Scene


def webp(pixels):
    """Lossless WebP of uint8 [high, wide, 4]."""
    from PIL import Image

    made = io.BytesIO()
    Image.fromarray(pixels).save(made, "WEBP", lossless=True, exact=True)
    return made.getvalue()


def sog_files(version=2):
    """A scene of 5 Gaussians with harmonics of degree 1, by hand: (files, what must be read)."""
    rng = np.random.default_rng(5)
    n, side = 5, 4
    low, high = [-1.0, -2.0, 0.0], [1.0, 0.5, 3.0]

    def plane(columns):
        pixels = np.full((side, side, 4), 255, np.uint8)
        pixels.reshape(-1, 4)[:n, : columns.shape[1]] = columns
        return webp(pixels)

    fine, coarse = rng.integers(0, 256, (2, n, 3))
    three, which = rng.integers(90, 166, (n, 3)), rng.integers(0, 4, n)
    sizes, colours, labels = (
        rng.integers(0, 9, (n, 3)),
        rng.integers(0, 9, (n, 4)),
        np.array([0, 1, 63, 64, 65]),
    )
    colours[0, 3] = 0  # a Gaussian that is not seen still has its colour
    centroids = np.zeros((2, 64 * 3, 4), np.uint8)
    centroids[..., :3] = rng.integers(0, 9, (2, 64 * 3, 3))
    centroids[..., 3] = 255
    files = {
        "means_l.webp": plane(fine), "means_u.webp": plane(coarse), "scales.webp": plane(sizes),
        "quats.webp": plane(np.concatenate([three, 252 + which[:, None]], 1)), "sh0.webp": plane(colours),
        "shN_centroids.webp": webp(centroids), "shN_labels.webp": plane(np.stack([labels, 0 * labels], 1)),
    }  # fmt: skip
    lists = [sorted(rng.standard_normal(9)) for _ in range(3)]
    logs = np.array(low) + (np.array(high) - low) * (fine + 256 * coarse) / 65535
    rest = centroids[..., :3].reshape(128, 3, 3)[labels]
    means = {"mins": low, "maxs": high, "files": ["means_l.webp", "means_u.webp"]}
    parts = {"scales": ["scales.webp"], "sh0": ["sh0.webp"], "shN": ["shN_centroids.webp", "shN_labels.webp"]}
    if version == 2:
        meta = {"version": 2, "count": n, "means": means, "quats": {"files": ["quats.webp"]}}
        meta |= {p: {"codebook": c, "files": f} for (p, f), c in zip(parts.items(), lists, strict=True)}
        meta["shN"] |= {"count": 70, "bands": 1}
        scales, dc, rest = (np.array(c)[i] for c, i in zip(lists, (sizes, colours[:, :3], rest), strict=True))
        opacity = np.clip(colours[:, 3], 0.25, None) / 255
    else:
        ends = {
            "scales": ([-9, -8, -7], [-1, -2, -3]),
            "sh0": ([-1, -1, -1, -4], [1, 2, 3, 6]),
            "shN": (-0.5, 0.75),
        }
        meta = {"means": means | {"shape": [n, 3]}, "quats": {"files": ["quats.webp"]}}
        meta |= {p: {"mins": ends[p][0], "maxs": ends[p][1], "files": f} for p, f in parts.items()}
        scales = np.array([-9, -8, -7]) + np.array([8, 6, 4]) * sizes / 255
        first = np.array([-1, -1, -1, -4]) + np.array([2, 3, 4, 10]) * colours / 255
        dc, opacity, rest = first[:, :3], sigmoid(first[:, 3]), -0.5 + 1.25 * rest / 255
    files["meta.json"] = json.dumps(meta).encode()
    places = np.sign(logs) * (np.exp(np.abs(logs)) - 1)
    quats = whole_four((three / 255 * 2 - 1) / np.sqrt(2), which)
    sh = np.concatenate([dc[:, None], rest], 1)
    return files, Scene(places, scales, quats, np.log(opacity / (1 - opacity)), sh)


def zipped(files):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, raw in files.items():
            archive.writestr(name, raw)
    return made.getvalue()
