"""Features of the spots of a section, computed once and kept on disk."""

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
_READ = 64  # spots whose crops are read together, at least, unless their crops are large
_READ_PIXELS = 2**26  # most pixels that are read together, 200 MB; three batches are held at a time
_FEW = 20  # spots of a section, of which mean and standard deviation are not to be trusted
_PREFIX = 12  # letters of a file name that tell the encoder and the first crops


def section_features(
    section: Section,
    encoder: Encoder,
    *,
    crop: CropSpec | None = None,
    compute: Compute,
    cache: bool = True,
) -> NDArray[np.float32]:
    """Describe the crop of every spot inside the image and on tissue.

    Crops are read once, and described while it is found out which they are; they are read twice only if the first of them are in the
    cache and others have changed.

    What was computed is kept in the folder ``embeddings`` of the cache, and taken from there if all of this is the same:
    the pixels of every crop, the encoder with its weights, its resolution and normalisation, and the precision. An encoder of the
    user's own is computed anew each time.

    Parameters
    ----------
    section
        Where the spots are, and the image.
    encoder
        What describes them.
    crop
        What it is shown, if that is not what it was trained with.
    compute
        Device, precision and number of spots at a time.
    cache
        Whether to look in the cache, and to keep the result there.

    Returns
    -------
    ``(n_spots, n_features)``; NaN for spots outside the image. Standardized, and with those of the neighbours, as ``encoder.spec``
    says.
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
    """Say where too few spots stand for the statistics of a section, or for the neighbours of a spot."""
    n_spots, spec = int((~section.outside).sum()), encoder.spec
    if spec.standardize and n_spots < _FEW:
        logger.warning(
            "%r has %d spots; features that are standardized over so few say little.", section.region, n_spots
        )
    if n_spots <= spec.neighbours:
        logger.warning(
            "%r has %d spots, so that no spot has %d neighbours; those that there are stand in.",
            *(section.region, n_spots, spec.neighbours),
        )


def _described(
    section: Section, encoder: Encoder, *, crop: CropSpec | None, compute: Compute, cache: bool
) -> NDArray[np.float32]:
    """Describe the crops, or take from the cache what describes them."""
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
    if is_kept(encoder, prefix):  # so all of them very likely are
        deque(track(digested, "Reading crops", len(section.rows), unit="spot", size=len), maxlen=0)
    else:
        features = _compute(section, digested, inference)

    def compute_now() -> NDArray[np.float32]:
        return _compute(section, _read_crops(section, crop, inference), inference) if features is None else features

    return kept_features(encoder, {**header, "pixels": sha256(digests.data)}, compute_now, prefix=prefix)


def _read_together(crop: CropSpec, working_batch: int = 0) -> int:
    """Return the number of spots whose crops are read at a time."""
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
    """Take features from the folder ``embeddings`` of the cache, or compute and keep them there.

    A cache that the user may only read, as one that is shared by a group, is read; new features are kept in, and read from,
    the user's own cache.

    Parameters
    ----------
    encoder
        What makes them.
    header
        All that they depend on, to be written as JSON.
    compute
        Returns them, ``(n, n_features)``.
    prefix
        Beginning of the name of the file, by which :func:`is_kept` finds it.
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
    """Whether a file of features of this encoder has a name that begins so."""
    return any(next(folder.glob(f"{prefix}*.safetensors"), None) is not None for folder in _folders(encoder))


def _folders(encoder: Encoder) -> list[Path]:
    """Return where features of an encoder are looked for; the first one is where they are written."""
    name = re.sub(r"[^\w.-]+", "_", encoder.spec.name)
    # without ST_PREDICT_CACHE, both are the same folder
    return [folder / "embeddings" / name for folder in dict.fromkeys([cache_dir(), user_cache_dir()])]


def digests_of_crops(batches: Iterable[Batch], n_crops: int) -> NDArray[np.uint8]:
    """Return the SHA-256 of the pixels of each crop, over its levels, ``(n_crops, 32)``."""
    digests = np.zeros((n_crops, 32), dtype=np.uint8)
    deque(_digested(batches, digests), maxlen=0)
    return digests


def _digested(batches: Iterable[Batch], digests: NDArray[np.uint8]) -> Iterator[Batch]:
    """Pass batches on, and put the SHA-256 of each crop into its row of ``digests``."""
    for batch in batches:
        for i, row in enumerate(batch.index.tolist()):
            digest = sha256(*(np.ascontiguousarray(level[i]).data for level in batch.crops))
            digests[row] = np.frombuffer(bytes.fromhex(digest), dtype=np.uint8)
        yield batch


def _bytes_of(batch: Batch, n: int) -> list[Any]:
    """Rows and pixels of the first ``n`` spots of a batch; the order of spots doesn't depend on the size of batches."""
    return [np.ascontiguousarray(x[:n]).data for x in (batch.index, *batch.crops)]


def _read(path: Path, header: str) -> NDArray[np.float32] | None:
    """Return what is kept; ``None`` if nothing is, or if it is damaged, which a message says."""
    try:
        if not path.exists():
            return None
        with safe_open(path, framework="numpy") as file:
            metadata: dict[str, Any] = file.metadata() or {}
            features: NDArray[np.float32] = file.get_tensor(_NAME)
    except (SafetensorError, OSError) as error:
        logger.warning("The features kept in %s can't be read (%s); they are computed anew.", path, error)
        return None
    if metadata.get(_HEADER) != header or metadata.get(_DIGEST) != sha256(features.data):
        logger.warning("The features kept in %s are damaged; they are computed anew.", path)
        return None
    logger.info("Features of %d places taken from %s.", len(features), path)
    return features


def _keep(paths: Sequence[Path], header: str, features: NDArray[np.float32]) -> None:
    """Write the first path, or the next one where writing is not permitted; a cache that is full must not fail."""
    path, *others = paths
    try:
        make_folder(path.parent)
        with whole(path) as fresh:
            save_file({_NAME: features}, fresh, metadata={_HEADER: header, _DIGEST: sha256(features.data)})
    except (SafetensorError, OSError) as error:
        if others and getattr(error, "errno", None) in _READ_ONLY:
            logger.info("%s can't be written to (%s); the features are kept in %s.", path.parent, error, others[0])
            _keep(others, header, features)
            return
        logger.warning(
            "The features can't be kept in %s (%s). Set ST_PREDICT_CACHE to a folder with space.", path, error
        )
