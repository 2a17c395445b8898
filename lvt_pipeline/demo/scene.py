"""The demo's small world: an arm that moves at random, and objects that move when they are pushed.

Distances are pixels of the 128 x 96 picture, y points down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Vector = NDArray[np.float64]

HEIGHT, WIDTH = 96, 128
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


@dataclass
class Thing:
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


class Scene:
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

    def angles(self) -> Vector:
        """Of the shoulder, against the x axis of the picture, and of the elbow, against the upper arm; radians."""
        shoulder, elbow, wrist = self.joints()
        upper, lower = elbow - shoulder, wrist - elbow
        first, second = math.atan2(upper[1], upper[0]), math.atan2(lower[1], lower[0])
        return np.array([first, second - first])

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

    def _pushed_by_gripper(self, thing: Thing) -> bool:
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


def _scattered_things(rng: np.random.Generator) -> list[Thing]:
    colors = rng.permutation(len(PALETTE))
    things: list[Thing] = []
    for number in range(int(rng.integers(2, 5))):
        shape = ("block", "can", "ball")[int(rng.choice(3, p=[0.45, 0.35, 0.2]))]
        radius = float(rng.uniform(6.5, 9.0))
        main, accent = PALETTE[colors[number]], PALETTE[colors[-1 - number]]
        thing = Thing(
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


def _free_place(rng: np.random.Generator, things: list[Thing], radius: float = GRIPPER_RADIUS) -> Vector:
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


def _keep_on_table(thing: Thing) -> None:
    kept = _inside(thing.position, FENCE, thing.radius)
    thing.velocity = np.where(kept == thing.position, thing.velocity, 0.0)
    thing.position = kept


def _keep_apart(a: Thing, b: Thing) -> bool:
    """Separate two objects that overlap; returns whether they did."""
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
