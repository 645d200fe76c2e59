"""One file per network: weights and card together in safetensors."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from st_predict._errors import Advice, InvalidTypeError, InvalidValueError, StPredictError
from st_predict._files import whole
from st_predict._runtime import keeping_generator
from st_predict._validated import File, Flag, check
from st_predict.checkpoints._sizes import (
    MOST_PARTS,
    check_finite,
    check_fits,
    limited,
    most_parts_of,
    reading,
    shapes_of,
)
from st_predict.encoders import Encoder, restore_encoder
from st_predict.models import SpotModel, get_spec
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    from torch import Tensor


__all__ = ["build", "load", "load_encoder", "notice_of", "save"]

_NOTICE = "notice"
"""Entry of the metadata of a file: origin and licence of the weights of others that it contains."""

_LICENSES = {"Apache-2.0": Path(__file__).parent / "weights" / "LICENSE-Apache-2.0.txt"}
"""Licences whose text has to travel with the weights."""

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
        If hyper-parameters are unfit, or the network would have more than 4.3 billion values or 30,000 layers and tensors.
    MemoryError
        If there is not enough memory for the network.
    """
    _require("card", card, ModelCard)
    return _build(card, MOST_PARTS)


def _build(card: ModelCard, most_parts: int) -> SpotModel:
    with limited(most_parts):
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

    The file appears whole or not at all. If it contains weights of others, its metadata has their origin and licence
    (:func:`st_predict.checkpoints.notice_of`), and the text of the licence where that asks for it.

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
    ValueError
        If a weight is not finite, or too large for ``dtype``. Nothing is written then.
    """
    path = check("path", path, File)
    _require("model", model, nn.Module)
    _require("card", card, ModelCard)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InvalidTypeError(f"dtype must be a floating-point type of torch or None, got {dtype!r}.")
    state = {name: _stored(tensor, dtype) for name, tensor in model.state_dict().items()}
    check_finite(state, "train the network again" if dtype is None else Advice("leave out {}", "dtype"))
    metadata = {ModelCard.METADATA_KEY: card.to_json()}
    if encoder is not None and encoder.spec.carried:
        state |= {_ENCODER + name: _stored(tensor, torch.float16) for name, tensor in encoder.state_dict().items()}
    metadata |= _notices(model, encoder)
    with whole(path) as fresh:
        save_file(state, fresh, metadata=metadata)


def _notices(model: nn.Module, encoder: Encoder | None) -> dict[str, str]:
    """Return metadata on weights of others: those that training started from, and those of the encoder that is carried."""
    notices = [model.notice] if isinstance(model, SpotModel) else []
    if encoder is not None and encoder.spec.carried:
        notices.append(encoder.spec.notice)
    notice = " ".join(filter(None, notices))
    texts = {name: path for name, path in _LICENSES.items() if name.lower() in notice.lower()}
    licences = {f"license.{name}": path.read_text(encoding="utf-8") for name, path in texts.items()}
    return {_NOTICE: notice, **licences} if notice else {}


def notice_of(path: PathLike[str] | str) -> str:
    """Read what a checkpoint says of the weights of others that it contains: origin, licence and changes.

    Parameters
    ----------
    path
        A ``.safetensors`` file of :func:`st_predict.checkpoints.save`.

    Returns
    -------
    Sentences to keep with every copy of the file; empty if it contains no such weights.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If it is not a safetensors file, or has no card.

    Examples
    --------
    >>> from st_predict import checkpoints
    >>> checkpoints.notice_of(checkpoints.find_weights("m2ost"))[:37]
    'Contains layers of EfficientNet-Lite0'
    """
    ModelCard.of_file(path)
    with reading(path), safe_open(path, framework="pt") as file:
        return str(file.metadata().get(_NOTICE, ""))


def _values(network: nn.Module) -> dict[str, Tensor]:
    """Weights and statistics, also those that are not stored."""
    return dict([*network.named_parameters(), *network.named_buffers()])


def _require(argument: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise InvalidTypeError(f"{argument} must be a {kind.__name__}, got {type(value).__name__}.")


def _stored(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


@keeping_generator()
def load(
    path: PathLike[str] | str, *, hparams: Mapping[str, Any] | None = None, trust: bool = False
) -> tuple[SpotModel, ModelCard]:
    """Build the network of a checkpoint.

    Nothing that the file says is run, opened or fetched.

    Parameters
    ----------
    path
        A file of :func:`save`.
    hparams
        Hyper-parameters to use instead of those on the card, of those that the weights do not depend on
        (:attr:`st_predict.models.ModelSpec.at_prediction`): ``mode`` and ``k`` of BLEEP.
    trust
        Take the card as it is: an encoder or an architecture of any source, arguments of any kind, and paths of files. By default
        only what :attr:`st_predict.models.ModelSpec.of_card` allows is accepted, and paths on the card are not used.

    Returns
    -------
    The network, in evaluation mode, float32, on the CPU; and its card.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file is truncated, is no safetensors file, has no card, has a card that sets what it may not, or has weights of
        another network; or ``hparams`` are none that may change, or unfit.
    KeyError
        If there is no model of the name on the card.
    """
    card, tensors = ModelCard.of_file(path), shapes_of(path)
    trust = check("trust", trust, Flag)
    card = _settled(path, card, hparams, trust=trust)
    try:
        _check_crops(card, trust=trust)
        _check_sizes(card, {k: v for k, v in tensors.items() if not k.startswith(_ENCODER)})
        network = build(card)
        network.load_state_dict(_read_weights(path, encoder=False))  # copies into float32, whatever the file holds
        check_finite(_values(network))
    except StPredictError as error:
        if hparams:  # not of the file
            raise
        found = f"{str(path)!r} does not hold a {card.model!r} network. {error.found}"
        raise type(error)(found, *error.advice, "get the file again") from error
    except (RuntimeError, ValueError) as error:  # of weights
        found = f"{str(path)!r} does not hold a {card.model!r} network: {' '.join(str(error).split())}"
        raise InvalidValueError(f"{found.rstrip('.')}.", "get the file again") from error
    return network.eval(), card


def _check_crops(card: ModelCard, *, trust: bool) -> None:
    """Refuse a card of unknown origin with crops that its network does not read, however large."""
    spec = get_spec(card.model)
    if trust or spec.reads(card.hparams).kind == "nothing":
        return
    if card.crop.levels != (levels := spec.crop_for(card.hparams).levels):
        raise InvalidValueError(f"The network reads crops {list(levels)}, the card says {list(card.crop.levels)}.")


def _check_sizes(card: ModelCard, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a card of another network than that of the tensors, before any memory is taken for either."""
    try:
        with warnings.catch_warnings(), torch.device("meta"):  # on first use, torch imports what sets filters
            network = _build(card, most_parts_of(tensors))
    except MemoryError as error:
        raise InvalidValueError(f"The card asks for a network that no memory can hold: {error}") from error
    check_fits(network, tensors)


@keeping_generator()
def load_encoder(
    path: PathLike[str] | str, card: ModelCard, *, hparams: Mapping[str, Any] | None = None, trust: bool = False
) -> Encoder | None:
    """Load the encoder whose features the network of a checkpoint reads: from the checkpoint, if that carries it.

    Parameters
    ----------
    path
        A file of :func:`save`.
    card
        Its card.
    hparams, trust
        As in :func:`load`. ``hparams`` gives the path of ``weights`` of iStar's HIPT; that of the card is not used.

    Returns
    -------
    The encoder; ``None`` for a network that reads no features.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file is damaged, carries the weights of another encoder, or has a card that names an encoder it may not.
    ModuleNotFoundError, ConnectionError, PermissionError
        If the checkpoint doesn't carry the encoder, and it cannot be loaded.
    """
    card = _settled(path, card, hparams, trust=check("trust", trust, Flag))
    reads = get_spec(card.model).reads(card.hparams)
    if reads.describe_encoder is None or reads.load_encoder is None:
        return None
    carried = _read_weights(path, encoder=True)
    if not carried:
        return reads.load_encoder()
    spec = reads.describe_encoder()
    if not spec.carried:
        raise InvalidValueError(
            f"{str(path)!r} carries weights of the encoder {spec.name!r}, which no checkpoint carries."
        )
    try:
        encoder = restore_encoder(spec, {name.removeprefix(_ENCODER): x for name, x in carried.items()})
        check_finite(_values(encoder))
    except StPredictError as error:
        raise error.about(f"{str(path)!r} is damaged.") from error
    return encoder


def _settled(
    path: PathLike[str] | str, card: ModelCard, hparams: Mapping[str, Any] | None, *, trust: bool
) -> ModelCard:
    """Return the card with the hyper-parameters that are used: those of the file as far as they may be, and those of the caller."""
    _check_free(card.model, {} if hparams is None else hparams)
    try:
        own = card.hparams if trust else get_spec(card.model).admit(card.hparams)
    except StPredictError as error:
        raise error.about(f"{str(path)!r} does not hold a {card.model!r} network.") from error
    return replace(card, hparams={**own, **(hparams or {})})


def _check_free(model: str, hparams: Mapping[str, Any]) -> None:
    """Refuse hyper-parameters that do not exist, or that the weights depend on."""
    spec = get_spec(model)
    spec.check_names(hparams)
    free = list(spec.at_prediction)
    if fixed := sorted(hparams.keys() - set(free)):
        raise InvalidValueError(
            f"The hyper-parameters {fixed} of {model!r} are fixed by training; {free} may change at prediction.",
            Advice("leave them out of {}", "hparams"),
        )


def _read_weights(path: PathLike[str] | str, *, encoder: bool) -> dict[str, Tensor]:
    """Read the tensors of the encoder that a file carries, or those of the network."""
    with reading(path), safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(_ENCODER) == encoder]  # noqa: SIM118  # not a mapping
        return {name: file.get_tensor(name) for name in names}
