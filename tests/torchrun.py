"""Run a function of a test in several processes, as `torchrun` starts them."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

SECONDS = 90  # far more than any of these functions takes


def run_together(module: str, function: str, *arguments: object, processes: int = 2) -> str:
    """Call `function(*arguments)` of a test module in every process of a group, arguments as text.

    Returns:
        what the processes wrote.

    Raises:
        AssertionError: one of them failed; with what they wrote.
    """
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)),
        *("-m", "tests.torchrun", module, function, *(str(argument) for argument in arguments)),
    ]
    result = subprocess.run(
        command,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


if __name__ == "__main__":
    warnings.simplefilter("error")
    import faulthandler

    import torch

    faulthandler.dump_traceback_later(SECONDS - 10, exit=True)
    torch.set_num_threads(1)
    getattr(importlib.import_module(sys.argv[1]), sys.argv[2])(*sys.argv[3:])
