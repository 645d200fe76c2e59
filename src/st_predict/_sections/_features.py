"""Features of the spots of a section, cached on disk."""

from __future__ import annotations

import errno
import json
import logging
import re
from collections import deque
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from st_predict._files import cache_dir, make_folder, sha256, user_cache_dir, whole
from st_predict._progress import track
from st_predict._runtime import Inference
from st_predict._sections._neighbourhood import join_neighbours, standardize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from st_predict._runtime import Compute
    from st_predict._sections._section import Section
    from st_predict.crops import Batch
    from st_predict.encoders import Encoder
    from st_predict.specs import CropSpec

__all__ = ["digests_of_crops", "kept_features", "section_features"]

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_HEADER, _DIGEST, _NAME = "st_predict.features", "sha256", "features"
_READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}
_READ = 64  # minimum number of crops read together, unless they are large
_READ_PIXELS = 2**26  # maximum number of pixels read together, 200 MB; three batches are held at a time
_FEW = 20  # spots per section; statistics of fewer are unreliable
_PREFIX = 12  # characters of a file name that identify the encoder and the first crops


def section_features(
    section: Section,
    encoder: Encoder,
    *,
    crop: CropSpec | None = None,
    compute: Compute,
    cache: bool = True,
) -> NDArray[np.float32]:
    """Compute encoder features of every spot inside the image and on tissue.

    Crops are read once: features are computed while crops are hashed. They are read twice only if the first crops are
    cached and others have changed.

    Features are cached in the folder ``embeddings`` of the cache, and reused if all of these are the same: the pixels
    of every crop, the encoder with its weights, its resolution and normalisation, and the precision. Features of a
    user's own encoder are never cached.

    Parameters
    ----------
    section
        Section with spots and image.
    encoder
        Encoder.
    crop
        Crops of the encoder; by default its training crops.
    compute
        Device, precision and number of spots per batch.
    cache
        Whether to read from and write to the cache.

    Returns
    -------
    ndarray
        ``(n_spots, n_features)``; NaN for spots outside the image. Standardised and joined with neighbour features if
        ``encoder.spec`` says so.
    """
    features = _described(section, encoder, crop=crop, compute=compute, cache=cache)
    features[section.outside] = np.nan
    _warn_of_few(section, encoder)
    if encoder.spec.standardize:
        features = standardize(features)
    if encoder.spec.neighbours:
        features = join_neighbours(features, section.spots.xy, encoder.spec.neighbours)
    return features


def _warn_of_few(section: Section, encoder: Encoder) -> None:
    """Warn of too few spots for a section's statistics, or for the neighbours of a spot."""
    n_spots, spec = int((~section.outside).sum()), encoder.spec
    if spec.standardize and n_spots < _FEW:
        logger.warning(
            "%r has only %d spots; features standardised over so few are unreliable.", section.region, n_spots
        )
    if n_spots <= spec.neighbours:
        logger.warning(
            "%r has %d spots, fewer than a spot and its %d neighbours; the available ones are used.",
            *(section.region, n_spots, spec.neighbours),
        )


def _described(
    section: Section, encoder: Encoder, *, crop: CropSpec | None, compute: Compute, cache: bool
) -> NDArray[np.float32]:
    """Return the features of the crops, computed or from the cache."""
    crop = crop or encoder.spec.crop
    inference = Inference(
        encoder,
        device=compute.place,
        precision="float32" if encoder.spec.float32 else compute.precision,
        working_batch=compute.batch_size,
    )
    if not cache or encoder.fingerprint is None:
        return _compute(section, _read_crops(section, crop, inference, device=inference.device), inference)
    header = {"encoder": encoder.describe(), "crop": asdict(crop), "precision": inference.precision}
    batches = _read_crops(section, crop, inference)
    first = next(batches)  # a section has spots
    prefix = sha256(json.dumps(header, sort_keys=True), *_bytes_of(first, _read_together(crop)))[:_PREFIX]
    digests = np.zeros((len(section.rows), 32), dtype=np.uint8)
    digested = _digested(chain([first], batches), digests)
    features: NDArray[np.float32] | None = None
    if is_kept(encoder, prefix):  # then very likely all are
        deque(track(digested, "Reading crops", len(section.rows), unit="spot", size=len), maxlen=0)
    else:
        features = _compute(section, digested, inference)

    def compute_now() -> NDArray[np.float32]:
        return _compute(section, _read_crops(section, crop, inference), inference) if features is None else features

    return kept_features(encoder, {**header, "pixels": sha256(digests.data)}, compute_now, prefix=prefix)


def _read_together(crop: CropSpec, working_batch: int = 0) -> int:
    """Return the number of crops to read at a time."""
    pixels = sum(level.size**2 for level in crop.levels)
    return min(max(working_batch, _READ), max(1, _READ_PIXELS // pixels))


def _read_crops(
    section: Section, crop: CropSpec, inference: Inference, *, device: torch.device | None = None
) -> Iterator[Batch]:
    on = device if device is not None and device.type == "cuda" else None
    return section.batches(crop, batch_size=_read_together(crop, inference.working_batch), device=on)


def _compute(section: Section, batches: Iterable[Batch], inference: Inference) -> NDArray[np.float32]:
    features: NDArray[np.float32] | None = None
    done = inference.over(batches)
    for index, described in track(done, "Describing crops", len(section.rows), unit="spot", size=_n_spots):
        if features is None:
            features = np.full((len(section.rows), described.shape[1]), np.nan, dtype=np.float32)
        features[index.numpy()] = described.numpy()
    assert features is not None  # a section has spots
    return features


def _n_spots(done: tuple[torch.Tensor, torch.Tensor]) -> int:
    return len(done[0])


def kept_features(
    encoder: Encoder, header: Mapping[str, Any], compute: Callable[[], NDArray[np.float32]], *, prefix: str = ""
) -> NDArray[np.float32]:
    """Return features from the folder ``embeddings`` of the cache, or compute and store them there.

    A read-only cache, such as one shared by a group, is only read; new features are written to and read from the user's
    own cache.

    Parameters
    ----------
    encoder
        Encoder of the features.
    header
        Everything that the features depend on, written as JSON.
    compute
        Function that returns the features, ``(n, n_features)``.
    prefix
        Beginning of the file name, for :func:`is_kept`.
    """
    text = json.dumps({"format_version": FORMAT_VERSION, **header}, sort_keys=True)
    paths = [folder / f"{prefix}{sha256(text)[:32]}.safetensors" for folder in _folders(encoder)]
    for path in paths:
        if (kept := _read(path, text)) is not None:
            return kept
    features = compute()
    _keep(paths, text, features)
    return features


def is_kept(encoder: Encoder, prefix: str) -> bool:
    """Return whether a feature file of this encoder has this prefix."""
    return any(next(folder.glob(f"{prefix}*.safetensors"), None) is not None for folder in _folders(encoder))


def _folders(encoder: Encoder) -> list[Path]:
    """Return the folders to search for an encoder's features; the first one is written to."""
    name = re.sub(r"[^\w.-]+", "_", encoder.spec.name)
    # both folders are the same without ST_PREDICT_CACHE
    return [folder / "embeddings" / name for folder in dict.fromkeys([cache_dir(), user_cache_dir()])]


def digests_of_crops(batches: Iterable[Batch], n_crops: int) -> NDArray[np.uint8]:
    """Return the SHA-256 of the pixels of each crop, over its levels, ``(n_crops, 32)``."""
    digests = np.zeros((n_crops, 32), dtype=np.uint8)
    deque(_digested(batches, digests), maxlen=0)
    return digests


def _digested(batches: Iterable[Batch], digests: NDArray[np.uint8]) -> Iterator[Batch]:
    """Yield batches unchanged, and write the SHA-256 of each crop to its row of ``digests``."""
    for batch in batches:
        for i, row in enumerate(batch.index.tolist()):
            digest = sha256(*(np.ascontiguousarray(level[i]).data for level in batch.crops))
            digests[row] = np.frombuffer(bytes.fromhex(digest), dtype=np.uint8)
        yield batch


def _bytes_of(batch: Batch, n: int) -> list[Any]:
    """Return rows and pixels of the first ``n`` spots of a batch; the order of spots does not depend on the batch size."""
    return [np.ascontiguousarray(x[:n]).data for x in (batch.index, *batch.crops)]


def _read(path: Path, header: str) -> NDArray[np.float32] | None:
    """Return cached features; ``None`` if there are none or, with a warning, if the file is damaged."""
    try:
        if not path.exists():
            return None
        with safe_open(path, framework="numpy") as file:
            metadata: dict[str, Any] = file.metadata() or {}
            features: NDArray[np.float32] = file.get_tensor(_NAME)
    except (SafetensorError, OSError) as error:
        logger.warning("Cached features in %s cannot be read (%s); they are computed again.", path, error)
        return None
    if metadata.get(_HEADER) != header or metadata.get(_DIGEST) != sha256(features.data):
        logger.warning("Cached features in %s are damaged; they are computed again.", path)
        return None
    logger.info("Features of %d places taken from %s.", len(features), path)
    return features


def _keep(paths: Sequence[Path], header: str, features: NDArray[np.float32]) -> None:
    """Write to the first path, or to the next one if writing is not permitted; a full cache must not raise."""
    path, *others = paths
    try:
        make_folder(path.parent)
        with whole(path) as fresh:
            save_file({_NAME: features}, fresh, metadata={_HEADER: header, _DIGEST: sha256(features.data)})
    except (SafetensorError, OSError) as error:
        if others and getattr(error, "errno", None) in _READ_ONLY:
            logger.info("Cannot write to %s (%s); features are cached in %s.", path.parent, error, others[0])
            _keep(others, header, features)
            return
        logger.warning(
            "Features cannot be cached in %s (%s). Set ST_PREDICT_CACHE to a folder with free space.", path, error
        )
