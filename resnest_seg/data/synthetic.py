"""Synthetic street scenes, drawn from (seed, index) alone: the data set of the demo and of many tests.

A pinhole camera looks down a street. Everything stands in metres in front of it (x to the right, y up from the ground,
z away) and is painted from far to near on two canvases at once, the photo and the map of raw ids, so that occlusion is
right by construction. Only integer drawing and elementary float arithmetic are used, and only uniform draws from PCG64:
the same bytes on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from resnest_seg.data.datasets import Sample, SegmentationDataset, _choose
from resnest_seg.errors import ConfigError
from resnest_seg.io.bands import BandReader
from resnest_seg.labels import LabelSpace

CAMERA_HEIGHT = 2.0
"""Height of the camera above the ground in metres."""

Color = tuple[float, float, float]
Point = tuple[float, float]
Spot = tuple[float, float, float]


class Canvas:
    """One picture being painted: photo and ids, the camera, and the random stream.

    Metres have x to the right of the camera, y up from the ground and z away from it. Every fill writes the colour
    into the photo and the label into the ids, so that later things hide earlier ones in both.

    Attributes:
        photo: uint8 [height, width, 3], RGB.
        ids: uint8 [height, width].
        horizon: Row of the horizon.
        sun: Metres of shadow to the right, per metre of height.
    """

    def __init__(self, seed: int, index: int, *, height: int, width: int) -> None:
        self.random = np.random.Generator(np.random.PCG64([seed, index]))
        self.height, self.width = height, width
        self.photo = np.zeros((self.height, self.width, 3), np.uint8)
        self.ids = np.zeros((self.height, self.width), np.uint8)
        self.focal = 1.15 * self.width
        self.horizon = self.height * self.between(0.38, 0.5)
        self.vanishing = self.width * self.between(0.36, 0.64)
        self.sun = self.between(-1.4, 1.4)

    def between(self, low: float, high: float) -> float:
        """Draw a uniform number between two."""
        return low + (high - low) * float(self.random.random())

    def pick(self, count: int) -> int:
        """Draw an integer of 0..count - 1."""
        return int(self.random.integers(count))

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return float(self.random.random()) < probability

    def vary(self, color: Color, amount: float = 14) -> Color:
        """Return the colour, randomly a little lighter or darker."""
        shift = self.between(-amount, amount)
        return (color[0] + shift, color[1] + shift, color[2] + shift)

    def at(self, x: float, y: float, z: float) -> Point:
        """Project a point in metres to a pixel."""
        return self.vanishing + x * self.focal / z, self.horizon + (CAMERA_HEIGHT - y) * self.focal / z

    def paint(self, points: Sequence[Point], color: Color, label: int) -> None:
        """Fill a polygon of pixels on both canvases."""
        corners = [np.array([(round(x), round(y)) for x, y in points], np.int32)]
        cv2.fillPoly(self.photo, corners, _clipped(color))
        cv2.fillPoly(self.ids, corners, [label])

    def disc(self, center: Point, radius: float, color: Color, label: int) -> None:
        """Fill a disc; centre and radius in pixels."""
        spot = (round(center[0]), round(center[1]))
        cv2.circle(self.photo, spot, max(round(radius), 1), _clipped(color), -1)
        cv2.circle(self.ids, spot, max(round(radius), 1), [label], -1)

    def solid(self, points: Sequence[Spot], color: Color, label: int) -> None:
        """Fill a polygon of points in metres."""
        self.paint([self.at(*point) for point in points], color, label)

    def card(self, x: float, z: float, outline: Sequence[Point], color: Color, label: int) -> None:
        """Fill an upright polygon that faces the camera; `outline` is in metres from its foot at (x, 0, z)."""
        self.solid([(x + dx, y, z) for dx, y in outline], color, label)

    def front(self, x: Point, y: Point, z: float, color: Color, label: int) -> None:
        """Fill an upright rectangle that faces the camera: from x[0] to x[1] and y[0] to y[1] metres."""
        self.solid([(x[0], y[0], z), (x[1], y[0], z), (x[1], y[1], z), (x[0], y[1], z)], color, label)

    def side(self, x: float, y: Point, z: Point, color: Color, label: int) -> None:
        """Fill an upright rectangle along the street: from y[0] to y[1] and z[0] to z[1] metres."""
        self.solid([(x, y[0], z[0]), (x, y[1], z[0]), (x, y[1], z[1]), (x, y[0], z[1])], color, label)

    def flat(self, x: Point, z: Point, color: Color, label: int) -> None:
        """Fill a rectangle on the ground: from x[0] to x[1] and z[0] to z[1] metres."""
        self.solid([(x[0], 0, z[0]), (x[1], 0, z[0]), (x[1], 0, z[1]), (x[0], 0, z[1])], color, label)

    def darken(self, points: Sequence[Spot], factor: float) -> None:
        """Cast a shadow on what is painted so far inside a polygon of points in metres."""
        corners = np.array([[round(value) for value in self.at(*point)] for point in points], np.int32)
        left, top = np.clip(corners.min(0), 0, (self.width, self.height))
        right, bottom = np.clip(corners.max(0) + 1, 0, (self.width, self.height))
        if left < right and top < bottom:
            inside = np.zeros((bottom - top, right - left), np.uint8)
            cv2.fillPoly(inside, [corners - (left, top)], [1])
            region = self.photo[top:bottom, left:right]
            region[inside > 0] = (region[inside > 0] * factor).astype(np.uint8)


def mix(first: Color, second: Color, share: float) -> Color:
    """Blend `share` (0..1) of `second` into `first`."""
    red, green, blue = (a + (b - a) * share for a, b in zip(first, second, strict=True))
    return red, green, blue


def _clipped(color: Color) -> tuple[int, int, int]:
    red, green, blue = (min(max(round(value), 0), 255) for value in color)
    return red, green, blue


SKY, BUILDING, ROAD, PAVEMENT, TREE, GRASS, POLE, SIGN, CAR, PERSON = range(10)
BORDER = 255
"""Raw id of the frame around every picture; it is ignored."""

FINE = 2  # pictures are painted this many times larger and averaged down, which smooths every edge


class _Light(NamedTuple):
    zenith: Color
    horizon: Color
    tint: Color
    shadow: float  # brightness left in the shade


_LIGHTS = (
    _Light((96, 156, 226), (206, 228, 244), (1.00, 1.00, 1.00), 0.62),  # noon
    _Light((142, 162, 184), (206, 210, 214), (0.86, 0.88, 0.92), 0.82),  # overcast
    _Light((92, 104, 166), (250, 188, 130), (1.02, 0.88, 0.76), 0.62),  # evening
    _Light((128, 190, 228), (250, 236, 208), (1.06, 1.00, 0.92), 0.62),  # morning
)
_WALLS: tuple[Color, ...] = (
    (196, 120, 92),
    (222, 196, 150),
    (170, 176, 186),
    (208, 156, 128),
    (146, 104, 92),
    (232, 222, 206),
)
_ROOFS: tuple[Color, ...] = ((120, 70, 62), (84, 86, 94), (150, 88, 66))
_PAINTS: tuple[Color, ...] = (
    (196, 44, 40),
    (42, 84, 170),
    (236, 236, 232),
    (58, 62, 70),
    (240, 182, 44),
    (60, 132, 96),
)
_CLOTHES: tuple[Color, ...] = (
    (210, 60, 70),
    (50, 90, 180),
    (240, 200, 70),
    (80, 150, 90),
    (130, 70, 150),
    (235, 235, 235),
    (50, 52, 60),
)
_LEAVES: tuple[Color, ...] = ((74, 138, 60), (96, 154, 62), (54, 116, 66), (196, 140, 52), (150, 160, 60))
_TEXTURE = {SKY: 1.5, BUILDING: 7, ROAD: 6, PAVEMENT: 6, TREE: 20, GRASS: 16, POLE: 4, SIGN: 2, CAR: 2, PERSON: 4}


def render_scene(seed: int, index: int, *, height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw the scene of (seed, index).

    Returns:
        The photo, RGB uint8 [height, width, 3], and its raw ids, uint8 [height, width]: 0..9 and `BORDER`.
    """
    scene = Canvas(seed, index, height=height * FINE, width=width * FINE)
    light = _LIGHTS[scene.pick(len(_LIGHTS))]
    _sky(scene, light)
    _skyline(scene, light)
    road, pavement = scene.between(2.5, 3.3), scene.between(2.2, 3.0)
    _ground(scene, road, pavement)
    _things(scene, light, road, pavement)
    photo = cv2.resize(scene.photo, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    ids = np.ascontiguousarray(scene.ids[::FINE, ::FINE])
    photo = _weather(scene, light, photo, ids)
    ids[:2], ids[-2:], ids[:, :2], ids[:, -2:] = BORDER, BORDER, BORDER, BORDER
    return photo, ids


def _sky(scene: Canvas, light: _Light) -> None:
    depth = np.minimum(np.arange(scene.height) / scene.horizon, 1.0)[:, None, None]
    scene.photo[:] = (np.array(light.zenith) * (1 - depth) + np.array(light.horizon) * depth).astype(np.uint8)
    scene.ids[:] = SKY
    if scene.chance(0.4):
        spot = (scene.between(0, scene.width), scene.horizon * scene.between(0.1, 0.6))
        scene.disc(spot, scene.height * 0.05, (255, 248, 214), SKY)
    for _ in range(scene.pick(5)):
        x, y = scene.between(0, scene.width), scene.horizon * scene.between(0.05, 0.7)
        size = scene.height * scene.between(0.02, 0.05)
        for _ in range(6):
            white = 238 + scene.between(-8, 14)
            puff = (x + scene.between(-2.6, 2.6) * size, y + scene.between(-0.5, 0.4) * size)
            scene.disc(puff, size * scene.between(0.6, 1.1), (white, white, white + 2), SKY)


def _skyline(scene: Canvas, light: _Light) -> None:
    """Hazy trees and houses at the end of the street."""
    x = -10.0
    while x < scene.width:
        wide = scene.width * scene.between(0.03, 0.09)
        if scene.chance(0.5):
            label, color, top = BUILDING, _WALLS[scene.pick(len(_WALLS))], scene.height * scene.between(0.05, 0.17)
            eaves = top
        else:
            label, color, top = TREE, _LEAVES[scene.pick(3)], scene.height * scene.between(0.03, 0.09)
            eaves = top * 0.6
        corners = [(x, scene.horizon - eaves), (x + wide / 2, scene.horizon - top), (x + wide, scene.horizon - eaves)]
        base = [(x + wide, scene.horizon + 2.0), (x, scene.horizon + 2.0)]
        scene.paint(corners + base, mix(color, light.horizon, 0.55), label)
        x += wide


def _ground(scene: Canvas, road: float, pavement: float) -> None:
    """Grass to the horizon, pavements with a kerb, the road with its markings."""
    street, edge, kerb = (2.0, 400.0), road + pavement, road + 0.25
    grass = scene.vary(mix(_LEAVES[scene.pick(2)], (150, 190, 90), 0.5))
    top, bottom = scene.horizon, scene.height
    scene.paint([(0, top), (scene.width, top), (scene.width, bottom), (0, bottom)], grass, GRASS)
    stone = scene.vary((184, 178, 172))
    scene.flat((-edge, edge), street, stone, PAVEMENT)
    slab = scene.between(1.2, 2.0)
    for step in range(24):
        z = 3.0 + step * slab
        scene.flat((-edge, edge), (z, z + 0.08), mix(stone, (90, 88, 86), 0.5), PAVEMENT)
    scene.flat((-kerb, kerb), street, mix(stone, (255, 255, 255), 0.35), PAVEMENT)
    scene.flat((-road, road), street, scene.vary((92, 92, 98)), ROAD)
    paint = (226, 224, 214)
    for step in range(20):  # the dashed middle line
        z = 3.0 + step * 5 + scene.between(0, 0.4)
        scene.flat((-0.1, 0.1), (z, z + 2.2), paint, ROAD)
    for x in (0.35 - road, road - 0.35):
        scene.flat((x - 0.07, x + 0.07), street, paint, ROAD)
    if scene.chance(0.4):  # a zebra crossing
        z = scene.between(7, 14)
        for stripe in range(int(2 * road)):
            x = -road + 0.5 + stripe
            scene.flat((x, x + 0.5), (z, z + 2.5), paint, ROAD)


def _things(scene: Canvas, light: _Light, road: float, pavement: float) -> None:
    """Draw the objects on the ground from far to near, each after its shadow."""
    edge = road + pavement
    things: list[tuple[float, Callable[[], None]]] = []
    shadows: list[Callable[[], None]] = []

    def add(z: float, height: float, x: float, half: float, draw: Callable[[], None]) -> None:
        things.append((z, draw))
        tip = x + scene.sun * height
        shape = [
            (x - half, 0.0, z),
            (x + half, 0.0, z),
            (tip + half, 0.0, z + 0.4 * height),
            (tip - half, 0.0, z + 0.4 * height),
        ]
        shadows.append(lambda: scene.darken(shape, light.shadow))

    for side in (-1, 1):
        z = scene.between(4, 12)
        while z < 60:
            long, gap, high = scene.between(7, 14), scene.between(0.5, 7), scene.between(5, 15)
            x = side * (edge + scene.between(0.6, 3.0))
            add(z + long, high, x, 1.5, _building(scene, x, z, long, high))
            z += long + gap
        for _ in range(2 + scene.pick(3)):
            x, z, high = side * (edge + scene.between(-0.6, 0.6)), scene.between(10, 28), scene.between(3.5, 6.5)
            add(z, high, x, 1.1, _tree(scene, x, z, high))
        for _ in range(1 + scene.pick(2)):
            x, z = side * (road + scene.between(0.5, 0.9)), scene.between(9, 18)
            add(z, 5.5, x, 0.2, _lamp(scene, x, z, side))
        for _ in range(1 + scene.pick(2)):
            x, z = side * (road + scene.between(0.5, 1.2)), scene.between(8.5, 14)
            add(z, 2.6, x, 0.2, _sign(scene, x, z))
        for _ in range(2 + scene.pick(3)):
            x, z = side * (road + scene.between(0.8, pavement - 0.2)), scene.between(8, 15)
            add(z, 1.7, x, 0.3, _person(scene, x, z))
        for _ in range(1 + scene.pick(3)):
            x, z = side * (road * 0.5 + scene.between(-0.3, road * 0.5 - 1.1)), scene.between(8, 26)
            add(z, 1.4, x, 0.9, _car(scene, x, z))
    for _ in range(scene.pick(3)):  # people cross the street
        x, z = scene.between(-road, road), scene.between(7, 14)
        add(z, 1.7, x, 0.3, _person(scene, x, z))
    for cast in shadows:
        cast()
    for _, draw in sorted(things, key=lambda thing: -thing[0]):
        draw()


def _building(scene: Canvas, x: float, z: float, long: float, high: float) -> Callable[[], None]:
    """A house along the street: the facade towards the road, the gable end towards the camera."""
    wall = scene.vary(_WALLS[scene.pick(len(_WALLS))])
    sunny = (x > 0) == (scene.sun > 0)  # the sun stands on the other side of the street
    facade = wall if sunny else mix(wall, (30, 30, 50), 0.3)
    end, roof = mix(wall, (30, 30, 50), 0.12), scene.vary(_ROOFS[scene.pick(len(_ROOFS))])
    panes = [(250, 226, 150) if scene.chance(0.25) else (70, 92, 116) for _ in range(8)]
    storeys, bays, gabled = max(int(high / 3), 1), max(int(long / 2.4), 1), scene.chance(0.5)
    outer = x + (9.0 if x > 0 else -9.0)

    def draw() -> None:
        if gabled:
            ridge, tip = (x + outer) / 2, high + 2.6
            scene.solid([(x, high, z), (outer, high, z), (ridge, tip, z)], end, BUILDING)
            scene.solid([(x, high, z), (ridge, tip, z), (ridge, tip, z + long), (x, high, z + long)], roof, BUILDING)
        scene.front((x, outer), (0, high), z, end, BUILDING)
        scene.side(x, (0, high), (z, z + long), facade, BUILDING)
        scene.side(x, (0, 0.5), (z, z + long), mix(facade, (60, 60, 60), 0.4), BUILDING)
        for storey in range(storeys):
            sill = high / storeys * (storey + 0.35)
            for bay in range(bays):
                near = z + long / bays * (bay + 0.28)
                far = near + long / bays * 0.44
                frame = mix(facade, (255, 255, 255), 0.5)
                scene.side(x, (sill - 0.12, sill + 1.6), (near - 0.1, far + 0.1), frame, BUILDING)
                scene.side(x, (sill, sill + 1.5), (near, far), panes[(storey * 3 + bay) % 8], BUILDING)
            for bay in range(3):
                left = min(x, outer) + 3.0 * (bay + 0.3)
                scene.front((left, left + 1.2), (sill, sill + 1.5), z, panes[(storey + bay) % 8], BUILDING)

    return draw


def _tree(scene: Canvas, x: float, z: float, high: float) -> Callable[[], None]:
    leaf, bark = scene.vary(_LEAVES[scene.pick(len(_LEAVES))]), scene.vary((98, 72, 52))
    puffs = [
        (scene.between(-1, 1), scene.between(0, 1), scene.between(0.55, 0.9), scene.between(-0.3, 0.3))
        for _ in range(14)
    ]

    def draw() -> None:
        scene.card(x, z, [(-0.18, 0), (0.18, 0), (0.1, high * 0.6), (-0.1, high * 0.6)], bark, TREE)
        for dx, dy, size, tone in sorted(puffs, key=lambda puff: puff[3]):
            spread = high * 0.22 * (1.2 - 0.6 * dy)
            color = mix(leaf, (255, 255, 190), tone) if tone > 0 else mix(leaf, (10, 30, 30), -tone)
            scene.disc(
                scene.at(x + dx * spread, high * (0.5 + 0.42 * dy), z), high * 0.2 * size * scene.focal / z, color, TREE
            )

    return draw


def _lamp(scene: Canvas, x: float, z: float, side: int) -> Callable[[], None]:
    metal, high = scene.vary((74, 80, 86)), scene.between(4.6, 6.0)
    arm = x - side * 1.5

    def draw() -> None:
        scene.card(x, z, [(-0.24, 0), (0.24, 0), (0.17, high), (-0.17, high)], metal, POLE)
        scene.solid([(x, high, z), (arm, high + 0.2, z), (arm, high - 0.15, z), (x, high - 0.4, z)], metal, POLE)
        scene.front((arm - 0.4, arm + 0.4), (high - 0.25, high + 0.15), z, (250, 240, 200), POLE)

    return draw


def _sign(scene: Canvas, x: float, z: float) -> Callable[[], None]:
    metal, kind = scene.vary((150, 152, 156)), scene.pick(4)
    high, size = scene.between(2.2, 2.8), scene.between(0.5, 0.7)
    red, white, blue, yellow, black = (204, 32, 38), (244, 244, 242), (30, 84, 176), (248, 200, 40), (40, 40, 44)

    def disc(share: float, color: Color) -> None:
        scene.disc(scene.at(x, high, z), size * share * scene.focal / z, color, SIGN)

    def triangle(share: float, color: Color) -> None:
        half = size * share
        scene.card(x, z, [(-half, high - 0.7 * half), (half, high - 0.7 * half), (0, high + half)], color, SIGN)

    def diamond(share: float, color: Color) -> None:
        half = size * share
        scene.card(x, z, [(-half, high), (0, high - half), (half, high), (0, high + half)], color, SIGN)

    def square(share: float, color: Color) -> None:
        half = size * share
        scene.front((x - half, x + half), (high - half, high + half), z, color, SIGN)

    drawings = (
        ((disc, 1.0, red), (disc, 0.72, white), (disc, 0.3, black)),  # a speed limit
        ((triangle, 1.15, red), (triangle, 0.7, white), (diamond, 0.2, black)),  # a warning
        ((square, 1.0, blue), (disc, 0.6, white), (disc, 0.25, blue)),  # parking
        ((diamond, 1.15, white), (diamond, 0.85, yellow)),  # right of way
    )

    def draw() -> None:
        scene.front((x - 0.13, x + 0.13), (0, high), z, metal, POLE)
        for shape, share, color in drawings[kind]:
            shape(share, color)

    return draw


def _car(scene: Canvas, x: float, z: float) -> Callable[[], None]:
    """A car seen from behind (right lane) or from the front (left lane), with the side that the camera sees."""
    paint, rear, long = scene.vary(_PAINTS[scene.pick(len(_PAINTS))], 10), x > 0, scene.between(3.6, 4.4)
    half, shoulder, top = scene.between(0.85, 0.95), scene.between(0.85, 0.95), scene.between(1.4, 1.65)
    dark, glass, tyre = mix(paint, (20, 20, 30), 0.4), (54, 66, 82), (28, 28, 32)
    lamp: Color = (214, 40, 36) if rear else (252, 246, 214)
    inwards = -1 if x > 0 else 1  # towards the middle of the picture
    slim = half * 0.82

    def body() -> None:
        seen, inner = x + inwards * half, x + inwards * slim
        for hub in (z + long * 0.2, z + long * 0.78):
            scene.side(seen, (0, 0.6), (hub - 0.3, hub + 0.3), tyre, CAR)
        for hub in (x - half + 0.12, x + half - 0.12):
            scene.front((hub - 0.12, hub + 0.12), (0, 0.5), z, tyre, CAR)
        scene.side(seen, (0.25, shoulder), (z, z + long), dark, CAR)
        near, far = z + 0.5, z + long * (0.95 if rear else 0.62)
        windows = [(seen, shoulder, near), (inner, top, near + 0.4), (inner, top, far - 0.4), (seen, shoulder, far)]
        scene.solid(windows, glass, CAR)
        roof = [(x - slim, top, near), (x + slim, top, near), (x + slim, top, far - 0.4), (x - slim, top, far - 0.4)]
        scene.solid(roof, mix(paint, (255, 255, 255), 0.25), CAR)

    def draw() -> None:
        body()
        scene.card(x, z, [(-half, shoulder), (half, shoulder), (slim, top), (-slim, top)], paint, CAR)
        low, up, sill, brow = half * 0.82, slim * 0.84, shoulder + 0.06, top - 0.1
        scene.card(x, z, [(-low, sill), (low, sill), (up, brow), (-up, brow)], glass, CAR)
        scene.front((x - half, x + half), (0.25, shoulder), z, paint, CAR)
        scene.front((x - half, x + half), (0.25, 0.42), z, dark, CAR)
        scene.front((x - 0.26, x + 0.26), (0.45, 0.6), z, (240, 240, 232), CAR)
        for light in (x - half + 0.17, x + half - 0.17):
            scene.front((light - 0.14, light + 0.14), (0.6, 0.78), z, lamp, CAR)

    return draw


def _person(scene: Canvas, x: float, z: float) -> Callable[[], None]:
    coat = scene.vary(_CLOTHES[scene.pick(len(_CLOTHES))])
    trousers = scene.vary(mix(_CLOTHES[scene.pick(len(_CLOTHES))], (40, 44, 60), 0.6))
    skin = mix((242, 206, 178), (112, 76, 56), scene.between(0, 1))
    hair = mix((40, 30, 26), (200, 160, 90), scene.between(0, 1))
    high, stride = scene.between(1.6, 1.9), scene.between(0.05, 0.3)

    def draw() -> None:
        hip, neck, head = high * 0.48, high * 0.82, high * 0.9
        for way in (-1, 1):
            foot, hand = way * (0.08 + stride), way * (0.24 + stride / 2)
            scene.card(x, z, [(way * 0.19, hip), (0, hip), (foot - 0.08, 0), (foot + 0.1, 0)], trousers, PERSON)
            sleeve = [(way * 0.18, neck), (way * 0.3, neck - 0.06), (hand + way * 0.1, hip), (hand, hip)]
            scene.card(x, z, sleeve, mix(coat, (20, 20, 30), 0.2), PERSON)
        scene.card(x, z, [(-0.23, hip - 0.08), (0.23, hip - 0.08), (0.26, neck), (-0.26, neck)], coat, PERSON)
        radius = high * 0.085 * scene.focal / z
        scene.disc(scene.at(x, head + 0.03, z), radius * 1.08, hair, PERSON)
        scene.disc(scene.at(x, head - 0.01, z), radius * 0.88, skin, PERSON)

    return draw


def _weather(scene: Canvas, light: _Light, photo: NDArray[np.uint8], ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Surface texture by class, a darker rim, the tint of the light and sensor noise."""
    rows, columns = ids.shape
    strength = np.zeros(256, np.float32)
    strength[list(_TEXTURE)] = list(_TEXTURE.values())
    grain = scene.random.integers(0, 256, (-(-rows // 2), -(-columns // 2)), dtype=np.uint8)
    coarse = grain.repeat(2, axis=0).repeat(2, axis=1)[:rows, :columns].astype(np.float32)
    fine = scene.random.integers(0, 256, (rows, columns), dtype=np.uint8)
    texture = (coarse + fine - 255.0) / 255.0 * strength[ids]
    across = np.abs(np.arange(columns, dtype=np.float32) / columns - 0.5)
    down = np.abs(np.arange(rows, dtype=np.float32) / rows - 0.5)
    rim = 1.06 - 0.35 * (across[None, :] * across[None, :] + down[:, None] * down[:, None])
    lit = (photo + texture[..., None]) * rim[..., None] * np.array(light.tint, np.float32)
    noise = scene.random.integers(-4, 5, (rows, columns, 3), dtype=np.int8)
    clipped: NDArray[np.uint8] = np.clip(lit + noise, 0, 255).astype(np.uint8)
    return clipped


class Synthetic(SegmentationDataset):
    """Street scenes drawn on the fly: 10 classes, any number of pictures, no files. See `resnest_seg.data.synthetic`.

    The splits never share a scene.

    Args:
        split: "train" (512 scenes), "val" (64) or "test" (64).
        size: (H, W) of the pictures.

    Raises:
        DatasetError: Unknown split.
    """

    def __init__(self, split: str = "train", *, size: tuple[int, int] = (160, 240)) -> None:
        self.split, self.size = split, size
        self.seed, self.count = _choose("split", split, {"train": (1, 512), "val": (2, 64), "test": (3, 64)})
        self.label_space = LabelSpace.of("synthetic")

    def read_as(self, bands: BandReader | None) -> None:
        """Refuse bands: the scenes are 8-bit RGB."""
        if bands is not None:
            raise ConfigError("data.bands belongs to images that are read from files, and synthetic ones are drawn.")

    def __len__(self) -> int:
        return self.count

    def sample_name(self, index: int) -> str:
        """See `SegmentationDataset`."""
        return f"synthetic {self.split} scene {index}"

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(index)  # what ends a for loop
        height, width = self.size
        image, raw = render_scene(self.seed, index, height=height, width=width)
        return Sample(image, self.label_space.encode(raw), f"synthetic {self.split} scene {index}")
