"""Predict expression for the spots of a slide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from st_predict._keys import Keys
from st_predict.models import Inference, find_weights, get_spec, load_checkpoint
from st_predict.models._device import pick_device
from st_predict.tl._inputs import encoder_of, inputs_of
from st_predict.tl._sections import open_sections
from st_predict.tl._write import check_key, write_prediction

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict.models import Encoder, ModelCard, ModelSpec
    from st_predict.tl._sections import Section

__all__ = ["predict"]

_READ = 64  # spots whose crops are read together, at least


def predict(  # noqa: PLR0913  # every one is a keyword
    sdata: SpatialData,
    model: PathLike[str] | str = "m2ost",
    *,
    image_key: Mapping[str, str] | str | None = None,
    table_key: str | None = None,
    shapes_key: str | None = None,
    mpp: float | Literal["spots"] | None = None,
    key_added: str | None = None,
    batch_size: int | None = None,
    symmetries: Literal[1, 8] | None = None,
    hparams: Mapping[str, Any] | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> None:
    """Predict gene expression of spots from the image around them.

    Crops are cut at the levels and the resolution that ``model`` was trained with; nothing is upsampled. Only
    positions are used, never counts.

    Parameters
    ----------
    sdata
        Holds the image, the spots and a table that annotates the spots; or only image and shapes
        (:func:`st_predict.pp.make_grid`).
    model
        Name of a released checkpoint (:func:`st_predict.models.list_weights`) or path of a ``.safetensors`` file.
    image_key
        RGB image, 8 bit, single- or multi-scale; may be left out if there is one. For a table of several sections: a
        mapping from region to image.
    table_key
        Table whose rows are predicted; may be left out if there is one, or one called ``"table"``.
    shapes_key
        Shapes to predict on a slide that has no table, or without regard to it.
    mpp
        Micrometres per pixel of level 0 of the image; ``"spots"`` takes it from the lattice of the assay. Needed if
        the model has a fixed resolution and nothing else tells (:func:`st_predict.io.resolve_mpp`).
    key_added
        Key of the result. By default ``pred_{model}``, with the model's name.
    batch_size
        Spots that the network sees at a time, if it sees single spots. By default what suits the device; where memory
        does not suffice it is halved, with a message.
    symmetries
        8 predicts the mean over the turned and mirrored crops, at eight times the cost; 1 takes them as they are. By
        default what the model was published with: 8 for ST-Net.
    hparams
        Hyper-parameters to change, of those that the weights do not depend on
        (:attr:`st_predict.models.ModelSpec.at_prediction`): ``mode`` and ``k`` of BLEEP.
    device
        ``"auto"`` takes the first GPU if there is one; ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
    precision
        ``"auto"`` computes in bfloat16 where the device does so natively, which moves a prediction by about 0.4 % of a
        gene's spread over a section; ``"float32"``, ``"bfloat16"``.

    Returns
    -------
    Nothing; adds to ``sdata.tables[table_key]``:

    ``.obsm[key_added]`` : :class:`~pandas.DataFrame`, ``(n_obs, n_genes)``, float32
        Predicted expression in the units of the model's :class:`~st_predict.specs.TargetSpec`. NaN for spots whose
        centre lies outside the image.
    ``.layers[key_added]`` : :class:`~numpy.ndarray`, ``(n_obs, n_vars)``, float32
        The same, if the panel covers every gene of the table.
    ``.uns["st_predict"][key_added]``
        Card of the model, version, device and precision, and the mpp of each section with its source.

    A panel of more than 1000 genes, or a slide without a table, gives a linked table ``sdata.tables[key_added]``
    instead. :func:`st_predict.get.prediction` reads either.

    Raises
    ------
    KeyError
        If the table, the image or the model does not exist; the message lists those that do.
    ValueError
        If something is ambiguous, ``mpp`` is needed and unknown, the image is coarser than the model needs or is not
        8-bit RGB, coordinates are not finite, ``key_added`` holds something else, or there is no such device or
        precision.
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
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    network, card = load_checkpoint(find_weights(model), hparams=hparams)
    spec, encoder = get_spec(card.model), encoder_of(card)
    table_key, sections = open_sections(
        sdata,
        image_key=image_key,
        table_key=table_key,
        shapes_key=shapes_key,
        mpp=mpp,
        need_mpp=card.crop.mpp is not None,
    )
    key = key_added or Keys.prediction(card.model)
    check_key(sdata, key, table_key=table_key, regions={s.region for s in sections})
    inference = Inference(
        network,
        device=pick_device(device),
        precision=precision,
        working_batch=batch_size,
        scope=spec.scope,
        symmetries=_symmetries(spec, symmetries),
    )
    values = np.full((sum(len(s.rows) for s in sections), len(card.genes)), np.nan, dtype=np.float32)
    for section in sections:
        values[section.rows] = _predict_section(inference, card, section, encoder)
    write_prediction(
        sdata,
        values,
        card,
        key=key,
        table_key=table_key,
        section=sections[0],
        provenance={
            "sections": [s.describe() for s in sections],
            "device": str(inference.device),
            "precision": inference.precision,
            "symmetries": inference.symmetries,
        },
    )


def _symmetries(spec: ModelSpec, asked: int | None) -> int:
    """How many symmetries to average; features have none."""
    if spec.inputs == "features":
        return 1
    return spec.symmetries if asked is None else asked


def _predict_section(
    inference: Inference, card: ModelCard, section: Section, encoder: Encoder | None
) -> NDArray[np.float32]:
    """Return ``(n_spots, n_genes)``; NaN for spots outside the image."""
    outside = section.outside()
    values = np.empty((len(outside), len(card.genes)), dtype=np.float32)
    batches = inputs_of(
        section,
        card,
        encoder,
        batch_size=None if inference.scope == "section" else max(inference.working_batch, _READ),
        device=inference.device,
        precision=inference.precision,
    )
    for index, prediction in inference.over(batches):
        values[index.numpy()] = prediction.numpy()
    values[outside] = np.nan
    return values
