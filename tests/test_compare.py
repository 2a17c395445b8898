"""`lvt compare`: intervals that mean what they say, pairs where the clips are the same, and no verdict out of noise."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvt_pipeline.errors import ArtefactError, ConfigError, ShapeError
from lvt_pipeline.evaluation.compare import Comparison, Difference, compare, difference_interval, mean_interval
from lvt_pipeline.evaluation.evaluate import evaluate
from lvt_pipeline.evaluation.settings import EvaluateSettings
from lvt_pipeline.evaluation.sources import Sources
from lvt_pipeline.storage import write_json
from tests.toy_work import FRAMES, ToyWork, make_prior, make_toy_work

Lvt = Callable[..., tuple[int, str, str]]


def test_interval_of_many_values_is_the_one_of_the_normal_distribution() -> None:
    values = np.random.default_rng(0).normal(3, 2, 3000)
    found = mean_interval(values)
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert found.mean == values.mean()
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    assert mean_interval(values) == found
    narrower = mean_interval(values, level=0.5)
    assert narrower.high - narrower.low == pytest.approx(2 * 0.674 * error, rel=0.1)


def test_about_nineteen_of_twenty_intervals_hold_the_true_mean() -> None:
    generator = np.random.default_rng(1)
    held = sum(
        abs(f.low + f.high) < f.high - f.low for f in (mean_interval(generator.normal(0, 1, 40)) for _ in range(200))
    )
    assert 178 <= held <= 198


def test_interval_of_unrelated_sets_has_the_width_of_both() -> None:
    generator = np.random.default_rng(2)
    ours, theirs = generator.normal(1, 1, 2000), generator.normal(0, 2, 1000)
    found = difference_interval(ours, theirs)
    error = math.sqrt(1 / 2000 + 4 / 1000)
    assert found.mean == pytest.approx(ours.mean() - theirs.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_memory_does_not_grow_with_the_number_of_values(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=100)
    whole = mean_interval(values)
    monkeypatch.setattr("lvt_pipeline.evaluation.compare.VALUES_AT_ONCE", 1000)
    assert mean_interval(values) == whole


@pytest.mark.parametrize("values", [np.array([1.0]), np.zeros((2, 2))])
def test_an_interval_of_one_value_is_refused(values: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="two values"):
        mean_interval(values)


def test_a_level_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        mean_interval(np.arange(3.0), level=1.0)


def result(path: Path, bits: list[float], *, first: int = 0, runs: list[float] | None = None, **changes: Any) -> Path:
    """An evaluation with these bits per clip, and these distances per run."""
    names = [f"clip{number}" for number in range(first, first + len(bits))]
    results: dict[str, Any] = {
        "split": "test",
        "clips": len(bits),
        "frames": 16,
        "priming_frames": 1,
        "baselines": {},
        "codes": {"tokenizer": "t" * 64},
        "per_clip": {"evaluated": {"clip": names, "bits": bits, "frames": [f"f{n}" for n in names]}, "samples": {}},
    }
    if runs is not None:
        card = {"network": {"sha256": "0" * 64}, "resize": "tf1", "frames": 16, "priming_frames": 5, "samples": 9}
        results["protocol"] = {"runs": [{"seed": n, "fvd_real_priming": value} for n, value in enumerate(runs)]}
        results["fvd"] = {"card": card, "real_priming": float(np.mean(runs))}
    for place, value in changes.items():
        *parents, last = place.split("__")
        part = results
        for key in parents:
            part = part[key]
        part[last] = value
    write_json(path, results)
    return path


def difference(found: Comparison, metric: str = "bits") -> Difference:
    (one,) = [difference for difference in found.differences if difference.metric == metric]
    return one


HARD = np.random.default_rng(0).normal(3, 1, 30)  # clips differ much more than models do
LITTLE = np.random.default_rng(1).normal(0, 0.02, 30)


def test_a_small_difference_on_the_same_clips_is_seen_and_on_other_clips_is_noise(tmp_path: Path) -> None:
    first = result(tmp_path / "a.json", HARD.tolist())
    better = (HARD - 0.05 + LITTLE).tolist()
    paired = difference(compare([first, result(tmp_path / "b.json", better)]))
    assert (paired.verdict, paired.is_paired, paired.values) == ("better", True, 30)
    assert paired.mean == pytest.approx(np.mean(LITTLE - 0.05))
    assert paired.high is not None
    assert paired.high < 0
    other_clips = difference(compare([first, result(tmp_path / "c.json", better, first=100)]))
    assert (other_clips.verdict, other_clips.is_paired) == ("within noise", False)
    assert other_clips.mean == pytest.approx(paired.mean)


def test_a_difference_without_a_direction_is_noise_and_the_other_direction_is_worse(tmp_path: Path) -> None:
    first = result(tmp_path / "a.json", HARD.tolist())
    balanced = LITTLE - LITTLE.mean() + 1e-4
    assert (
        difference(compare([first, result(tmp_path / "b.json", (HARD + balanced).tolist())])).verdict == "within noise"
    )
    assert difference(compare([first, result(tmp_path / "c.json", (HARD + 0.05).tolist())])).verdict == "worse"
    assert difference(compare([first, first])).verdict == "within noise"


def test_higher_is_better_for_similarity(tmp_path: Path) -> None:
    zeros = HARD.tolist()
    first = result(tmp_path / "a.json", zeros, per_clip__evaluated__reconstruction_ssim=(HARD / 10).tolist())
    other = result(tmp_path / "b.json", zeros, per_clip__evaluated__reconstruction_ssim=(HARD / 10 + 0.1).tolist())
    assert difference(compare([first, other]), "reconstruction_ssim").verdict == "better"


def test_clips_of_one_name_but_other_frames_are_not_pairs(tmp_path: Path) -> None:
    first = result(tmp_path / "a.json", HARD.tolist())
    other = result(tmp_path / "b.json", HARD.tolist(), per_clip__evaluated__frames=["x"] * 30)
    assert not difference(compare([first, other])).is_paired


def test_only_common_clips_are_paired_and_it_is_said(tmp_path: Path) -> None:
    first = result(tmp_path / "a.json", HARD.tolist())
    found = difference(compare([first, result(tmp_path / "b.json", (HARD[10:] - 0.1).tolist(), first=10)]))
    assert (found.values, found.is_paired, found.reason) == (20, True, "only clips that both have")
    assert found.mean == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"codes__tokenizer": "u" * 64}, "tokenizer differ"),
        ({"frames": 8}, "frames differ"),
        ({"priming_frames": 5}, "priming_frames differ"),
    ],
)
def test_numbers_of_another_measurement_are_not_subtracted(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    first = result(tmp_path / "a.json", HARD.tolist())
    found = difference(compare([first, result(tmp_path / "b.json", HARD.tolist(), **changes)]))
    assert (found.verdict, found.reason, found.mean) == ("not comparable", says, None)


def test_fvd_is_compared_over_runs_with_the_same_network_only(tmp_path: Path) -> None:
    bits, runs = HARD.tolist(), [100.0, 103.0, 98.0, 101.0, 99.0]
    first = result(tmp_path / "a.json", bits, runs=runs)
    lower = result(tmp_path / "b.json", bits, runs=[value - 20 for value in runs])
    found = difference(compare([first, lower]), "fvd_real_priming")
    assert (found.verdict, found.mean, found.is_paired, found.values) == ("better", pytest.approx(-20), False, 5)
    near = result(tmp_path / "c.json", bits, runs=[value + 0.5 for value in runs])
    assert difference(compare([first, near]), "fvd_real_priming").verdict == "within noise"
    other = result(tmp_path / "d.json", bits, runs=runs, fvd__card__network__sha256="1" * 64)
    assert difference(compare([first, other]), "fvd_real_priming").reason == "sha256 differ"


def test_single_values_are_shown_without_an_interval_and_without_a_verdict(tmp_path: Path) -> None:
    one = result(tmp_path / "a.json", [2.0], runs=[100.0])
    found = compare([one, result(tmp_path / "b.json", [1.0], runs=[50.0])])
    assert found.table["bits"][0] is not None
    assert (found.table["bits"][0].mean, found.table["bits"][0].low) == (2.0, None)
    assert difference(found).verdict == "not comparable"
    assert "--protocol" in difference(found, "fvd_real_priming").reason


def test_clips_without_a_value_are_left_out(tmp_path: Path) -> None:
    with_hole: list[Any] = HARD.tolist()
    with_hole[3] = None
    found = compare([result(tmp_path / "a.json", HARD.tolist()), result(tmp_path / "b.json", with_hole)])
    assert difference(found).values == 29


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory) -> list[ToyWork]:
    """Two work directories of the same data with two priors."""
    made = []
    for seed in (0, 1):
        work = make_toy_work(tmp_path_factory.mktemp("work") / f"model{seed}")
        make_prior(work.root / "runs" / "other", seed=seed)
        paths = {"prior": work.root / "runs" / "other", "frames": work.frames, "vqvae": work.vqvae}
        sources = Sources(codes=work.codes, **paths)
        evaluate(sources, work.root / "eval.json", EvaluateSettings(frames=FRAMES), device="cpu")
        made.append(work)
    return made


def test_work_directories_are_compared_clip_by_clip(works: list[ToyWork], lvt: Lvt) -> None:
    code, said, _ = lvt("compare", *(work.root for work in works))
    assert code == 0
    assert "model1 against model0" in said
    assert "bits per code" in said
    assert "reconstruction MSE   +0" in said
    assert "within noise (paired, 3 clips)" in said
    code, said, _ = lvt("compare", *(work.root for work in works), "--json", "--level", "0.9")
    facts = json.loads(said)
    assert facts["level"] == 0.9
    assert [one["name"] for one in facts["results"]] == ["model0", "model1"]
    assert {one["metric"] for one in facts["differences"]} >= {"bits", "reconstruction_mse", "reconstruction_ssim"}
    own = [one["metrics"]["bits"]["mean"] for one in facts["results"]]
    (bits,) = [one for one in facts["differences"] if one["metric"] == "bits"]
    assert bits["mean"] == pytest.approx(own[1] - own[0])


def test_the_table_says_what_network_its_distances_are_of(tmp_path: Path, lvt: Lvt) -> None:
    label = "not FVD: the network gives 8 features, I3D gives 400; for tests only"
    first, second = (
        result(tmp_path / f"{name}.json", list(HARD), runs=[1.0, 2.0], fvd__label=label) for name in ("a", "b")
    )
    _, said, _ = lvt("compare", first, second)
    assert f"FVD here: {label}\n" in said


def test_one_result_is_a_wrong_use(works: list[ToyWork], lvt: Lvt) -> None:
    assert lvt("compare", works[0].root)[0] == 2
    with pytest.raises(ConfigError, match="at least two"):
        compare([works[0].root])


def test_what_is_no_evaluation_is_one_clear_line(works: list[ToyWork], tmp_path: Path) -> None:
    good = works[0].root
    with pytest.raises(ArtefactError, match="run lvt evaluate -o"):
        compare([good, tmp_path])
    with pytest.raises(ArtefactError, match="no\\.json does not exist; give a work directory"):
        compare([good, tmp_path / "no.json"])
    write_json(tmp_path / "other.json", {"some": "thing"})
    with pytest.raises(ArtefactError, match="not a result of lvt evaluate"):
        compare([good, tmp_path / "other.json"])
    write_json(tmp_path / "old.json", {"baselines": {}, "codes": {}, "clips": 3, "split": "test"})
    with pytest.raises(ArtefactError, match="run lvt evaluate again"):
        compare([good, tmp_path / "old.json"])
