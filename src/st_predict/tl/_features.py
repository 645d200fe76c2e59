"""Features of the spots of a section, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from st_predict._download import cache_dir
from st_predict.crops import iter_batches
from st_predict.models import Inference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from numpy.typing import NDArray

    from st_predict.models._encoders import Encoder
    from st_predict.specs import CropSpec
    from st_predict.tl._sections import Section

__all__ = ["kept_features", "section_features"]

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_HEADER, _DIGEST, _NAME = "st_predict.features", "sha256", "features"
_READ = 64  # spots whose crops are read together, at least


def section_features(
    section: Section,
    encoder: Encoder,
    *,
    crop: CropSpec | None = None,
    device: torch.device,
    precision: str = "auto",
    batch_size: int | None = None,
    cache: bool = True,
) -> NDArray[np.float32]:
    """Describe the crop of every spot.

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
    device, precision, batch_size
        As in :class:`~st_predict.models.Inference`.
    cache
        Whether to look in the cache, and to keep the result there.

    Returns
    -------
    ``(n_spots, n_features)``; NaN for spots outside the image.
    """
    crop = crop or encoder.spec.crop
    outside = section.outside()
    inference = Inference(
        encoder,
        device=device,
        precision="float32" if encoder.spec.float32 else precision,
        working_batch=batch_size,
    )
    if cache and encoder.fingerprint is not None:
        header = {
            "encoder": encoder.describe(),
            "crop": asdict(crop),
            "precision": inference.precision,
            "pixels": _digest_of_crops(section, crop),
        }
        features = kept_features(encoder, header, partial(_compute, section, crop, inference))
    else:
        features = _compute(section, crop, inference)
    features[outside] = np.nan
    return features


def _compute(section: Section, crop: CropSpec, inference: Inference) -> NDArray[np.float32]:
    features: NDArray[np.float32] | None = None
    batches = iter_batches(
        section.reader,
        section.plan(crop),
        batch_size=max(inference.working_batch, _READ),
        pad_value=crop.pad_value,
        device=inference.device if inference.device.type == "cuda" else None,
    )
    for index, described in inference.over(batches):
        if features is None:
            features = np.empty((len(section.rows), described.shape[1]), dtype=np.float32)
        features[index.numpy()] = described.numpy()
    assert features is not None  # a section has spots
    return features


def kept_features(
    encoder: Encoder, header: Mapping[str, Any], compute: Callable[[], NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Take features from the folder ``embeddings`` of the cache, or compute and keep them there.

    Parameters
    ----------
    encoder
        What makes them.
    header
        All that they depend on, to be written as JSON.
    compute
        Returns them, ``(n, n_features)``.
    """
    text = json.dumps({"format_version": FORMAT_VERSION, **header}, sort_keys=True)
    folder = cache_dir() / "embeddings" / re.sub(r"[^\w.-]+", "_", encoder.spec.name)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"
    features = _read(path, text)
    if features is None:
        features = compute()
        _keep(path, text, features)
    return features


def _digest_of_crops(section: Section, crop: CropSpec) -> str:
    """SHA-256 of all pixels that the encoder will see, in the order of the table."""
    digests = np.zeros((len(section.rows), 32), dtype=np.uint8)
    for batch in iter_batches(section.reader, section.plan(crop), batch_size=_READ, pad_value=crop.pad_value):
        for i, row in enumerate(batch.index.tolist()):
            digest = hashlib.sha256()
            for level in batch.crops:
                digest.update(np.ascontiguousarray(level[i]).data)
            digests[row] = np.frombuffer(digest.digest(), dtype=np.uint8)
    return hashlib.sha256(digests.data).hexdigest()


def _read(path: Path, header: str) -> NDArray[np.float32] | None:
    """Return what is kept; ``None`` if nothing is, or if it is damaged, which a message says."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            metadata: dict[str, Any] = file.metadata() or {}
            features: NDArray[np.float32] = file.get_tensor(_NAME)
    except (SafetensorError, OSError) as error:
        logger.warning("The features kept in %s can't be read (%s); they are computed anew.", path, error)
        return None
    if metadata.get(_HEADER) != header or metadata.get(_DIGEST) != hashlib.sha256(features.data).hexdigest():
        logger.warning("The features kept in %s are damaged; they are computed anew.", path)
        return None
    logger.info("Features of %d places taken from %s.", len(features), path)
    return features


def _keep(path: Path, header: str, features: NDArray[np.float32]) -> None:
    """Write a file that appears whole or not at all; a cache that can't be written to is no reason to fail."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            fresh = Path(folder) / path.name
            save_file(
                {_NAME: features}, fresh, metadata={_HEADER: header, _DIGEST: hashlib.sha256(features.data).hexdigest()}
            )
            fresh.replace(path)
    except (SafetensorError, OSError) as error:
        logger.warning(
            "The features can't be kept in %s (%s). Set ST_PREDICT_CACHE to a folder with space.", path, error
        )
