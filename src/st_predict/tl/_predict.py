"""Predict expression for the spots of a slide."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from st_predict._errors import Advice, InvalidValueError
from st_predict._keys import Keys
from st_predict._progress import shows_progress
from st_predict._record import Record, warnings_into
from st_predict._runtime import Compute
from st_predict._sections import as_list, look_over_for, open_slides, read_context
from st_predict._stain import Stain
from st_predict._validated import Fields, Text, check
from st_predict._where import Duplicates, GeneMatching, Where
from st_predict.tl._ensemble import Draws, Ensemble

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from st_predict._results import Slot
    from st_predict._sections import Context, Sections, Slide
    from st_predict.checkpoints import Trained

__all__ = ["predict"]

_UNSET = (None, False, "error")


@shows_progress
def predict(  # noqa: PLR0913  # every one is a keyword
    sdata: Sections,
    model: PathLike[str] | str | Trained | Sequence[PathLike[str] | str | Trained] = "m2ost",
    *,
    image_key: Mapping[str, str] | str | None = None,
    table_key: str | None = None,
    bin_um: float | None = None,
    shapes_key: str | None = None,
    mpp: Mapping[str, float] | float | Literal["spots"] | None = None,
    key_added: str | None = None,
    batch_size: int | None = None,
    symmetries: Literal[1, 8] | None = None,
    n_samples: int | None = None,
    seed: int = 0,
    context: str | None = None,
    layer: str | None = None,
    duplicates: Duplicates = "error",
    ignore_case: bool = False,
    id_column: str | None = None,
    aliases: pd.DataFrame | PathLike[str] | str | None = None,
    hparams: Mapping[str, Any] | None = None,
    trust: bool = False,
    device: str = "auto",
    precision: str = "auto",
    cut_tissue: Literal["keep", "nan"] = "keep",
    tissue_only: bool = True,
    stain: Stain | Literal[False] | None = None,
    progress: bool | None = None,
) -> None:
    """Predict gene expression of spots from the image around them.

    Crops are cut at the levels and the resolution that ``model`` was trained with; nothing is upsampled. Only
    positions are used; counts are read only from the spots that ``context`` names.

    Parameters
    ----------
    sdata
        Holds the image, the spots and a table that annotates the spots; or only image and shapes
        (:func:`st_predict.pp.make_grid`). One object, a list or a mapping; all are opened before the first is predicted.
    model
        Name of a released checkpoint (:func:`st_predict.checkpoints.list_weights`), path of a ``.safetensors`` file, or
        result of :func:`train`. A list of several, of the same panel and units, is an ensemble
        :cite:p:`Lakshminarayanan2017`: their mean is predicted.
    image_key
        RGB image, 8 bit, single- or multi-scale; may be left out if one shares a coordinate system with the spots, or if several
        show the same area: then the finest is read. For a table of several sections: a mapping from region to image.
    table_key
        Table whose rows are predicted; may be left out if there is one, or one called ``"table"``.
    bin_um
        Side of the bins of Visium HD in micrometres, such as 16, instead of ``table_key``. By default bins of 8 um where there are
        several sizes.
    shapes_key
        Shapes to predict on a slide that has no table, or without regard to it.
    mpp
        Micrometres per pixel of level 0 of the image; ``"spots"`` takes it from the lattice of the assay. For several sections: a
        mapping from region to number; for regions that it lacks it is found as usual. Needed if the model has a fixed resolution and nothing else tells (:func:`st_predict.io.find_mpp`).
    key_added
        Key of the result. By default ``pred_{model}``, with the model's name.
    batch_size
        Spots that the network sees at a time, if it sees single spots. By default what suits the device; where memory
        does not suffice it is halved, with a message.
    symmetries
        Test-time augmentation: 8 predicts the mean over the turned and mirrored crops, at eight times the cost; 1 takes
        them as they are. By default what the model was published with: 8 for ST-Net. 8 is refused for a model that
        reads no crops, as ``ridge``, which reads features.
    n_samples
        Draw so many predictions of each spot at random, and write their mean and standard deviation. A generative model
        draws from what it has learned; any other is applied with its dropout left on :cite:p:`Gal2016`.
    seed
        Random seed for sampling. Dropout samples also depend on ``batch_size``; all samples depend on row order.
    context
        Column of ``.obs`` that is true for spots whose counts may be read to predict the others, by a network that can
        (:attr:`st_predict.models.ModelSpec.reads_context`). :func:`evaluate` leaves these spots out. Genes of the panel
        that the table lacks count as 0.
    layer
        Layer of the table with the raw counts of the ``context``; by default ``.X``.
    duplicates
        What to do with genes of the ``context`` that several columns of the table carry: refuse, ``"sum"`` their counts, or
        take the ``"first"``.
    ignore_case
        Whether symbols of the ``context`` that differ in case are the same gene.
    id_column
        Column of ``.var`` with the identifiers of the genes of the ``context``; by default ``var_names``, or the one column
        that has genes of the panel.
    aliases
        Table of old symbols and Ensembl identifiers of genes of the ``context``, in the form of HGNC's complete set; see
        :func:`st_predict.pp.align_panel`.
    hparams
        Hyper-parameters to change, of those that the weights do not depend on
        (:attr:`st_predict.models.ModelSpec.at_prediction`): ``mode`` and ``k`` of BLEEP.
    trust
        Whether to take the card of the checkpoint as it is. By default a card may name encoders of
        :func:`st_predict.encoders.list_encoders` only, and no files; see :func:`st_predict.checkpoints.load`.
    device
        ``"auto"`` takes the first GPU if there is one; ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
    precision
        ``"auto"`` computes in bfloat16 where the device does so natively, which moves a prediction by about 0.4 % of a
        gene's spread over a section; ``"float32"``, ``"bfloat16"``.
    cut_tissue
        What to do with spots whose field of view leaves the image at an edge that tissue touches
        (:func:`st_predict.pp.find_tissue`), as after ``sdata.query.bounding_box``: ``"keep"`` predicts them from a field of
        view whose rest is padding, which moves a prediction by up to 3 standard deviations of a gene; ``"nan"`` gives NaN.
        A warning says how many there are.
    tissue_only
        Whether to leave spots NaN that the assay found beside the tissue: ``in_tissue`` in ``.obs`` is 0.
    stain
        Stain in whose colours the image is read, as :func:`st_predict.pp.fit_stain` measures it on another slide; that of this image is measured
        first. By default that of the training, if the network was trained with one; ``False`` reads the image as it is.
    progress
        Whether to show progress bars. By default in a terminal or a notebook, after two seconds.

    Returns
    -------
    Nothing; adds to ``sdata.tables[table_key]``:

    ``.obsm[key_added]`` : :class:`~numpy.ndarray`, ``(n_obs, n_genes)``, float32
        Predicted expression in the units of the model's :class:`~st_predict.specs.TargetSpec`. NaN for spots whose
        centre lies outside the image, and with ``cut_tissue="nan"`` for those whose field of view is cut.
    ``.obsm[key_added + "_std"]`` : :class:`~numpy.ndarray`, ``(n_obs, n_genes)``, float32
        With ``n_samples`` or several checkpoints: standard deviation of the samples, over all checkpoints. How far it is
        from an error, :func:`calibrate` measures.
    ``.layers[key_added]`` : :class:`~numpy.ndarray`, ``(n_obs, n_vars)``, float32
        The same, if the panel covers every gene of the table and the layer takes at most 1 GiB.
    ``.uns["st_predict"][key_added]``
        Names of the ``genes`` in column order, card of the model, version, device and precision, warnings, and the mpp
        of each section with its source.

    A slide without a table gets a linked table ``sdata.tables[key_added]`` instead, with the standard deviation as
    ``.layers["std"]``. :func:`st_predict.get.prediction` reads either as AnnData, :func:`st_predict.get.frame` as a
    DataFrame, both with the gene names.

    Raises
    ------
    KeyError
        If the table, the image, the model or the column does not exist; the message lists those that do.
    ValueError
        If several checkpoints differ in panel or units, ``n_samples`` are asked of a network that has nothing random, or
        ``symmetries=8`` of one that reads no crops; if
        something is ambiguous, ``mpp`` is needed and unknown, the image is coarser than the model needs or is not
        8-bit RGB, coordinates are not finite, ``key_added`` cannot be stored or holds something else, or there is no
        such device or precision.
    TypeError
        If ``sdata`` is not a SpatialData object.
    MemoryError
        If memory does not suffice for one spot, or for a section that the model reads as a whole.

    Notes
    -----
    Crops are aligned to whole pixels of the level that is read, so a crop may be off by half such a pixel. Outside the
    image is white (:class:`~st_predict.specs.CropSpec`). The default model is described in :cite:t:`Wang2025`.

    Examples
    --------
    >>> import st_predict as stp
    >>> sdata = stp.datasets.simulate(1, 1, shape=(1200, 1200), mpp=0.6).sections["P1S1"]
    >>> stp.tl.predict(sdata, model="m2ost")
    >>> sdata["table"].obsm["pred_m2ost"].shape[1]
    250
    """
    genes = GeneMatching(duplicates=duplicates, ignore_case=ignore_case, id_column=id_column, aliases=aliases)
    where = Where(image_key=image_key, table_key=table_key, bin_um=bin_um, shapes_key=shapes_key, layer=layer, mpp=mpp)
    where = replace(where, genes=genes, tissue_only=tissue_only)
    compute = Compute(device=device, precision=precision, batch_size=batch_size)
    cut_tissue = check("cut_tissue", cut_tissue, Literal["keep", "nan"])
    as_list(sdata, "sdata")
    key_added, hparams = check("key_added", key_added, Text | None), check("hparams", hparams, Fields | None)
    _refuse_without_effect(where, context)
    ensemble = Ensemble.open(
        model, hparams=hparams, trust=trust, draws=Draws.of(n_samples, seed), symmetries=symmetries, compute=compute
    )
    where = replace(where, stain=ensemble.stain(check("stain", stain, Stain | Literal[False] | None)))
    slides = open_slides(sdata, where, need_mpp=ensemble.needs_mpp)
    said: list[list[str]] = [[] for _ in slides]
    slots = [_slot(ensemble, s, key_added or ensemble.key, words) for s, words in zip(slides, said, strict=True)]
    cut = [_look_over(slide, ensemble, words) for slide, words in zip(slides, said, strict=True)]
    known = [read_context(slide.sdata, context, ensemble.cards, where, table_key=slide.table_key) for slide in slides]
    for slide, slot, read, spots, words in zip(slides, slots, known, cut, said, strict=True):
        _write(ensemble, slide, slot, read, cut=spots, cut_tissue=cut_tissue, said=words)


def _slot(ensemble: Ensemble, slide: Slide, key: str, said: list[str]) -> Slot:
    """Where the prediction of a slide belongs, after it was checked that it fits there; warnings are added to ``said``."""
    with warnings_into(said):
        ensemble.check(slide)
    slot = slide.slot(key)
    slot.check_free("prediction", derived=[Keys.std(slot.key)] if ensemble.spreads else [])
    return slot


def _look_over(slide: Slide, ensemble: Ensemble, said: list[str]) -> list[NDArray[np.bool_]]:
    """Spots of each section whose field of view is cut; warnings are added to ``said``."""
    with warnings_into(said):
        return look_over_for(slide, ensemble.cards)


def _write(
    ensemble: Ensemble,
    slide: Slide,
    slot: Slot,
    known: Context | None,
    *,
    cut: Sequence[NDArray[np.bool_]],
    cut_tissue: str,
    said: list[str],
) -> None:
    """Predict the spots of a slide; those whose field of view is cut stay NaN if ``cut_tissue`` says so."""
    with warnings_into(said):
        predicted = [
            ensemble.predict(
                section,
                counts=None if known is None else known.counts[section.rows],
                left_out=spots & (cut_tissue == "nan"),
            )
            for section, spots in zip(slide.sections, cut, strict=True)
        ]
    mean = slide.gather([mean for mean, _ in predicted])
    std = slide.gather([std for _, std in predicted if std is not None]) if ensemble.spreads else None
    params = {**_params(ensemble, slide, known), "cut_tissue": cut_tissue, "warnings": said}
    slot.write_prediction(mean, Record(card=ensemble.card, params=params), std=std)


def _refuse_without_effect(where: Where, context: str | None) -> None:
    """Refuse arguments about counts where no counts are read."""
    if context is not None:
        return
    given = [
        name
        for name in ("duplicates", "ignore_case", "id_column", "aliases")
        if getattr(where.genes, name) not in _UNSET
    ]
    if given := [*given, *(["layer"] if where.layer is not None else [])]:
        raise InvalidValueError(
            f"The arguments {given} are only for the counts of context spots, and no context is given.",
            Advice("name the column of .obs that selects these spots with {}", "context"),
            "leave them out",
        )


def _params(ensemble: Ensemble, slide: Slide, context: Context | None) -> dict[str, Any]:
    """What a reader of the prediction needs to know of how it was made."""
    return {
        "sections": slide.describe(),
        **ensemble.describe(),
        "context": None if context is None else context.describe(),
    }
