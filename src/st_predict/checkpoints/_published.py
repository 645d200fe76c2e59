"""Checkpoints from weights files of published code."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from st_predict._errors import Advice, InvalidTypeError, InvalidValueError, StPredictError
from st_predict._files import sha256_of_file
from st_predict._runtime import keeping_generator
from st_predict._validated import File, Flag, Positive, Text, Texts, check
from st_predict._version import __version__
from st_predict.checkpoints._file import build, save
from st_predict.checkpoints._state_dict import read_state_dict
from st_predict.crops import Batch
from st_predict.encoders import count_features, save_hipt_weights
from st_predict.models import get_spec, list_models
from st_predict.specs import ModelCard, PixelSpec, TargetSpec, check_card_fields

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from st_predict.models import ModelSpec, SpotModel
    from st_predict.specs import CropSpec

__all__ = ["import_published"]

HIPT = "hipt"

logger = logging.getLogger(__name__)


def import_published(  # noqa: PLR0913  # each gives a fact that the files lack
    model: str,
    files: PathLike[str] | str | Sequence[PathLike[str] | str],
    *,
    genes: PathLike[str] | str | Sequence[str] | None = None,
    out: PathLike[str] | str,
    hparams: Mapping[str, object] | None = None,
    target: TargetSpec | Mapping[str, object] | None = None,
    pixels: PixelSpec | Mapping[str, object] | None = None,
    mpp: float | Literal["native"] | None = None,
    source: str | None = None,
    card: Mapping[str, object] | None = None,
    overwrite: bool = False,
) -> Path:
    """Convert weights files of published code to a checkpoint for :func:`st_predict.tl.predict`.

    Nothing is downloaded, and code in files is not run: files of PyTorch are read by ``torch.load(weights_only=True)``.

    Parameters
    ----------
    model
        Name of a model with ``convert`` in its :class:`~st_predict.models.ModelSpec`; or ``"hipt"``, which writes the file of
        :func:`st_predict.encoders.save_hipt_weights`.
    files
        Paths of the files. Weights are ``.pt``, ``.pth``, ``.bin``, ``.ckpt`` or ``.safetensors``: a state dict, or a training
        checkpoint with a state dict. Further files:

        - STPath: its vocabulary, ``symbol2ensembl.json``.
        - BLEEP: its reference spots, ``.npy`` arrays ``(n_spots, n_genes)`` or ``(n_genes, n_spots)`` of expression.
        - iStar: one file per fit.
        - HIPT: its two networks, in any order.
    genes
        Gene panel in the order of the network's outputs: a list, a text file with one gene per line, or an ``.npy`` array of names.
        For STPath, any genes of its vocabulary. The order cannot be checked.
    out
        New ``.safetensors`` file.
    hparams
        Hyper-parameters that differ from the publication and cannot be inferred from the shapes of the weights.
    target
        Units of the predictions. By default the publication's, ``original`` of the model's
        :class:`~st_predict.models.ModelSpec`, if known.
    pixels
        Normalisation of the training pixels. By default the publication's, if known.
    mpp
        Micrometres per pixel of the training images; ``"native"`` uses the pixels of each image, whatever their size. Not needed for
        models that read the features of an encoder.
    source
        Origin of the files, such as a web address, for the card.
    card
        Further fields of the :class:`~st_predict.specs.ModelCard`: ``license`` and ``citation`` of the weights, ``organism``,
        ``gene_id_type``, ``training``.
    overwrite
        Whether an existing ``out`` is replaced.

    Returns
    -------
    Path
        ``out``. Its card has origin, name and SHA-256 of each file, and the source of the units.

    Raises
    ------
    FileNotFoundError
        If a file does not exist.
    FileExistsError
        If ``out`` exists and ``overwrite`` is false.
    KeyError
        If the model does not exist, or genes are not in the vocabulary.
    ValueError
        If the files are damaged, belong to another model, hold more than tensors and plain values, or do not fit genes and
        hyper-parameters; or if a property that predictions depend on is unknown.
    TypeError
        If ``files`` or ``genes`` is of another type.

    Examples
    --------
    >>> import st_predict as stp
    >>> stp.checkpoints.import_published(
    ...     "histogene", "model.ckpt", genes="genes.txt", out="histogene.safetensors"
    ... )  # doctest: +SKIP
    PosixPath('histogene.safetensors')
    >>> stp.tl.predict(sdata, model="histogene.safetensors")  # doctest: +SKIP
    """
    out = _check_out(out, replace_old=check("overwrite", overwrite, Flag))
    sorted_files = _Files.of(files)
    given = {
        "genes": genes,
        "hparams": hparams,
        "target": target,
        "pixels": pixels,
        "mpp": mpp,
        "card": card,
        "source": source,
    }
    if model == HIPT:
        return _import_hipt(sorted_files, out, given=given)
    spec = get_spec(model)
    panel = _read_genes(genes)
    state = _convert(spec, sorted_files, panel)
    fields = check_card_fields({} if card is None else card)
    settled = _settle(spec, state, _mapping("hparams", hparams))
    known = {
        "crop": _crop_of(spec, settled, mpp),
        "pixels": _pixels_of(spec, settled, pixels),
        "target": _target_of(spec, target),
        "training": {**fields.pop("training", {}), **_origin(spec, sorted_files, source, own_units=target is not None)},
    }
    new = _write_card(spec, panel, settled, {**fields, **known})
    network = _fill(new, state)
    _fill_bank(network, spec, sorted_files, n_genes=len(panel))
    save(out, network, new)
    return out


@dataclass(frozen=True, kw_only=True, slots=True)
class _Files:
    """Files of a release, by kind."""

    weights: tuple[Path, ...]
    vocabulary: tuple[Path, ...]
    reference: tuple[Path, ...]

    @classmethod
    def of(cls, files: Any) -> _Files:
        """Sort files by their suffix."""
        if isinstance(files, str | PathLike):
            files = [files]
        if isinstance(files, Mapping | bytes) or not isinstance(files, Iterable):
            raise InvalidTypeError(f"files must be a path or a list of paths, got {type(files).__name__}.")
        paths: list[Path] = [check("files", file, File) for file in files]
        if twice := [str(path) for path, n in Counter(paths).items() if n > 1]:
            raise InvalidValueError(f"Files are given twice: {twice}.")
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(f"Found no file {str(path)!r}.")
        by_kind = {suffix: tuple(path for path in paths if path.suffix == suffix) for suffix in (".json", ".npy")}
        rest = tuple(path for path in paths if path.suffix not in by_kind)
        if not rest:
            raise InvalidValueError(f"files must include weights, got {[str(path) for path in paths]}.")
        return cls(weights=rest, vocabulary=by_kind[".json"], reference=by_kind[".npy"])

    def describe(self) -> list[dict[str, str]]:
        """Return name and SHA-256 of each file."""
        paths = (*self.weights, *self.vocabulary, *self.reference)
        return [{"name": path.name, "sha256": sha256_of_file(path)} for path in paths]


def _check_out(out: PathLike[str] | str, *, replace_old: bool) -> Path:
    """Refuse a checkpoint that could not be written, before any work."""
    path: Path = check("out", out, File)
    if path.suffix != ".safetensors":
        raise InvalidValueError(f"out must end in .safetensors, got {str(path)!r}.")
    if path.exists() and not replace_old:
        raise FileExistsError(f"{str(path)!r} exists; choose another name.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"Found no folder {str(path.parent)!r}.")
    return path


def _mapping(argument: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidTypeError(f"{argument} must be a mapping from name to value, got {type(value).__name__}.")
    return dict(value)


# HIPT, which has no genes.


def _import_hipt(files: _Files, out: Path, *, given: Mapping[str, object]) -> Path:
    if unused := [name for name, value in given.items() if value is not None]:
        raise InvalidValueError(f"HIPT is an encoder: its file has no card, so leave out {unused}.")
    if len(files.weights) != 2 or files.vocabulary or files.reference:
        raise InvalidValueError(
            f"HIPT has two files of weights, vit256_small_dino.pth and vit4k_xs_dino.pth, got {len(files.weights)}."
        )
    states = [read_state_dict(path) for path in files.weights]
    # only the network on regions projects the tokens of tiles
    tile, region = sorted(states, key=lambda state: any("phi." in name for name in state))
    save_hipt_weights(tile, region, out)
    return out


# Contents of the files.


def _read_genes(genes: Any) -> tuple[str, ...]:
    if genes is None:
        raise InvalidValueError(
            "Weights do not name their genes.",
            Advice("give the genes of the network's outputs, in their order, with {}", "genes"),
        )
    if isinstance(genes, str | PathLike):
        genes = _read_gene_file(check("genes", genes, File))
    names = tuple(str(gene) for gene in check("genes", genes, Texts))
    if not names:
        raise InvalidValueError("genes is empty.")
    if twice := [gene for gene, n in Counter(names).items() if n > 1]:
        raise InvalidValueError(f"genes names {len(twice)} of its genes more than once: {twice[:5]}.")
    return names


def _read_gene_file(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"Found no file {str(path)!r} with genes.")
    if path.suffix != ".npy":
        from st_predict.pp import read_panel  # imported late: networks can be used without it

        return read_panel(path)
    names = _read_array(path)
    if names.ndim != 1 or names.dtype.kind != "U":
        raise InvalidValueError(f"{str(path)!r} must be a list of names, got {names.dtype} of shape {names.shape}.")
    return [str(name) for name in names]


def _read_array(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InvalidValueError(f"{str(path)!r} must be a NumPy array without Python objects ({error}).") from error


def _read_vocabulary(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidValueError(f"{str(path)!r} is not JSON ({error}).", "get it again") from error
    if not isinstance(found, dict) or not all(isinstance(gene, str) for gene in found.values()):
        raise InvalidValueError(f"{str(path)!r} does not map symbols to Ensembl identifiers.")
    return found


def _convert(spec: ModelSpec, files: _Files, genes: Sequence[str]) -> dict[str, Tensor]:
    """Read the weights under our names; with a vocabulary, select the panel."""
    if spec.convert is None:
        able = [HIPT, *(name for name in list_models() if get_spec(name).convert is not None)]
        raise InvalidValueError(f"{spec.name!r} has no published weights that can be imported; models with: {able}.")
    _check_kinds(spec, files)
    states = [_convert_one(spec, path, files, genes) for path in files.weights]
    if len({tuple((name, x.shape) for name, x in state.items()) for state in states}) > 1:
        raise InvalidValueError(f"{[path.name for path in files.weights]} hold networks of different sizes.")
    return {name: torch.cat([state[name] for state in states]) for name in states[0]} if len(states) > 1 else states[0]


def _check_kinds(spec: ModelSpec, files: _Files) -> None:
    """Refuse unused and missing files."""
    if len(files.weights) > 1 and "n_fits" not in spec.hparams:
        raise InvalidValueError(
            f"{spec.name!r} has one file of weights, got {len(files.weights)}: {[path.name for path in files.weights]}."
        )
    retrieves = spec.family == "retrieval"
    wanted = {".json, its vocabulary": spec.for_panel is not None, ".npy, its reference spots": retrieves}
    for (what, needed), found in zip(wanted.items(), (files.vocabulary, files.reference), strict=True):
        if found and not needed:
            raise InvalidValueError(f"{spec.name!r} does not use {[path.name for path in found]}.")
        if needed and not found:
            raise InvalidValueError(
                f"{spec.name!r} also needs a file {what}.",
                Advice("add it to {}", "files"),
            )
    if len(files.vocabulary) > 1:
        raise InvalidValueError(f"files must have one vocabulary, got {[path.name for path in files.vocabulary]}.")


_OTHERS = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""Errors of a conversion with unknown names or shapes."""


def _convert_one(spec: ModelSpec, path: Path, files: _Files, genes: Sequence[str]) -> dict[str, Tensor]:
    state = read_state_dict(path)
    try:
        own = spec.convert(state) if spec.convert is not None else {}
    except _OTHERS as error:
        others = [name for name in list_models() if name != spec.name and _is_of(name, state)]
        hint = [f"import it as {name!r}" for name in others]
        found = error.found if isinstance(error, StPredictError) else f"{type(error).__name__}: {error}"
        raise InvalidValueError(
            f"{str(path)!r} is not a file of {spec.name!r}{f', but of {others}' if others else ''}. {found}", *hint
        ) from error
    if spec.for_panel is None:
        return own
    return spec.for_panel(state, _read_vocabulary(files.vocabulary[0]), genes)


def _is_of(name: str, state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict comes from the published code of a model."""
    convert = get_spec(name).convert
    try:
        return convert is not None and bool(convert(state))
    except _OTHERS:
        return False


# Facts that the files lack.


def _settle(spec: ModelSpec, state: Mapping[str, Tensor], given: Mapping[str, object]) -> dict[str, Any]:
    """Hyper-parameters: given ones, then inferred from shapes, then the publication's."""
    spec.check_names(given)
    told = {} if spec.hparams_of is None else spec.hparams_of(state)
    known = {name: value for name, value in told.items() if value is not None}
    if wrong := [name for name in given if name in known and _listed(given[name]) != _listed(known[name])]:
        raise InvalidValueError(
            f"The weights belong to a network with { ({name: known[name] for name in wrong}) }, not "
            f"{ ({name: given[name] for name in wrong}) }.",
            Advice("leave it out of {}", "hparams"),
        )
    if asked := [name for name, value in told.items() if value is None and name not in given]:
        raise InvalidValueError(
            f"The shapes of the weights do not tell {asked}, and the other sizes, {known}, differ from the published "
            f"{spec.name!r}.",
            Advice(f"give {asked} in {{}}", "hparams"),
        )
    settled = spec.complete({**spec.hparams, **spec.original.hparams, **known, **given})
    _check_encoder(spec, settled)
    return settled


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _check_encoder(spec: ModelSpec, hparams: Mapping[str, object]) -> None:
    """Refuse an encoder whose number of features differs from the network's."""
    describe = spec.reads(hparams).describe_encoder
    expected = hparams.get("n_features")
    if describe is None or expected is None:
        return
    encoder = describe()
    if (found := count_features(encoder)) not in {None, expected}:
        raise InvalidValueError(
            f"The weights read {expected} features, and the encoder {encoder.name!r} has {found}.",
            Advice("name the encoder of training in {}", "hparams"),
        )


def _crop_of(spec: ModelSpec, hparams: Mapping[str, object], mpp: Any) -> CropSpec:
    crop = spec.crop_for(hparams)
    if isinstance(mpp, str) and mpp == "native":
        return replace(crop, mpp=None)
    value = check("mpp", mpp, Positive | None)
    if value is None and crop.mpp is None:
        raise InvalidValueError(
            f"Weights of {spec.name!r} depend on the resolution of training, which the files do not tell.",
            Advice("give the um/px of the training images with {}", "mpp"),
            Advice("use the pixels of each image, whatever their size, with {}", "mpp", "native"),
        )
    if value is not None and crop.mpp not in {None, value}:
        logger.warning("mpp=%g replaces the %g um/px of the published %r.", value, crop.mpp, spec.name)
    return crop if value is None else replace(crop, mpp=value)


def _pixels_of(spec: ModelSpec, hparams: Mapping[str, object], pixels: Any) -> PixelSpec:
    if pixels is not None and spec.reads(hparams).inputs in {"features", "cells"}:
        raise InvalidValueError(
            f"{spec.name!r} reads features of an encoder, which has its own pixel normalisation.",
            Advice("leave out {}", "pixels"),
        )
    if isinstance(pixels, PixelSpec):
        return pixels
    if pixels is not None:
        return PixelSpec(**_mapping("pixels", pixels))
    if spec.original.target is None or spec.original.training.get("measure_pixels"):
        raise InvalidValueError(
            f"Mean and standard deviation of the training pixels are unknown for these weights of {spec.name!r}.",
            Advice("give them for values from 0 to 1 with {}", "pixels"),
        )
    return spec.pixels_for(hparams)


def _target_of(spec: ModelSpec, target: Any) -> TargetSpec:
    if target is not None:
        found = target if isinstance(target, TargetSpec) else TargetSpec(**_mapping("target", target))
    elif spec.original.target is None:
        raise InvalidValueError(
            f"The units of the predictions are unknown: no publication gives them for weights of {spec.name!r}.",
            Advice("give the units of training with {}", "target"),
        )
    else:
        found = spec.original.target
    if not found.is_complete:
        raise InvalidValueError(
            f"Units of these weights depend on their training spots: {found.units}.",
            Advice("give the limits or the reference of training in {}", "target"),
        )
    return found


def _origin(spec: ModelSpec, files: _Files, source: str | None, *, own_units: bool) -> dict[str, Any]:
    """Return the card's notes on the files."""
    published = f"the publication's, preset 'original' of {spec.name}"
    return {
        "source": "unknown" if source is None else check("source", source, Text),
        "files": files.describe(),
        "units": "given at import" if own_units else published,
        "imported_by": f"st_predict {__version__}",
    }


def _write_card(
    spec: ModelSpec, genes: tuple[str, ...], hparams: dict[str, Any], fields: Mapping[str, Any]
) -> ModelCard:
    from st_predict._identifiers import gene_id_type_of  # imports pandas, which training does not need

    defaults = {
        "gene_id_type": gene_id_type_of(genes),
        "license": f"unknown; of the published code: {spec.license}",
        "citation": f"{spec.citation} (references of st_predict)",
    }
    return ModelCard(model=spec.name, genes=genes, hparams=hparams, **{**defaults, **fields})


# The network.


def _fill(card: ModelCard, state: dict[str, Tensor]) -> SpotModel:
    """Build the network and load the weights; the error names differences."""
    with keeping_generator():
        network = build(card)
    needed = {name: tuple(x.shape) for name, x in network.state_dict().items()}
    found = {name: tuple(x.shape) for name, x in state.items()}
    if needed == found:
        network.load_state_dict(state)
        return network.eval()
    other = {name: (found[name], needed[name]) for name in found if name in needed and found[name] != needed[name]}
    if needed.keys() == found.keys() and (n_genes := _n_genes(other, len(card.genes))) is not None:
        raise InvalidValueError(
            f"The weights have outputs for {n_genes} genes, got the names of {len(card.genes)}.",
            Advice("name the genes of its outputs, in their order, with {}", "genes"),
        )
    missing, unknown = sorted(needed.keys() - found.keys()), sorted(found.keys() - needed.keys())
    shapes = [f"{name} {there} instead of {here}" for name, (there, here) in list(other.items())[:3]]
    raise InvalidValueError(
        f"The weights do not fit a {card.model!r} network with the hyper-parameters {card.hparams}: {len(missing)} tensors are "
        f"missing {missing[:3]}, {len(unknown)} unknown {unknown[:3]}, {len(other)} of another shape {shapes}.",
        Advice("give the sizes of training in {}", "hparams"),
    )


def _n_genes(other: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]], n_named: int) -> int | None:
    """Number of genes, if shapes differ only in that; else ``None``."""
    if any(len(there) != len(here) for there, here in other.values()):
        return None
    axes = [(n, m) for there, here in other.values() for n, m in zip(there, here, strict=True) if n != m]
    found = {n for n, m in axes if m == n_named}
    if len(found) != 1 or {n - m for n, m in axes} != {next(iter(found)) - n_named}:
        return None
    return found.pop()


def _fill_bank(network: SpotModel, spec: ModelSpec, files: _Files, *, n_genes: int) -> None:
    """Fill the reference bank of a retrieval network."""
    if spec.family != "retrieval":
        return
    values = np.concatenate([_read_reference(path, n_genes) for path in files.reference])
    batch = Batch(crops=(), index=torch.arange(len(values)), target=torch.from_numpy(values))
    network.finalize([batch])


def _read_reference(path: Path, n_genes: int) -> Any:
    """Read expression of measured spots, ``(n_spots, n_genes)`` float32."""
    values = _read_array(path)
    if values.ndim != 2 or n_genes not in values.shape or values.dtype.kind not in "fiu":
        raise InvalidValueError(
            f"{str(path)!r} must be expression of {n_genes} genes, got {values.dtype} of shape {values.shape}."
        )
    values = values if values.shape[1] == n_genes else values.T
    if not np.isfinite(values).all():
        raise InvalidValueError(f"{str(path)!r} has values that are not finite.")
    return np.ascontiguousarray(values, dtype=np.float32)
