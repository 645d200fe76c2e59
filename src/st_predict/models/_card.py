"""Types of texts and mappings that the card of a file may set: known names, and sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from st_predict._backbones import is_architecture
from st_predict._errors import InvalidValueError
from st_predict._imagenet import NAME
from st_predict.encoders import list_encoders

__all__ = ["OF_ENCODER", "OF_TIMM", "Architecture", "Digest", "Encoders", "Sizes", "Tag", "Tokens", "choice"]

_LONGEST = 64  # entries of a list of sizes
_SIZES: dict[str, float] = {
    **dict.fromkeys(("depth", "depths", "layers", "block_config", "num_blocks", "reg_tokens"), 1000),
    **dict.fromkeys(("embed_dim", "embed_dims", "dims", "channels", "growth_rate", "bn_size"), 65_536),
    **dict.fromkeys(("num_heads", "num_init_features", "stem_width", "cardinality", "base_width"), 65_536),
    **dict.fromkeys(("mlp_ratio", "mlp_ratios", "expand_ratio", "init_values", "ls_init_value"), 1000),
    **dict.fromkeys(("drop_rate", "drop_path_rate", "attn_drop_rate", "proj_drop_rate"), 1),
    **dict.fromkeys(("pos_drop_rate", "patch_drop_rate"), 1),
    **dict.fromkeys(("img_size", "patch_size", "kernel_sizes"), 4096),
    "window_size": 64,
}
_FLAGS = (
    *("qkv_bias", "qk_norm", "class_token", "no_embed_class", "pre_norm", "final_norm", "patch_norm"),
    *("dynamic_img_size", "dynamic_img_pad", "strict_img_size", "always_partition"),
)


def choice(*names: str) -> Any:
    """Type that accepts the given texts in any letter case."""

    def known(value: Any) -> Any:
        if isinstance(value, str) and value.casefold() in {name.casefold() for name in names}:
            return value
        raise InvalidValueError(f"must be one of {list(names)}")

    return Annotated[str, BeforeValidator(known)]


def _architecture(value: Any) -> Any:
    if isinstance(value, str) and is_architecture(value):
        return value
    raise InvalidValueError("must be the name of an architecture of timm, without a tag")


def _tag(value: Any) -> Any:
    if isinstance(value, str) and len(value) <= 100 and value.isidentifier():
        return value
    raise InvalidValueError("must be a tag of weights in timm")


def _sizes(value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise InvalidValueError("must be a mapping from arguments to sizes")
    for name, size in value.items():
        if name not in _SIZES and name not in _FLAGS:
            raise InvalidValueError(f"must be sizes of {sorted([*_SIZES, *_FLAGS])}, without {name!r}")
        if name in _FLAGS and not isinstance(size, bool | None):
            raise InvalidValueError(f"must be True or False for {name!r}")
        if name in _SIZES and not _is_size(size, _SIZES[name]):
            raise InvalidValueError(f"must be up to {_SIZES[name]:g} for {name!r}, in lists of up to {_LONGEST}")
    return value


def _is_size(value: Any, most: float) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= _LONGEST and all(not isinstance(one, list) and _is_size(one, most) for one in value)
    return value is None or (isinstance(value, int | float) and 0 <= value <= most)


def _tokens(value: Any) -> Any:
    architecture, _, tag = value.partition(".") if isinstance(value, str) else ("", "", "")
    if value != NAME:
        _architecture(architecture)
        if tag:
            _tag(tag)
    return value


def _digest(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return value
    raise InvalidValueError("must be a SHA-256")


def _listed(value: Any) -> Any:
    if value in list_encoders():
        return value
    raise InvalidValueError(f"must be one of {list_encoders()}")


Architecture = Annotated[str, BeforeValidator(_architecture)]
"""Name of an architecture in timm's own registry: no tag, no hub, no folder."""

Tag = Annotated[str, BeforeValidator(_tag)]
"""Tag of weights in timm, which building and loading a network never read."""

Tokens = Annotated[str, BeforeValidator(_tokens)]
"""A backbone: ``"efficientnet_lite0"``, or an architecture of timm; loading a network never reads the tag."""

Sizes = Annotated[Any, BeforeValidator(_sizes)]
"""Arguments of an architecture that are sizes, rates or switches."""

Digest = Annotated[str, BeforeValidator(_digest)]
"""A SHA-256, as hexadecimal digits."""

Encoders = Annotated[str, BeforeValidator(_listed)]
"""A name of :func:`st_predict.encoders.list_encoders`."""

OF_TIMM: dict[str, Any] = {"arch": Architecture, "weights": Tag | None, "arch_args": Sizes | None}
"""``of_card`` of models on a backbone of timm."""

OF_ENCODER: dict[str, Any] = {"encoder": Encoders}
"""``of_card`` of models on the features of an encoder."""
