"""One file a model: weights and card together in safetensors."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from st_predict.models._registry import get_spec
from st_predict.specs import CropSpec, LevelSpec, PixelSpec, TargetSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    import torch
    from torch import Tensor

    from st_predict.models._base import SpotModel

__all__ = ["ModelCard", "build_model", "load_checkpoint", "save_checkpoint"]

FORMAT_VERSION = 1
_METADATA_KEY = "st_predict.card"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """What a set of weights was trained on, what it needs and what it gives.

    Parameters
    ----------
    model, hparams
        How to build the network.
    genes
        Gene panel, in the order of the outputs.
    crop, pixels, target
        Pixels in, units out.
    gene_id_type
        ``"symbol"`` or ``"ensembl"``.
    organism
        Whose genes.
    training
        Data, sections, split, seed, epochs, version of st_predict, scores.
    license, citation
        Of the weights.
    """

    model: str
    genes: tuple[str, ...]
    crop: CropSpec
    pixels: PixelSpec = field(default_factory=PixelSpec)
    target: TargetSpec = field(default_factory=TargetSpec)
    hparams: dict[str, Any] = field(default_factory=dict)
    gene_id_type: str = "symbol"
    organism: str = "unknown"
    training: dict[str, Any] = field(default_factory=dict)
    license: str = "unknown"
    citation: str = ""
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """Serialise, with sorted keys so that equal cards are equal strings."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        """Read back what :meth:`to_json` wrote.

        Raises
        ------
        ValueError
            If the card was written by a newer version, or is no card.
        """
        try:
            values = json.loads(text)
            _check_fields(values, {f.name for f in fields(cls)})
            crop = values.pop("crop")
            levels = tuple(LevelSpec(**level) for level in crop.pop("levels"))
            pixels = {name: tuple(value) for name, value in values.pop("pixels").items()}
            return cls(
                genes=tuple(values.pop("genes")),
                crop=CropSpec(levels=levels, **crop),
                pixels=PixelSpec(**pixels),
                target=TargetSpec(**values.pop("target")),
                **values,
            )
        except (AttributeError, KeyError, TypeError) as error:  # of JSON that has another structure
            raise ValueError(f"This is no card of st_predict ({type(error).__name__}: {error}).") from error


def _check_fields(values: dict[str, Any], names: set[str]) -> None:
    if values.get("format_version", 0) > FORMAT_VERSION:
        raise ValueError(
            f"The card has format {values['format_version']}, this st_predict reads up to {FORMAT_VERSION}: "
            "upgrade st_predict."
        )
    if unknown := sorted(values.keys() - names):
        raise ValueError(f"The card has unknown fields {unknown}: it was not written by st_predict.")
    if missing := sorted(names - values.keys()):
        raise ValueError(f"The card lacks the fields {missing}: it was not written by st_predict.")


def build_model(card: ModelCard) -> SpotModel:
    """Build the network of a card, with the weights it starts training from."""
    network = get_spec(card.model).build_with(len(card.genes), card.hparams)
    network.pixel_spec = card.pixels
    return network


def save_checkpoint(
    path: PathLike[str] | str, model: SpotModel, card: ModelCard, *, dtype: torch.dtype | None = None
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
    """
    state = {name: _stored(tensor, dtype) for name, tensor in model.state_dict().items()}
    path = Path(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        fresh = Path(folder) / path.name
        fresh.touch()
        mode = fresh.stat().st_mode
        save_file(state, fresh, metadata={_METADATA_KEY: card.to_json()})
        fresh.chmod(mode)  # safetensors gives rights to the owner alone, whatever the umask
        fresh.replace(path)


def _stored(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def load_checkpoint(
    path: PathLike[str] | str, *, hparams: Mapping[str, Any] | None = None
) -> tuple[SpotModel, ModelCard]:
    """Build the network of a checkpoint.

    Parameters
    ----------
    path
        A file of :func:`save_checkpoint`.
    hparams
        Hyper-parameters to use instead of those on the card, of those that the weights do not depend on
        (:attr:`ModelSpec.at_prediction`): ``mode`` and ``k`` of BLEEP.

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
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no checkpoint {str(path)!r}.")
    card, state = _read(path)
    free = get_spec(card.model).at_prediction
    if fixed := sorted((hparams or {}).keys() - set(free)):
        raise ValueError(
            f"The hyper-parameters {fixed} of {card.model!r} are fixed by training; {list(free)} may change."
        )
    try:
        card = replace(card, hparams={**card.hparams, **(hparams or {})})
        network = build_model(card)
        network.load_state_dict(state)  # copies into float32, whatever the file holds
    except (RuntimeError, ValueError) as error:  # of weights, of hyper-parameters
        if hparams and isinstance(error, ValueError):  # not of the file
            raise
        raise ValueError(f"{str(path)!r} does not hold a {card.model!r} network: {error}") from error
    return network.eval(), card


def _read(path: PathLike[str] | str) -> tuple[ModelCard, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    except SafetensorError as error:
        raise ValueError(
            f"{str(path)!r} is no complete safetensors file ({error}): it is damaged or of another kind; get it again."
        ) from error
    if _METADATA_KEY not in metadata:
        raise ValueError(
            f"{str(path)!r} has no st_predict card: it was not written by st_predict. Weights of published code can "
            "be converted with the `convert` of models.get_spec(name)."
        )
    try:
        return ModelCard.from_json(metadata[_METADATA_KEY]), state
    except ValueError as error:
        raise ValueError(f"{str(path)!r} cannot be used. {error}") from error
