"""Encoders: frozen networks that turn the crop of a spot into features."""
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
    """A network whose output describes the crop of a spot, ready to be run on batches of crops.

    Parameters
    ----------
    backbone
        Is called with the pixels of each level of the crop, ``(n_spots, 3, size, size)`` float32, and returns
        ``(n_spots, n_features)``.
    spec
        What goes in, and where it comes from.
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
                f"The encoder {self.spec.name!r} gives {tuple(features_BD.shape)} for {len(batch)} crops; it must give one row "
                "of features per crop."
            )
        return features_BD.float()

    @cached_property
    def fingerprint(self) -> str | None:
        """SHA-256 of the weights; ``None`` for an encoder of the user's own, whose code it could not tell apart."""
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
        """Return all that the features depend on beside the crops and the precision, to be written as JSON."""
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
    """The class token of a vision transformer of timm, followed by the mean of its patch tokens."""

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
    """Make an encoder, with its weights.

    Parameters
    ----------
    encoder
        A name of :func:`list_encoders`; any name of timm that has weights, ``"resnet50.tv_in1k"`` or
        ``"hf-hub:owner/name"``; an :class:`EncoderSpec`; a module or another callable of your own, which is given pixels
        ``(n, 3, size, size)``, one argument a level of ``crop``, and returns ``(n, n_features)``; or what this function
        returned, so that it is not loaded again.
    crop, pixels
        What a callable of your own sees; ``pixels`` from 0 to 1 by default. Other encoders have their own.
    features, fields, neighbours, standardize
        How the image is read, see :func:`read_as`; by default as the encoder has it.
    progress
        Whether to show progress bars. By default in a terminal or a notebook, after two seconds.

    Raises
    ------
    KeyError
        If there is no encoder of this name.
    ModuleNotFoundError
        If it is in a package that is not installed; the message names it.
    PermissionError
        If the weights are given only to those who accepted their terms.
    ConnectionError
        If the weights are not in the cache of the hub and cannot be got.
    ValueError
        If weights do not fit their network, ``crop`` is missing or too many, or the encoder cannot be read in the way that is asked for.
    TypeError
        If ``encoder`` is nothing of the above.
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
        raise InvalidTypeError(f"An encoder is a name, a module or another callable, got {type(encoder).__name__}.")
    if crop is None:
        raise InvalidValueError(
            "An encoder of your own does not say which crops it sees.",
            Advice("give them with {}, for example CropSpec(levels=(LevelSpec(size=224),), mpp=0.5)", "crop"),
        )
    name = getattr(encoder, "__name__", type(encoder).__name__)
    own = EncoderSpec(name=name, crop=crop, pixels=PixelSpec() if pixels is None else pixels)
    return Encoder(encoder, reading(own))


def restore_encoder(spec: EncoderSpec, state: Mapping[str, Tensor]) -> Encoder:
    """Make an encoder with weights that a checkpoint carries, as :meth:`torch.nn.Module.state_dict` of an :class:`Encoder` gave them.

    Raises
    ------
    ValueError
        If they are not those of this encoder.
    """
    encoder = Encoder(_as_read(spec.build(), spec), spec)
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        raise InvalidValueError(f"These are not the weights of the encoder {spec.name!r}: {error}") from error
    return encoder


def _refuse_inputs(encoder: EncoderSpec | Encoder, **inputs: CropSpec | PixelSpec | None) -> None:
    """Refuse inputs for an encoder that has its own."""
    if given := [name for name, value in inputs.items() if value is not None]:
        name = (encoder.spec if isinstance(encoder, Encoder) else encoder).name
        raise InvalidValueError(
            f"The encoder {name!r} says itself which crops and pixels it sees; only a callable of your own does not.",
            Advice(f"leave out {' and '.join(['{}', *given[1:]])}", given[0]),
        )


def _refuse_loaded(encoder: Encoder, how: Mapping[str, Any]) -> None:
    """Refuse to read an encoder that is loaded in another way."""
    if given := [name for name, value in how.items() if value is not None]:
        raise InvalidValueError(
            f"The encoder {encoder.spec.name!r} is loaded, and so it is settled how it is read.",
            "say this to st_predict.encoders.load_encoder",
            Advice("leave out {}", given[0]),
        )


def _load(spec: EncoderSpec) -> nn.Module:
    if spec.source == _RGB.source:
        return RgbStatistics()
    if spec.source == _IMAGENET.source:
        return load_efficientnet_lite0()
    return _load_into_arch(spec) if spec.arch else _load_of_timm(spec)


def _as_read(backbone: nn.Module, spec: EncoderSpec) -> nn.Module:
    """Read the layers and the fields of view of a backbone that are asked for."""
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
    """Build without memory, then take the tensors of the file as they are: random weights of a billion take a while."""
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
        raise InvalidValueError(
            f"The weights at {spec.url} are not those of the encoder {spec.name!r}: {error}"
        ) from error
    return backbone


@contextmanager
def _reaching(spec: EncoderSpec) -> Iterator[None]:
    """Say how to go on where the hub of the weights can't be reached, or refuses."""
    try:
        yield
    except OSError as error:
        refused = _is_refusal(error)
        if error.errno is not None and not refused:  # of the disk
            raise
        found = "The hub gives no access to" if refused else "Cannot get"
        text = f"{found} the weights {spec.source!r} ({_first_line(error)}). {_ways_to_weights(spec)}"
        raise (PermissionError(text) if refused else ConnectionError(text)) from error
    except (RuntimeError, ValueError, KeyError, SafetensorError) as error:  # of a name, of the file, of its tensors
        if is_out_of_memory(error):
            raise
        raise InvalidValueError(
            f"The encoder {spec.source!r} cannot be loaded ({type(error).__name__}: {_first_line(error)})."
        ) from error


def _is_refusal(error: BaseException | None) -> bool:
    """Whether the hub answered that there is no such repository, or no access to it: 401, 403 or 404 for the repository."""
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
    """Names of the encoders whose resolution, normalisation and pooling are known.

    Any other name of timm that has weights works as well (:func:`get_encoder`). :class:`EncoderSpec` has the crop, features, licence
    and gate of each encoder, and in ``notes`` the properties that no public source confirms.

    Examples
    --------
    >>> from st_predict.encoders import get_encoder, list_encoders
    >>> [name for name in list_encoders() if not get_encoder(name).gated][:4]
    ['rgb', 'efficientnet_lite0', 'phikon', 'phikon-v2']
    """
    return list(_KNOWN)


def get_encoder(name: str) -> EncoderSpec:
    """Return what is known of an encoder.

    Parameters
    ----------
    name
        A name of :func:`list_encoders`, or its name on the hub; or any other name of timm that has weights, whose pixels and size of
        crop are then those that timm says, at the resolution of the image.

    Raises
    ------
    KeyError
        If the encoder does not exist; the message lists those that there are.
    TypeError
        If ``name`` is not a name.
    ModuleNotFoundError
        If timm has to say what it is, and is not installed.
    ConnectionError, PermissionError
        If the hub has to say what it is, and can't be reached or refuses.
    """
    if not isinstance(name, str):
        raise InvalidTypeError(f"An encoder is given by its name, one of {list_encoders()} say, got {name!r}.")
    plain = name.replace("hf_hub:", HUB)
    for spec in _KNOWN.values():
        if plain.removeprefix(HUB).casefold() in {spec.name, spec.source.removeprefix(HUB).casefold()}:
            return spec
    for known, (source, why, way_out) in NOT_LOADABLE.items():
        if plain.removeprefix(HUB).casefold() in {known, source.removeprefix(HUB).casefold()}:
            raise NotFoundError(f"The encoder {name!r} cannot be loaded by its name: it has {why}.", way_out)
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
            f"No encoder {name!r}; there are {list_encoders()} and those of timm{f', such as {near}' if near else ''}."
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
