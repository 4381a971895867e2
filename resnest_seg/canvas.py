"""A photo and its label map painted together through a pinhole camera: what the synthetic scenes are drawn with.

Only integer drawing and elementary float arithmetic are used, and only uniform draws from PCG64, so that the same seed
gives the same bytes on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

CAMERA_HEIGHT = 2.0
"""Metres of the camera above the ground."""

Color = tuple[float, float, float]
Point = tuple[float, float]
Spot = tuple[float, float, float]


class Canvas:
    """One picture being painted: photo and ids, the camera, and the random stream that decides everything.

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
        """A number between two, uniformly."""
        return low + (high - low) * float(self.random.random())

    def pick(self, count: int) -> int:
        """One of 0..count - 1."""
        return int(self.random.integers(count))

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return float(self.random.random()) < probability

    def vary(self, color: Color, amount: float = 14) -> Color:
        """A colour, a little lighter or darker."""
        shift = self.between(-amount, amount)
        return (color[0] + shift, color[1] + shift, color[2] + shift)

    def at(self, x: float, y: float, z: float) -> Point:
        """The pixel of a point in metres."""
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
    """`first` with `share` of `second` blended in."""
    red, green, blue = (a + (b - a) * share for a, b in zip(first, second, strict=True))
    return red, green, blue


def _clipped(color: Color) -> tuple[int, int, int]:
    red, green, blue = (min(max(round(value), 0), 255) for value in color)
    return red, green, blue
