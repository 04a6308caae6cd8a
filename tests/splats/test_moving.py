"""A moving scene made by rule: one solid turns, one travels, one comes late, the floor rests; and its films."""

import numpy as np
import pytest

from holdall.errors import BadInput
from holdall.splats.camera import looking
from holdall.splats.made_moving import BODIES, filmed, held_out, moving_solids
from holdall.splats.moving import likeness
from holdall.splats.raster import render


@pytest.fixture(scope="module")
def moving():
    return moving_solids(300)


def of(moving, name, t):
    return moving.at(t).take(moving.body == BODIES.index(name))


def test_each_solid_moves_as_it_is_named(moving):
    assert of(moving, "floor", 0.0).means.tobytes() == of(moving, "floor", 1.0).means.tobytes()
    way = of(moving, "ball", 1.0).means - of(moving, "ball", 0.0).means
    assert np.allclose(way, way[0], atol=1e-5) and np.linalg.norm(way[0]) > 1
    before, after = (of(moving, "ring", t).means for t in (0.0, 1.0))
    middle = [-0.5, 0, -0.35]
    assert np.allclose(*(np.linalg.norm((m - middle)[:, ::2], axis=1) for m in (before, after)), atol=1e-5)
    assert np.abs(after - before).max() > 0.5 and np.allclose(before[:, 1], after[:, 1])


def test_what_comes_late_shows_late_only(moving):
    late = moving.take(moving.body == BODIES.index("late"))
    shots = filmed(late, cameras=3, times=5, width=32)
    light = [np.mean([1 - s.picture.mean() for s in shots if s.time == t]) for t in (0, 0.25, 0.5, 0.75, 1)]
    assert max(light[:3]) < 1e-3 < 0.01 < min(light[3:])


def test_turned_gaussians_turn_with_their_solid(moving):
    """From a camera that turns along, the ring alone looks the same, but for highlights, which are the world's."""
    ring = moving_solids(300, degree=0)
    ring = ring.take(ring.body == BODIES.index("ring"))
    angle = np.pi / 2
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    middle = np.array([-0.5, 0.5, -0.35])
    way = np.array([0.8, 0.7, 1.9])
    views = [looking(middle + w, middle, width=40, height=40) for w in (way, turn @ way)]
    one, two = (render(ring.at(t), c).colour for t, c in zip((0, 1), views, strict=True))
    assert np.abs(one - two).max() < 1e-3


def test_held_out_shots_are_from_other_places_and_times(moving):
    learnt, apart = filmed(moving, 4, 5, 24), held_out(moving, 4, 5, 24)
    assert len({s.time for s in held_out(moving, 6, 6, 8)}) >= 4
    assert not {s.time for s in learnt} & {s.time for s in apart}
    places = np.array([s.camera.place for s in learnt])
    assert min(np.linalg.norm(places - s.camera.place, axis=1).min() for s in apart) > 0.3
    assert likeness(moving, apart) > 100 > likeness(moving.take(slice(150)), apart)


def test_times_outside_are_refused(moving):
    for t in (-0.1, 1.1, float("nan")):
        with pytest.raises(BadInput, match="0 to 1"):
            moving.at(t)
