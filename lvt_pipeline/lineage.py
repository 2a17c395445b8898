"""Every fingerprint of the pipeline, in its order: of a clip, its frames, its codes and all that is made from them.

A fingerprint is the SHA-256 of canonical JSON: content, the settings that change the result, an algorithm version and
the fingerprints of the inputs. Nothing else in the package decides the inputs of a hash. The first paragraph of
each docstring is a row of the table in `docs/concepts.md`.

Whoever changes what a function here hashes makes every existing output of that kind stale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from lvt_pipeline.provenance import canonical_json, canonical_rows, fingerprint, fingerprint_text

Row = Sequence[Any]  # plain data about one clip


# Videos and frames -----------------------------------------------------------------------------------------------


def clip_fingerprint(digest: str, start: float | None, end: float | None, kind: Mapping[str, Any] | None = None) -> str:
    """SHA-256 of the content (the video's bytes, a record, rows and packets of an episode, pictures of a folder, rows
    in files), start, end.

    Args:
        kind: of a clip that is not a video: its kind, camera and frame rate; of a clip with files of rows or of an
            episode in a shared video: the digest of these rows or packets. The record's number is left out: the
            digest is that of the record, wherever it is.
    """
    return fingerprint({"digest": digest, "start": start, "end": end, **(kind or {})})


def manifest_fingerprint(rows: Iterable[Row]) -> str:
    """id, content, split and label of every clip, in order."""
    return fingerprint_text(canonical_rows(rows))


def clip_frames_fingerprint(
    clip: str, geometry: Mapping[str, Any], decoder: str, version: int, others: Mapping[str, Any] | None = None
) -> str:
    """the clip, the geometry settings, the decoder and its version. With a lossy codec also the codec.

    Args:
        decoder: name and version of what reads the video.
        version: of the algorithm of `lvt ingest`.
        others: of clips that are cut from a long video or compressed with loss: what else decides them.
    """
    frames = fingerprint({"clip": clip, "geometry": geometry, "decoder": decoder, "version": version})
    return fingerprint({"frames": frames, **others}) if others else frames


def piece_frames_fingerprint(line: str, begins: float) -> str:
    """the frames of the whole video, and the time at which the piece begins."""
    return fingerprint({"line": line, "begins": begins})


def failed_clip_fingerprint(
    clip: str, geometry: Mapping[str, Any], decoders: Sequence[str], min_frames: int, version: int
) -> str:
    """the clip, the geometry settings, every decoder that was tried, the shortest length."""
    return fingerprint(
        {"clip": clip, "geometry": geometry, "decoders": decoders, "min_frames": min_frames, "version": version}
    )


def array_fingerprint(digest: str, shape: Sequence[int]) -> str:
    """SHA-256 of the array's bytes, shape."""
    return fingerprint({"digest": digest, "shape": list(shape)})


def frames_fingerprint(rows: Iterable[Row]) -> str:
    """id, split, label, frames and side arrays of every clip, in order."""
    return fingerprint_text(canonical_rows(rows))


# Networks ------------------------------------------------------------------------------------------------------------


def tokenizer_fingerprint(shape: Mapping[str, Any], weights: Mapping[str, Any]) -> str:
    """weights of the encoder, the codebook tables (with FSQ the levels and the projections to them), their shapes,
    float32. Not the VQ-VAE's decoder.
    """
    return fingerprint({"tokenizer": shape, "precision": "float32", "weights": weights})


def precise_tokenizer_fingerprint(tokenizer: str, precision: str) -> str:
    """the tokenizer, the precision."""
    return fingerprint({"tokenizer": tokenizer, "precision": precision})


def foreign_tokenizer_fingerprint(codebook_size: int, frame_shape: Sequence[int]) -> str:
    """K, the shape of the codes of a frame."""
    return fingerprint({"imported": True, "codebook_size": codebook_size, "frame_shape": list(frame_shape)})


def run_fingerprint(weights: Mapping[str, Mapping[str, Row]]) -> str:
    """every weight.

    Args:
        weights: by file and name: type, shape and digest of the values.
    """
    return fingerprint(weights)


# Codes ---------------------------------------------------------------------------------------------------------------


def clip_codes_fingerprint(frames: str, tokenizer: str) -> str:
    """its frames, the tokenizer."""
    return fingerprint({"frames": frames, "tokenizer": tokenizer})


def clip_with_arrays_fingerprint(codes: str, arrays: Mapping[str, str | None]) -> str:
    """the codes of the clip; SHA-256 of each of its side arrays, with their names.

    Args:
        arrays: every side array of the store; None where the clip has none.
    """
    return fingerprint({"codes": codes, "arrays": arrays})


def foreign_codes_fingerprint(codes: str, tokenizer: str) -> str:
    """SHA-256 of the codes, the tokenizer."""
    return fingerprint({"codes": codes, "tokenizer": tokenizer})


def store_fingerprint(
    *, codebook_size: int, num_codebooks: int, grid: Sequence[int], tokenizer: str, rows: Iterable[Row]
) -> str:
    """K, n_c, grid, tokenizer; id, split, label, codes and length of every clip, in order."""
    codes = {"codebook_size": codebook_size, "num_codebooks": num_codebooks, "grid": list(grid)}
    about = canonical_json({**codes, "tokenizer": tokenizer})
    # The fingerprint of one object with the rows under "clips", which its keys' order puts first.
    return fingerprint_text(chain(['{"clips":'], canonical_rows(rows), [",", about[1:]]))


# Samples, videos, results --------------------------------------------------------------------------------------------


def sample_fingerprint(version: int, facts: Mapping[str, Any]) -> str:
    """the prior, the codes of the clip, its id and label, number of the sample, lengths, seed, sampling settings. For
    priors with actions also these.

    Args:
        facts: prior, clip, label, codes, sample, frames, priming_frames, seed, and the settings that are not off.
    """
    return fingerprint({"stage": "sample", "version": version, **facts})


def video_fingerprint(version: int, **facts: Any) -> str:
    """the codes of the clip, every weight of the VQ-VAE, format, scale, frame rate."""
    return fingerprint({"stage": "decode", "version": version, **facts})


def videos_fingerprint(rows: Sequence[Row]) -> str:
    """id and video of every clip, in order."""
    return fingerprint(rows)


def results_fingerprint(results: Mapping[str, Any]) -> str:
    """every number in it, the settings, the fingerprints of the inputs."""
    return fingerprint(results)


# The table of docs/concepts.md, in its order.
TABLE: dict[str, Callable[..., str]] = {
    "clip": clip_fingerprint,
    "manifest": manifest_fingerprint,
    "frames of a clip": clip_frames_fingerprint,
    "frames of a piece of a long video": piece_frames_fingerprint,
    "frames from an array": array_fingerprint,
    "a clip that failed": failed_clip_fingerprint,
    "frames": frames_fingerprint,
    "tokenizer": tokenizer_fingerprint,
    "tokenizer in another precision": precise_tokenizer_fingerprint,
    "tokenizer of imported codes": foreign_tokenizer_fingerprint,
    "run": run_fingerprint,
    "codes of a clip": clip_codes_fingerprint,
    "codes of a clip with side arrays": clip_with_arrays_fingerprint,
    "imported codes of a clip": foreign_codes_fingerprint,
    "code store generation": store_fingerprint,
    "sample": sample_fingerprint,
    "video of a clip": video_fingerprint,
    "videos": videos_fingerprint,
    "evaluation": results_fingerprint,
}
