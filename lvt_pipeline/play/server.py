"""The page of `lvt play` and the three requests that it makes: restart, step and save.

Only programs of this machine can connect. Every address begins with a random token; anything else is refused, and so is
a request whose Host header is not this server's own address, which a foreign page cannot send.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import json
import secrets
import socketserver
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lvt_pipeline.errors import LVTError
from lvt_pipeline.play.player import Player
from lvt_pipeline.provenance import lvt_version
from lvt_pipeline.report.page import render
from lvt_pipeline.storage import describe_os_error
from lvt_pipeline.video.pictures import png_bytes

HOST = "127.0.0.1"
MOST_BYTES = 1 << 16  # of a request


class PlayServer(ThreadingHTTPServer):
    """Serves the page of a player until it is interrupted.

    Args:
        out: folder of saved clips.
        port: 0 takes a free one.

    Attributes:
        address: of the page, with its token.

    Raises:
        LVTError: the port is in use.
    """

    daemon_threads = True

    def __init__(self, player: Player, out: Path, port: int = 0) -> None:
        self._player, self._out = player, out
        self._worker = ThreadPoolExecutor(1)  # requests are answered one after another, always by the same thread
        self._is_ending = False
        try:
            super().__init__((HOST, port), _Handler)
        except OSError:
            raise LVTError(f"port {port} of {HOST} is in use; give another --port, or none for a free one") from None
        self.token, self.nonce = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        self.address = f"http://{HOST}:{self.server_port}/{self.token}/"
        facts = {"clips": list(player.clips), "clip": player.clip.id, "seed": player.seed}
        axes = [asdict(axis) for axis in player.axes]
        page = {"version": lvt_version(), "nonce": self.nonce, "facts": facts | {"axes": axes}}
        self.page = render(page, "play.html.j2").encode(errors="replace")

    def server_bind(self) -> None:
        """Bind without looking up the name of the host."""
        socketserver.TCPServer.server_bind(self)
        self.server_port = self.server_address[1]

    def run(self) -> None:
        """Serve until Ctrl-C; the step in hand is finished."""
        with contextlib.suppress(KeyboardInterrupt):
            self.serve_forever()
        self._is_ending = True
        self.server_close()
        self._worker.shutdown()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print a traceback, unless the page was closed or the server is ending."""
        if not self._is_ending and not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def answer(self, name: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Status and answer of a request; `error` is the message of one that cannot be followed."""
        try:
            asked = json.loads(body)
        except ValueError:
            asked = None
        if not isinstance(asked, dict):
            return 400, {"error": "a request is a JSON object"}
        try:
            return 200, self._worker.submit(self._follow, name, asked).result()
        except LVTError as error:
            return 400, {"error": str(error)}
        except OSError as error:
            return 500, {"error": str(describe_os_error(error, f"saving a clip in {self._out}"))}

    def _follow(self, name: str, asked: dict[str, Any]) -> dict[str, Any]:
        player = self._player
        if name == "save":
            return {"saved": [str(path) for path in player.save(self._out)]}
        if name == "restart":
            frames = player.restart(str(asked.get("clip")), asked.get("seed", 0))
        else:
            action = asked.get("action")
            frames = player.step(action if isinstance(action, list) else [])
        pictures = [base64.b64encode(png_bytes(frame)).decode() for frame in frames]
        return {"pictures": pictures, "frames": player.num_frames, "fps": player.clip.fps}


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: PlayServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "lvt", ""
    timeout = 60  # seconds after which an idle connection is closed; the page opens another one

    def do_GET(self) -> None:
        """The page."""
        status = self._refusal({""})
        self._send(status or 200, b"" if status else self.server.page, "text/html")

    def do_POST(self) -> None:
        """A request of the page, JSON to JSON."""
        status = self._refusal({"restart", "step", "save"})
        length = self.headers.get("Content-Length", "")
        if not status and not (length.isdecimal() and int(length) <= MOST_BYTES):
            status = 413
        if status:
            self._send(status, b"", "text/plain")
        else:
            status, answer = self.server.answer(self._name, self.rfile.read(int(length)))
            self._send(status, json.dumps(answer).encode(), "application/json")

    def log_message(self, format: str, *args: Any) -> None:
        """The terminal stays quiet."""

    @property
    def _name(self) -> str:
        return self.path.rpartition("/")[2]

    def _refusal(self, names: set[str]) -> int:
        """The status of a request for another host, with a wrong token, or for none of these names; else 0."""
        if self.headers.get_all("Host") != [f"{HOST}:{self.server.server_port}"]:
            return 403
        folder = self.path.rpartition("/")[0].encode(errors="replace")
        return 0 if hmac.compare_digest(folder, f"/{self.server.token}".encode()) and self._name in names else 404

    def _send(self, status: int, body: bytes, kind: str) -> None:
        own = f"'nonce-{self.server.nonce}'"
        policy = (
            f"default-src 'none'; img-src data:; style-src {own}; script-src {own}; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        self.close_connection = self.close_connection or status in (403, 404, 413)  # its body is not read
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Content-Security-Policy": policy,
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
