"""Pictures of the demo's world.

Shapes are signed distances in pixels, negative inside; a pixel is covered by 1/2 - distance. That is antialiasing
without drawing anything larger, and a wider ramp is a soft shadow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from typing import Any

import numpy as np

from lvt_pipeline.demo.scene import HEIGHT, TABLE, WIDTH, Array, Scene, Thing, Vector
from lvt_pipeline.video.geometry import Frames

LIGHT = np.array([0.55, 0.5])  # how far a shadow falls per pixel of height, right and down


class Painter:
    """Draws a scene. Light and colour temperature differ a little between clips and stay still within one."""

    def __init__(self, scene: Scene, rng: np.random.Generator) -> None:
        self._scene = scene
        self._rng = rng
        warmth = rng.uniform(-0.025, 0.025)
        self._light = (_lamp(rng) * rng.uniform(0.95, 1.05))[..., None] * np.array([1 + warmth, 1, 1 - warmth])
        self._light = self._light.astype(np.float32)

    def picture(self) -> Frames:
        """The scene as it is now, uint8 (96, 128, 3)."""
        canvas = _Canvas(_empty_table().copy())
        things = sorted(self._scene.things, key=lambda thing: float(thing.position[1]))
        for thing in things:
            _shade_thing(canvas, thing)
        hand, arm = _hand_parts(self._scene), _arm_parts(self._scene)
        _shade_arm(canvas, hand + arm)
        # From far to near: the hand works among the objects, the arm passes above them all.
        behind = [thing for thing in things if thing.position[1] <= self._scene.gripper[1]]
        for thing in behind:
            _draw_thing(canvas, thing)
        _draw_parts(canvas, hand)
        for thing in things[len(behind) :]:
            _draw_thing(canvas, thing)
        _draw_parts(canvas, arm)
        lit = canvas.pixels * self._light
        lit += self._rng.standard_normal((HEIGHT, WIDTH, 1), np.float32) * 1.1  # grain of the sensor, grey levels
        picture: Frames = np.clip(lit + 0.5, 0, 255).astype(np.uint8)
        return picture


class _Canvas:
    """A float32 picture, (96, 128, 3) in 0 to 255, that shapes are blended into."""

    def __init__(self, pixels: Array) -> None:
        self.pixels = pixels

    def window(self, center: Vector, half: float | Vector) -> _Window:
        """The pixels within `half` of a point, to each side and up and down; there may be none."""
        (left, top), (right, bottom) = np.floor(center - half).astype(int), np.ceil(center + half).astype(int) + 1
        left, top, right, bottom = max(0, left), max(0, top), max(0, min(WIDTH, right)), max(0, min(HEIGHT, bottom))
        return _Window(self.pixels[top:bottom, left:right], _columns()[:, left:right], _rows()[top:bottom])


@dataclass(frozen=True)
class _Window:
    """A part of the canvas with the coordinates of its pixels: x (1, w) and y (h, 1)."""

    pixels: Array
    x: Array
    y: Array

    def paint(self, distance: Array, color: Array) -> None:
        """Cover the inside of a shape; `color` is one colour or one per pixel."""
        cover = np.clip(0.5 - distance, 0, 1)[..., None]
        self.pixels[...] += cover * (color - self.pixels)

    def darken(self, distance: Array, softness: float, strength: float) -> None:
        """Let a shape's shadow fall; its edge fades over `softness` pixels."""
        cover = np.clip(0.5 - distance / softness, 0, 1)
        self.pixels[...] *= (1 - strength * cover * cover * (3 - 2 * cover))[..., None]


@cache
def _columns() -> Array:
    return np.arange(WIDTH, dtype=np.float32)[None, :]


@cache
def _rows() -> Array:
    return np.arange(HEIGHT, dtype=np.float32)[:, None]


def _length(x: Array, y: Array) -> Array:
    """Much faster than np.hypot, which guards against overflow."""
    length: Array = np.sqrt(x * x + y * y)
    return length


def _disc(window: _Window, center: Vector, radius: float) -> Array:
    return _length(window.x - np.float32(center[0]), window.y - np.float32(center[1])) - np.float32(radius)


def _capsule(window: _Window, a: Vector, b: Vector, radius_a: float, radius_b: float) -> Array:
    """A thick line from a to b whose radius changes along it."""
    edge = b - a
    px, py = window.x - np.float32(a[0]), window.y - np.float32(a[1])
    along = np.clip((px * np.float32(edge[0]) + py * np.float32(edge[1])) / np.float32(edge @ edge + 1e-9), 0, 1)
    radius = np.float32(radius_a) + along * np.float32(radius_b - radius_a)
    return _length(px - along * np.float32(edge[0]), py - along * np.float32(edge[1])) - radius


def _rotated(window: _Window, center: Vector, angle: float) -> tuple[Array, Array]:
    """Coordinates of the window's pixels in a frame at `center`, turned by `angle`."""
    c, s = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    x, y = window.x - np.float32(center[0]), window.y - np.float32(center[1])
    return c * x + s * y, c * y - s * x


def _outline(window: _Window, thing: Thing, center: Vector) -> Array:
    """Distance to the outline of an object's top or foot."""
    if thing.shape != "block":
        return _disc(window, center, thing.radius)
    u, v = _rotated(window, center, thing.angle)
    corner = np.float32(2.2)
    half = np.float32(thing.radius * 0.9) - corner
    dx, dy = np.abs(u) - half, np.abs(v) - half
    return _length(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - corner


def _shade_thing(canvas: _Canvas, thing: Thing) -> None:
    window = canvas.window(thing.position + LIGHT * thing.height / 2, thing.radius * 1.3 + thing.height + 2)
    for share, softness, strength in ((0.15, 2.5, 0.35), (0.75, 5.0, 0.3)):  # a dark contact and a wide soft part
        window.darken(_outline(window, thing, thing.position + LIGHT * thing.height * share), softness, strength)


def _draw_thing(canvas: _Canvas, thing: Thing) -> None:
    window = canvas.window(thing.position, thing.radius * 1.4 + thing.height + 2)
    if thing.shape == "ball":
        _draw_ball(window, thing)
        return
    top = thing.position - np.array([0.0, thing.height])
    side = _outline(window, thing, thing.position)
    for step in np.linspace(0.25, 0.75, 3):
        side = np.minimum(side, _outline(window, thing, thing.position - np.array([0.0, thing.height * step])))
    # The wall is lit from the left.
    falloff = np.clip(0.62 - 0.2 * (window.x - np.float32(top[0])) / np.float32(thing.radius), 0.3, 0.85)
    window.paint(side, falloff[..., None] * thing.colors[0])
    distance = _outline(window, thing, top)
    u, v = _rotated(window, top, thing.angle)
    ink = _pattern(thing, u, v)[..., None]
    face = thing.colors[0] + ink * (thing.colors[1] - thing.colors[0])
    sheen = 1.06 - 0.007 * ((window.x - np.float32(top[0])) + (window.y - np.float32(top[1])))
    rim = 1 + 0.18 * np.clip(1.5 + distance, 0, 1)  # the edge catches the light
    window.paint(distance, np.minimum(face * (sheen * rim)[..., None], 255))


def _draw_ball(window: _Window, thing: Thing) -> None:
    center = thing.position - np.array([0.0, thing.radius * 0.45])
    radius = np.float32(thing.radius)
    x, y = (window.x - np.float32(center[0])) / radius, (window.y - np.float32(center[1])) / radius
    z = np.sqrt(np.maximum(0, 1 - x * x - y * y))
    # Bands around an axis that turns as the ball rolls.
    tilt_x, tilt_y = float(thing.rolled[0]), float(thing.rolled[1]) + thing.angle
    axis = np.array([math.sin(tilt_x), math.sin(tilt_y) * math.cos(tilt_x), math.cos(tilt_y) * math.cos(tilt_x)])
    height = x * np.float32(axis[0]) + y * np.float32(axis[1]) + z * np.float32(axis[2])
    ink = np.clip(0.5 + (0.3 - np.abs(height)) * radius, 0, 1)[..., None]
    color = thing.colors[0] + ink * (thing.colors[1] - thing.colors[0])
    diffuse = np.clip(0.42 + 0.62 * (-0.5 * x - 0.55 * y + 0.67 * z), 0.25, 1.15)
    shine = np.clip(-0.4 * x - 0.45 * y + 0.8 * z, 0, 1) ** 30
    window.paint(
        _disc(window, center, thing.radius), np.minimum(color * diffuse[..., None] + 130 * shine[..., None], 255)
    )


def _pattern(thing: Thing, u: Array, v: Array) -> Array:
    """How much of the second colour a face shows, 0 to 1, in the object's own coordinates."""
    radius = np.float32(thing.radius)
    return _soft_step(_PATTERNS[thing.pattern](u / radius, v / radius), radius)


def _soft_step(signed: Array, scale: np.float32) -> Array:
    """0 below zero, 1 above, over one pixel."""
    step: Array = np.clip(0.5 + signed * scale, 0, 1)
    return step


# How deep inside the second colour a point is; u and v are 1 at the object's radius.
_PATTERNS: dict[str, Callable[[Array, Array], Array]] = {
    "stripes": lambda u, v: 0.22 - np.abs(np.abs(u) - 0.42),
    "dots": lambda u, v: 0.22 - _length(np.abs(u) - 0.36, np.abs(v) - 0.36),
    "checks": lambda u, v: np.minimum(np.abs(u), np.abs(v)) * np.sign(u * v),
    "ring": lambda u, v: 0.14 - np.abs(_length(u, v) - 0.5),
}

STEEL = np.array([200, 204, 210], np.float32)
DARK = np.array([62, 66, 74], np.float32)
ORANGE = np.array([236, 124, 40], np.float32)


@dataclass(frozen=True)
class _Part:
    """A rod of the arm: where it goes, how thick and how high above the table it is."""

    a: Vector
    b: Vector
    radius_a: float
    radius_b: float
    height: float
    color: Array


def _hand_parts(scene: Scene) -> list[_Part]:
    """Palm and fingers."""
    _, elbow, wrist = scene.joints()
    forward = (wrist - elbow) / np.hypot(*(wrist - elbow))
    aside = np.array([-forward[1], forward[0]])
    spread = aside * (1.9 + 1.5 * scene.opening)
    palm = wrist - forward * 3.0
    fingers = [
        _Part(palm + side, palm + side * 0.75 + forward * 4.5, 1.35, 1.0, 2.0, DARK) for side in (-spread, spread)
    ]
    return [*fingers, _Part(palm - spread, palm + spread, 1.8, 1.8, 4.0, DARK)]


def _arm_parts(scene: Scene) -> list[_Part]:
    """Wrist, forearm, upper arm and the two joints, from the table up: later parts cover earlier ones."""
    shoulder, elbow, wrist = scene.joints()
    forward = (wrist - elbow) / np.hypot(*(wrist - elbow))
    return [
        _Part(wrist - forward * 3.0, wrist - forward * 7.0, 2.4, 2.6, 6.0, STEEL * 0.8),
        _Part(wrist - forward * 7.0, elbow, 2.9, 3.7, 9.0, ORANGE),
        _Part(elbow, shoulder, 4.2, 5.2, 13.0, ORANGE),
        _Part(elbow, elbow, 4.7, 4.7, 14.0, DARK),
        _Part(shoulder, shoulder, 7.5, 7.5, 14.0, DARK),
    ]


def _shade_arm(canvas: _Canvas, parts: Sequence[_Part]) -> None:
    """One soft shadow for the whole arm: parts that overlap must not darken twice."""
    fallen = [(part, LIGHT * part.height) for part in parts]
    ends = np.array([end + by for part, by in fallen for end in (part.a, part.b)])
    low, high = ends.min(axis=0), ends.max(axis=0)
    window = canvas.window((low + high) / 2, (high - low) / 2 + 12)
    distances = (_capsule(window, part.a + by, part.b + by, part.radius_a, part.radius_b) for part, by in fallen)
    window.darken(reduce(np.minimum, distances), 5.0, 0.42)


def _draw_parts(canvas: _Canvas, parts: Sequence[_Part]) -> None:
    for part in parts:
        thickest = max(part.radius_a, part.radius_b)
        window = canvas.window((part.a + part.b) / 2, np.abs(part.b - part.a) / 2 + thickest + 2)
        distance = _capsule(window, part.a, part.b, part.radius_a, part.radius_b)
        # A rod is brightest along its middle.
        depth = np.clip(-distance / np.float32(thickest), 0, 1)
        window.paint(distance, np.minimum(part.color * (0.62 + 0.5 * np.sqrt(depth))[..., None], 255))
        if part.a is part.b:  # a joint shows its bolt
            window.paint(_disc(window, part.a, part.radius_a * 0.45), STEEL)
            window.paint(_disc(window, part.a, part.radius_a * 0.2), DARK)


@cache
def _empty_table() -> Array:
    """Wooden planks with a rounded edge on a dark floor; the same table in every clip, float32 (96, 128, 3)."""
    rng = np.random.default_rng(20200716)
    x, y = np.broadcast_arrays(_columns(), _rows())
    wood = np.array([176, 132, 88], np.float32) * np.ones((HEIGHT, WIDTH, 1), np.float32)
    plank = ((y - TABLE[1]) // 21).astype(int).clip(0, 3)
    tone = np.array([0.97, 1.05, 0.93, 1.02], np.float32)[plank]
    # Grain: noise stretched along the planks, and slow waves that bend it.
    bend = 2.2 * np.sin(x / 23 + plank * 1.9) + 1.2 * np.sin(x / 9.5 + plank * 4.1)
    grain = 0.030 * np.sin((y + bend) * 1.15 + plank) + 0.022 * np.sin((y + 1.6 * bend) * 2.7)
    streaks = _smooth_noise(rng, 0.6, 14.0)
    wood *= (tone * (1 + grain + 0.035 * streaks))[..., None]
    seam = np.abs((y - TABLE[1]) % 21 - 0.5)
    wood *= (1 - 0.34 * np.clip(1.2 - seam, 0, 1) * (plank > 0))[..., None]
    floor = np.array([58, 60, 66], np.float32) * (1 + 0.05 * _smooth_noise(rng, 2.0, 2.0))[..., None]
    canvas = _Canvas(floor.astype(np.float32))
    window = canvas.window(np.array([WIDTH / 2, HEIGHT / 2]), WIDTH)
    window.darken(_table_outline(x - 3, y - 3), 8.0, 0.5)
    window.paint(_table_outline(x, y - 3), np.array([104, 72, 46], np.float32))  # the front edge
    window.paint(_table_outline(x, y), wood)
    return canvas.pixels


def _table_outline(x: Array, y: Array) -> Array:
    left, top, right, bottom = TABLE
    corner = 4.0
    dx = np.abs(x - (left + right) / 2) - (right - left) / 2 + corner
    dy = np.abs(y - (top + bottom) / 2) - (bottom - top) / 2 + corner
    distance: Array = _length(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - corner
    return distance


def _smooth_noise(rng: np.random.Generator, sigma_y: float, sigma_x: float) -> Array:
    """Gaussian noise blurred by hand, (96, 128), unit variance."""
    noise: Any = rng.standard_normal((HEIGHT, WIDTH))
    for axis, sigma in ((0, sigma_y), (1, sigma_x)):
        reach = np.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1)
        kernel = np.exp(-0.5 * (reach / sigma) ** 2)
        noise = sum(k * np.roll(noise, int(shift), axis) for k, shift in zip(kernel, reach, strict=True))
    normalised: Array = (noise / noise.std()).astype(np.float32)
    return normalised


def _lamp(rng: np.random.Generator) -> Array:
    """Brightness over the picture: a lamp somewhere above the middle and a slight vignette, (96, 128)."""
    center = np.array([58.0, 40.0]) + rng.uniform(-10, 10, 2)
    away = ((_columns() - center[0]) / 128) ** 2 + ((_rows() - center[1]) / 112) ** 2
    brightness: Array = (1.1 - 0.42 * away).astype(np.float32)
    return brightness
