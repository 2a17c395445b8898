"""Sampling by its definition: the whole decoder runs again for every pixel. To check `sample` against."""

from __future__ import annotations

import torch
from torch import Tensor

from lvt_pipeline.models.prior.conditions import Actions, Labels
from lvt_pipeline.models.prior.network import Codes, PriorNetwork
from lvt_pipeline.models.sampling.numbers import RandomNumbers
from lvt_pipeline.models.sampling.rule import SamplingRule
from lvt_pipeline.models.sampling.sampler import FIRST_SEED, PAPERS_RULE, _Request


def sample_by_recomputing(
    model: PriorNetwork,
    priming: Codes,
    rule: SamplingRule = PAPERS_RULE,
    numbers: RandomNumbers = FIRST_SEED,
    *,
    frames: int | None = None,
    labels: Labels = None,
    actions: Actions = None,
) -> Tensor:
    """As `sample`, with the whole decoder run again for every pixel: slow and plain, to check `sample` against."""
    request = _Request(model, priming, rule, numbers, frames=frames, labels=labels, actions=actions)
    geometry = request.geometry
    with torch.no_grad():
        codes, uniforms, conditions = request.group(list(range(len(request.codes))))
        table = model.context_table(geometry)
        rows = iter(uniforms)
        for window in request.rollout.windows:
            shown = request.shown(codes, window)
            for index, num_primed in window.open_slices:
                encoded = request.encode(shown, index, conditions.window(window.start, geometry.shape[0]), table)
                positions = geometry.positions[index].to(model.device)
                for pixel in range(num_primed, geometry.num_pixels):
                    own = shown[:, positions].repeat(rule.streams, 1, 1)
                    y = model.predictor.norm(model.decoder(own, encoded, geometry.slice_shape))[:, pixel]
                    for j, number in enumerate(next(rows)):
                        logits = model.predictor.logits(y, own[:, pixel], j, model.decoder.embeddings)
                        own[:, pixel, j] = rule.sample(logits, number, j).repeat(rule.streams)
                    shown[:, positions] = own[: len(codes)]
    return request.finish([codes.cpu()])
