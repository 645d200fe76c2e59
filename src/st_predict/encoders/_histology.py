"""ResNet18 trained on histology by contrastive learning :cite:p:`Ciga2022`, from the user's copy of the published file."""

from __future__ import annotations

from collections.abc import Mapping
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from st_predict._errors import InvalidValueError
from st_predict._files import sha256_of_file
from st_predict._validated import File, check
from st_predict.encoders._catalogue import Encoder
from st_predict.encoders._spec import EncoderSpec, square_crop
from st_predict.specs import IMAGENET

if TYPE_CHECKING:
    from os import PathLike
    from pathlib import Path

    from torch import Tensor

__all__ = ["HISTOLOGY_RESNET18", "load_histology_resnet18"]

_PREFIXES = ("model.", "resnet.")
_PAGE = "https://github.com/ozanciga/self-supervised-histopathology"

HISTOLOGY_RESNET18 = EncoderSpec(
    name="histology-resnet18",
    source=_PAGE.removeprefix("https://"),
    arch="resnet18",
    crop=square_crop(224),
    pixels=IMAGENET,
    n_features=512,
    license="no licence found",
    citation="Ciga et al. 2022, https://doi.org/10.1016/j.mlwa.2021.100198",
)


def load_histology_resnet18(weights: PathLike[str] | str, *, sha256: str | None = None) -> Encoder:
    """Load the ResNet18 of Ciga et al. :cite:p:`Ciga2022` as an encoder, from a file that the user has.

    Parameters
    ----------
    weights
        ``tenpercent_resnet18.ckpt`` as published (a release of github.com/ozanciga/self-supervised-histopathology), or a
        ``.safetensors`` file of its state dict.
    sha256
        Expected SHA-256 of the file; by default any.

    Returns
    -------
    Encoder
        Encoder with these weights.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file holds other weights, more than tensors and plain values, or has another digest.

    Examples
    --------
    >>> import st_predict as stp
    >>> stp.encoders.load_histology_resnet18("none.ckpt")
    Traceback (most recent call last):
    FileNotFoundError: Found no weights 'none.ckpt'; they are published at https://github.com/ozanciga/self-supervised-histopathology.
    """
    path = check("weights", weights, File)
    if not path.is_file():
        raise FileNotFoundError(f"Found no weights {str(path)!r}; they are published at {_PAGE}.")
    if sha256 is not None and (digest := sha256_of_file(path)) != sha256:
        raise InvalidValueError(
            f"{str(path)!r} has the SHA-256 {digest}, not {sha256}.", "name the file of the training"
        )
    backbone = HISTOLOGY_RESNET18.build()
    try:
        backbone.load_state_dict(_renamed(_read(path)))
    except RuntimeError as error:
        raise InvalidValueError(f"{str(path)!r} does not hold a ResNet18: {' '.join(str(error).split())}") from error
    return Encoder(backbone, HISTOLOGY_RESNET18)


def _read(path: Path) -> dict[str, Tensor]:
    """Read tensors by name, without running code of the file."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251  # never runs code
    except UnpicklingError as error:
        raise InvalidValueError(
            f"{str(path)!r} holds more than tensors and plain values, so it is not loaded.",
            "if you trust it, save the tensors of its state_dict with safetensors.torch.save_file",
        ) from error
    except (SafetensorError, RuntimeError, EOFError, LookupError, ValueError) as error:
        raise InvalidValueError(f"{str(path)!r} is damaged, or not a file of PyTorch.", "get it again") from error
    state = found.get("state_dict", found) if isinstance(found, Mapping) else {}
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of timm, without the last layer; counters of batches may be missing in old files."""
    renamed = {}
    for name, tensor in state.items():
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)  # noqa: PLW2901
        if not name.startswith("fc."):
            renamed[name] = tensor
    counters = {n.replace("running_mean", "num_batches_tracked") for n in renamed if n.endswith("running_mean")}
    return {**{name: torch.tensor(0) for name in counters}, **renamed}
