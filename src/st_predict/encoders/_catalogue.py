"""Encoders: frozen networks that turn the crop of a spot into features."""
# Shapes: B spots, C channels, H W image, T tokens, D features.

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from st_predict._backbones import create_backbone, import_timm
from st_predict._errors import Advice, InvalidTypeError, InvalidValueError, NotFoundError
from st_predict._files import sha256
from st_predict._runtime import Network, is_out_of_memory
from st_predict._validated import Count, Positive, validated
from st_predict.encoders._rgb import RGB_CROP, RGB_NAMES, RGB_VERSION, RgbStatistics
from st_predict.specs import IMAGENET, CropSpec, LevelSpec, PixelSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from st_predict.crops import Batch

__all__ = ["Encoder", "EncoderSpec", "get_encoder", "list_encoders", "load_encoder"]

_HUB = "hf-hub:"


@validated
class EncoderSpec:
    """Everything the package knows of an encoder before its weights are there.

    Parameters
    ----------
    name
        What a user writes as ``encoder=``.
    crop, pixels
        What goes in.
    source
        Where the weights come from, as timm names it: ``"hf-hub:MahmoodLab/UNI"``, ``"resnet50.tv_in1k"``. Empty for an
        encoder of the user's own.
    arch, arch_args
        Architecture in timm that the weights of a hub are loaded into; where it is empty, ``source`` says it.
    norm_eps
        What layer normalisation adds to the variance; ``None`` leaves what ``arch`` has.
    pool
        ``"timm"`` takes the output of the network; ``"cls_mean"`` the class token followed by the mean of the patch tokens,
        without register tokens.
    n_features
        Length of the output; ``None`` if only the loaded network tells.
    float32
        Whether it computes in float32, whatever precision is asked for.
    convert
        Turns the published state dict into one of ``arch``.
    license, gated, citation
        Of the weights; ``gated`` ones are given to those who accept terms on the hub.
    """

    name: str
    crop: CropSpec
    pixels: PixelSpec = field(default_factory=PixelSpec)
    source: str = ""
    arch: str = ""
    arch_args: Mapping[str, Any] = field(default_factory=dict)
    norm_eps: Positive | None = None
    pool: Literal["timm", "cls_mean"] = "timm"
    n_features: Count | None = None
    float32: bool = False
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None
    license: str = "unknown"
    gated: bool = False
    citation: str = ""

    @property
    def url(self) -> str:
        """Page of the weights on the hub; empty if they are on none."""
        return f"https://huggingface.co/{self.source.removeprefix(_HUB)}" if self.source.startswith(_HUB) else ""

    def build(self) -> nn.Module:
        """Make the network of ``arch``, with random weights.

        Raises
        ------
        ModuleNotFoundError
            If timm is not installed.
        """
        backbone = create_backbone(self.arch, **self.arch_args)
        for layer in backbone.modules():
            if isinstance(layer, nn.LayerNorm) and self.norm_eps is not None:
                layer.eps = self.norm_eps
        return backbone


def _crop(size: int, mpp: float | None = None) -> CropSpec:
    return CropSpec(levels=(LevelSpec(size=size),), mpp=mpp)


_RENAMED = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("encoder.layer.", "blocks."),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("layernorm.", "norm."),
    ("attention.output.dense", "attn.proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
)


def _from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn a state dict of ``ViTModel`` or ``Dinov2Model`` of Hugging Face transformers into one of timm."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("pooler.") or name == "embeddings.mask_token" or ".attention.attention." in name:
            continue
        for theirs, ours in _RENAMED:
            name = name.replace(theirs, ours)  # noqa: PLW2901
        found[name] = tensor
    for name in state:
        if ".attention.attention.query." in name:
            parts = [state[name.replace("query", part)] for part in ("query", "key", "value")]
            block = name.replace("encoder.layer.", "blocks.").replace("attention.attention.query", "attn.qkv")
            found[block] = torch.cat(parts)
    return found


_BIOPTIMUS = PixelSpec(mean=(0.707223, 0.578729, 0.703617), std=(0.211883, 0.230117, 0.177517))
_RGB = EncoderSpec(
    name="rgb",
    source=f"st_predict/rgb-{RGB_VERSION}",
    crop=RGB_CROP,
    n_features=len(RGB_NAMES),
    float32=True,
    license="BSD-3-Clause",
)

# An architecture of timm that has the layers of the network is named, and what differs in it.
_AT_20X = partial(EncoderSpec, crop=_crop(224, 0.5), pixels=IMAGENET)
_KNOWN = {
    spec.name: spec
    for spec in (
        _RGB,
        _AT_20X(
            name="uni",
            source="hf-hub:MahmoodLab/UNI",
            arch="vit_large_patch16_224",
            arch_args={"init_values": 1e-5},
            n_features=1024,
            license="CC-BY-NC-ND-4.0",
            gated=True,
            citation="Chen et al. 2024, https://doi.org/10.1038/s41591-024-02857-3",
        ),
        _AT_20X(
            name="uni2-h",
            source="hf-hub:MahmoodLab/UNI2-h",
            arch="vit_giant_patch14_reg4_dinov2",
            arch_args={"img_size": 224, "depth": 24, "reg_tokens": 8},
            n_features=1536,
            license="CC-BY-NC-ND-4.0",
            gated=True,
            citation="Chen et al. 2024, https://doi.org/10.1038/s41591-024-02857-3",
        ),
        _AT_20X(
            name="virchow",
            source="hf-hub:paige-ai/Virchow",
            arch="vit_giant_patch14_dinov2",
            arch_args={"img_size": 224, "embed_dim": 1280, "depth": 32, "num_heads": 16, "mlp_ratio": 5.3375},
            pool="cls_mean",
            n_features=2560,
            license="Apache-2.0",
            gated=True,
            citation="Vorontsov et al. 2024, https://doi.org/10.1038/s41591-024-03141-0",
        ),
        _AT_20X(
            name="virchow2",
            source="hf-hub:paige-ai/Virchow2",
            arch="vit_giant_patch14_dinov2",
            arch_args={
                "img_size": 224,
                "embed_dim": 1280,
                "depth": 32,
                "num_heads": 16,
                "mlp_ratio": 5.3375,
                "reg_tokens": 4,
            },
            pool="cls_mean",
            n_features=2560,
            license="CC-BY-NC-ND-4.0",
            gated=True,
            citation="Zimmermann et al. 2024, https://doi.org/10.48550/arXiv.2408.00738",
        ),
        _AT_20X(
            name="h-optimus-0",
            source="hf-hub:bioptimus/H-optimus-0",
            arch="vit_giant_patch14_reg4_dinov2",
            arch_args={"img_size": 224},
            pixels=_BIOPTIMUS,
            n_features=1536,
            license="Apache-2.0",
            gated=True,
            citation="Saillard et al. 2024, https://github.com/bioptimus/releases",
        ),
        _AT_20X(
            name="h0-mini",
            source="hf-hub:bioptimus/H0-mini",
            arch="vit_giant_patch14_reg4_dinov2",
            arch_args={"img_size": 224, "embed_dim": 768, "depth": 12, "num_heads": 12},
            pixels=_BIOPTIMUS,
            pool="cls_mean",
            n_features=1536,
            license="CC-BY-NC-ND-4.0",
            gated=True,
            citation="Filiot et al. 2025, https://doi.org/10.48550/arXiv.2501.16239",
        ),
        _AT_20X(
            name="gigapath",
            source="hf-hub:prov-gigapath/prov-gigapath",
            arch="vit_giant_patch14_dinov2",
            arch_args={"img_size": 224, "patch_size": 16},
            n_features=1536,
            license="Apache-2.0, with conditions",
            gated=True,
            citation="Xu et al. 2024, https://doi.org/10.1038/s41586-024-07441-w",
        ),
        _AT_20X(
            name="phikon",
            source="hf-hub:owkin/phikon",
            arch="vit_base_patch16_224",
            norm_eps=1e-12,
            n_features=768,
            convert=_from_transformers,
            license="Owkin, non-commercial",
            citation="Filiot et al. 2023, https://doi.org/10.1101/2023.07.21.23292757",
        ),
        _AT_20X(
            name="phikon-v2",
            source="hf-hub:owkin/phikon-v2",
            arch="vit_large_patch16_224",
            arch_args={"init_values": 1e-5},
            n_features=1024,
            convert=_from_transformers,
            license="Owkin, non-commercial",
            citation="Filiot et al. 2024, https://doi.org/10.48550/arXiv.2409.09173",
        ),
    )
}


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


def load_encoder(
    encoder: str | EncoderSpec | Encoder | Callable[..., Tensor],
    *,
    crop: CropSpec | None = None,
    pixels: PixelSpec | None = None,
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

    Raises
    ------
    KeyError
        If there is no encoder of this name.
    ModuleNotFoundError
        If it needs timm, which is not installed.
    PermissionError
        If the weights are given only to those who accepted their terms.
    ConnectionError
        If the weights are not in the cache of the hub and cannot be got.
    ValueError
        If weights do not fit their network, or ``crop`` is missing or too many.
    TypeError
        If ``encoder`` is nothing of the above.
    """
    if isinstance(encoder, str):
        encoder = get_encoder(encoder)
    if isinstance(encoder, EncoderSpec | Encoder):
        _refuse_inputs(encoder, crop=crop, pixels=pixels)
        return encoder if isinstance(encoder, Encoder) else Encoder(_load(encoder), encoder)
    if not callable(encoder):
        raise InvalidTypeError(f"An encoder is a name, a module or another callable, got {type(encoder).__name__}.")
    if crop is None:
        raise InvalidValueError(
            "An encoder of your own does not say which crops it sees.",
            Advice("give them with {}, for example CropSpec(levels=(LevelSpec(size=224),), mpp=0.5)", "crop"),
        )
    name = getattr(encoder, "__name__", type(encoder).__name__)
    return Encoder(encoder, EncoderSpec(name=name, crop=crop, pixels=PixelSpec() if pixels is None else pixels))


def _refuse_inputs(encoder: EncoderSpec | Encoder, **inputs: CropSpec | PixelSpec | None) -> None:
    """Refuse inputs for an encoder that has its own."""
    if given := [name for name, value in inputs.items() if value is not None]:
        name = (encoder.spec if isinstance(encoder, Encoder) else encoder).name
        raise InvalidValueError(
            f"The encoder {name!r} says itself which crops and pixels it sees; only a callable of your own does not.",
            Advice(f"leave out {' and '.join(['{}', *given[1:]])}", given[0]),
        )


def _load(spec: EncoderSpec) -> nn.Module:
    if spec.source == _RGB.source:
        return RgbStatistics()
    backbone = _load_into_arch(spec) if spec.arch else _load_of_timm(spec)
    return _ClassAndMean(backbone) if spec.pool == "cls_mean" else backbone


def _load_of_timm(spec: EncoderSpec) -> nn.Module:
    timm = import_timm()
    with _reaching(spec):
        backbone: nn.Module = timm.create_model(spec.source, pretrained=True, num_classes=0)
    return backbone.to(memory_format=torch.channels_last)


def _load_into_arch(spec: EncoderSpec) -> nn.Module:
    """Build without memory, then take the tensors of the file as they are: random weights of a billion take a while."""
    timm = import_timm()
    with _reaching(spec):
        state = timm.models.load_state_dict_from_hf(spec.source.removeprefix(_HUB), weights_only=True)
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
    from huggingface_hub.errors import RepositoryNotFoundError

    terms = f"accept the terms at {spec.url or 'the page of the weights'} and log in, with `hf auth login` or a token in HF_TOKEN"
    try:
        yield
    except RepositoryNotFoundError as error:  # also said of one that is gated or private
        raise PermissionError(f"No access to the weights {spec.source!r}: {terms}.") from error
    except (RuntimeError, ValueError, KeyError, SafetensorError) as error:  # of a name, of the file, of its tensors
        if is_out_of_memory(error):
            raise
        raise InvalidValueError(
            f"The encoder {spec.source!r} cannot be loaded ({type(error).__name__}: {_first_line(error)})."
        ) from error
    except OSError as error:
        if error.errno is not None:  # of the disk
            raise
        raise ConnectionError(
            f"Cannot get the weights {spec.source!r} ({_first_line(error)}). Without a network, copy the cache of a "
            "machine that has them (the folder HF_HOME, by default ~/.cache/huggingface) and set HF_HUB_OFFLINE=1, or take "
            f"the encoder 'rgb', which needs none.{f' They are gated: {terms}.' if spec.gated else ''}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def list_encoders() -> list[str]:
    """Names of the encoders whose resolution and normalisation are known; any with weights in timm works as well."""
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
        If there is no such encoder; the message lists those that there are.
    TypeError
        If ``name`` is not a name.
    ModuleNotFoundError
        If timm has to say what it is, and is not installed.
    ConnectionError, PermissionError
        If the hub has to say what it is, and can't be reached or refuses.
    """
    if not isinstance(name, str):
        raise InvalidTypeError(f"An encoder is given by its name, one of {list_encoders()} say, got {name!r}.")
    plain = name.replace("hf_hub:", _HUB)
    for spec in _KNOWN.values():
        if plain.removeprefix(_HUB).casefold() in {spec.name, spec.source.removeprefix(_HUB).casefold()}:
            return spec
    return _from_hub(plain) if plain.startswith(_HUB) else _from_timm(plain)


def _from_hub(name: str) -> EncoderSpec:
    timm = import_timm()
    spec = EncoderSpec(name=name.removeprefix(_HUB), source=name, crop=_crop(224))
    with _reaching(spec):
        config, _, _ = timm.models.load_model_config_from_hf(name.removeprefix(_HUB))
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
    return _with_config(EncoderSpec(name=name, source=name, crop=_crop(224)), config.to_dict())


def _with_config(spec: EncoderSpec, config: Mapping[str, Any]) -> EncoderSpec:
    return replace(
        spec,
        crop=_crop(int(config["input_size"][-1])),
        pixels=PixelSpec(mean=tuple(config["mean"]), std=tuple(config["std"])),
        license=str(config.get("license") or "unknown"),
        citation=str(config.get("origin_url") or ""),
    )
