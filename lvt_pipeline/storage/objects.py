"""A storage in a bucket of S3, Google Cloud Storage or Azure, through obstore.

The answer to a write may be lost after the server has acted, and the client's second try is then refused: 412, 409, or
nothing at all. So after any answer but a plain "done" the file is read: if it has the bytes that were to be written,
the write has happened. Keys and addresses come from the usual environment variables (docs/clusters.md).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from lvt_pipeline.errors import LVTError
from lvt_pipeline.storage.places import StoreURL
from lvt_pipeline.storage.protocol import Entry, Stored

READERS = 16
ATTEMPTS = 3  # of a conditional write, each with its own retries of the connection
RETRIES = 8
RETRY_TIME = timedelta(seconds=60)
TIMEOUT = "120s"  # of one request

_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|bucket does not exist", re.IGNORECASE)
_REFUSED = re.compile(r"status code: 40[13]|InvalidAccessKeyId|SignatureDoesNotMatch")
_NO_KEY = re.compile(r"169\.254\.169\.254|metadata\.google|without credentials|missing.*(account|key)", re.IGNORECASE)
_STATUS = re.compile(r"status code: (\d+)")
_BEYOND_END = re.compile(r"status code: 416|Wanted range starting at")
_KEYS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_SERVICE_ACCOUNT",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
Result = TypeVar("Result")
_first_process: list[int] = []  # that used obstore: its threads are not there in processes forked from it


@lru_cache
def connection(scheme: str, bucket: str) -> Any:
    """The client of a bucket, with the keys and the address in the environment; `scheme` ends in a colon.

    Raises:
        LVTError: obstore is not installed.
    """
    try:
        from obstore.store import from_url
    except ImportError:
        raise LVTError(f"{scheme}//{bucket} needs obstore; install it with pip install 'lvt-pipeline[s3]'") from None
    _first_process.append(os.getpid())
    return from_url(
        f"{scheme}//{bucket}",
        client_options={"allow_http": True, "timeout": TIMEOUT},
        retry_config={"max_retries": RETRIES, "retry_timeout": RETRY_TIME},
    )


class ObjectStorage:
    """See `Storage`. Threads may share it; a process that receives it makes a connection of its own."""

    num_readers = READERS

    def __init__(self, url: StoreURL) -> None:
        """
        Raises:
            LVTError: obstore is not installed, or the settings in the environment cannot be used.
        """
        self.place = url
        self._prefix = "".join(f"{part}/" for part in url.parts[2:])
        self._client: Any = self._call("opening", lambda: connection(url.parts[0], url.bucket))

    def __reduce__(self) -> tuple[type[ObjectStorage], tuple[StoreURL]]:
        return ObjectStorage, (self.place,)

    def read(self, name: str) -> Stored | None:
        return self._read(name, None)

    def read_range(self, name: str, start: int, stop: int) -> Stored | None:
        return self._read(name, (start, stop))

    def _read(self, name: str, span: tuple[int, int] | None) -> Stored | None:
        def get() -> Stored:
            try:
                found = self._client.get(self._prefix + name, options={"range": span} if span else None)
            except Exception as error:
                if span is None or not _BEYOND_END.search(str(error)):
                    raise
                return Stored(b"", self._client.head(self._prefix + name)["size"])
            etag = f"{found.meta['e_tag'] or ''}\n{found.meta['version'] or ''}"  # Google compares the version
            return Stored(found.bytes().to_bytes(), found.meta["size"], etag)

        with suppress(FileNotFoundError):
            return self._call(f"reading {self.place / name}", get)
        return None

    def create(self, name: str, data: bytes) -> bool:
        return self._write_if(name, data, "create", None)

    def replace(self, name: str, data: bytes, tag: str | None = None) -> bool:
        if tag is not None:
            parts = zip(("e_tag", "version"), tag.split("\n"), strict=False)
            return self._write_if(name, data, {part: value for part, value in parts if value}, tag)
        self._call(f"writing {self.place / name}", lambda: self._client.put(self._prefix + name, data))
        return True

    def _write_if(self, name: str, data: bytes, mode: Any, tag: str | None) -> bool:
        """Write on a condition, under which the file has this tag, None for no file."""
        doing, problem = f"writing {self.place / name}", None
        for _ in range(ATTEMPTS):
            try:
                self._client.put(self._prefix + name, data, mode=mode, use_multipart=False)
                return True
            except Exception as error:
                problem = error
            found = self.read(name)
            if found is not None and found.data == data:
                return True
            if tag != (found.tag if found is not None else None):
                return False
        assert problem is not None
        raise self._in_words(problem, doing) from problem

    def move(self, source: str, name: str) -> bool:
        names = self._prefix + source, self._prefix + name
        with suppress(FileNotFoundError):
            self._call(f"writing {self.place / name}", lambda: self._client.copy(*names))
            return True
        return False

    def list(self, folder: str = "") -> list[Entry]:
        def entries() -> list[Entry]:
            found = (item for chunk in self._client.list(self._prefix + folder) for item in chunk)
            return sorted(
                Entry(item["path"].removeprefix(self._prefix), item["size"], item["last_modified"].timestamp())
                for item in found
            )

        return self._call(f"listing {self.place / folder}", entries)

    def members(self) -> set[str] | None:
        found = self._call(f"listing {self.place}", lambda: self._client.list_with_delimiter(self._prefix))
        paths = [*found["common_prefixes"], *(item["path"] for item in found["objects"])]
        return {path.removeprefix(self._prefix).strip("/") for path in paths} or None

    def delete(self, names: Iterable[str]) -> None:
        gone = [self._prefix + name for name in names]
        if gone:
            with suppress(FileNotFoundError):
                self._call(f"removing {len(gone)} files of {self.place}", lambda: self._client.delete(gone))

    def local(self, name: str = "") -> Path | None:
        return None

    def exclusive(self) -> AbstractContextManager[bool]:
        return nullcontext(False)

    def _call(self, doing: str, operation: Callable[[], Result]) -> Result:
        """The result of an operation on the bucket, whose errors become one line each."""
        if os.getpid() not in (_first_process or [os.getpid()])[:1]:
            raise LVTError(
                f"{self.place} was opened before this process was forked from another; start workers of a data loader "
                "with multiprocessing_context='spawn'"
            )
        try:
            return operation()
        except LVTError:
            raise
        except FileNotFoundError as error:
            if _NO_BUCKET.search(str(error)):
                raise self._in_words(error, doing) from error
            raise
        except Exception as error:
            raise self._in_words(error, doing) from error

    def _in_words(self, error: Exception, doing: str) -> LVTError:
        text = str(error)
        keys = _KEYS[self.place.parts[0].removesuffix(":")]
        if _NO_BUCKET.search(text):
            cause = f"there is no bucket {self.place.bucket}; create it, or correct the URL"
        elif _NO_KEY.search(text):
            cause = f"there is no key for {self.place.bucket}; set {keys}"
        elif _REFUSED.search(text):
            cause = f"the server refused the key for {self.place.bucket}; check {keys} and the rights of that key"
        elif (status := _STATUS.search(text)) is not None:
            cause = f"the server answered with status {status[1]}; run the same command again"
        else:
            cause = "no answer from the server; check the connection and the address, and run the same command again"
        return LVTError(f"{doing} failed: {cause}. Finished work is kept")
