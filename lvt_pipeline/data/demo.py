"""The embedded dataset: a two-link arm pushes objects over a table, drawn and simulated here, written as real mp4.

It stands in for the robot-pushing videos of the paper where nothing can be downloaded: a fixed camera, a still
background, one arm that moves at random, and objects whose motion follows from contact. Distances are pixels of the
128 x 96 picture, y points down, and everything that matters lies in the middle 96 x 96, which is what a centre crop
keeps. A clip is a function of (seed, its number).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.config import to_plain
from lvt_pipeline.data.frames import Frames
from lvt_pipeline.data.media import write_mp4
from lvt_pipeline.errors import ArtefactError, ConfigError
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.storage import exclusive_lock, read_json, write_json

VERSION = 1  # raised when the same seed gives other pixels

HEIGHT, WIDTH = 96, 128
SETTINGS_NAME = "demo.json"

Array = NDArray[np.floating[Any]]
Vector = NDArray[np.float64]

TABLE = (9.0, 8.0, 119.0, 91.0)  # left, top, right, bottom of the table top
REACH = (27.0, 24.0, 101.0, 82.0)  # where the gripper goes
FENCE = (19.0, 17.0, 109.0, 88.0)  # objects stay inside
BASE = np.array([64.0, 1.0])  # the arm's shoulder
UPPER_ARM, FOREARM = 46.0, 46.0

SUBSTEPS = 8
GRIPPER_RADIUS = 4.0
TOP_SPEED = 62.0  # pixels per second
ACCELERATION = 260.0
FRICTION = 150.0  # deceleration of a sliding object, pixels per second squared
SPIN_FRICTION = 9.0  # radians per second squared
_TOUCHING = 0.02  # an overlap this small is contact

LIGHT = np.array([0.55, 0.5])  # how far a shadow falls per pixel of height, right and down
PALETTE = np.array(
    [
        [206, 52, 44],
        [36, 108, 186],
        [240, 182, 38],
        [54, 148, 86],
        [228, 110, 36],
        [128, 70, 156],
        [28, 152, 162],
        [226, 226, 218],
    ],
    np.float32,
)


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """How much is made."""

    seed: int = 0
    num_clips: int = 150  # one in twelve goes to val, as many to test
    num_frames: int = 40  # frames of a clip
    fps: int = 10

    def __post_init__(self) -> None:
        if self.num_clips < 3:
            raise ConfigError(f"num_clips={self.num_clips}: train, val and test need a clip each")
        if self.num_frames < 1 or self.fps < 1 or self.seed < 0:
            raise ConfigError("num_frames and fps are at least 1, and seed at least 0")


def write_demo_videos(out: Path, settings: DemoSettings = DemoSettings(), *, progress: Progress = SILENT) -> list[Path]:
    """Write the videos as `out/train/clip-000.mp4`, `out/val/...`, `out/test/...`; finished ones are kept.

    Returns:
        The files, in order.

    Raises:
        ArtefactError: the folder holds a demo of other settings.
    """
    with exclusive_lock(out):
        _claim(out, settings)
        paths = [out / split / f"clip-{index:03d}.mp4" for index, split in enumerate(_splits(settings.num_clips))]
        missing = [index for index, path in enumerate(paths) if not path.exists()]
        with progress.bar("drawing videos", len(paths), "clip", done=len(paths) - len(missing)) as bar:
            for index in missing:
                write_mp4(paths[index], demo_clip(settings, index), settings.fps)
                bar.advance()
    return paths


def _claim(out: Path, settings: DemoSettings) -> None:
    path = out / SETTINGS_NAME
    wanted = {"version": VERSION, **to_plain(settings)}
    if not path.exists():
        write_json(path, wanted)
    elif read_json(path) != wanted:
        raise ArtefactError(f"{out} holds demo videos of other settings ({path}); choose another folder or delete it")


def _splits(num_clips: int) -> list[str]:
    held_out = max(1, round(num_clips / 12))
    return ["train"] * (num_clips - 2 * held_out) + ["val"] * held_out + ["test"] * held_out


def demo_clip(settings: DemoSettings, index: int) -> Frames:
    """The frames of clip `index`, uint8 (T, 96, 128, 3)."""
    rng = np.random.default_rng([settings.seed, index, VERSION])
    scene = _Scene(rng, settings.fps)
    painter = _Painter(scene, rng)
    frames = np.empty((settings.num_frames, HEIGHT, WIDTH, 3), np.uint8)
    for number in range(settings.num_frames):
        frames[number] = painter.picture()
        scene.advance()
    return frames


# The scene: what moves, and why ------------------------------------------------------------------------------------


@dataclass
class _Thing:
    """An object on the table: a disc to the simulation, one of several shapes to the eye."""

    position: Vector
    radius: float
    shape: str  # ball, can or block
    pattern: str
    colors: tuple[Array, Array]
    height: float
    angle: float
    velocity: Vector = field(default_factory=lambda: np.zeros(2))
    spin: float = 0.0
    rolled: Vector = field(default_factory=lambda: np.zeros(2))  # how far a ball has rolled, radians


class _Scene:
    """Arm, gripper and objects, advanced one frame at a time."""

    def __init__(self, rng: np.random.Generator, fps: float) -> None:
        self._rng = rng
        self._seconds = 1.0 / (fps * SUBSTEPS)
        self.things = _scattered_things(rng)
        self.gripper = _free_place(rng, self.things)
        self.velocity = np.zeros(2)
        self.elbow_side = 1.0 if rng.random() < 0.5 else -1.0
        self.opening = 0.5
        self._wanted_opening = 0.5
        self._waypoints: list[Vector] = []
        self._pause_seconds = 0.0

    def joints(self) -> tuple[Vector, Vector, Vector]:
        """Shoulder, elbow and wrist in the picture; the wrist is above the gripper."""
        reach = self.gripper - BASE
        distance = float(np.clip(np.hypot(*reach), 1.0, UPPER_ARM + FOREARM - 0.01))
        along = (distance**2 + UPPER_ARM**2 - FOREARM**2) / (2 * distance)
        aside = math.sqrt(max(0.0, UPPER_ARM**2 - along**2)) * self.elbow_side
        forward = reach / np.hypot(*reach)
        return BASE, BASE + forward * along + np.array([-forward[1], forward[0]]) * aside, self.gripper

    def advance(self) -> None:
        """Move everything to the next frame."""
        for _ in range(SUBSTEPS):
            self._steer()
            self._slide()
            self._collide()

    def _steer(self) -> None:
        if self._pause_seconds > 0:
            self._pause_seconds -= self._seconds
            wanted = np.zeros(2)
        else:
            if not self._waypoints:
                self._waypoints = self._plan()
                self._wanted_opening = float(self._rng.uniform(0, 1))
                self._pause_seconds = float(max(0.0, self._rng.normal(-0.1, 0.25)))
            to_go = self._waypoints[0] - self.gripper
            distance = float(np.hypot(*to_go))
            if distance < 1.5:
                self._waypoints.pop(0)
            # Slow down so as to arrive at rest.
            speed = min(TOP_SPEED, math.sqrt(2 * ACCELERATION * 0.5 * distance))
            wanted = to_go / max(distance, 1e-6) * speed
        change = wanted - self.velocity
        limit = ACCELERATION * self._seconds
        self.velocity = self.velocity + change * min(1.0, limit / max(float(np.hypot(*change)), 1e-6))
        self.gripper = _inside(self.gripper + self.velocity * self._seconds, REACH, 0.0)
        self.opening += (self._wanted_opening - self.opening) * min(1.0, 3 * self._seconds)

    def _plan(self) -> list[Vector]:
        """Where to go next: mostly behind an object and then through it, now and then anywhere."""
        rng = self._rng
        if rng.random() < 0.25:
            return [_random_point(rng, REACH)]
        thing = self.things[rng.integers(len(self.things))]
        # Objects are pushed towards the middle more often than not, so they do not all end at the edge.
        to_middle = math.atan2(*(np.array([64.0, 54.0]) - thing.position)[::-1])
        direction = to_middle + rng.normal(0, 1.1)
        heading = np.array([math.cos(direction), math.sin(direction)])
        behind = thing.position - heading * (thing.radius + GRIPPER_RADIUS + 4)
        through = thing.position + heading * rng.uniform(12, 34)
        return [_inside(behind, REACH, 0.0), _inside(through, REACH, 0.0)]

    def _slide(self) -> None:
        for thing in self.things:
            step = thing.velocity * self._seconds
            thing.position = thing.position + step
            thing.rolled = thing.rolled + step / thing.radius
            thing.angle += thing.spin * self._seconds
            speed = float(np.hypot(*thing.velocity))
            thing.velocity = thing.velocity * max(0.0, 1 - FRICTION * self._seconds / max(speed, 1e-6))
            thing.spin -= math.copysign(min(abs(thing.spin), SPIN_FRICTION * self._seconds), thing.spin)
            _keep_on_table(thing)

    def _collide(self) -> None:
        for _ in range(6):  # a push travels along a row of touching objects, one link per round
            touched = [self._pushed_by_gripper(thing) for thing in self.things]
            touched += [_keep_apart(a, b) for number, a in enumerate(self.things) for b in self.things[:number]]
            if not any(touched):
                return
            for thing in self.things:
                _keep_on_table(thing)
        for thing in self.things:
            # What cannot give way, because it stands against others or the edge, stops the gripper.
            normal, overlap = _overlap(self.gripper, GRIPPER_RADIUS, thing.position, thing.radius)
            if overlap > 0.2:
                self.gripper = _inside(self.gripper - normal * overlap, REACH, 0.0)
                self.velocity = np.zeros(2)
                self._waypoints = []

    def _pushed_by_gripper(self, thing: _Thing) -> bool:
        normal, overlap = _overlap(self.gripper, GRIPPER_RADIUS, thing.position, thing.radius)
        if overlap <= _TOUCHING:
            return False
        thing.position = thing.position + normal * overlap
        approach = float((self.velocity - thing.velocity) @ normal)
        if approach > 0:
            thing.velocity = thing.velocity + normal * approach
        tangent = np.array([-normal[1], normal[0]])
        # Rubbing past turns an object; the factor is a fraction of rolling without slip.
        wanted_spin = -float((self.velocity - thing.velocity) @ tangent) / thing.radius
        thing.spin += 0.25 * (wanted_spin - thing.spin)
        return True


def _scattered_things(rng: np.random.Generator) -> list[_Thing]:
    colors = rng.permutation(len(PALETTE))
    things: list[_Thing] = []
    for number in range(int(rng.integers(2, 5))):
        shape = ("block", "can", "ball")[int(rng.choice(3, p=[0.45, 0.35, 0.2]))]
        radius = float(rng.uniform(6.5, 9.0))
        main, accent = PALETTE[colors[number]], PALETTE[colors[-1 - number]]
        thing = _Thing(
            position=_free_place(rng, things, radius),
            radius=radius,
            shape=shape,
            pattern=("stripes", "dots", "checks", "ring")[int(rng.integers(4))],
            colors=(main, accent),
            height=float(rng.uniform(4.0, 6.0)),
            angle=float(rng.uniform(0, 2 * math.pi)),
        )
        things.append(thing)
    return things


def _free_place(rng: np.random.Generator, things: list[_Thing], radius: float = GRIPPER_RADIUS) -> Vector:
    """A random point where a disc touches nothing."""
    while True:
        point = _inside(_random_point(rng, REACH), FENCE, radius)
        if all(np.hypot(*(thing.position - point)) > thing.radius + radius + 2 for thing in things):
            return point


def _random_point(rng: np.random.Generator, box: tuple[float, float, float, float]) -> Vector:
    point: Vector = rng.uniform(box[:2], box[2:])
    return point


def _inside(point: Vector, box: tuple[float, float, float, float], margin: float) -> Vector:
    left, top, right, bottom = box
    x, y = point
    return np.array([min(max(x, left + margin), right - margin), min(max(y, top + margin), bottom - margin)])


def _overlap(a: Vector, a_radius: float, b: Vector, b_radius: float) -> tuple[Vector, float]:
    """Direction from disc a to disc b and how deep they overlap (negative: they do not)."""
    between = b - a
    distance = math.hypot(between[0], between[1])
    normal = between / distance if distance > 1e-6 else np.array([0.0, 1.0])
    return normal, a_radius + b_radius - distance


def _keep_on_table(thing: _Thing) -> None:
    kept = _inside(thing.position, FENCE, thing.radius)
    thing.velocity = np.where(kept == thing.position, thing.velocity, 0.0)
    thing.position = kept


def _keep_apart(a: _Thing, b: _Thing) -> bool:
    """Separate two objects that overlap; says whether they did."""
    normal, overlap = _overlap(a.position, a.radius, b.position, b.radius)
    if overlap <= _TOUCHING:
        return False
    a.position = a.position - normal * overlap / 2
    b.position = b.position + normal * overlap / 2
    approach = float((a.velocity - b.velocity) @ normal)
    if approach > 0:  # equal masses, no bounce
        a.velocity = a.velocity - normal * approach / 2
        b.velocity = b.velocity + normal * approach / 2
    return True


# The picture -------------------------------------------------------------------------------------------------------
#
# Shapes are signed distances in pixels, negative inside; a pixel is covered by 1/2 - distance. That is antialiasing
# without drawing anything larger, and a wider ramp is a soft shadow.


class _Painter:
    """Draws a scene. Light and colour temperature differ a little between clips and stay still within one."""

    def __init__(self, scene: _Scene, rng: np.random.Generator) -> None:
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

    def window(self, center: Vector, half: float | Vector) -> _Window | None:
        """The pixels within `half` of a point, to each side and up and down; None when there are none."""
        (left, top), (right, bottom) = np.floor(center - half).astype(int), np.ceil(center + half).astype(int) + 1
        left, top, right, bottom = max(0, left), max(0, top), min(WIDTH, right), min(HEIGHT, bottom)
        if left >= right or top >= bottom:
            return None
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


def _outline(window: _Window, thing: _Thing, center: Vector) -> Array:
    """Distance to the outline of an object's top or foot."""
    if thing.shape != "block":
        return _disc(window, center, thing.radius)
    u, v = _rotated(window, center, thing.angle)
    corner = np.float32(2.2)
    half = np.float32(thing.radius * 0.9) - corner
    dx, dy = np.abs(u) - half, np.abs(v) - half
    return _length(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - corner


def _shade_thing(canvas: _Canvas, thing: _Thing) -> None:
    window = canvas.window(thing.position + LIGHT * thing.height / 2, thing.radius * 1.3 + thing.height + 2)
    if window is None:
        return
    for share, softness, strength in ((0.15, 2.5, 0.35), (0.75, 5.0, 0.3)):  # a dark contact and a wide soft part
        window.darken(_outline(window, thing, thing.position + LIGHT * thing.height * share), softness, strength)


def _draw_thing(canvas: _Canvas, thing: _Thing) -> None:
    window = canvas.window(thing.position, thing.radius * 1.4 + thing.height + 2)
    if window is None:
        return
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


def _draw_ball(window: _Window, thing: _Thing) -> None:
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


def _pattern(thing: _Thing, u: Array, v: Array) -> Array:
    """How much of the second colour a face shows, 0 to 1, in the object's own coordinates."""
    radius = np.float32(thing.radius)
    return _soft_step(_PATTERNS[thing.pattern](u / radius, v / radius), radius)


def _soft_step(signed: Array, scale: np.float32) -> Array:
    """0 below zero, 1 above, over one pixel."""
    step: Array = np.clip(0.5 + signed * scale, 0, 1)
    return step


# How deep inside the second colour a point lies; u and v are 1 at the object's radius.
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


def _hand_parts(scene: _Scene) -> list[_Part]:
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


def _arm_parts(scene: _Scene) -> list[_Part]:
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
    if window is None:
        return
    distances = (_capsule(window, part.a + by, part.b + by, part.radius_a, part.radius_b) for part, by in fallen)
    window.darken(reduce(np.minimum, distances), 5.0, 0.42)


def _draw_parts(canvas: _Canvas, parts: Sequence[_Part]) -> None:
    for part in parts:
        thickest = max(part.radius_a, part.radius_b)
        window = canvas.window((part.a + part.b) / 2, np.abs(part.b - part.a) / 2 + thickest + 2)
        if window is None:
            continue
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
    assert window is not None
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
