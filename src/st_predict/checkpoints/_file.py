"""One file per network: weights and card together in safetensors."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from st_predict._errors import InvalidTypeError, InvalidValueError, StPredictError
from st_predict._files import whole
from st_predict._runtime import keeping_generator
from st_predict._validated import File, check
from st_predict.encoders import Encoder, restore_encoder
from st_predict.models import get_spec
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    from torch import Tensor

    from st_predict.models import SpotModel

__all__ = ["build", "load", "load_encoder", "save"]

_ENCODER = "st_predict.encoder."
"""How the names of the weights of a carried encoder begin; no network has a layer of this name."""


def build(card: ModelCard) -> SpotModel:
    """Build the network of a card, with the weights it starts training from.

    Raises
    ------
    KeyError
        If there is no model of the name on the card.
    TypeError
        If this is not a card.
    ValueError
        If hyper-parameters are unfit.
    MemoryError
        If there is not enough memory for the network.
    """
    _require("card", card, ModelCard)
    network = get_spec(card.model).build_with(len(card.genes), card.hparams)
    network.pixel_spec = card.pixels
    return network


def save(
    path: PathLike[str] | str,
    model: SpotModel,
    card: ModelCard,
    *,
    dtype: torch.dtype | None = None,
    encoder: Encoder | None = None,
) -> None:
    """Write weights and card to one ``.safetensors`` file.

    The file appears whole or not at all.

    Parameters
    ----------
    path
        Where to write; an existing file is replaced once the new one is complete.
    model, card
        What to write.
    dtype
        Store floating-point weights as this type, for example ``torch.float16`` to halve the file.
    encoder
        What makes the features that the model reads. Its weights are written too, as float16, if they are small and their licence
        allows it (:attr:`st_predict.encoders.EncoderSpec.carried`); prediction then needs nothing else.

    Raises
    ------
    TypeError
        If ``model``, ``card`` or ``dtype`` are something else, or the card holds something that JSON cannot.
    """
    path = check("path", path, File)
    _require("model", model, nn.Module)
    _require("card", card, ModelCard)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InvalidTypeError(f"dtype must be a floating-point type of torch or None, got {dtype!r}.")
    state = {name: _stored(tensor, dtype) for name, tensor in model.state_dict().items()}
    metadata = {ModelCard.METADATA_KEY: card.to_json()}
    if encoder is not None and encoder.spec.carried:
        state |= {_ENCODER + name: _stored(tensor, torch.float16) for name, tensor in encoder.state_dict().items()}
        metadata["notice"] = (
            f"{encoder.spec.name}: {encoder.spec.source}, {encoder.spec.license}, {encoder.spec.citation}"
        )
    with whole(path) as fresh:
        save_file(state, fresh, metadata=metadata)


def _require(argument: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise InvalidTypeError(f"{argument} must be a {kind.__name__}, got {type(value).__name__}.")


def _stored(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


@keeping_generator()
def load(path: PathLike[str] | str, *, hparams: Mapping[str, Any] | None = None) -> tuple[SpotModel, ModelCard]:
    """Build the network of a checkpoint.

    Parameters
    ----------
    path
        A file of :func:`save`.
    hparams
        Hyper-parameters to use instead of those on the card, of those that the weights do not depend on
        (:attr:`st_predict.models.ModelSpec.at_prediction`): ``mode`` and ``k`` of BLEEP.

    Returns
    -------
    The network, in evaluation mode, float32, on the CPU; and its card.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is truncated, is no safetensors file, has no card, or has weights of another network; or ``hparams``
        are none that may change, or unfit.
    KeyError
        If there is no model of the name on the card.
    """
    card, state = ModelCard.of_file(path), _read_weights(path)
    _check_free(card.model, {} if hparams is None else hparams)
    try:
        card = replace(card, hparams={**card.hparams, **(hparams or {})})
        network = build(card)
        network.load_state_dict(
            {k: v for k, v in state.items() if not k.startswith(_ENCODER)}
        )  # copies into float32, whatever the file holds
    except StPredictError as error:
        if hparams:  # not of the file
            raise
        raise error.about(f"{str(path)!r} does not hold a {card.model!r} network.") from error
    except (RuntimeError, ValueError) as error:  # of weights
        raise InvalidValueError(f"{str(path)!r} does not hold a {card.model!r} network: {error}") from error
    return network.eval(), card


@keeping_generator()
def load_encoder(path: PathLike[str] | str, card: ModelCard) -> Encoder | None:
    """Load the encoder whose features the network of a checkpoint reads: from the checkpoint, if that carries it.

    Parameters
    ----------
    path
        A file of :func:`save`.
    card
        Its card.

    Returns
    -------
    The encoder; ``None`` for a network that reads no features.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, or carries the weights of another encoder.
    ModuleNotFoundError, ConnectionError, PermissionError
        If the checkpoint doesn't carry the encoder, and it cannot be loaded.
    """
    reads = get_spec(card.model).reads(card.hparams)
    if reads.describe_encoder is None or reads.load_encoder is None:
        return None
    carried = _read_weights(path, prefix=_ENCODER)
    if not carried:
        return reads.load_encoder()
    try:
        return restore_encoder(
            reads.describe_encoder(), {name.removeprefix(_ENCODER): x for name, x in carried.items()}
        )
    except StPredictError as error:
        raise error.about(f"{str(path)!r} is damaged.") from error


def _check_free(model: str, hparams: Mapping[str, Any]) -> None:
    """Refuse hyper-parameters that do not exist, or that the weights depend on."""
    spec = get_spec(model)
    spec.check_names(hparams)
    free = list(spec.at_prediction)
    if fixed := sorted(hparams.keys() - set(free)):
        raise InvalidValueError(
            f"The hyper-parameters {fixed} of {model!r} are fixed by training; {free} may change at prediction."
        )


def _read_weights(path: PathLike[str] | str, *, prefix: str = "") -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118  # not a mapping
            return {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise InvalidValueError(
            f"{str(path)!r} is not a complete safetensors file ({error}): it is damaged or of another kind.",
            "get it again",
        ) from error
