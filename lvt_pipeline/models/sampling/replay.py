"""CUDA graphs: a function of fixed buffers, recorded once and run again without Python."""

from __future__ import annotations

from collections.abc import Callable

import torch


def run_and_capture(run: Callable[[], None]) -> Callable[[], None]:
    """Run a function once, record its kernels, and return what runs them again on the same memory.

    Nothing inside may wait for the GPU, or bring numbers from the host to it. The first run is on a stream of its own:
    it is the warm-up that libraries need before a capture. The capture itself runs nothing.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        run()
    return graph.replay
