"""Networks that predict together: one, or the members of an ensemble."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from st_predict import checkpoints
from st_predict._errors import Advice, InvalidTypeError, InvalidValueError
from st_predict._files import sha256_of_file
from st_predict._keys import Keys
from st_predict._progress import track
from st_predict._runtime import Compute, Inference, Moments
from st_predict._sections import (
    check_needs,
    inputs_of,
    naming,
    needs_mpp,
    stain_of,
    warn_of_constant,
    warn_of_unfamiliar,
)
from st_predict._validated import Count, Natural, check
from st_predict.crops import N_SYMMETRIES
from st_predict.models import SpotModel, get_spec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from st_predict._sections import Section, Slide
    from st_predict._stain import Stain
    from st_predict.checkpoints import Trained
    from st_predict.crops import Batch
    from st_predict.encoders import Encoder
    from st_predict.models import ModelSpec
    from st_predict.specs import ModelCard

__all__ = ["Draws", "Ensemble"]

logger = logging.getLogger(__name__)

_TOLD: set[str] = set()  # weights whose note was logged already
_READ = 64  # minimum number of crops read together


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """Number of random samples, and seed."""

    n: int
    seed: int

    @classmethod
    def of(cls, n: int | None, seed: int) -> Draws | None:
        """Return ``None`` without sampling.

        Raises
        ------
        ValueError
            If there are fewer than 2, or the seed is negative.
        """
        n = check("n_samples", n, Annotated[Count, Field(ge=2)] | None)  # one sample has no standard deviation
        seed = check("seed", seed, Natural)
        return None if n is None else cls(n=n, seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A network, ready to predict; ``sha256`` is the checkpoint file's."""

    name: str
    sha256: str
    card: ModelCard
    encoder: Encoder | None
    inference: Inference
    compute: Compute
    draws: Draws | None

    @property
    def n_draws(self) -> int:
        """Number of predictions per spot."""
        return 1 if self.draws is None else self.draws.n

    def describe(self) -> dict[str, Any]:
        """Return the entries for the record of a result."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Ensemble:
    """Networks whose predictions are averaged; one network is an ensemble of one."""

    members: tuple[Member, ...]

    def stain(self, asked: Stain | Literal[False] | None) -> Stain | None:
        """Return the reference stain: the requested one, or the training's.

        Raises
        ------
        ValueError
            If members were trained with different reference stains and none is requested.
        """
        if asked is not None:
            return asked or None
        stains = [stain_of(member.card) for member in self.members]
        if any(stain != stains[0] for stain in stains):
            raise InvalidValueError(
                "The checkpoints were trained with different reference stains.",
                Advice("name one for all with {}", "stain"),
                Advice("predict with one checkpoint of {}", "model"),
            )
        return stains[0]

    @classmethod
    def open(
        cls,
        models: PathLike[str] | str | Trained | Sequence[PathLike[str] | str | Trained],
        *,
        hparams: Mapping[str, object] | None = None,
        trust: bool = False,
        draws: Draws | None = None,
        symmetries: int | None = None,
        compute: Compute,
    ) -> Ensemble:
        """Load checkpoints.

        Raises
        ------
        ValueError
            If the list is empty or has a checkpoint twice, checkpoints differ in panel or units, samples are requested
            from a deterministic network, or ``symmetries=8`` from one that does not read crops.
        """
        names = _names(models)
        symmetries = check("symmetries", symmetries, Literal[1, 8] | None)
        members: list[Member] = []
        for i, name in enumerate(names):
            path = checkpoints.find_weights(name)
            _tell_note(name)
            digest = sha256_of_file(path)
            if same := [member.name for member in members if member.sha256 == digest]:
                raise InvalidValueError(
                    f"{name!r} is the same checkpoint as {same[0]!r}.", "name each member of an ensemble once"
                )
            own = None if draws is None else replace(draws, seed=draws.seed + 1_000_003 * i)
            network, card = checkpoints.load(path, hparams=hparams, trust=trust)
            if draws is not None and type(network).sample is SpotModel.sample:
                network.dropout_layers()  # raises for networks without dropout
            spec = get_spec(card.model)
            inference = Inference(
                network,
                scope=spec.scope,
                symmetries=_symmetries(spec, card, symmetries, name=name),
                device=compute.place,
                precision=compute.precision,
                working_batch=compute.batch_size,
            )
            member = Member(
                name=name,
                sha256=digest,
                card=card,
                encoder=checkpoints.load_encoder(path, card, hparams=hparams, trust=trust),
                inference=inference,
                compute=compute,
                draws=own,
            )
            members.append(member)
        _refuse_different(members)
        return cls(members=tuple(members))

    @property
    def cards(self) -> list[ModelCard]:
        """Cards of the members."""
        return [member.card for member in self.members]

    @property
    def card(self) -> ModelCard:
        """Card of the joint prediction: the first member's, with the training of each member."""
        first, *others = self.cards
        if not others:
            return first
        training = {"ensemble": [{"model": card.model, **card.training} for card in self.cards]}
        return replace(first, training=training, reliability=())  # each member's reliability is not their mean's

    @property
    def key(self) -> str:
        """Default key of the prediction."""
        return Keys.joint_prediction({card.model for card in self.cards})

    @property
    def needs_mpp(self) -> bool:
        """Whether the mpp of an image is required."""
        return any(needs_mpp(card) for card in self.cards)

    @property
    def spreads(self) -> bool:
        """Whether there are several predictions per spot, and so a standard deviation."""
        return sum(member.n_draws for member in self.members) > 1

    def check(self, slide: Slide) -> None:
        """Refuse a slide that lacks a member's inputs; warn of a slide that differs from the training slides."""
        for card in self.cards:
            check_needs(slide.sections, card)
        warn_of_constant(self.card)
        for section in slide.sections:
            for card in self.cards:
                warn_of_unfamiliar(section, card)

    def describe(self) -> dict[str, Any]:
        """Return the entries for the record of a result."""
        return {
            "device": str(self.members[0].inference.device),
            "members": [member.describe() for member in self.members],
        }

    def predict(
        self,
        section: Section,
        *,
        counts: NDArray[np.float32] | None = None,
        left_out: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Predict the spots of a section.

        Parameters
        ----------
        section
            Spots and image.
        counts
            ``(n_spots, n_genes)``: raw counts of context spots, NaN for the others.
        left_out
            ``(n_spots,)``: spots that act only as neighbours and are not predicted themselves.

        Returns
        -------
        tuple of ndarray and ndarray or None
            Mean and, with several predictions per spot, their standard deviation: ``(n_spots, n_genes)``, NaN for spots
            outside the image and for ``left_out``.
        """
        outside, moments = section.outside, Moments()
        for member in self.members:
            with naming(section):
                mean, squares = _predict(member, section, ~outside, counts=counts)
            moments.add(mean, squares, member.n_draws)
        if left_out is not None:
            outside = outside | left_out
        moments.mean[outside] = np.nan
        if moments.n == 1:
            return moments.mean, None
        std = np.sqrt(moments.squares / (moments.n - 1))
        std[outside] = np.nan
        return moments.mean, std


def _tell_note(name: str) -> None:
    """Log the note on released weights, once per process."""
    for weights in checkpoints.list_weights():
        label = f"{weights.name}@{weights.version}"
        if name in {weights.name, label}:
            if weights.note and label not in _TOLD:
                logger.warning("%s: %s", label, weights.note)
                _TOLD.add(label)
            return


def _names(models: PathLike[str] | str | Trained | Sequence[PathLike[str] | str | Trained]) -> list[str]:
    given = [models] if isinstance(models, str | PathLike | checkpoints.Trained) else models
    if not isinstance(given, Iterable):
        raise InvalidTypeError(
            f"model must be a name, a path, the result of a training, or a list of these, got {given!r}."
        )
    names = [checkpoints.name_of(model) for model in given]
    if not names:
        raise InvalidValueError("model must name at least one checkpoint, got an empty list.")
    return names


def _symmetries(spec: ModelSpec, card: ModelCard, asked: int | None, *, name: str) -> int:
    """Number of symmetries to average; more than 1 only for crops."""
    kind = spec.reads(card.hparams).kind
    if kind != "crops" and asked == N_SYMMETRIES:
        raise InvalidValueError(
            f"{asked} symmetries have no effect on {name!r}: {card.model!r} reads {kind}, and only crops can be rotated and "
            "mirrored.",
            Advice("leave out {}, so that each member of an ensemble has its default", "symmetries"),
        )
    if asked is None:
        return spec.symmetries if kind == "crops" else 1
    return asked


def _refuse_different(members: Sequence[Member]) -> None:
    """Refuse members whose predictions cannot be averaged."""
    first, *others = members
    for other in others:
        if (other.card.genes, other.card.target) != (first.card.genes, first.card.target):
            raise InvalidValueError(
                f"{first.name!r} and {other.name!r} differ in panel or units ({first.card.target.units}; "
                f"{other.card.target.units}), so their predictions cannot be averaged."
            )


def _predict(
    member: Member, section: Section, inside: NDArray[np.bool_], *, counts: NDArray[np.float32] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32] | float]:
    """Return the mean of the samples, and the sum of squared deviations from it, ``(n_spots, n_genes)``."""
    inference, draws = member.inference, member.draws
    batches = inputs_of(
        section,
        member.card,
        member.encoder,
        compute=Compute(device=member.compute.device, precision=inference.precision),
        batch_size=None if inference.scope == "section" else max(inference.working_batch, _READ),
    )
    if inference.scope == "section" and not inside.all():  # spots outside the image must not act as neighbours
        batches = (batch.take(torch.from_numpy(inside)[batch.index]) for batch in batches)
    if counts is not None:
        batches = _with_counts(batches, counts)
    mean = np.full((len(section.rows), len(member.card.genes)), np.nan, dtype=np.float32)
    follow = partial(track, doing=f"Predicting with {member.card.model}", total=len(mean), unit="spot", size=_n_spots)
    if draws is None:
        for index, prediction in follow(inference.over(batches)):
            mean[index.numpy()] = prediction.numpy()
        return mean, 0.0
    squares = np.zeros_like(mean)
    for index, means, sums in follow(inference.draws_over(batches, n_samples=draws.n, seed=draws.seed)):
        mean[index.numpy()], squares[index.numpy()] = means.numpy(), sums.numpy()
    return mean, squares


def _n_spots(done: tuple[torch.Tensor, ...]) -> int:
    return len(done[0])


def _with_counts(batches: Iterator[Batch], counts: NDArray[np.float32]) -> Iterator[Batch]:
    for batch in batches:
        yield replace(batch, counts=torch.from_numpy(counts[batch.index.numpy()]))
