"""One file per network: weights and card together in safetensors."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

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
"""Metadata entry of a file: origin and licence of third-party weights in it."""

_LICENSES = {"Apache-2.0": Path(__file__).parent / "weights" / "LICENSE-Apache-2.0.txt"}
"""Licences whose text must accompany the weights."""

_ENCODER = "st_predict.encoder."
"""Prefix of the weights of a carried encoder; networks have no layer with this name."""


def build(card: ModelCard) -> SpotModel:
    """Build the network of a card, with its initial weights for training.

    Parameters
    ----------
    card
        Card with the model, its panel and its hyper-parameters.

    Returns
    -------
    SpotModel
        Network with initial weights.

    Raises
    ------
    KeyError
        If the model on the card does not exist.
    TypeError
        If ``card`` is not a :class:`~st_predict.specs.ModelCard`.
    ValueError
        If a hyper-parameter is invalid, or the network would have more than 4.3 billion values or 30,000 layers and tensors.
    MemoryError
        If the network does not fit into memory.

    Examples
    --------
    >>> import st_predict as stp
    >>> spec = stp.models.get_spec("stnet")
    >>> card = stp.specs.ModelCard(model="stnet", genes=("ERBB2", "GNAS"), crop=spec.crop)
    >>> network = stp.checkpoints.build(card)
    >>> type(network).__name__
    'STNet'
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

    The file is written atomically. For third-party weights, its metadata has origin and licence
    (:func:`st_predict.checkpoints.notice_of`), and the text of the licence if required.

    Parameters
    ----------
    path
        File to write. An existing file is replaced once the new one is complete.
    model, card
        Network and its card.
    dtype
        Type for stored floating-point weights, for example ``torch.float16`` to halve the file; by default unchanged.
    encoder
        Encoder of the features that the model reads. Its weights are included as float16 if they are small and their licence allows
        it (``carried`` of :class:`st_predict.encoders.EncoderSpec`); prediction then needs no other file.

    Raises
    ------
    TypeError
        If ``model``, ``card`` or ``dtype`` is of another type, or the card holds a value that JSON cannot represent.
    ValueError
        If a weight is not finite, or too large for ``dtype``. Nothing is written then.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import st_predict as stp
    >>> spec = stp.models.get_spec("mean")
    >>> card = stp.specs.ModelCard(model="mean", genes=("ERBB2", "GNAS"), crop=spec.crop)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "mean.safetensors"
    ...     stp.checkpoints.save(path, stp.checkpoints.build(card), card)
    ...     stp.specs.ModelCard.of_file(path).genes
    ('ERBB2', 'GNAS')
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
    """Return metadata on third-party weights: pretrained weights, and the carried encoder."""
    notices = [model.notice] if isinstance(model, SpotModel) else []
    if encoder is not None and encoder.spec.carried:
        notices.append(encoder.spec.notice)
    notice = " ".join(filter(None, notices))
    texts = {name: path for name, path in _LICENSES.items() if name.lower() in notice.lower()}
    licences = {f"license.{name}": path.read_text(encoding="utf-8") for name, path in texts.items()}
    return {_NOTICE: notice, **licences} if notice else {}


def notice_of(path: PathLike[str] | str) -> str:
    """Read the attribution of third-party weights in a checkpoint: origin, licence and changes.

    Parameters
    ----------
    path
        A ``.safetensors`` file written by :func:`st_predict.checkpoints.save`.

    Returns
    -------
    str
        Sentences that must accompany every copy of the file; empty without third-party weights.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file is not a safetensors file, or has no card.

    Examples
    --------
    >>> import st_predict as stp
    >>> notice = stp.checkpoints.notice_of(stp.checkpoints.find_weights("m2ost"))
    >>> notice.split(":")[0]
    'Contains layers of EfficientNet-Lite0'
    """
    ModelCard.of_file(path)
    with reading(path), safe_open(path, framework="pt") as file:
        return str(file.metadata().get(_NOTICE, ""))


def _values(network: nn.Module) -> dict[str, Tensor]:
    """Weights and statistics, including non-persistent buffers."""
    return dict([*network.named_parameters(), *network.named_buffers()])


def _require(argument: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise InvalidTypeError(f"{argument} must be a {kind.__name__}, got {type(value).__name__}.")


def _stored(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


@keeping_generator()
def load(
    path: PathLike[str] | str, *, hparams: Mapping[str, object] | None = None, trust: bool = False
) -> tuple[SpotModel, ModelCard]:
    """Load the network of a checkpoint.

    The file is treated as untrusted: nothing that it names is run, opened or downloaded.

    Parameters
    ----------
    path
        File written by :func:`save`.
    hparams
        Hyper-parameters that override the card. Only those in ``at_prediction`` of :class:`st_predict.models.ModelSpec` may change, such
        as ``mode`` and ``k`` of BLEEP.
    trust
        Whether to accept any card: encoders and architectures of any source, arguments of any kind, and paths of files. By default
        only values that ``of_card`` of :class:`st_predict.models.ModelSpec` allows are accepted, and paths on the card are not used.

    Returns
    -------
    tuple of SpotModel and ModelCard
        The network, in evaluation mode, float32, on the CPU, and its card.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file is truncated, not a safetensors file, has no card, has a card with values that are not allowed, or has weights of
        another network; or if ``hparams`` may not change, or are invalid.
    KeyError
        If the model on the card does not exist.

    Examples
    --------
    >>> import st_predict as stp
    >>> network, card = stp.checkpoints.load(stp.checkpoints.find_weights("m2ost"))
    >>> type(network).__name__, len(card.genes)
    ('M2OST', 250)
    >>> card.target.units
    'Pearson residual of the count, given the sum over all genes'
    """
    card, tensors = ModelCard.of_file(path), shapes_of(path)
    trust = check("trust", trust, Flag)
    card = _settled(path, card, hparams, trust=trust)
    try:
        _check_crops(card, trust=trust)
        _check_sizes(card, {k: v for k, v in tensors.items() if not k.startswith(_ENCODER)})
        network = build(card)
        network.load_state_dict(_read_weights(path, encoder=False))  # copies into float32 from any type
        check_finite(_values(network))
    except StPredictError as error:
        if hparams:  # the caller's error, not the file's
            raise
        found = f"{str(path)!r} does not hold a {card.model!r} network. {error.found}"
        raise type(error)(found, *error.advice, "get the file again") from error
    except (RuntimeError, ValueError) as error:  # raised for weights
        found = f"{str(path)!r} does not hold a {card.model!r} network: {' '.join(str(error).split())}"
        raise InvalidValueError(f"{found.rstrip('.')}.", "get the file again") from error
    return network.eval(), card


def _check_crops(card: ModelCard, *, trust: bool) -> None:
    """Refuse a card of unknown origin whose crops differ from its network's; they could be huge."""
    spec = get_spec(card.model)
    if trust or spec.reads(card.hparams).kind == "nothing":
        return
    if card.crop.levels != (levels := spec.crop_for(card.hparams).levels):
        raise InvalidValueError(f"The network reads crops {list(levels)}, the card says {list(card.crop.levels)}.")


def _check_sizes(card: ModelCard, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a card that does not fit the tensors, before any memory is allocated."""
    try:
        with warnings.catch_warnings(), torch.device("meta"):  # first use of torch changes warning filters
            network = _build(card, most_parts_of(tensors))
    except MemoryError as error:
        raise InvalidValueError(f"The network of the card is too large for any memory: {error}") from error
    check_fits(network, tensors)


@keeping_generator()
def load_encoder(
    path: PathLike[str] | str, card: ModelCard, *, hparams: Mapping[str, object] | None = None, trust: bool = False
) -> Encoder | None:
    """Load the encoder of a checkpoint's network, from the checkpoint if it carries the encoder.

    Parameters
    ----------
    path
        File written by :func:`save`.
    card
        Card of the file.
    hparams, trust
        Arguments of :func:`load`. ``hparams`` gives the path of ``weights`` for iStar with HIPT; a path on the card is not used.

    Returns
    -------
    Encoder or None
        The encoder; ``None`` for a network that does not read features.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file is damaged, carries weights of another encoder, or has a card that names an encoder which is not allowed.
    ModuleNotFoundError, ConnectionError, PermissionError
        If the checkpoint does not carry the encoder, and it cannot be loaded.

    Examples
    --------
    >>> import st_predict as stp
    >>> path = stp.checkpoints.find_weights("ridge-effnet")
    >>> stp.checkpoints.load_encoder(path, stp.specs.ModelCard.of_file(path)).spec.name
    'efficientnet_lite0'
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
            f"{str(path)!r} carries weights of the encoder {spec.name!r}, which checkpoints may not carry."
        )
    try:
        encoder = restore_encoder(spec, {name.removeprefix(_ENCODER): x for name, x in carried.items()})
        check_finite(_values(encoder))
    except StPredictError as error:
        raise error.about(f"{str(path)!r} is damaged.") from error
    return encoder


def _settled(
    path: PathLike[str] | str, card: ModelCard, hparams: Mapping[str, object] | None, *, trust: bool
) -> ModelCard:
    """Return the card with admitted hyper-parameters of the file, overridden by the caller's."""
    _check_free(card.model, {} if hparams is None else hparams)
    try:
        own = card.hparams if trust else get_spec(card.model).admit(card.hparams)
    except StPredictError as error:
        raise error.about(f"{str(path)!r} does not hold a {card.model!r} network.") from error
    return replace(card, hparams={**own, **(hparams or {})})


def _check_free(model: str, hparams: Mapping[str, object]) -> None:
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
    """Read the tensors of the carried encoder, or of the network."""
    with reading(path), safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(_ENCODER) == encoder]  # noqa: SIM118  # not a mapping
        return {name: file.get_tensor(name) for name in names}
