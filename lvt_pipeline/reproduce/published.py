"""The tables of the paper as data, each number as it was printed (Rakhimov et al. 2020, tables 1 to 8).

A row also names our experiment that corresponds to it, by its key in `experiments`; rows of other papers have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Dataset = Literal["bair", "kinetics"]
DATASETS: Mapping[Dataset, str] = {"bair": "BAIR robot pushing", "kinetics": "Kinetics-600"}
SHORT_NAMES: Mapping[Dataset, str] = {"bair": "BAIR", "kinetics": "Kinetics-600"}
TEST_CLIPS: Mapping[Dataset, str] = {"bair": "256", "kinetics": "about 50,000"}

Column = Literal["mse", "bits", "fvd", "parameters", "seconds"]
COLUMNS: Mapping[Column, str] = {
    "mse": "MSE",
    "bits": "bits/dim",
    "fvd": "FVD",
    "parameters": "parameters, M",
    "seconds": "s per clip",
}
NOTHING = "-"  # how the paper prints a number that its source does not give
COPY = "copy"  # the baseline that repeats the last priming frame


@dataclass(frozen=True)
class Row:
    """One row of a table: its title, its numbers, and our experiment that measures the same."""

    labels: Sequence[str]
    numbers: Sequence[str]
    ours: str | None = None


@dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """A table of the paper."""

    number: int
    title: str
    section: str
    dataset: Dataset
    labels: Sequence[str]
    columns: Sequence[Column]
    rows: Sequence[Row]


def parse_number(text: str) -> tuple[float | None, float | None]:
    """Mean and spread of a printed number: "258.89 ± 2.85", "0.002", "-"."""
    if text == NOTHING:
        return None, None
    mean, _, spread = text.partition(" ± ")
    return float(mean), float(spread) if spread else None


def _of_tokenizers(
    number: int, section: str, dataset: Dataset, one: Sequence[str], four: Sequence[str]
) -> PublishedTable:
    return PublishedTable(
        number=number,
        title="VQ-VAE performance",
        section=section,
        dataset=dataset,
        labels=("n_c",),
        columns=("mse", "fvd"),
        rows=(Row(("1",), one, "nc1"), Row(("4",), four, "nc4")),
    )


# fmt: off
TABLES: Mapping[str, PublishedTable] = {
    "table1": _of_tokenizers(1, "4.2", "bair", ("0.0016", "222.71"), ("0.0004", "47.41")),
    "table2": PublishedTable(
        number=2, title="Video prediction performance", section="4.2", dataset="bair",
        labels=("Subscaling type", "n_c"), columns=("bits", "fvd"),
        rows=(
            Row(("Single Frame", "1"), ("1.28", "258.89 ± 2.85"), "nc1-single-frame"),
            Row(("Spatial", "1"), ("1.79", "524.43 ± 9.41"), "nc1-spatial"),
            Row(("Spatiotemporal", "1"), ("1.25", "275.71 ± 5.41"), "nc1-spatiotemporal"),
            Row(("Single Frame", "4"), ("1.53", "125.76 ± 2.90"), "nc4-single-frame"),
            Row(("Spatial", "4"), ("2.99", "920.37 ± 7.71"), "nc4-spatial"),
            Row(("Spatiotemporal", "4"), ("1.62", "145.85 ± 1.68"), "nc4-spatiotemporal"),
        ),
    ),
    "table3": PublishedTable(
        number=3, title="Comparison of different methods for video prediction", section="4.2", dataset="bair",
        labels=("Method",), columns=("bits", "fvd"),
        rows=(
            Row(("Baseline",), ("-", "320.90"), COPY),
            Row(("VideoFlow (Kumar et al., 2019)",), ("1.87", "-")),
            Row(("SVP-FP (Denton and Fergus, 2018c)",), ("-", "315.5")),
            Row(("CDNA (Finn et al., 2016b)",), ("-", "296.5")),
            Row(("LVT (n_c = 1)",), ("1.25", "275.71 ± 5.41"), "nc1-spatiotemporal"),
            Row(("SV2P (Denton and Fergus, 2018a)",), ("-", "262.5")),
            Row(("LVT (n_c = 4)",), ("1.53", "125.8 ± 2.9"), "nc4-single-frame"),
            Row(("SAVP (Lee et al., 2018)",), ("-", "116.4")),
            Row(("DVD-GAN-FP (Clark et al., 2019)",), ("-", "109.8")),
            Row(("TriVD-GAN-FP (Luc et al., 2020)",), ("-", "103.3")),
            Row(("Axial Transformer (Ho et al., 2019)",), ("1.29", "-")),
            Row(("Video Transformer (Weissenborn et al., 2019)",), ("1.35", "94 ± 2")),
        ),
    ),
    "table4": _of_tokenizers(4, "4.3", "kinetics", ("0.002", "396.58"), ("0.0004", "25.95")),
    "table5": PublishedTable(
        number=5, title="Video prediction performance", section="4.3", dataset="kinetics",
        labels=("Subscaling type", "n_c"), columns=("bits", "fvd"),
        rows=(
            Row(("Single Frame", "4"), ("2.14", "224.73"), "nc4-single-frame"),
            Row(("Spatial", "4"), ("4.22", "2845.06 ± 612.07"), "nc4-spatial"),
            Row(("Spatiotemporal", "4"), ("2.47", "338.39 ± 0.21"), "nc4-spatiotemporal"),
        ),
    ),
    "table6": PublishedTable(
        number=6, title="Comparison of different methods for video prediction", section="4.3", dataset="kinetics",
        labels=("Method",), columns=("bits", "fvd"),
        rows=(
            Row(("Baseline",), ("-", "271.00"), COPY),
            Row(("LVT",), ("2.14", "224.73"), "nc4-single-frame"),
            Row(("Video Transformer (Weissenborn et al., 2019)",), ("1.19", "170 ± 5")),
            Row(("DVD-GAN-FP (Clark et al., 2019)",), ("-", "69.15 ± 1.16")),
            Row(("TriVD-GAN-FP (Luc et al., 2020)",), ("-", "25.74 ± 0.66")),
        ),
    ),
    "table7": PublishedTable(
        number=7, title="Attention comparison", section="4.4", dataset="bair",
        labels=("attention type",), columns=("bits", "fvd", "parameters", "seconds"),
        rows=(
            Row(("query-key + relative distance",), ("1.53", "125.76 ± 2.90", "49.87", "35"), "nc4-single-frame"),
            Row(("key-only + relative distance",), ("1.57", "130.27 ± 4.26", "41.50", "32"), "nc4-key-only"),
            Row(("relative distance only",), ("1.58", "141.62 ± 4.34", "33.09", "30"), "nc4-distance-only"),
        ),
    ),
    "table8": PublishedTable(
        number=8, title="Effects of applying adaptive input / softmax in decoder architecture", section="4.5",
        dataset="bair", labels=("Subsampling type", "Decoder Input", "Decoder Output"), columns=("bits", "fvd"),
        rows=(
            Row(("Single Frame", "128d Embedding", "512d Softmax"), ("1.28", "258.89 ± 2.85"), "nc1-single-frame"),
            Row(("Spatial", "128d Embedding", "512d Softmax"), ("1.79", "524.43 ± 9.41"), "nc1-spatial"),
            Row(("Spatiotemporal", "128d Embedding", "512d Softmax"), ("1.25", "275.71 ± 5.41"), "nc1-spatiotemporal"),
            Row(("Single Frame", "128d Embedding", "512d Softmax (tied emb)"), ("1.27", "265.10 ± 3.85"), "nc1-tied"),
            Row(("Single Frame", "Adaptive Input", "512d Softmax"), ("1.26", "259.73 ± 6.35"), "nc1-adaptive-input"),
            Row(
                ("Single Frame", "128d Embedding", "Adaptive Softmax"),
                ("1.37", "265.99 ± 4.16"),
                "nc1-adaptive-softmax",
            ),
            Row(("Single Frame", "Adaptive Input", "Adaptive Softmax"), ("1.36", "259.88 ± 5.25"), "nc1-adaptive"),
            Row(
                ("Single Frame", "Adaptive Input", "Adaptive Softmax (tied emb)"),
                ("1.35", "259.55 ± 8.50"),
                "nc1-adaptive-tied",
            ),
            Row(
                ("Single Frame", "Adaptive Input", "Adaptive Softmax (tied emb/proj)"),
                ("1.34", "264.79 ± 4.27"),
                "nc1-adaptive-tied-projections",
            ),
        ),
    ),
}
# fmt: on
