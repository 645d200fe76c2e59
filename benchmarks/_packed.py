"""Sections as images and arrays in one folder: what training needs, read without anndata, spatialdata, dask and zarr.

``write`` needs the whole package. ``Pack`` needs numpy, Pillow and torch, and of the package what trains on arrays.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from st_predict._training import CropStore, get_preset
from st_predict.crops import iter_batches, plan_crops
from st_predict.models import get_spec
from st_predict.specs import ModelCard, TargetSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict._sections import Section
    from st_predict.specs import CropSpec

N_LEVELS, BLOCK = 4, 512
FULL = "full"
"""Name of the training on all training sections."""
TARGETS = ("recommended", "paper")
"""Presets of ``tl.train`` whose targets are packed."""
MPP = {"crops": 0.688, "cells": 1.0}
"""Micrometres per pixel that networks read at, by what they read: those of the scans; iStar's 0.5 is finer than they are."""


class ImagePyramid:
    """An image in memory, each level the means of 2 x 2 pixels of the one before, read in blocks.

    Parameters
    ----------
    finest
        ``(height, width, 3)``.
    """

    def __init__(self, finest: NDArray[np.uint8]) -> None:
        self._levels = [finest]
        while len(self._levels) < N_LEVELS and min(self._levels[-1].shape[:2]) > 1:
            self._levels.append(halved(self._levels[-1]))
        self.level_shapes = tuple(level.shape[:2] for level in self._levels)
        self.downsamples = tuple(float(2**i) for i in range(len(self._levels)))

    @classmethod
    def open(cls, path: Path) -> ImagePyramid:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # a whole section is no decompression bomb
        try:
            with Image.open(path) as image:
                return cls(np.asarray(image.convert("RGB")))
        finally:
            Image.MAX_IMAGE_PIXELS = limit

    def edges(self, level: int) -> tuple[NDArray[np.int64], ...]:
        return tuple(np.append(np.arange(0, side, BLOCK), side) for side in self.level_shapes[level])

    def read(self, x: int, y: int, width: int, height: int, *, level: int) -> NDArray[np.uint8]:
        return self._levels[level][y : y + height, x : x + width]


def halved(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = image.shape[0] // 2, image.shape[1] // 2
    total = np.full((height, width, 3), 2, np.uint16)
    for row in (0, 1):
        for column in (0, 1):
            total += image[row : 2 * height : 2, column : 2 * width : 2]
    return (total // 4).astype(np.uint8)


# Writing, where the package is installed whole.


def write(
    folder: Path,
    sections: Mapping[str, SpatialData],
    images: Mapping[str, Path],
    *,
    train: Sequence[str],
    panels: Mapping[str, Sequence[str]],
    cards: Sequence[ModelCard],
) -> int:
    """Write a pack; return its size in bytes.

    Parameters
    ----------
    folder
        Where to write, made if it does not exist.
    sections
        Sections to train on and to score.
    images
        Image file of each section, copied as it is.
    train
        Names of the sections to train on; all others are scored.
    panels
        Genes of each target of ``TARGETS``, in order.
    cards
        Networks to train (:func:`card_of`); spots are described once for all that read the same features.
    """
    from st_predict._sections import open_sdata
    from st_predict._where import Where

    (folder / "images").mkdir(parents=True, exist_ok=True)
    arrays: dict[str, dict[str, Any]] = {}
    about: dict[str, dict[str, Any]] = {}
    for name, sdata in sections.items():
        (section,) = open_sdata(sdata, Where()).sections
        image = Path("images") / f"{name}{images[name].suffix}"
        shutil.copyfile(images[name], folder / image)
        arrays[name] = {"xy": section.spots.xy, "outside": section.outside, "grid": section.spots.grid}
        about[name] = {
            "image": str(image),
            "sha256": hashlib.sha256((folder / image).read_bytes()).hexdigest(),
            "mpp": None if section.mpp is None else section.mpp.value,
            "patient": str(sdata["table"].obs["patient"].iloc[0]),
            "train": name in train,
        }
        for key, values in _features(section, cards).items():
            arrays[name][key] = values
    fitted: dict[str, dict[str, str]] = {}
    for target, genes in panels.items():
        fitted[target], described = _measure_targets(target, genes, sections, train=list(train), arrays=arrays)
        for name, note in described.items():
            about[name].setdefault("described", {})[target] = note
    for name, parts in arrays.items():
        np.savez_compressed(folder / f"{name}.npz", **{k: v for k, v in parts.items() if v is not None})
    (folder / "pack.json").write_text(json.dumps({"sections": about, "cards": fitted}, indent=1), encoding="utf-8")
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _features(section: Section, cards: Sequence[ModelCard]) -> dict[str, NDArray[np.float32]]:
    """Describe the spots of a section for each network that reads features; networks with the same encoder share them."""
    from st_predict._runtime import Compute
    from st_predict._sections._inputs import features_of

    found: dict[str, NDArray[np.float32]] = {}
    for card in cards:
        reads = get_spec(card.model).reads(card.hparams)
        if reads.load_encoder is not None and feature_key(card) not in found:
            compute = Compute(device="cpu", precision="float32")
            found[feature_key(card)] = features_of(section, card, reads.load_encoder(), compute=compute)
    return found


def _measure_targets(
    target: str,
    genes: Sequence[str],
    sections: Mapping[str, SpatialData],
    *,
    train: list[str],
    arrays: dict[str, dict[str, Any]],
) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Add targets to the arrays of each training section, for each section that may be left out.

    Returns
    -------
    Cards with the units of the targets, by the section left out; what a card says of each training section.
    """
    from st_predict._identifiers import gene_id_type_of
    from st_predict._sections import measure_each, observe
    from st_predict._where import Where
    from st_predict.pp import fit_target, to_target

    preset = get_preset(get_spec("mean"), target)
    card = replace(card_of("mean", target), genes=tuple(genes), gene_id_type=gene_id_type_of(genes))
    raw = replace(card, target=TargetSpec(transform="counts", over=card.target.over))
    measured = measure_each([sections[name] for name in train], raw, Where(), named=None)
    found = {}
    for name, slide in zip(train, measured, strict=True):
        (found[name],) = observe(slide, raw, min_counts=preset.min_counts)
        arrays[name] |= {f"{target}/rows": found[name].rows, f"{target}/counts": found[name].target}
    cards = {}
    for fold in [*train, FULL]:
        seen = [found[name] for name in train if name != fold]
        totals = {name: _totals(one, card) for name, one in found.items()}
        counts = np.concatenate([one.target for one in seen])
        sums = np.concatenate([totals[name] for name in train if name != fold])
        fitted = fit_target(counts, sums, card.target)
        cards[fold] = replace(card, target=fitted).to_json()
        for name, one in found.items():
            arrays[name][f"{target}/{fold}"] = to_target(one.target, fitted, totals=totals[name])
    return cards, {name: one.describe() for name, one in found.items()}


def _totals(observed: Any, card: ModelCard) -> NDArray[np.float64]:
    return observed.totals if card.target.over == "all" else observed.target.sum(axis=1, dtype=np.float64)


# Reading, without data containers.


def card_of(
    model: str, preset: str, changes: Mapping[str, Any] | None = None, *, mpp: float | None = None
) -> ModelCard:
    """Card of a network before training; genes and statistics of the target are still to be set.

    Parameters
    ----------
    model
        Name of the model.
    preset
        Setting of ``tl.train``.
    changes
        Hyper-parameters that differ from those of the preset.
    mpp
        Micrometres per pixel that it reads at; by default that of ``MPP``.
    """
    spec = get_spec(model)
    setting = get_preset(spec, preset)
    hparams = spec.complete({**spec.hparams, **setting.hparams, **(changes or {})})
    mpp = mpp or MPP.get(spec.reads(hparams).kind)
    crop = spec.crop_for(hparams)
    return ModelCard(
        model=model,
        genes=("none",),
        crop=crop if mpp is None else replace(crop, mpp=mpp),
        pixels=spec.pixels_for(hparams),
        target=setting.target or spec.target,
        hparams=json.loads(json.dumps(hparams)),
    )


def feature_key(card: ModelCard) -> str:
    """Name of the features that the network of a card reads, by encoder and crop."""
    reads = get_spec(card.model).reads(card.hparams)
    assert reads.describe_encoder is not None  # only asked for models that read features
    text = f"{reads.describe_encoder()}{card.crop}{reads.radius_um}{reads.tiles or ''}"
    return f"features/{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@dataclass(slots=True)
class _Cut:
    """Crops of the last network, which the next fold reads again."""

    crop: CropSpec | None = None
    of: dict[str, tuple[NDArray[np.uint8], ...]] = field(default_factory=dict)


class Pack:
    """A folder that :func:`write` wrote.

    Parameters
    ----------
    folder
        Holds ``pack.json``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        stored = json.loads((folder / "pack.json").read_text(encoding="utf-8"))
        self.about: dict[str, dict[str, Any]] = stored["sections"]
        self._cards: dict[str, dict[str, str]] = stored["cards"]
        self._cut = _Cut()

    @property
    def train(self) -> list[str]:
        return [name for name, about in self.about.items() if about["train"]]

    @property
    def scored(self) -> list[str]:
        return [name for name, about in self.about.items() if not about["train"]]

    @cached_property
    def arrays(self) -> dict[str, dict[str, NDArray[Any]]]:
        found = {}
        for name in self.about:
            with np.load(self.folder / f"{name}.npz", allow_pickle=False) as file:
                found[name] = dict(file)
        return found

    def n_spots(self, target: str) -> int:
        """Number of training spots that have a target."""
        return sum(len(self.arrays[name][f"{target}/rows"]) for name in self.train)

    def card(
        self,
        model: str,
        target: str,
        fold: str,
        changes: Mapping[str, Any] | None = None,
        *,
        mpp: float | None = None,
    ) -> ModelCard:
        """Card of a network to be trained without the section ``fold``, with panel and statistics of the target; see :func:`card_of`."""
        stored = ModelCard.from_json(self._cards[target][fold])
        names = [name for name in self.train if name != fold]
        plain = card_of(model, target, changes, mpp=mpp)
        note = {
            "sections": [self.about[name]["described"][target] for name in names],
            "preset": target,
            "group_key": "patient",
            "min_counts": get_preset(get_spec(model), target).min_counts,
        }
        return replace(plain, genes=stored.genes, gene_id_type=stored.gene_id_type, target=stored.target, training=note)

    def store(self, names: Sequence[str], card: ModelCard, *, target: str, fold: str) -> CropStore:
        """Spots of training sections that have a target."""
        rows = [self.arrays[name][f"{target}/rows"] for name in names]
        return self._store(
            names,
            rows,
            card,
            target=np.concatenate([self.arrays[name][f"{target}/{fold}"] for name in names]),
            counts=np.concatenate([self.arrays[name][f"{target}/counts"] for name in names]),
        )

    def inputs(self, name: str, card: ModelCard) -> tuple[NDArray[np.int64], CropStore]:
        """All spots of a section that lie in its image: their rows in the table, and what a network reads of them."""
        rows = np.flatnonzero(~self.arrays[name]["outside"])
        nothing = np.zeros((len(rows), len(card.genes)), np.float32)
        return rows, self._store([name], [rows], card, target=nothing, counts=None)

    def _store(
        self,
        names: Sequence[str],
        rows: Sequence[NDArray[np.int64]],
        card: ModelCard,
        *,
        target: NDArray[np.float32],
        counts: NDArray[np.float32] | None,
    ) -> CropStore:
        spec = get_spec(card.model)
        reads = spec.reads(card.hparams)
        parts = list(zip(names, rows, strict=True))
        crops: tuple[NDArray[np.uint8], ...] = ()
        features = None
        if reads.kind == "crops":
            levels = zip(*([level[r] for level in self._crops(n, card.crop)] for n, r in parts), strict=True)
            crops = tuple(np.concatenate(level) for level in levels)
        if reads.load_encoder is not None:
            features = joined([self.arrays[n][feature_key(card)][r] for n, r in parts])
        xy_um = [self.arrays[n]["xy"][r] * (self.about[n]["mpp"] or np.nan) for n, r in parts]
        return CropStore(
            crops=crops,
            features=features,
            target=target,
            section=np.repeat(np.arange(len(names)), [len(r) for r in rows]),
            grid=np.concatenate([self.arrays[n]["grid"][r] for n, r in parts]),
            xy_um=np.concatenate(xy_um).astype(np.float32),
            counts=counts if "counts" in spec.needs else None,
        )

    def crops(self, names: Sequence[str], card: ModelCard, *, target: str) -> tuple[NDArray[np.uint8], ...]:
        """Crops of spots of training sections that have a target, one array ``(n_spots, 3, size, size)`` per level."""
        levels = [[level[self.arrays[n][f"{target}/rows"]] for level in self._crops(n, card.crop)] for n in names]
        return tuple(np.concatenate(parts) for parts in zip(*levels, strict=True))

    def _crops(self, name: str, crop: CropSpec) -> tuple[NDArray[np.uint8], ...]:
        """Cut the crops of all spots of a section; those of the last crop specification are kept."""
        if self._cut.crop != crop:
            self._cut = _Cut(crop=crop)
        if name not in self._cut.of:
            image = ImagePyramid.open(self.folder / self.about[name]["image"])
            about, xy = self.about[name], self.arrays[name]["xy"]
            plan = plan_crops(xy, crop, downsamples=image.downsamples, mpp=about["mpp"])
            (batch,) = iter_batches(image, plan, batch_size=None, pad_value=crop.pad_value)
            self._cut.of[name] = tuple(level.numpy() for level in batch.crops)
        return self._cut.of[name]


def joined(features: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Join features of several sections; cells are padded with NaN to the same number."""
    if features[0].ndim == 2:
        return np.concatenate(features)
    most = max(part.shape[1] for part in features)
    return np.concatenate(
        [np.pad(f, ((0, 0), (0, most - f.shape[1]), (0, 0)), constant_values=np.nan) for f in features]
    )
