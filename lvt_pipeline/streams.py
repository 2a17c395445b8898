"""Standard streams that are closed or broken, or a locale without Unicode: the work continues.

A file that is opened while descriptor 1 or 2 is free takes its number, so that what libraries print ends up in the
file. Each free one is therefore given to the null device before anything else is opened.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress

from lvt_pipeline.errors import LVTError

STREAMS = (0, 1, 2)


def restart_in_utf8() -> None:
    """Where Python took another encoding for file names from the locale, start this command again with UTF-8."""
    if sys.getfilesystemencoding().lower() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", "lvt_pipeline", *sys.argv[1:]])


def replace_closed_streams() -> None:
    """Occupy the descriptors of closed streams; collect the text printed to a closed standard output."""
    for descriptor in STREAMS:
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for the life of the process
    if sys.stdout is None:
        sys.stdout = io.StringIO()
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def finish_streams(code: int) -> int:
    """Flush standard output, or report that the result could not be printed; the exit code to end with."""
    if isinstance(sys.stdout, io.StringIO):
        if sys.stdout.getvalue():
            print_error("standard output is closed; the result could not be printed")
        return code
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):  # Python would try again at exit, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code or 1
    return code


def print_error(message: str) -> None:
    """One line on standard error, if it can be written."""
    with suppress(OSError, ValueError, AttributeError):  # broken, closed, absent
        sys.stderr.write(f"lvt: {message}\n")
        sys.stderr.flush()


def require_working_directory() -> None:
    """Refuse to work in a directory that does not exist any more.

    Raises:
        LVTError: it was deleted.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        raise LVTError("the working directory was deleted; change to an existing one and run this again") from None
