"""Networks that predict together: one, or the members of an ensemble."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from st_predict.models import Inference, SpotModel, find_weights, get_spec, load_checkpoint
from st_predict.models._inference import Moments
from st_predict.tl._inputs import encoder_of, inputs_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from st_predict.crops import Batch
    from st_predict.models import Encoder, ModelCard, ModelSpec
    from st_predict.tl._sections import Section

__all__ = ["Draws", "Member", "joint_card", "open_members", "predict_section"]

_READ = 64  # spots whose crops are read together, at least


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """How many predictions to draw at random, and from which seed."""

    n: int
    seed: int

    @classmethod
    def of(cls, n: int | None, seed: int) -> Draws | None:
        """Return ``None`` if nothing is drawn.

        Raises
        ------
        ValueError
            If there are too few to have a spread, or the seed is negative.
        """
        if n is not None and n < 2:
            raise ValueError(f"n_samples must be at least 2, to have a standard deviation; got {n}.")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}.")
        return None if n is None else cls(n=n, seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A network, ready to predict; ``sha256`` is of its file."""

    name: str
    sha256: str
    card: ModelCard
    encoder: Encoder | None
    inference: Inference
    draws: Draws | None

    @property
    def n_draws(self) -> int:
        """How many predictions of a spot it makes."""
        return 1 if self.draws is None else self.draws.n

    def describe(self) -> dict[str, Any]:
        """Return what a reader of a result needs to know."""
        return {
            "checkpoint": self.name,
            "sha256": self.sha256,
            "model": self.card.model,
            "hparams": self.card.hparams,
            "precision": self.inference.precision,
            "symmetries": self.inference.symmetries,
            "n_samples": None if self.draws is None else self.draws.n,
            "seed": None if self.draws is None else self.draws.seed,
        }


def open_members(
    models: PathLike[str] | str | Sequence[PathLike[str] | str],
    *,
    hparams: Mapping[str, Any] | None,
    symmetries: int | None,
    draws: Draws | None,
    **how: Any,
) -> list[Member]:
    """Load checkpoints; ``how`` goes to :class:`~st_predict.models.Inference`.

    Raises
    ------
    ValueError
        If there is none, one is there twice, or predictions are to be drawn from one that has nothing random.
    """
    names = [models] if isinstance(models, str | PathLike) else list(models)
    if not names:
        raise ValueError("model must name a checkpoint, or several; got none.")
    members: list[Member] = []
    for i, name in enumerate(names):
        path = find_weights(name)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if same := [member.name for member in members if member.sha256 == digest]:
            raise ValueError(
                f"{fspath(name)!r} is the same checkpoint as {same[0]!r}: name each member of an ensemble once."
            )
        network, card = load_checkpoint(path, hparams=hparams)
        if draws is not None and type(network).sample is SpotModel.sample:
            network.dropout_layers()  # refuses one without
        spec = get_spec(card.model)
        inference = Inference(network, scope=spec.scope, symmetries=_symmetries(spec, symmetries), **how)
        own = None if draws is None else replace(draws, seed=draws.seed + 1_000_003 * i)
        members.append(
            Member(
                name=fspath(name), sha256=digest, card=card, encoder=encoder_of(card), inference=inference, draws=own
            )
        )
    return members


def _symmetries(spec: ModelSpec, asked: int | None) -> int:
    """How many symmetries to average; features have none."""
    if spec.inputs != "crops":
        return 1
    return spec.symmetries if asked is None else asked


def joint_card(members: Sequence[Member]) -> ModelCard:
    """Return the card of what several networks predict together: that of the first, with the training of each.

    Raises
    ------
    ValueError
        If they differ in panel or units.
    """
    first, *others = members
    for other in others:
        if (other.card.genes, other.card.target) != (first.card.genes, first.card.target):
            raise ValueError(
                f"{first.name!r} and {other.name!r} differ in panel or units ({first.card.target.units}; "
                f"{other.card.target.units}), so their predictions have no mean."
            )
    if not others:
        return first.card
    return replace(first.card, training={"ensemble": [{"model": m.card.model, **m.card.training} for m in members]})


def predict_section(
    members: Sequence[Member], section: Section, *, counts: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Predict the spots of a section.

    Parameters
    ----------
    members
        Networks.
    section
        Where the spots are, and the image.
    counts
        ``(n_spots, n_genes)``: raw counts of spots that may be read, NaN for the others.

    Returns
    -------
    Mean and, if there is more than one prediction of a spot, their standard deviation: ``(n_spots, n_genes)``, NaN for
    spots outside the image.
    """
    outside, moments = section.outside(), Moments()
    for member in members:
        mean, squares = _predict(member, section, ~outside, counts=counts)
        moments.add(mean, squares, member.n_draws)
    moments.mean[outside] = np.nan
    if moments.n == 1:
        return moments.mean, None
    std = np.sqrt(moments.squares / (moments.n - 1))
    std[outside] = np.nan
    return moments.mean, std


def _predict(
    member: Member, section: Section, inside: NDArray[np.bool_], *, counts: NDArray[np.float32] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32] | float]:
    """Return the mean over what was drawn, and the sum of squared differences from it, ``(n_spots, n_genes)``."""
    inference, draws = member.inference, member.draws
    batches = inputs_of(
        section,
        member.card,
        member.encoder,
        batch_size=None if inference.scope == "section" else max(inference.working_batch, _READ),
        device=inference.device,
        precision=inference.precision,
    )
    if inference.scope == "section" and not inside.all():  # what is outside the image is no spot that others could see
        batches = (batch.take(torch.from_numpy(inside)[batch.index]) for batch in batches)
    if counts is not None:
        batches = _with_counts(batches, counts)
    mean = np.full((len(section.rows), len(member.card.genes)), np.nan, dtype=np.float32)
    if draws is None:
        for index, prediction in inference.over(batches):
            mean[index.numpy()] = prediction.numpy()
        return mean, 0.0
    squares = np.zeros_like(mean)
    for index, means, sums in inference.draws_over(batches, n_samples=draws.n, seed=draws.seed):
        mean[index.numpy()], squares[index.numpy()] = means.numpy(), sums.numpy()
    return mean, squares


def _with_counts(batches: Iterator[Batch], counts: NDArray[np.float32]) -> Iterator[Batch]:
    for batch in batches:
        yield replace(batch, counts=torch.from_numpy(counts[batch.index.numpy()]))
