"""Headless Chromium over the DevTools protocol, with nothing but the standard library.

With `--remote-debugging-pipe` Chromium reads commands from file descriptor 3 and writes answers and events to 4: JSON
texts that end in a zero byte. No port is opened and no client package is needed.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
OPTIONS = (
    "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync "
    "--disable-component-update --disable-default-apps --disable-extensions --mute-audio --hide-scrollbars "
    "--autoplay-policy=no-user-gesture-required --remote-debugging-pipe"
)
PATIENCE = 30.0  # seconds for any one answer
KEYS = {"Space": (" ", 32), "Enter": ("Enter", 13), "Tab": ("Tab", 9), "Home": ("Home", 36), "End": ("End", 35)} | {
    f"Arrow{side}": (f"Arrow{side}", code) for side, code in (("Left", 37), ("Up", 38), ("Right", 39), ("Down", 40))
}


class Browser:
    """One tab of one browser. What it complains about and asks for is collected while it runs.

    Attributes:
        complaints: console errors and warnings, exceptions nobody caught, and log entries of these levels.
        requests: addresses that the page asked for, without those that lie inside it (`data:`, `blob:`).
    """

    def __init__(self, profile: Path) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._buffer, self._next, self._session = b"", 0, ""
        self._profile = profile

    def __enter__(self) -> Browser:
        assert BROWSER is not None
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # Away from 3 and 4, which the next step overwrites in the child.
        spare_in, spare_out = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (theirs_in, theirs_out))
        null = os.open(os.devnull, os.O_RDWR)
        self._process = os.posix_spawn(
            BROWSER,
            [BROWSER, *OPTIONS.split(), f"--user-data-dir={self._profile}", "about:blank"],
            os.environ,
            file_actions=[
                *((os.POSIX_SPAWN_DUP2, null, number) for number in (0, 1, 2)),
                (os.POSIX_SPAWN_DUP2, spare_in, 3),
                (os.POSIX_SPAWN_DUP2, spare_out, 4),
            ],
            setsid=True,
        )
        for end in (theirs_in, theirs_out, spare_in, spare_out, null):
            os.close(end)
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Network", "Page"):
            self.send(f"{domain}.enable")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process, signal.SIGKILL)  # its own group: the browser and all its helpers
        os.waitpid(self._process, 0)
        os.close(self._out)
        os.close(self._in)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its result; events that come before it are noted."""
        self._next += 1
        message = {"id": self._next, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = self._receive(deadline)
            if answer is None:
                raise TimeoutError(f"{method}: no answer in {PATIENCE:.0f} s")
            if answer.get("id") == self._next:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def open(self, path: Path, width: int = 1280, height: int = 900, **media: str) -> None:
        """Show a file at this size; `media` are features such as `prefers-color-scheme`, with underscores."""
        self.visit(path.resolve().as_uri(), width, height, **media)

    def visit(self, address: str, width: int = 1280, height: int = 900, **media: str) -> None:
        """Show an address at this size."""
        self.complaints.clear()
        self.requests.clear()
        self.resize(width, height)
        self.media(**media)
        self.send("Page.navigate", url=address)
        self.wait_for(f"document.readyState === 'complete' && location.href.split('#')[0] === {json.dumps(address)}")

    def resize(self, width: int, height: int) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 700
        )

    def media(self, kind: str = "", **features: str) -> None:
        found = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.send("Emulation.setEmulatedMedia", media=kind, features=found)

    def run(self, script: str) -> Any:
        """The value of an expression on the page; a promise is awaited."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, condition: str, seconds: float = 10.0) -> None:
        """Until an expression is true."""
        deadline = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < deadline, f"never true within {seconds:g} s: {condition}"
            time.sleep(0.02)

    def click(self, selector: str) -> None:
        """A real click in the middle of an element, which is scrolled to first."""
        place = self.run(
            f"(() => {{ const element = document.querySelector({json.dumps(selector)});"
            " element.scrollIntoView({block: 'center', behavior: 'instant'});"
            " const box = element.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def press(self, name: str) -> None:
        """A key, such as ArrowRight, Space or Tab, at what has the focus."""
        self.hold(name)
        self.release(name)

    def hold(self, name: str) -> None:
        text = {"Space": " ", "Enter": "\r"}.get(name)
        self.send("Input.dispatchKeyEvent", type="keyDown", **_key(name), **({"text": text} if text else {}))

    def release(self, name: str) -> None:
        self.send("Input.dispatchKeyEvent", type="keyUp", **_key(name))

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def screenshot(self, whole: bool = False) -> bytes:
        """What is seen, as PNG; with `whole` the page to its end."""
        options: dict[str, Any] = {}
        if whole:
            size = self.send("Page.getLayoutMetrics")["cssContentSize"]
            options = {"captureBeyondViewport": True, "clip": {**size, "x": 0, "y": 0, "scale": 1}}
        return base64.b64decode(self.send("Page.captureScreenshot", format="png", **options)["data"])

    def pdf(self) -> bytes:
        return base64.b64decode(self.send("Page.printToPDF", printBackground=True)["data"])

    def _receive(self, deadline: float) -> dict[str, Any] | None:
        """The next answer, None when it is late. Events are noted on the way."""
        while True:
            while b"\0" not in self._buffer:
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([self._in], [], [], left)[0]:
                    return None
                chunk = os.read(self._in, 1 << 20)
                if not chunk:
                    raise ConnectionError("the browser has gone")
                self._buffer += chunk
            text, _, self._buffer = self._buffer.partition(b"\0")
            message: dict[str, Any] = json.loads(text)
            if "id" in message:
                return message
            self._note(message["method"], message.get("params", {}))

    def _note(self, event: str, facts: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.complaints.append(str(facts["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(facts["args"]))
        elif event == "Log.entryAdded" and facts["entry"]["level"] in ("error", "warning"):
            self.complaints.append(facts["entry"]["text"])
        elif event == "Network.requestWillBeSent" and not facts["request"]["url"].startswith(("data:", "blob:")):
            self.requests.append(facts["request"]["url"])


def _key(name: str) -> dict[str, Any]:
    key, code = KEYS[name]
    return {"key": key, "code": name, "windowsVirtualKeyCode": code}
