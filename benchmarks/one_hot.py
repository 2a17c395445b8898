"""A training step of the prior at the paper's size: sums of rows against one-hot tensors, time and memory.

Each form runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

import torch

from benchmarks.one_hot_prior import OneHotPrior
from lvt_pipeline.models.official import prior_to_official
from lvt_pipeline.models.prior.config import PriorConfig
from lvt_pipeline.models.prior.model import Prior

BATCH = 16
REPETITIONS = 3
FORMS = ("one-hot", "rows")
ORDERS = {
    "single frame": PriorConfig(),
    "spatiotemporal": PriorConfig(subscale=(4, 2, 2), kernel=(5, 3, 3)),
}


def run() -> str:
    """Median step and peak memory of both forms, for two orders."""
    lines = []
    for order in ORDERS:
        found = {}
        for form in FORMS:
            command = [sys.executable, "-m", "benchmarks.one_hot", order, form]
            found[form] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        slow, fast = (found[form] for form in FORMS)
        for form, facts in found.items():
            lines.append(
                f"| {order} | {form} | {facts['seconds']:.2f} s | {facts['seconds'] / slow['seconds']:.2f} "
                f"| {facts['memory'] / 2**30:.2f} GiB | {facts['memory'] / slow['memory']:.2f} |"
            )
        assert abs(slow["loss"] - fast["loss"]) < 1e-4, "the losses differ"
    return "\n".join(
        [
            "### One-hot tensors or rows",
            "",
            f"Forward, backward and RMSprop step at the paper's size, batch {BATCH}, float32, {REPETITIONS} repetitions"
            " after one that is not counted; peak resident memory of the whole process.",
            "",
            "| order | form | step | of one-hot | peak memory | of one-hot |",
            "|---|---|---|---|---|---|",
            *lines,
            "",
        ]
    )


def measure(order: str, form: str) -> dict[str, float]:
    """Seconds per step, bytes at the peak, and the loss of the first step."""
    config = ORDERS[order]
    torch.manual_seed(0)
    model: torch.nn.Module = Prior(config)
    if form == "one-hot":
        model = OneHotPrior(prior_to_official(config, model.state_dict()), config.subscale)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-5, alpha=0.95, momentum=0.9)
    codes = torch.randint(0, 512, (BATCH, 16, 16, 16, 4), generator=torch.Generator().manual_seed(1))
    index, losses, seconds = 9, [], []
    for _ in range(REPETITIONS + 1):
        started = time.perf_counter()
        if isinstance(model, OneHotPrior):
            loss = model.loss(codes, index)
        else:
            loss = model(codes, torch.full((BATCH,), index)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
        losses.append(float(loss.detach()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": sorted(seconds[1:])[REPETITIONS // 2], "memory": peak, "loss": losses[0]}


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))
