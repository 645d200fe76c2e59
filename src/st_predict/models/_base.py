"""Interface between networks and the rest of the package."""

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
    """Base class of networks that predict the expression of a gene panel for each spot of a batch.

    Examples
    --------
    >>> import torch
    >>> import st_predict as stp
    >>> class MeanRed(stp.models.SpotModel):
    ...     def __init__(self, n_genes: int) -> None:
    ...         super().__init__()
    ...         self.head = torch.nn.Linear(1, n_genes)
    ...
    ...     def forward(self, batch: stp.crops.Batch) -> torch.Tensor:
    ...         red = self.pixels(batch.crops[0])[:, 0]
    ...         return self.head(red.mean((1, 2))[:, None])
    >>> crops = (torch.zeros(5, 3, 32, 32, dtype=torch.uint8),)
    >>> batch = stp.crops.Batch(crops=crops, index=torch.arange(5))
    >>> MeanRed(n_genes=3)(batch).shape  # five spots, three genes
    torch.Size([5, 3])
    """

    def loss(self, batch: Batch) -> Tensor:
        """Return the training objective, a scalar; by default the mean squared error."""
        return F.mse_loss(self(batch), batch.require("target"))

    def load_pretrained(self) -> None:
        """Load the pretrained backbone that the hyper-parameters name. Called once, before training; by default does nothing.

        Building a network never loads pretrained weights: a checkpoint brings its own.
        """

    @property
    def notice(self) -> str:
        """Origin and licence of the weights that :meth:`load_pretrained` loads, for the checkpoint; empty without such weights."""
        return ""

    def start_at(self, mean_G: Tensor) -> None:
        """Initialise the network so that it predicts the mean of the training targets, ``(n_genes,)``.

        This saves hundreds of steps that only learn the mean. By default does nothing.
        """

    def fit_inputs(self, batches: Iterable[Batch]) -> None:
        """Compute statistics of the training inputs, such as means. Called once, before training; by default does nothing.

        Parameters
        ----------
        batches
            All training spots, not augmented. Can be iterated several times.
        """

    def finalize(self, batches: Iterable[Batch]) -> None:
        """Compute everything that prediction needs from the training data. Called after training and before each validation.

        Parameters
        ----------
        batches
            All training spots, with targets, not augmented. Can be iterated several times.
        """


@validated
class Reads:
    """Inputs of a network.

    Parameters
    ----------
    kind
        Kind of input. ``"crops"``: image crops around each spot; with an encoder, its features of tiles besides the crops.
        ``"features"``: an encoder's features of such crops. ``"cells"``: features of the image cells that each spot covers.
        ``"nothing"``: no input.
    describe_encoder
        Function that returns the encoder's specification without weights; for ``"features"``, ``"cells"`` and crops with features.
    load_encoder
        Function that returns the encoder with weights; likewise.
    tiles
        Side of the square of tiles around each spot whose features are read, in tiles: an odd number. A tile is as wide as the
        finest crop. 0 for features of the spot's own crop.
    radius_um
        Radius of the disk of cells that a spot covers, in micrometres. By default the radius of the spot's circle.

    Examples
    --------
    >>> import st_predict as stp
    >>> specs = [stp.models.get_spec(name) for name in ("m2ost", "mean")]
    >>> [spec.reads(spec.hparams).kind for spec in specs]
    ['crops', 'nothing']
    """

    kind: Literal["crops", "features", "cells", "nothing"] = "crops"
    describe_encoder: Callable[[], EncoderSpec] | None = None
    load_encoder: Callable[[], Encoder] | None = None
    tiles: Natural = 0
    radius_um: Positive | None = None

    def __post_init__(self) -> None:
        if self.tiles and (self.tiles % 2 == 0 or self.load_encoder is None):
            raise InvalidValueError(f"tiles must be odd, for a network with an encoder, got {self.tiles}.")

    @property
    def inputs(self) -> str:
        """Kinds of input, for display."""
        return "crops and features" if self.kind == "crops" and self.load_encoder is not None else self.kind


@validated
class Preset:
    """Training preset: differences from the defaults, which are the M2OST paper's setting for all models.

    Parameters
    ----------
    training
        Fields of :class:`st_predict.tl.TrainConfig`.
    hparams
        Hyper-parameters of the network.
    target
        Units of the target; by default the target of the model's ``SPEC``.
    panel
        Method of :func:`st_predict.pp.select_panel` that selects genes.
    min_counts
        Least sum of panel counts in a training spot; ``None`` for a value that suits the size of the spots.
    notes
        Differences from the publication, in a sentence.

    Examples
    --------
    >>> import st_predict as stp
    >>> preset = stp.models.get_spec("stnet").original
    >>> preset.training["optimizer"], preset.hparams
    ('sgd', {'weights': 'tv_in1k', 'loss': 'sum'})
    """

    training: Mapping[str, object] = field(default_factory=dict)
    hparams: Mapping[str, object] = field(default_factory=dict)
    target: TargetSpec | None = None
    panel: Literal["m2ost", "mean", "hvg", "spatial"] = "m2ost"
    min_counts: Natural | None = 0
    notes: str = ""


RECOMMENDED = Preset(target=TargetSpec(transform="pearson_residuals"), panel="spatial", min_counts=None)
"""Expression relative to sequencing depth, for genes with a spatial pattern."""


@validated
class ModelSpec:
    """Specification of a model: everything the package knows before the network is built.

    Parameters
    ----------
    name
        Name of the module, which users write as ``model=``.
    summary
        One line for the table of models.
    citation
        Key in ``src/st_predict/references.bib``.
    license
        Licence and address of the published code: ``"MIT (github.com/...)"``. The code here is written from the paper.
    family
        Kind of model. ``"spot"``: reads single spots. ``"section"``: reads all spots of a section at once. ``"dense"``:
        predicts the cells of a map; a spot is their mean. ``"generative"``: draws samples. ``"retrieval"``: answers with
        measured spots. ``"baseline"``: a reference that other models should beat.
    build
        ``build(n_genes, **hparams)`` makes the network, with random weights. Hyper-parameters are checked by the types of its
        keywords, the keywords of its base classes, and the fields of ``config``.
    config
        Dataclass whose fields are hyper-parameters, if ``build`` takes them as ``**hparams``.
    crop
        Crops of the published model.
    crop_of
        ``crop_of(**hparams)``: crops for other hyper-parameters. ``None`` if always ``crop``, or the encoder's crops.
    pixels, target
        Normalisation of input pixels, and units of the outputs.
    pixels_of
        ``pixels_of(**hparams)``: pixel normalisation for other hyper-parameters. ``None`` if always ``pixels``, or the
        encoder's.
    reads_of
        ``reads_of(**hparams)``: inputs of the network; ``None`` for crops.
    check_of
        ``check_of(grids, **hparams)``: refuses sections that the network cannot read. ``grids`` maps section names to rows
        and columns of spots on the lattice of the assay, ``(n_spots, 2)``; sections without a lattice are left out.
    complete_of
        ``complete_of(**hparams)``: hyper-parameters that training adds to the card, such as the digest of a weights file.
    extension_of
        ``extension_of(**hparams)``: note on hyper-parameters that extend the published method, else empty. Training writes it
        into the card as ``training["extension"]``.
    scope
        Content of one batch: ``"spot"``, single spots in any order, or ``"section"``, all spots of a section.
    needs
        Further inputs that the network requires: ``"grid"`` and ``"xy_um"``, positions of spots, and ``"counts"``, in
        training.
    reads_context
        Whether prediction can read the counts of context spots.
    masks_levels
        Whether the network does without levels that are masked in ``level_mask`` of :class:`st_predict.crops.Batch`.
    symmetries
        Number of crop symmetries averaged at prediction time (1 or 8).
    closed_form
        Whether :meth:`SpotModel.finalize` does all the training, without gradients.
    at_prediction
        Hyper-parameters that may change after training because weights do not depend on them.
    of_card
        Types of texts and mappings that the card of a file may set (:meth:`admit`). Numbers, truth values and ``Literal``
        choices need no entry. No type may let a card name a path, an address, code or a source of weights.
    of_user
        Hyper-parameters that name files. The caller of a prediction gives them; values on a card are not used.
    hparams
        Hyper-parameters of the published model.
    original
        Training preset of the model's own publication.
    paper
        Training preset of the M2OST paper :cite:p:`Wang2025`, with the hyper-parameters in which its Table 3 differs from
        ``hparams``.
    recommended
        Training preset for use today: ``RECOMMENDED`` (target, panel and spots that suit all models) with training and
        hyper-parameters that were measured to be better.
    tiny
        Hyper-parameters of a tiny network for tests.
    convert
        Function that converts a state dict of the published code.
    hparams_of
        Function that infers hyper-parameters from the shapes of a converted state dict. A value is ``None`` if shapes do not
        tell it and other sizes differ from the publication.
    for_panel
        ``for_panel(state, vocabulary, genes)``: like ``convert``, for weights that predict all genes of a vocabulary, of which
        it selects ``genes``. ``vocabulary`` maps symbols to Ensembl identifiers.

    Examples
    --------
    >>> import st_predict as stp
    >>> spec = stp.models.get_spec("m2ost")
    >>> [level.fov for level in spec.crop.levels]  # fields of view, in pixels of the finest level
    [224, 448, 896]
    >>> network = spec.build_with(250, {**spec.hparams, "depth": 1})
    >>> type(network).__name__
    'M2OST'
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
    masks_levels: bool = False
    symmetries: Literal[1, 8] = 1
    closed_form: bool = False
    at_prediction: tuple[str, ...] = ()
    of_card: Mapping[str, object] = field(default_factory=dict)
    of_user: tuple[str, ...] = ()
    hparams: Mapping[str, object] = field(default_factory=dict)
    tiny: Mapping[str, object] = field(default_factory=dict)
    original: Preset = field(default_factory=Preset)
    paper: Preset = field(default_factory=Preset)
    recommended: Preset = RECOMMENDED
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None
    hparams_of: Callable[[Mapping[str, Tensor]], dict[str, Any]] | None = None
    for_panel: Callable[[Mapping[str, Tensor], Mapping[str, str], Sequence[str]], dict[str, Tensor]] | None = None

    def reads(self, hparams: Mapping[str, object]) -> Reads:
        """Return the inputs of a network with these hyper-parameters."""
        return Reads() if self.reads_of is None else self._with(self.reads_of, hparams)

    def check(self, grids: Mapping[str, NDArray[np.int64]], hparams: Mapping[str, object]) -> None:
        """Refuse sections that a network with these hyper-parameters cannot read; see ``check_of``."""
        if self.check_of is None:
            return
        try:
            self._with(partial(self.check_of, grids), hparams)
        except StPredictError as error:
            raise error.about(f"{self.name!r} cannot read these sections.") from error
        except ValueError as error:  # raised by a plug-in model
            raise InvalidValueError(f"{self.name!r} cannot read these sections. {error}") from error

    def complete(self, hparams: Mapping[str, object]) -> dict[str, Any]:
        """Return hyper-parameters converted to their types, with additions of training; see ``complete_of``."""
        known = checked(self.name, hparams, kinds_of(self.build, self.config))
        return known if self.complete_of is None else {**known, **self._with(self.complete_of, known)}

    def extension(self, hparams: Mapping[str, object]) -> str:
        """Return a note on hyper-parameters that extend the published method; see ``extension_of``."""
        return "" if self.extension_of is None else self._with(self.extension_of, hparams)

    def admit(self, hparams: Mapping[str, object]) -> dict[str, Any]:
        """Return the hyper-parameters of a card of unknown origin, with ``None`` for each in ``of_user``.

        Raises
        ------
        ValueError
            If a hyper-parameter does not exist, or has a value that a card may not set; see ``of_card``.
        """
        self.check_names(hparams)
        own = {name: None if name in self.of_user else value for name, value in hparams.items()}
        try:
            checked(self.name, own, kinds_of_card(kinds_of(self.build, self.config), self.of_card, own))
        except StPredictError as error:
            advice = Advice("if you trust the file, let its card say this with {}", "trust", value=True)
            raise InvalidValueError(error.found, advice) from error
        return own

    def crop_for(self, hparams: Mapping[str, object]) -> CropSpec:
        """Return the crops that a network with these hyper-parameters, or its encoder, reads."""
        if self.crop_of is not None:
            return self._with(self.crop_of, hparams)
        describe = self.reads(hparams).describe_encoder
        return self.crop if describe is None else describe().crop

    def pixels_for(self, hparams: Mapping[str, object]) -> PixelSpec:
        """Return the pixel normalisation of a network with these hyper-parameters, or its encoder."""
        if self.pixels_of is not None:
            return self._with(self.pixels_of, hparams)
        describe = self.reads(hparams).describe_encoder
        return self.pixels if describe is None else describe().pixels

    def build_with(self, n_genes: int, hparams: Mapping[str, object]) -> SpotModel:
        """Build the network with random weights.

        Raises
        ------
        ValueError
            If a hyper-parameter does not exist, or has an invalid value.
        MemoryError
            If the network does not fit into memory.
        """
        return self._with(partial(self.build, check("n_genes", n_genes, Count)), hparams)

    def check_names(self, hparams: Mapping[str, object]) -> None:
        """Refuse hyper-parameters that the network does not have; the message lists the valid ones."""
        refuse_unknown(self.name, hparams, kinds_of(self.build, self.config))

    def _with(self, make: Callable[..., Any], hparams: Mapping[str, object]) -> Any:
        values = checked(self.name, hparams, kinds_of(self.build, self.config))
        try:
            return make(**values)
        except TypeError as error:
            if kinds_of(self.build, self.config) is not None:  # names and types were right
                raise
            raise InvalidValueError(
                f"{self.name!r} cannot be built with the hyper-parameters {values}: {error}. Its publication uses "
                f"{dict(self.hparams)}."
            ) from error
        except (RuntimeError, OverflowError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(
                f"Out of memory: a {self.name!r} network with the hyper-parameters {values} is too large."
            ) from error
