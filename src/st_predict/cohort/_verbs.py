"""Predict or embed many slides."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from st_predict._keys import Keys
from st_predict._progress import shows_progress
from st_predict._validated import Text, check
from st_predict._where import Where
from st_predict.cohort._run import Options, look_over_slides, run
from st_predict.cohort._slides import list_slides
from st_predict.cohort._tasks import EmbedTask, Machine, PredictTask, checked, digests_of, names_of
from st_predict.encoders import get_encoder, load_encoder, read_as
from st_predict.tl import Draws

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    import pandas as pd
    from distributed import Client

    from st_predict._stain import Stain
    from st_predict.checkpoints import Trained
    from st_predict.cohort._slides import Slides
    from st_predict.encoders import EncoderSpec, Features

__all__ = ["check_slides", "embed_many", "predict_many"]


@shows_progress
def predict_many(  # noqa: PLR0913  # every argument is a keyword
    slides: Slides,
    model: PathLike[str] | str | Trained | Sequence[PathLike[str] | str | Trained] = "m2ost",
    *,
    out: PathLike[str] | str,
    client: Client | str | None = None,
    n_workers: int | None = None,
    shard: tuple[int, int] | None = None,
    check_first: bool = False,
    retry_failed: bool = False,
    retries: int = 2,
    merge: bool = False,
    pitch_um: float = 100.0,
    table_key: str | None = None,
    bin_um: float | None = None,
    shapes_key: str | None = None,
    key_added: str | None = None,
    batch_size: int | None = None,
    symmetries: Literal[1, 8] | None = None,
    n_samples: int | None = None,
    seed: int = 0,
    hparams: Mapping[str, object] | None = None,
    trust: bool = False,
    device: str = "auto",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    cut_tissue: Literal["keep", "nan"] = "keep",
    missing_levels: Literal["error", "mask"] = "error",
    tissue_only: bool = True,
    stain: Stain | Literal[False] | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Predict many slides with :func:`st_predict.tl.predict`, on the cores of this machine or on a cluster.

    Each slide is opened, gets a grid over its tissue if it has no spots, is predicted, and is written to
    ``{out}/{id}.h5ad`` without its pixels. A file appears whole or not at all. Run again, only slides without a result
    are done: a result counts if checkpoints, arguments, version, and size and time of the slide are the same.

    A slide that fails is recorded, and the others go on. Errors of reading and of memory are tried again; other errors
    are not.

    Parameters
    ----------
    slides
        Path of a CSV file with the columns ``path``, ``id``, ``mpp``, ``image_key`` and ``pitch_um`` (only ``path`` is
        required; relative paths start at the file's folder), or such a table; or paths or patterns of slides, images
        and SpatialData stores. By default ``id`` is the name of the file without its suffix.
    model
        Name of a released checkpoint (:func:`st_predict.checkpoints.list_weights`), path of a ``.safetensors`` file, or
        result of :func:`st_predict.tl.train`; a list is an ensemble. Workers on other machines need the same path.
    out
        Folder of the results, created if it does not exist.
    client
        Client of dask, or address of its scheduler. By default a local cluster: one worker per GPU if ``dask-cuda`` is
        installed, else as many processes as cores and memory allow. A program that starts one needs
        ``if __name__ == "__main__":``.
    n_workers
        Number of workers of a local cluster.
    shard
        Number of this part, from 1, and number of parts: ``(3, 20)`` does every 20th slide, from the third. For job
        arrays, with one output folder for all parts; parts of one division may work at the same time.
    check_first
        Whether to open all slides and look for resolution and tissue before any is computed (:func:`check_slides`); if
        one cannot be used, nothing is computed.
    retry_failed
        Whether to try slides again that failed in an earlier run. A changed file or argument is tried again anyway.
    retries
        Number of further attempts after errors of reading and of memory.
    merge
        Whether to join all results in ``{out}/merged.h5ad``, in the order of the list; ``.obs["slide"]`` names the slide.
        Not for shards.
    pitch_um
        Distance between grid spots in micrometres, for slides without spots and without their own ``pitch_um``.
    table_key
        Key of the table whose rows are predicted, for stores. By default the only table, or ``"table"``.
    bin_um
        Bin size of Visium HD in micrometres, for stores; alternative to ``table_key``.
    shapes_key
        Key of shapes to predict, for stores without a table or with another table than the one to use.
    key_added
        Key of the result; by default ``pred_{model}``, with the model's name.
    batch_size
        Number of spots per batch, for spot-level models. By default chosen for the device.
    symmetries
        Number of crop symmetries averaged at test time; by default the published setting.
    n_samples
        Number of random samples per spot; adds their standard deviation.
    seed
        Random seed for sampling.
    hparams
        Hyper-parameters to change at prediction.
    trust
        Whether to accept every encoder and file that the checkpoint's card names.
    device
        Device of each worker: ``"auto"`` (the first GPU if there is one), ``"cpu"``, ``"cuda"`` or ``"mps"``.
    precision
        Floating-point precision: ``"float32"``, ``"bfloat16"`` or ``"auto"``.
    cut_tissue
        Handling of spots whose field of view leaves the image at an edge that tissue touches: ``"keep"`` or ``"nan"``.
    missing_levels
        Handling of levels with finer pixels than an image has: ``"error"`` records a failure, ``"mask"`` predicts from the
        other levels, only by models with ``masks_levels`` in :class:`st_predict.models.ModelSpec`.
    tissue_only
        Whether spots off the tissue (``in_tissue`` in ``.obs`` is 0) stay NaN.
    stain
        Reference stain for stain normalisation; by default the training's, if there was one; ``False`` for none.
    progress
        Whether to show a bar of slides. By default in a terminal or a notebook, after two seconds.

    Returns
    -------
    DataFrame
        The report, one row per slide in the order of the list, indexed by ``id``:

        ``status``
            ``"done"``, ``"empty"`` (no tissue, no spots) or ``"failed"``.
        ``spots``, ``mpp``, ``mpp_source``
            Number of spots, and resolution with its source.
        ``seconds``, ``peak_mib``
            Time of the last attempt, and largest memory of its process meanwhile.
        ``reused``
            Whether the result, or the failure, is of an earlier run.
        ``attempts``, ``key``, ``error``
            Number of attempts, hash of everything that the result depends on, and message of a failure.

        In ``out``: ``{id}.h5ad`` per slide, as :func:`st_predict.get.prediction` returns it; ``report.csv`` (with a shard,
        ``report-3-of-20.csv``), which grows as slides end; ``failed/{id}.json`` per failure, with its traceback.

    Raises
    ------
    ModuleNotFoundError
        If dask's ``distributed`` is not installed: ``pip install "st-predict[cluster]"``.
    FileExistsError
        If another run works in ``out``, except other parts of the same division.
    FileNotFoundError
        If the list or a checkpoint does not exist.
    ConnectionError
        If the scheduler ends; finished slides are kept.
    OSError
        If ``out`` cannot be written to, or its disk is full; finished slides are kept.
    ValueError
        If the list is invalid, two slides have the same identifier, ``out`` has another file with the name of a result,
        arguments do not fit the model, or, with ``check_first``, a slide cannot be used.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import st_predict as stp
    >>> from distributed import Client
    >>> with (
    ...     tempfile.TemporaryDirectory() as folder,
    ...     Client(processes=False, n_workers=1, dashboard_address=":0") as client,
    ... ):
    ...     stp.datasets.toy().write(Path(folder) / "toy.zarr")
    ...     model = stp.tl.train(stp.datasets.toy(), "mean", panel=["GENE1", "GENE2"], out=Path(folder) / "model")
    ...     report = stp.cohort.predict_many(Path(folder) / "*.zarr", model, out=Path(folder) / "out", client=client)
    >>> print(*report.loc["toy", ["status", "spots"]])
    done 19
    """
    options = Options(client=client, n_workers=n_workers, shard=shard, check_first=check_first, retries=retries)
    options = replace(options, retry_failed=retry_failed, merge=merge)
    listed = list_slides(slides, pitch_um=pitch_um)
    where = Where(table_key=table_key, bin_um=bin_um, shapes_key=shapes_key, tissue_only=tissue_only)
    where = replace(where, missing_levels=missing_levels)
    machine = Machine(device=device, precision=precision, batch_size=batch_size)
    models, key_added = names_of(model), check("key_added", key_added, Text | None)
    task = PredictTask(models=models, digests=digests_of(models), where=where, machine=machine, hparams=hparams)
    task = replace(task, key=key_added, trust=trust, draws=Draws.of(n_samples, seed), symmetries=symmetries)
    task, need_mpp = checked(replace(task, cut_tissue=cut_tissue, stain=stain), here=client is None)
    return run(listed, task, out=out, options=options, device=device, need_mpp=need_mpp)


@shows_progress
def embed_many(  # noqa: PLR0913  # every argument is a keyword
    slides: Slides,
    encoder: str | EncoderSpec = "rgb",
    *,
    out: PathLike[str] | str,
    client: Client | str | None = None,
    n_workers: int | None = None,
    shard: tuple[int, int] | None = None,
    check_first: bool = False,
    retry_failed: bool = False,
    retries: int = 2,
    merge: bool = False,
    pitch_um: float = 100.0,
    table_key: str | None = None,
    bin_um: float | None = None,
    shapes_key: str | None = None,
    at_mpp: float | None = None,
    features: Features | None = None,
    fields: Sequence[int] | None = None,
    neighbours: int | None = None,
    standardize: bool | None = None,
    key_added: str | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    cache: bool = True,
    tissue_only: bool = True,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Embed many slides with :func:`st_predict.tl.embed`, on the cores of this machine or on a cluster.

    Everything about the list, the cluster, the results and the report is as in :func:`predict_many`.

    Parameters
    ----------
    slides
        List of slides.
    encoder
        Name or specification of an encoder (:func:`st_predict.encoders.list_encoders`).
    out
        Folder of the results, created if it does not exist; another one than of predictions.
    client
        Client of dask, or address of its scheduler. By default a local cluster.
    n_workers
        Number of workers of a local cluster.
    shard
        Number of this part, from 1, and number of parts.
    check_first
        Whether to open all slides before any is computed; if one cannot be used, nothing is computed.
    retry_failed
        Whether to try slides again that failed in an earlier run.
    retries
        Number of further attempts after errors of reading and of memory.
    merge
        Whether to join all results in ``{out}/merged.h5ad``.
    pitch_um
        Distance between grid spots in micrometres, for slides without spots and without their own ``pitch_um``.
    table_key
        Key of the table whose rows are embedded, for stores.
    bin_um
        Bin size of Visium HD in micrometres, for stores; alternative to ``table_key``.
    shapes_key
        Key of shapes to embed, for stores.
    at_mpp
        Resolution of the encoder's input, in um/px; by default the encoder's training resolution.
    features
        Features to use: ``"head"`` or ``"stages"``.
    fields
        Sizes of several fields of view around a spot, in pixels.
    neighbours
        Number of nearest spots whose mean features are appended.
    standardize
        Whether to standardise features per section.
    key_added
        Key of the result; by default ``X_{encoder}``.
    batch_size
        Number of spots per batch. By default chosen for the device.
    device
        Device of each worker: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
    precision
        Floating-point precision: ``"float32"``, ``"bfloat16"`` or ``"auto"``.
    cache
        Whether to cache features on disk, in the folder ``embeddings`` of ``ST_PREDICT_CACHE``.
    tissue_only
        Whether spots off the tissue stay NaN.
    progress
        Whether to show a bar of slides. By default in a terminal or a notebook, after two seconds.

    Returns
    -------
    DataFrame
        The report, as :func:`predict_many` returns it. Each ``{id}.h5ad`` has the features as ``.X``.

    Raises
    ------
    ModuleNotFoundError
        If dask's ``distributed`` or the encoder's package is not installed.
    FileExistsError
        If another run works in ``out``.
    OSError
        If ``out`` cannot be written to, or its disk is full; finished slides are kept.
    ValueError
        If the list or an argument is invalid.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import st_predict as stp
    >>> from distributed import Client
    >>> with (
    ...     tempfile.TemporaryDirectory() as folder,
    ...     Client(processes=False, n_workers=1, dashboard_address=":0") as client,
    ... ):
    ...     stp.datasets.toy().write(Path(folder) / "toy.zarr")
    ...     report = stp.cohort.embed_many(
    ...         [f"{folder}/toy.zarr"], "rgb", out=f"{folder}/out", client=client, cache=False
    ...     )
    >>> print(*report.loc["toy", ["status", "spots"]])
    done 19
    """
    options = Options(client=client, n_workers=n_workers, shard=shard, check_first=check_first, retries=retries)
    options = replace(options, retry_failed=retry_failed, merge=merge)
    listed = list_slides(slides, pitch_um=pitch_um)
    where = Where(table_key=table_key, bin_um=bin_um, shapes_key=shapes_key, tissue_only=tissue_only)
    machine = Machine(device=device, precision=precision, batch_size=batch_size)
    found = get_encoder(encoder) if isinstance(encoder, str) else encoder
    spec = read_as(found, features=features, fields=fields, neighbours=neighbours, standardize=standardize)
    key = check("key_added", key_added, Text | None) or Keys.embedding(spec.name)
    task = EmbedTask(encoder=spec, described=load_encoder(spec).describe(), key=key, where=where, machine=machine)
    task = replace(task, at_mpp=at_mpp, cache=cache)
    return run(listed, task, out=out, options=options, device=device, need_mpp=task.needs_mpp)


def check_slides(
    slides: Slides,
    *,
    client: Client | str | None = None,
    n_workers: int | None = None,
    shard: tuple[int, int] | None = None,
    pitch_um: float = 100.0,
) -> pd.DataFrame:
    """Open all slides, and look for resolution and tissue, without computing anything.

    Parameters
    ----------
    slides
        List of slides, as in :func:`predict_many`.
    client
        Client of dask, or address of its scheduler. By default a local cluster.
    n_workers
        Number of workers of a local cluster.
    shard
        Number of this part, from 1, and number of parts.
    pitch_um
        Distance between grid spots in micrometres, for slides without spots and without their own ``pitch_um``.

    Returns
    -------
    DataFrame
        One row per slide, indexed by ``id``: ``status`` (``"done"`` if it can be used, ``"empty"`` without tissue,
        ``"failed"``), ``spots``, ``mpp``, ``mpp_source``, ``seconds``, ``peak_mib`` and ``error``.

    Raises
    ------
    ModuleNotFoundError
        If dask's ``distributed`` is not installed.
    ValueError
        If the list is invalid.

    Examples
    --------
    >>> import st_predict as stp
    >>> from distributed import Client
    >>> with Client(processes=False, n_workers=1, dashboard_address=":0") as client:
    ...     looked = stp.cohort.check_slides(["no.svs"], client=client)
    >>> looked.loc["no", "status"]
    'failed'
    """
    options = Options(client=client, n_workers=n_workers, shard=shard)
    return look_over_slides(list_slides(slides, pitch_um=pitch_um), options=options)
