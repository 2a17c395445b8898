"""Training steps of both networks: lvt's in float32, in bfloat16 and compiled, against the same recipe written plainly.

The plain forms are `one_hot_prior.py` and `plain_tokenizer.py` with torch's optimizers in float32, as the paper's
networks were released. Each form is a process of its own, since they handle freed memory differently; they take turns,
and each turn begins with a step that is not counted. `LVT_CLOCK=processor` measures processor time with one thread, for
a busy machine. `LVT_SUBJECTS` (such as `prior-paper,tokenizer-tiny`), `LVT_BATCHES` and `LVT_REPETITIONS` choose.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path

import torch

from benchmarks.one_hot_prior import OneHotPrior
from benchmarks.plain_tokenizer import PlainTokenizer
from benchmarks.training_steps import PRESETS, Network, Size, batch_of, config_of, lvt_step
from lvt_pipeline.config import read_recipe
from lvt_pipeline.machine import kept_memory
from lvt_pipeline.models.official import prior_to_official
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.models.vqvae.config import VQVAEConfig
from lvt_pipeline.models.vqvae.model import VQVAE

FORMS = ("plain", "float32", "bfloat16", "compiled")  # the last is bfloat16 with `training.compile`
SUBJECTS = os.environ.get("LVT_SUBJECTS", "tokenizer-tiny,prior-tiny,tokenizer-paper,prior-paper").split(",")
BATCHES = tuple(int(size) for size in os.environ.get("LVT_BATCHES", "1,4,8").split(","))
REPETITIONS = int(os.environ.get("LVT_REPETITIONS", "5"))
TURN_SECONDS = 0.5  # at least, and at least one step
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mkldnn_convolution", "_convolution", "convolution_backward")
IS_BUSY = os.environ.get("LVT_CLOCK") == "processor"
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would print when it starts and stops
CLOCK = time.process_time if IS_BUSY else time.perf_counter


def run() -> str:
    """Steps/s, times as fast as the plain form, and peak memory."""
    if IS_BUSY:
        torch.set_num_threads(1)
    lines = []
    for subject in SUBJECTS:
        network, _, size = subject.partition("-")
        if (network, size) not in PRESETS:
            raise SystemExit(f"LVT_SUBJECTS: {subject!r} is not one of {', '.join('-'.join(pair) for pair in PRESETS)}")
        for batch in BATCHES:
            lines += _rows(network, size, batch)  # type: ignore[arg-type]
    return "\n".join(
        [
            "### Training steps",
            "",
            f"Forward, backward and optimizer of the paper's recipe, {torch.get_num_threads()} threads, "
            f"{'processor' if IS_BUSY else 'wall'} time, medians of {REPETITIONS} turns; ratios are medians of those "
            'of each turn. "Products" is the share of a step that is matrix products and convolutions alone.',
            "",
            "| network, size | batch | form | steps/s | times plain | products | peak memory | of plain |",
            "|---|---|---|---|---|---|---|---|",
            *lines,
            "",
        ]
    )


def _rows(network: Network, size: Size, batch: int) -> list[str]:
    speeds: dict[str, list[float]] = {form: [] for form in FORMS}
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    with ExitStack() as stack:
        workers = {}
        for form in FORMS:
            command = [sys.executable, "-m", "benchmarks.training", network, size, str(batch), form]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            workers[form] = stack.enter_context(
                subprocess.Popen(command, env=os.environ | threads, text=True, **pipes)  # type: ignore[call-overload]
            )
        for number in range(REPETITIONS):
            for form in FORMS[number % len(FORMS) :] + FORMS[: number % len(FORMS)]:
                speeds[form].append(_ask(workers[form], "turn"))
        memory = {form: _ask(workers[form], "memory") for form in FORMS}
        products = {form: _ask(workers[form], "products") for form in FORMS}
    lines = []
    for form in FORMS:
        times = statistics.median(ours / plain for ours, plain in zip(speeds[form], speeds["plain"], strict=True))
        lines.append(
            f"| {network}, {size} | {batch} | {form} | {statistics.median(speeds[form]):.3g} | {times:.2f} "
            f"| {products[form]:.2f} | {memory[form] / 2**30:.2f} GiB | {memory[form] / memory['plain']:.2f} |"
        )
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


def _ask(worker: subprocess.Popen[str], question: str) -> float:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(f"{question}\n")
    worker.stdin.flush()
    return float(worker.stdout.readline())


def step_of(network: Network, size: Size, batch: int, form: str) -> Callable[[], object]:
    """A step of the paper's recipe in one of the forms; all start from the same weights."""
    recipe = read_recipe("prior" if network == "prior" else "vqvae", "paper")["training"]
    if form != "plain":
        # What the recipe does not have, some presets do.
        recipe |= {"ema_decay": None, "grad_clip": None, "warmup_steps": 0, "compile": form == "compiled"}
        recipe["precision"] = "bfloat16" if form == "compiled" else form
        return lvt_step(network, size, batch, recipe, is_released=True)
    config, data = config_of(network, size, is_released=True), batch_of(network, size, batch)
    torch.manual_seed(0)
    plain: torch.nn.Module
    optimizer: torch.optim.Optimizer
    if isinstance(config, VQVAEConfig):
        plain = tokenizer = _plain_tokenizer(config)
        rate, betas = recipe["learning_rate"], tuple(recipe["betas"])
        optimizer = torch.optim.Adam(plain.parameters(), lr=rate, betas=betas, eps=recipe["eps"])
        compute = lambda: tokenizer.loss(data["frames"])  # noqa: E731
    else:
        plain = prior = OneHotPrior(prior_to_official(config, Prior(config).state_dict()), config.subscale)
        names = ("alpha", "momentum", "eps")
        optimizer = torch.optim.RMSprop(
            plain.parameters(), lr=recipe["learning_rate"], **{name: recipe[name] for name in names}
        )
        compute = lambda: prior.loss(data["codes"], int(data["slices"][0]))  # noqa: E731

    def step() -> float:
        optimizer.zero_grad()
        loss = compute()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def _plain_tokenizer(config: VQVAEConfig) -> PlainTokenizer:
    state = VQVAE(config).state_dict()
    return PlainTokenizer(state, config.ema_decay, config.ema_epsilon, config.commitment_weight)


def _speed(step: Callable[[], object]) -> float:
    """Steps/s."""
    step()
    count, began = 0, CLOCK()
    while count == 0 or CLOCK() - began < TURN_SECONDS:
        step()
        count += 1
    return count / (CLOCK() - began)


def _share_of_products(step: Callable[[], object]) -> float:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    seconds = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    return sum(seconds.get(f"aten::{name}", 0) for name in PRODUCTS) / sum(seconds.values())


def _peak_memory() -> int:
    """Peak resident bytes of this program; those of getrusage would include the parent from before it was started."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def work(network: Network, size: Size, batch: int, form: str) -> None:
    """Answer questions on stdin about a form; its memory is handled as in a training."""
    step = step_of(network, size, batch, form)
    answers = {"turn": partial(_speed, step), "memory": _peak_memory, "products": partial(_share_of_products, step)}
    with nullcontext() if form == "plain" else kept_memory():
        for question in sys.stdin:
            print(answers[question.strip()](), flush=True)


if __name__ == "__main__":
    _, network, size, batch, form = sys.argv
    work(network, size, int(batch), form)  # type: ignore[arg-type]
