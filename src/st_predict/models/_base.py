"""The contract between a network and the rest of the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor
from torch.nn import functional as F

from st_predict._errors import Advice, InvalidValueError, StPredictError
from st_predict._memory import is_out_of_memory
from st_predict._runtime import Network
from st_predict._validated import Count, Natural, Positive, check, validated
from st_predict.encoders import Encoder, EncoderSpec
from st_predict.models._hparams import checked, kinds_of, kinds_of_card, refuse_unknown
from st_predict.specs import CropSpec, PixelSpec, TargetSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

    from st_predict.crops import Batch

__all__ = ["RECOMMENDED", "ModelSpec", "Preset", "Reads", "SpotModel"]


class SpotModel(Network):
    """A network that predicts the expression of a gene panel for each spot of a batch."""

    def loss(self, batch: Batch) -> Tensor:
        """Return the training objective, a scalar; by default the mean squared error."""
        return F.mse_loss(self(batch), batch.require("target"))

    def load_pretrained(self) -> None:
        """Load the weights of a backbone that the hyper-parameters ask for, once, before training. By default none.

        Building a network never loads any: those of a checkpoint come from the checkpoint.
        """

    @property
    def notice(self) -> str:
        """Origin and licence of the weights that :meth:`load_pretrained` loads; every checkpoint carries it. Empty if there are none."""
        return ""

    def start_at(self, mean_G: Tensor) -> None:
        """Take the mean of the training targets, ``(n_genes,)``, as what to predict before anything is learned.

        Training then does not begin with hundreds of steps that only find the mean. By default nothing is done.
        """

    def fit_inputs(self, batches: Iterable[Batch]) -> None:
        """Compute statistics of the training inputs, such as their means, once, before training. By default nothing is done.

        Parameters
        ----------
        batches
            All training spots, not augmented. Can be iterated several times.
        """

    def finalize(self, batches: Iterable[Batch]) -> None:
        """Compute what prediction needs of the training data: after training, and before each validation.

        Parameters
        ----------
        batches
            All training spots, with targets, not augmented. May be gone through several times.
        """


@validated
class Reads:
    """What a network reads of a section.

    Parameters
    ----------
    kind
        ``"crops"`` of the image around each spot; ``"features"``, which an encoder makes of such crops; ``"cells"``, features of
        the cells of the image that each spot covers; or ``"nothing"``.
    describe_encoder
        Returns what is known of the encoder without its weights; for ``"features"`` and ``"cells"``.
    load_encoder
        Returns the encoder with its weights; for ``"features"`` and ``"cells"``.
    radius_um
        Radius of the disk of cells that a spot covers, in micrometres. ``None`` takes the radius of the spot's circle.
    """

    kind: Literal["crops", "features", "cells", "nothing"] = "crops"
    describe_encoder: Callable[[], EncoderSpec] | None = None
    load_encoder: Callable[[], Encoder] | None = None
    radius_um: Positive | None = None


@validated
class Preset:
    """A way to train a model: what differs from the defaults, which are the setting of the M2OST paper for all models.

    Parameters
    ----------
    training
        Fields of :class:`st_predict.tl.TrainConfig`.
    hparams
        Hyper-parameters of the network.
    target
        Units of the target, if they are others than those of the model's ``SPEC``.
    panel
        Rule of :func:`st_predict.pp.select_panel` by which genes are chosen.
    min_counts
        Least sum of the counts of the panel in a training spot; ``None`` for what suits the size of the spots.
    notes
        What of the publication is not reproduced, in a sentence.
    """

    training: Mapping[str, Any] = field(default_factory=dict)
    hparams: Mapping[str, Any] = field(default_factory=dict)
    target: TargetSpec | None = None
    panel: Literal["m2ost", "mean", "hvg", "spatial"] = "m2ost"
    min_counts: Natural | None = 0
    notes: str = ""


RECOMMENDED = Preset(target=TargetSpec(transform="pearson_residuals"), panel="spatial", min_counts=None)
"""Expression relative to sequencing depth, for genes with a spatial pattern."""


@validated
class ModelSpec:
    """Everything the package knows of a model before it is built.

    Parameters
    ----------
    name
        Name of the module, and what a user writes as ``model=``.
    summary
        One line for the table of models.
    citation
        Key in ``src/st_predict/references.bib``.
    license
        Of the published code, in a word, and where that is: ``"MIT (github.com/...)"``. Ours is written from the paper.
    family
        ``"spot"`` and ``"section"`` are networks that see a spot, or all of a section at once; ``"dense"`` predicts the cells
        of a map, of which a spot is the mean; ``"generative"`` draws samples; ``"retrieval"`` answers with measured spots; a
        ``"baseline"`` is what the others have to beat.
    build
        ``build(n_genes, **hparams)`` makes the network, with random weights. Hyper-parameters are checked by the types of its
        keywords, of those of the networks that it inherits from, and of the fields of ``config``.
    config
        Dataclass whose fields are hyper-parameters, if ``build`` takes them as ``**hparams``.
    crop
        Crops of the published model.
    crop_of
        ``crop_of(**hparams)``: crops that other hyper-parameters need; ``None`` if they are always ``crop``, or those of the
        encoder.
    pixels, target
        What goes in and what comes out, in numbers.
    pixels_of
        ``pixels_of(**hparams)``: pixel values that other hyper-parameters need; ``None`` if they are always ``pixels``, or those
        of the encoder.
    reads_of
        ``reads_of(**hparams)``: what the network reads of a section; ``None`` for crops.
    check_of
        ``check_of(grids, **hparams)``: refuses sections that the network cannot read. ``grids`` maps the name of each section to
        rows and columns of its spots on the lattice of the assay, ``(n_spots, 2)``; sections without a lattice are not in it.
    complete_of
        ``complete_of(**hparams)``: hyper-parameters that training adds to the card, such as the digest of a file that others
        name.
    extension_of
        ``extension_of(**hparams)``: note on hyper-parameters that extend the published method, empty if they do not; training
        writes it into the card as ``training["extension"]``.
    scope
        What one batch holds: single spots in any order, or all spots of a section.
    needs
        What else the network reads of a batch, without which it can't do: ``"grid"`` and ``"xy_um"``, where the spots are, and
        ``"counts"``, in training.
    reads_context
        Whether it can read the counts of some spots when it predicts the others.
    symmetries
        Of how many of the 8 symmetries of the crops the prediction is the mean.
    closed_form
        Whether :meth:`SpotModel.finalize` alone trains it, without gradients.
    at_prediction
        Hyper-parameters that may change after training, as weights do not depend on them.
    of_card
        Types of texts and mappings that the card of a file may set (:meth:`admit`). Numbers, truth values and choices that a
        type lists need no entry. No type may let a card name a path, an address, code or a source of weights.
    of_user
        Hyper-parameters that name files. Those of a card are not used; the caller of a prediction gives them.
    hparams
        Those of the published model.
    original
        How the publication of the model trained it.
    recommended
        How to train the model today. Start from ``RECOMMENDED``, the target, panel and spots that suit all models, and add
        training and hyper-parameters that were measured to be better.
    tiny
        Those of a network that tests in a moment.
    convert
        Turns a state dict of the published code into ours.
    hparams_of
        Hyper-parameters that the shapes of a state dict of ours tell; ``None`` for those that they do not tell, and that are
        not those of the publication because other sizes are not.
    for_panel
        ``for_panel(state, vocabulary, genes)`` does what ``convert`` does for weights that predict all genes of a vocabulary:
        it takes some of them. ``vocabulary`` maps symbols to Ensembl identifiers.
    """

    name: str
    summary: str
    citation: str
    license: str
    build: Callable[..., SpotModel]
    crop: CropSpec
    config: type | None = None
    family: Literal["spot", "section", "dense", "generative", "retrieval", "baseline"] = "spot"
    crop_of: Callable[..., CropSpec] | None = None
    pixels: PixelSpec = field(default_factory=PixelSpec)
    pixels_of: Callable[..., PixelSpec] | None = None
    target: TargetSpec = field(default_factory=TargetSpec)
    reads_of: Callable[..., Reads] | None = None
    check_of: Callable[..., None] | None = None
    complete_of: Callable[..., dict[str, Any]] | None = None
    extension_of: Callable[..., str] | None = None
    scope: Literal["spot", "section"] = "spot"
    needs: tuple[Literal["grid", "xy_um", "counts"], ...] = ()
    reads_context: bool = False
    symmetries: Literal[1, 8] = 1
    closed_form: bool = False
    at_prediction: tuple[str, ...] = ()
    of_card: Mapping[str, Any] = field(default_factory=dict)
    of_user: tuple[str, ...] = ()
    hparams: Mapping[str, Any] = field(default_factory=dict)
    tiny: Mapping[str, Any] = field(default_factory=dict)
    original: Preset = field(default_factory=Preset)
    recommended: Preset = RECOMMENDED
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None
    hparams_of: Callable[[Mapping[str, Tensor]], dict[str, Any]] | None = None
    for_panel: Callable[[Mapping[str, Tensor], Mapping[str, str], Sequence[str]], dict[str, Tensor]] | None = None

    def reads(self, hparams: Mapping[str, Any]) -> Reads:
        """Return what a network with these hyper-parameters reads of a section."""
        return Reads() if self.reads_of is None else self._with(self.reads_of, hparams)

    def check(self, grids: Mapping[str, NDArray[np.int64]], hparams: Mapping[str, Any]) -> None:
        """Refuse sections that a network with these hyper-parameters cannot read; see ``check_of``."""
        if self.check_of is None:
            return
        try:
            self._with(partial(self.check_of, grids), hparams)
        except StPredictError as error:
            raise error.about(f"{self.name!r} cannot read these sections.") from error
        except ValueError as error:  # of a model of another package
            raise InvalidValueError(f"{self.name!r} cannot read these sections. {error}") from error

    def complete(self, hparams: Mapping[str, Any]) -> dict[str, Any]:
        """Return hyper-parameters as values of their types, with what training adds to them; see ``complete_of``."""
        known = checked(self.name, hparams, kinds_of(self.build, self.config))
        return known if self.complete_of is None else {**known, **self._with(self.complete_of, known)}

    def extension(self, hparams: Mapping[str, Any]) -> str:
        """Return a note on hyper-parameters that extend the published method; see ``extension_of``."""
        return "" if self.extension_of is None else self._with(self.extension_of, hparams)

    def admit(self, hparams: Mapping[str, Any]) -> dict[str, Any]:
        """Return the hyper-parameters of a card of unknown origin, with ``None`` for those of ``of_user``.

        Raises
        ------
        ValueError
            If one does not exist, or has a value that a card may not set; see ``of_card``.
        """
        self.check_names(hparams)
        own = {name: None if name in self.of_user else value for name, value in hparams.items()}
        try:
            checked(self.name, own, kinds_of_card(kinds_of(self.build, self.config), self.of_card, own))
        except StPredictError as error:
            advice = Advice("if you trust the file, let its card say this with {}", "trust", value=True)
            raise InvalidValueError(error.found, advice) from error
        return own

    def crop_for(self, hparams: Mapping[str, Any]) -> CropSpec:
        """Return the crops that a network with these hyper-parameters reads, or its encoder."""
        if self.crop_of is not None:
            return self._with(self.crop_of, hparams)
        describe = self.reads(hparams).describe_encoder
        return self.crop if describe is None else describe().crop

    def pixels_for(self, hparams: Mapping[str, Any]) -> PixelSpec:
        """Return the pixel values that a network with these hyper-parameters reads, or its encoder."""
        if self.pixels_of is not None:
            return self._with(self.pixels_of, hparams)
        describe = self.reads(hparams).describe_encoder
        return self.pixels if describe is None else describe().pixels

    def build_with(self, n_genes: int, hparams: Mapping[str, Any]) -> SpotModel:
        """Make the network, with random weights; refuse hyper-parameters that it does not have.

        Raises
        ------
        ValueError
            If a hyper-parameter does not exist, or has a value that is unfit.
        MemoryError
            If there is not enough memory for the network.
        """
        return self._with(partial(self.build, check("n_genes", n_genes, Count)), hparams)

    def check_names(self, hparams: Mapping[str, Any]) -> None:
        """Refuse hyper-parameters that the network does not have; the message lists those it has."""
        refuse_unknown(self.name, hparams, kinds_of(self.build, self.config))

    def _with(self, make: Callable[..., Any], hparams: Mapping[str, Any]) -> Any:
        values = checked(self.name, hparams, kinds_of(self.build, self.config))
        try:
            return make(**values)
        except TypeError as error:
            if kinds_of(self.build, self.config) is not None:  # names and types were right
                raise
            raise InvalidValueError(
                f"{self.name!r} cannot be made with the hyper-parameters {values}: {error}. Those of its publication "
                f"are {dict(self.hparams)}."
            ) from error
        except (RuntimeError, OverflowError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(
                f"There is not enough memory for a {self.name!r} network with the hyper-parameters {values}."
            ) from error
