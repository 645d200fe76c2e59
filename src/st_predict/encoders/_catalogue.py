"""Encoders: frozen networks that compute features of a spot's crop."""
# Shapes: B spots, C channels, H W image, T tokens, D features.

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from st_predict._backbones import import_timm
from st_predict._errors import Advice, InvalidTypeError, InvalidValueError, NotFoundError
from st_predict._files import sha256
from st_predict._imagenet import ARCH, LICENSE, NAME, PIXELS, SOURCE, load_efficientnet_lite0
from st_predict._memory import is_out_of_memory
from st_predict._progress import hub_bars, shows_progress
from st_predict._runtime import Network, keeping_generator
from st_predict.encoders._pathology import NOT_LOADABLE, PATHOLOGY
from st_predict.encoders._reading import Features, read_as
from st_predict.encoders._rgb import RGB_CROP, RGB_NAMES, RGB_VERSION, RgbStatistics
from st_predict.encoders._spec import HUB, EncoderSpec, square_crop
from st_predict.encoders._stages import FieldsOfView, Stages
from st_predict.specs import CropSpec, PixelSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from st_predict.crops import Batch

__all__ = ["Encoder", "EncoderSpec", "get_encoder", "list_encoders", "load_encoder", "restore_encoder"]

_RGB = EncoderSpec(
    name="rgb",
    source=f"st_predict/rgb-{RGB_VERSION}",
    crop=RGB_CROP,
    n_features=len(RGB_NAMES),
    float32=True,
    license="BSD-3-Clause",
)
_IMAGENET = EncoderSpec(
    name=NAME,
    source=SOURCE,
    arch=ARCH,
    crop=square_crop(224),
    pixels=PIXELS,
    n_features=1280,
    features="stages",
    float32=True,
    carried=True,
    license=LICENSE,
    citation="Tan and Le 2019, https://doi.org/10.48550/arXiv.1905.11946",
)
_KNOWN = {spec.name: spec for spec in (_RGB, _IMAGENET, *PATHOLOGY)}


class Encoder(Network):
    """A loaded encoder, which computes features for batches of crops.

    Parameters
    ----------
    backbone
        Network that is called with the pixels of each level of the crop, ``(n_spots, 3, size, size)`` float32, and returns
        ``(n_spots, n_features)``.
    spec
        Specification of the encoder: crop, pixel normalisation, source.

    Examples
    --------
    >>> import torch
    >>> import st_predict as stp
    >>> encoder = stp.encoders.load_encoder("rgb")
    >>> sizes = [level.size for level in encoder.spec.crop.levels]
    >>> sizes
    [64, 64, 64]
    >>> white = tuple(torch.full((2, 3, size, size), 255, dtype=torch.uint8) for size in sizes)
    >>> features = encoder(stp.crops.Batch(crops=white, index=torch.arange(2)))
    >>> float(features[0, stp.encoders.RGB_NAMES.index("mean_red_x1")])
    1.0
    """

    def __init__(self, backbone: Callable[..., Tensor], spec: EncoderSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.spec = spec
        self.pixel_spec = spec.pixels

    def forward(self, batch: Batch) -> Tensor:
        """Return the features, ``(n_spots, n_features)`` float32."""
        features_BD = torch.as_tensor(self.backbone(*(self.pixels(crop) for crop in batch.crops)))
        if features_BD.ndim != 2 or len(features_BD) != len(batch):
            raise InvalidValueError(
                f"The encoder {self.spec.name!r} must give one row of features per crop, got the shape "
                f"{tuple(features_BD.shape)} for {len(batch)} crops."
            )
        return features_BD.float()

    @cached_property
    def fingerprint(self) -> str | None:
        """SHA-256 of the weights; ``None`` for the user's own encoder, as a hash would not cover its code."""
        if not self.spec.source:
            return None
        state = sorted(self.state_dict().items())
        with ThreadPoolExecutor() as pool:
            digests = pool.map(_digest, (tensor for _, tensor in state))
            each = [
                f"{name} {tuple(x.shape)} {x.dtype} {digest}" for (name, x), digest in zip(state, digests, strict=True)
            ]
        return sha256("\n".join(each))

    def describe(self) -> dict[str, Any]:
        """Return a JSON-compatible record of everything that features depend on, except crops and precision."""
        spec = self.spec
        return {
            "name": spec.name,
            "source": spec.source,
            "weights": self.fingerprint,
            "arch": spec.arch,
            "arch_args": dict(spec.arch_args),
            "norm_eps": spec.norm_eps,
            "pool": spec.pool,
            "features": spec.features,
            "fields": list(spec.fields),
            **({"input_size": spec.input_size} if spec.fields else {}),
            "pixels": asdict(spec.pixels),
        }


def _digest(tensor: Tensor) -> str:
    return sha256(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


class _ClassAndMean(nn.Module):
    """Class token of a vision transformer of timm, followed by the mean of its patch tokens."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BTD = self.transformer.forward_features(x_BCHW)  # type: ignore[operator]
        patches_BTD = x_BTD[:, self.transformer.num_prefix_tokens :]
        return torch.cat([x_BTD[:, 0], patches_BTD.mean(1)], dim=1)


@keeping_generator()
@shows_progress
def load_encoder(
    encoder: str | EncoderSpec | Encoder | Callable[..., Tensor],
    *,
    crop: CropSpec | None = None,
    pixels: PixelSpec | None = None,
    features: Features | None = None,
    fields: Sequence[int] | None = None,
    neighbours: int | None = None,
    standardize: bool | None = None,
    progress: bool | None = None,
) -> Encoder:
    """Load an encoder with its weights.

    Parameters
    ----------
    encoder
        Encoder to load. A name of :func:`list_encoders`; a name of timm with weights, such as ``"resnet50.tv_in1k"`` or
        ``"hf-hub:owner/name"``; an :class:`EncoderSpec`; your own module or callable from pixels ``(n, 3, size, size)``, one
        argument per level of ``crop``, to ``(n, n_features)``; or an :class:`Encoder`, which is returned as it is.
    crop, pixels
        Crop and pixel normalisation for your own callable; ``pixels`` from 0 to 1 by default. Other encoders have their own.
    features, fields, neighbours, standardize
        Options of :func:`read_as`; by default the encoder's own.
    progress
        Whether to show progress bars. By default in a terminal or a notebook, after two seconds.

    Returns
    -------
    Encoder
        Encoder with weights, on the CPU.

    Raises
    ------
    KeyError
        If no encoder has this name.
    ModuleNotFoundError
        If a required package is not installed; the message names it.
    PermissionError
        If the weights are gated and their terms were not accepted.
    ConnectionError
        If the weights are not in the cache of the hub and cannot be downloaded.
    ValueError
        If weights do not fit their network, ``crop`` is missing or not allowed, or the encoder does not support the options.
    TypeError
        If ``encoder`` is of another type.

    Examples
    --------
    >>> import torch
    >>> import st_predict as stp
    >>> crop = stp.specs.CropSpec(levels=(stp.specs.LevelSpec(size=224),), mpp=0.5)
    >>> def mean_colour(pixels):
    ...     return pixels.mean((2, 3))
    >>> encoder = stp.encoders.load_encoder(mean_colour, crop=crop)
    >>> batch = stp.crops.Batch(crops=(torch.zeros(5, 3, 224, 224, dtype=torch.uint8),), index=torch.arange(5))
    >>> encoder(batch).shape  # five spots, three features
    torch.Size([5, 3])
    """
    if isinstance(encoder, str):
        encoder = get_encoder(encoder)
    reading = partial(read_as, features=features, fields=fields, neighbours=neighbours, standardize=standardize)
    if isinstance(encoder, EncoderSpec | Encoder):
        _refuse_inputs(encoder, crop=crop, pixels=pixels)
        if isinstance(encoder, Encoder):
            _refuse_loaded(encoder, reading.keywords)
            return encoder
        spec = reading(encoder)
        return Encoder(_as_read(_load(spec), spec), spec)
    if not callable(encoder):
        raise InvalidTypeError(f"encoder must be a name, a module or another callable, got {type(encoder).__name__}.")
    if crop is None:
        raise InvalidValueError(
            "Your own encoder needs a crop, got None.",
            Advice("give it with {}, for example CropSpec(levels=(LevelSpec(size=224),), mpp=0.5)", "crop"),
        )
    name = getattr(encoder, "__name__", type(encoder).__name__)
    own = EncoderSpec(name=name, crop=crop, pixels=PixelSpec() if pixels is None else pixels)
    return Encoder(encoder, reading(own))


def restore_encoder(spec: EncoderSpec, state: Mapping[str, Tensor]) -> Encoder:
    """Make an encoder with the weights that a checkpoint carries.

    Parameters
    ----------
    spec
        Specification of the encoder.
    state
        State dict of the :class:`Encoder`, from :meth:`torch.nn.Module.state_dict`.

    Returns
    -------
    Encoder
        Encoder with these weights.

    Raises
    ------
    ValueError
        If the weights belong to another encoder.

    Examples
    --------
    >>> import st_predict as stp
    >>> path = stp.checkpoints.find_weights("ridge-effnet")
    >>> encoder = stp.checkpoints.load_encoder(path, stp.specs.ModelCard.of_file(path))
    >>> restored = stp.encoders.restore_encoder(encoder.spec, encoder.state_dict())
    >>> restored.fingerprint == encoder.fingerprint
    True
    """
    encoder = Encoder(_as_read(spec.build(), spec), spec)
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        raise InvalidValueError(f"These are not the weights of the encoder {spec.name!r}: {error}") from error
    return encoder


def _refuse_inputs(encoder: EncoderSpec | Encoder, **inputs: CropSpec | PixelSpec | None) -> None:
    """Refuse crop and pixels for an encoder that has its own."""
    if given := [name for name, value in inputs.items() if value is not None]:
        name = (encoder.spec if isinstance(encoder, Encoder) else encoder).name
        raise InvalidValueError(
            f"The encoder {name!r} has its own crop and pixels; only your own callable needs them.",
            Advice(f"leave out {' and '.join(['{}', *given[1:]])}", given[0]),
        )


def _refuse_loaded(encoder: Encoder, how: Mapping[str, object]) -> None:
    """Refuse other reading options for a loaded encoder."""
    if given := [name for name, value in how.items() if value is not None]:
        raise InvalidValueError(
            f"The encoder {encoder.spec.name!r} is already loaded; {given[0]} cannot be changed.",
            f"give {given[0]} to st_predict.encoders.load_encoder",
            Advice("leave out {}", given[0]),
        )


def _load(spec: EncoderSpec) -> nn.Module:
    if spec.source == _RGB.source:
        return RgbStatistics()
    if spec.source == _IMAGENET.source:
        return load_efficientnet_lite0()
    return _load_into_arch(spec) if spec.arch else _load_of_timm(spec)


def _as_read(backbone: nn.Module, spec: EncoderSpec) -> nn.Module:
    """Wrap a backbone to read the layers and fields of view of its specification."""
    if spec.features == "stages":
        backbone = Stages(backbone)
    elif spec.pool == "cls_mean":
        backbone = _ClassAndMean(backbone)
    return FieldsOfView(backbone, size=spec.input_size or spec.crop.levels[0].size) if spec.fields else backbone


def _load_of_timm(spec: EncoderSpec) -> nn.Module:
    timm = import_timm()
    with _reaching(spec), hub_bars():
        backbone: nn.Module = timm.create_model(spec.source, pretrained=True, num_classes=0)
    return backbone.to(memory_format=torch.channels_last)


def _load_into_arch(spec: EncoderSpec) -> nn.Module:
    """Build without memory, then assign the tensors of the file: initialising a billion random weights is slow."""
    timm = import_timm()
    with _reaching(spec), hub_bars():
        state = timm.models.load_state_dict_from_hf(spec.source.removeprefix(HUB), weights_only=True)
    if spec.convert is not None:
        state = spec.convert(state)
    with torch.device("meta"):
        backbone = spec.build()
    try:
        backbone.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    except RuntimeError as error:
        raise InvalidValueError(f"The weights at {spec.url} do not fit the encoder {spec.name!r}: {error}") from error
    return backbone


@contextmanager
def _reaching(spec: EncoderSpec) -> Iterator[None]:
    """Add the way out to errors if the hub of the weights cannot be reached, or refuses."""
    try:
        yield
    except OSError as error:
        refused = _is_refusal(error)
        if error.errno is not None and not refused:  # an error of the disk
            raise
        found = "The hub gives no access to" if refused else "Cannot get"
        text = f"{found} the weights {spec.source!r} ({_first_line(error)}). {_ways_to_weights(spec)}"
        raise (PermissionError(text) if refused else ConnectionError(text)) from error
    except (RuntimeError, ValueError, KeyError, SafetensorError) as error:  # raised for a name, a file or its tensors
        if is_out_of_memory(error):
            raise
        raise InvalidValueError(
            f"The encoder {spec.source!r} cannot be loaded ({type(error).__name__}: {_first_line(error)})."
        ) from error


def _is_refusal(error: BaseException | None) -> bool:
    """Whether the hub refused access to the repository, or does not have it: 401, 403 or 404."""
    from huggingface_hub.errors import RepositoryNotFoundError

    if error is None:
        return False
    status = getattr(getattr(error, "response", None), "status_code", None)
    return isinstance(error, RepositoryNotFoundError) or status in {401, 403} or _is_refusal(error.__cause__)


def _ways_to_weights(spec: EncoderSpec) -> str:
    page = spec.url or "the page of the weights"
    terms = (
        f"accept the terms at {page}" if spec.gated else f"check the name, and accept the terms at {page} if it has any"
    )
    return (
        f"With a network: {terms}, then log in with `hf auth login` or put a token into HF_TOKEN. "
        "Without a network: copy the folder HF_HOME (by default ~/.cache/huggingface) of a machine that has the weights and "
        "set HF_HUB_OFFLINE=1. The encoder 'rgb' needs no weights."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def list_encoders() -> list[str]:
    """List the encoders with known resolution, normalisation and pooling.

    Any other name of timm with weights works as well (:func:`get_encoder`). :class:`EncoderSpec` has the crop, features, licence
    and gate of each encoder, and in ``notes`` the properties that no public source confirms.

    Returns
    -------
    list of str
        Names for :func:`get_encoder` and :func:`load_encoder`.

    Examples
    --------
    >>> import st_predict as stp
    >>> names = stp.encoders.list_encoders()
    >>> [name for name in names if not stp.encoders.get_encoder(name).gated][:4]
    ['rgb', 'efficientnet_lite0', 'phikon', 'phikon-v2']
    """
    return list(_KNOWN)


def get_encoder(name: str) -> EncoderSpec:
    """Return the specification of an encoder, without weights.

    Parameters
    ----------
    name
        Name of the encoder: one of :func:`list_encoders`, its name on the hub, or another name of timm with weights. For the
        last, timm gives pixel normalisation and crop size, at the resolution of the image.

    Returns
    -------
    EncoderSpec
        Specification.

    Raises
    ------
    KeyError
        If the encoder does not exist; the message lists the known ones.
    TypeError
        If ``name`` is not a text.
    ModuleNotFoundError
        If timm is needed and not installed.
    ConnectionError, PermissionError
        If the hub is needed and cannot be reached, or refuses.

    Examples
    --------
    >>> import st_predict as stp
    >>> spec = stp.encoders.get_encoder("UNI")
    >>> spec.n_features, spec.gated, spec.crop.mpp
    (1024, True, 0.5)
    """
    if not isinstance(name, str):
        raise InvalidTypeError(f"An encoder is given by its name, such as one of {list_encoders()}, got {name!r}.")
    plain = name.replace("hf_hub:", HUB)
    for spec in _KNOWN.values():
        if plain.removeprefix(HUB).casefold() in {spec.name, spec.source.removeprefix(HUB).casefold()}:
            return spec
    for known, (source, why, way_out) in NOT_LOADABLE.items():
        if plain.removeprefix(HUB).casefold() in {known, source.removeprefix(HUB).casefold()}:
            raise NotFoundError(f"The encoder {name!r} cannot be loaded by name: it has {why}.", way_out)
    return _from_hub(plain) if plain.startswith(HUB) else _from_timm(plain)


def _from_hub(name: str) -> EncoderSpec:
    timm = import_timm()
    spec = EncoderSpec(name=name.removeprefix(HUB), source=name, crop=square_crop(224))
    with _reaching(spec), hub_bars():
        config, _, _ = timm.models.load_model_config_from_hf(name.removeprefix(HUB))
    return _with_config(spec, config)


def _from_timm(name: str) -> EncoderSpec:
    timm = import_timm()
    arch, _, tag = name.partition(".")
    config = timm.get_pretrained_cfg(arch) if timm.is_model(arch) else None
    known = timm.list_pretrained(f"{arch}.*")
    if config is None or not known or (tag and name not in known):
        near = known or timm.list_pretrained(f"{arch.split('_')[0]}*")[:8]
        raise NotFoundError(
            f"No encoder {name!r}; there are {list_encoders()} and timm's{f', such as {near}' if near else ''}."
        )
    name = name if tag else f"{arch}.{config.tag}"
    config = timm.get_pretrained_cfg(name)
    return _with_config(EncoderSpec(name=name, source=name, crop=square_crop(224)), config.to_dict())


def _with_config(spec: EncoderSpec, config: Mapping[str, Any]) -> EncoderSpec:
    return replace(
        spec,
        crop=square_crop(int(config["input_size"][-1])),
        pixels=PixelSpec(mean=tuple(config["mean"]), std=tuple(config["std"])),
        license=str(config.get("license") or "unknown"),
        citation=str(config.get("origin_url") or ""),
    )
