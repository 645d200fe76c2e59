"""Predict expression for the spots of a slide."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from st_predict._errors import Advice, InvalidValueError
from st_predict._keys import Keys
from st_predict._progress import shows_progress
from st_predict._record import Record, warnings_into
from st_predict._runtime import Compute
from st_predict._sections import advice_for, as_list, check_missing_levels, look_over_for, open_slides, read_context
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

__all__ = ["predict", "predict_with"]

_UNSET = (None, False, "error")


@shows_progress
def predict(  # noqa: PLR0913  # every argument is a keyword
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
    hparams: Mapping[str, object] | None = None,
    trust: bool = False,
    device: str = "auto",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    cut_tissue: Literal["keep", "nan"] = "keep",
    missing_levels: Literal["error", "mask"] = "error",
    tissue_only: bool = True,
    stain: Stain | Literal[False] | None = None,
    progress: bool | None = None,
) -> None:
    """Predict gene expression of spots from the H&E image around them.

    Crops have the levels and the resolution of the training; images are never upsampled. Counts are read only from the
    spots that ``context`` selects.

    Parameters
    ----------
    sdata
        Slide with the image, the spots and a table that annotates the spots; or with image and shapes only
        (:func:`st_predict.pp.make_grid`). One object, a list or a mapping; all are checked before the first is
        predicted.
    model
        Name of a released checkpoint (:func:`st_predict.checkpoints.list_weights`), path of a ``.safetensors`` file, or
        result of :func:`train`. A list of checkpoints with the same panel and units is an ensemble
        :cite:p:`Lakshminarayanan2017`, which predicts their mean.
    image_key
        Key of the RGB image, 8 bit, single- or multi-scale. Optional if only one image shares a coordinate system with
        the spots, or if several show the same area: then the finest is read. For a table of several sections: mapping
        from region to image.
    table_key
        Key of the table whose rows are predicted. By default the only table, or ``"table"``.
    bin_um
        Bin size of Visium HD in micrometres, such as 16; alternative to ``table_key``. By default 8 um where there are
        several sizes.
    shapes_key
        Key of shapes to predict, if the slide has no table or another table than the one to use.
    mpp
        Micrometres per pixel (mpp) of the image at level 0; ``"spots"`` derives it from the assay's spot pitch. For
        several sections: mapping from region to mpp; regions not in it use the default. By default found by
        :func:`st_predict.io.find_mpp`; required if that fails and the model has a fixed resolution.
    key_added
        Key of the result; by default ``pred_{model}``, with the model's name.
    batch_size
        Number of spots per batch, for spot-level models. By default chosen for the device. Halved when out of memory,
        with a message.
    symmetries
        Test-time augmentation: number of crop symmetries averaged. 8 averages over rotated and mirrored crops, at eight
        times the cost; 1 uses the crops only as they are. By default the published setting: 8 for ST-Net. 8 is refused
        for models that do not read crops, such as ``ridge``.
    n_samples
        Number of random samples per spot, whose mean and standard deviation are written. Generative models sample from
        their learned distribution; other models use Monte Carlo dropout :cite:p:`Gal2016`.
    seed
        Random seed for sampling. Dropout samples also depend on ``batch_size``; all samples depend on row order.
    context
        Boolean column of ``.obs`` that selects the context spots, whose counts the network may read to predict the
        others (only models with ``reads_context`` in :class:`st_predict.models.ModelSpec`). :func:`evaluate` leaves these spots
        out. Panel genes that the table lacks count as 0.
    layer
        Layer with the raw counts of the context spots; by default ``.X``.
    duplicates
        Handling of context genes with several columns in the table: ``"error"`` refuses, ``"sum"`` adds their counts,
        ``"first"`` takes the first.
    ignore_case
        Whether to ignore case when symbols of context genes are matched.
    id_column
        Column of ``.var`` with the identifiers of context genes; by default ``var_names``, or the only column that has
        genes of the panel.
    aliases
        Table of previous symbols and Ensembl identifiers of context genes, in the format of HGNC's complete set; see
        :func:`st_predict.pp.align_panel`.
    hparams
        Hyper-parameters to change, from ``at_prediction`` of :class:`st_predict.models.ModelSpec`, on which weights do
        not depend: ``mode`` and ``k`` of BLEEP.
    trust
        Whether to accept every encoder and file that the checkpoint's card names. By default only encoders of
        :func:`st_predict.encoders.list_encoders` are accepted, and no files; see :func:`st_predict.checkpoints.load`.
    device
        Device: ``"auto"`` (the first GPU if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.
    precision
        Floating-point precision: ``"float32"``, ``"bfloat16"`` or ``"auto"`` (bfloat16 where the device supports it
        natively). bfloat16 moves a prediction by about 0.4 % of a gene's spread over a section.
    cut_tissue
        Handling of spots whose field of view leaves the image at an edge that tissue touches
        (:func:`st_predict.pp.find_tissue`), as after ``sdata.query.bounding_box``. ``"keep"`` pads their field of view,
        which moves a prediction by up to 3 standard deviations of a gene; ``"nan"`` gives NaN. A warning says how many
        there are.
    missing_levels
        Handling of levels with finer pixels than the image has: ``"error"`` refuses the slide, ``"mask"`` predicts from
        the other levels, and without those with a field of view wider than the image; only by models with ``masks_levels`` in :class:`st_predict.models.ModelSpec`. Scores of the checkpoint
        hold for all levels, so evaluate it on slides without the finest first.
    tissue_only
        Whether spots off the tissue (``in_tissue`` in ``.obs`` is 0) stay NaN.
    stain
        Reference stain for stain normalisation (:func:`st_predict.pp.fit_stain` of another slide); the slide's own
        stain is measured first. By default the training's, if there was one; ``False`` does not change colours.
    progress
        Whether to show progress bars. By default in a terminal or a notebook, after two seconds.

    Returns
    -------
    None
        Adds to ``sdata.tables[table_key]``:

        ``.obsm[key_added]`` : :class:`~numpy.ndarray`, ``(n_obs, n_genes)``, float32
            Predicted expression in the units of the model's :class:`~st_predict.specs.TargetSpec`. NaN for spots whose
            centre is outside the image and, with ``cut_tissue="nan"``, for spots whose field of view is cut.
        ``.obsm[key_added + "_std"]`` : :class:`~numpy.ndarray`, ``(n_obs, n_genes)``, float32
            With ``n_samples`` or several checkpoints: standard deviation of the samples, over all checkpoints. Not yet an
            error; :func:`calibrate` turns it into prediction intervals.
        ``.layers[key_added]`` : :class:`~numpy.ndarray`, ``(n_obs, n_vars)``, float32
            Predicted expression again, if the panel covers every gene of the table and the layer takes at most 1 GiB.
        ``.uns["st_predict"][key_added]``
            ``genes`` in column order, the model's card, version, device and precision, warnings, and the mpp of each
            section with its source.

        A slide without a table gets a linked table ``sdata.tables[key_added]`` instead, with the standard deviation as
        ``.layers["std"]``. :func:`st_predict.get.prediction` reads either as AnnData, :func:`st_predict.get.frame` as a
        DataFrame, both with the gene names.

    Raises
    ------
    KeyError
        If the table, image, model or column does not exist; the message lists the existing ones.
    ValueError
        If checkpoints differ in panel or units, ``n_samples`` is given for a deterministic network or ``symmetries=8``
        for one that does not read crops; an element is ambiguous; ``mpp`` is required and unknown; the image is coarser
        than the model needs or not 8-bit RGB; coordinates are not finite; ``key_added`` cannot be stored or holds
        something else; or the device or precision does not exist.
    TypeError
        If ``sdata`` is not a SpatialData object.
    MemoryError
        If memory is too small for one spot, or for a section that the model reads whole.

    Notes
    -----
    Crops are aligned to whole pixels of the image level that is read, with an offset of at most half a pixel. Crops are
    padded with white outside the image (:class:`~st_predict.specs.CropSpec`). The default model is described in
    :cite:t:`Wang2025`.

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
    levels = check_missing_levels(missing_levels, [card.model for card in ensemble.cards])
    stain = ensemble.stain(check("stain", stain, Stain | Literal[False] | None))
    where = replace(where, stain=stain, missing_levels=levels)
    predict_with(ensemble, sdata, where, key_added=key_added, context=context, cut_tissue=cut_tissue)


def predict_with(
    ensemble: Ensemble,
    sdata: Sections,
    where: Where,
    *,
    key_added: str | None,
    context: str | None,
    cut_tissue: Literal["keep", "nan"],
) -> None:
    """Predict slides with loaded networks; see :func:`predict`.

    Parameters
    ----------
    ensemble
        Loaded networks.
    sdata
        Slides.
    where
        Elements of the slides.
    key_added
        Key of the result; by default the model's.
    context
        Boolean column of ``.obs`` that selects the context spots.
    cut_tissue
        Handling of spots with a cut field of view.
    """
    slides = open_slides(sdata, where, need_mpp=ensemble.needs_mpp)
    said: list[list[str]] = [[] for _ in slides]
    with advice_for(card.model for card in ensemble.cards):
        slots = [_slot(ensemble, s, key_added or ensemble.key, words) for s, words in zip(slides, said, strict=True)]
        cut = [_look_over(slide, ensemble, words) for slide, words in zip(slides, said, strict=True)]
    known = [read_context(slide.sdata, context, ensemble.cards, where, table_key=slide.table_key) for slide in slides]
    for slide, slot, read, spots, words in zip(slides, slots, known, cut, said, strict=True):
        how = {"cut_tissue": cut_tissue, "missing_levels": where.missing_levels}
        _write(ensemble, slide, slot, read, cut=spots, how=how, said=words)


def _slot(ensemble: Ensemble, slide: Slide, key: str, said: list[str]) -> Slot:
    """Check where a slide's prediction is stored, and return it; warnings are added to ``said``."""
    with warnings_into(said):
        ensemble.check(slide)
    slot = slide.slot(key)
    slot.check_free("prediction", derived=[Keys.std(slot.key)] if ensemble.spreads else [])
    return slot


def _look_over(slide: Slide, ensemble: Ensemble, said: list[str]) -> list[NDArray[np.bool_]]:
    """Return the spots of each section whose field of view is cut; warnings are added to ``said``."""
    with warnings_into(said):
        return look_over_for(slide, ensemble.cards)


def _write(
    ensemble: Ensemble,
    slide: Slide,
    slot: Slot,
    known: Context | None,
    *,
    cut: Sequence[NDArray[np.bool_]],
    how: Mapping[str, str],
    said: list[str],
) -> None:
    """Predict the spots of a slide; with ``cut_tissue="nan"``, spots with a cut field of view stay NaN."""
    with warnings_into(said):
        predicted = [
            ensemble.predict(
                section,
                counts=None if known is None else known.counts[section.rows],
                left_out=spots & (how["cut_tissue"] == "nan"),
            )
            for section, spots in zip(slide.sections, cut, strict=True)
        ]
    mean = slide.gather([mean for mean, _ in predicted])
    std = slide.gather([std for _, std in predicted if std is not None]) if ensemble.spreads else None
    params = {**_params(ensemble, slide, known), **how, "warnings": said}
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
            f"The arguments {given} only concern counts of context spots, and context is not given.",
            Advice("name the column of .obs that selects these spots with {}", "context"),
            "leave them out",
        )


def _params(ensemble: Ensemble, slide: Slide, context: Context | None) -> dict[str, Any]:
    """Return the settings of the prediction for its record."""
    return {
        "sections": slide.describe(),
        **ensemble.describe(),
        "context": None if context is None else context.describe(),
    }
