"""Run all benchmarks, or those that are named: `python -m benchmarks sampler loader`."""

from __future__ import annotations

import os
import platform
import sys

import torch

from benchmarks import (
    busy,
    codebooks,
    codecs,
    context,
    data_loader,
    encode,
    first_frame,
    gpu,
    ingest,
    loader,
    lookahead,
    nothing_to_do,
    one_hot,
    read_back,
    recipes,
    replan,
    requests,
    sampler,
    scale,
    store_size,
    training,
)

BENCHMARKS = {
    "busy": busy.run,
    "codebooks": codebooks.run,
    "codecs": codecs.run,
    "context": context.run,
    "data_loader": data_loader.run,
    "encode": encode.run,
    "first_frame": first_frame.run,
    "gpu": gpu.run,
    "ingest": ingest.run,
    "loader": loader.run,
    "lookahead": lookahead.run,
    "nothing_to_do": nothing_to_do.run,
    "one_hot": one_hot.run,
    "read_back": read_back.run,
    "recipes": recipes.run,
    "replan": replan.run,
    "requests": requests.run,
    "sampler": sampler.run,
    "scale": scale.run,
    "store_size": store_size.run,
    "training": training.run,
}


def main(names: list[str]) -> int:
    """Print a markdown table per benchmark."""
    unknown = set(names) - set(BENCHMARKS)
    if unknown:
        print(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{platform.machine()}, {os.cpu_count()} cores, device {device}, torch {torch.__version__}\n", flush=True)
    for name in names or BENCHMARKS:
        print(BENCHMARKS[name](), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
