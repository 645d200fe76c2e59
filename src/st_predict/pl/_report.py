"""Report of a prediction as one HTML file that works offline."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_predict._containers import check_slide
from st_predict._errors import InvalidValueError, StPredictError
from st_predict._files import whole
from st_predict._progress import shows_progress, track
from st_predict._validated import Count, File, Flag, Text, Texts, check
from st_predict._where import Duplicates, GeneMatching, Where
from st_predict.io import named_table
from st_predict.pl._report_page import Shown, page_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    import pandas as pd
    from spatialdata import SpatialData

    from st_predict.pl._report_page import Page
    from st_predict.specs import HeldOut
    from st_predict.tl import Evaluation

__all__ = ["report"]

logger = logging.getLogger(__name__)

INDEX = "index.html"


@shows_progress
def report(  # noqa: PLR0913 - all options are keywords
    sdata: SpatialData | Mapping[str, SpatialData],
    key: str | None = None,
    path: str | PathLike[str] = "report.html",
    *,
    table_key: str | None = None,
    bin_um: float | None = None,
    image_key: str | None = None,
    region: str | None = None,
    layer: str | None = None,
    duplicates: Duplicates = "error",
    ignore_case: bool = False,
    id_column: str | None = None,
    aliases: pd.DataFrame | PathLike[str] | str | None = None,
    genes: Sequence[str] | None = None,
    n_genes: int = 12,
    held_out: HeldOut | None = None,
    evaluation: Evaluation | Mapping[str, Evaluation] | None = None,
    score: bool = True,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Path:
    """Write a report of a prediction: settings, weights, maps of reliable genes, scores and warnings.

    The report is one HTML file that includes its figures. It works offline, and can be sent and printed.

    Parameters
    ----------
    sdata
        Slide with a prediction, or a mapping from name to slide: a cohort.
    key
        Key of the prediction; optional if there is only one.
    path
        HTML file to write. For a cohort, the new folder for one page per slide and ``index.html``.
    table_key
        Key of the spots' table; required if several tables have a prediction of this key.
    bin_um
        Bin size of Visium HD in micrometres, such as 16; alternative to ``table_key``.
    image_key
        Image to draw on; may be left out if there is only one.
    region
        Section to report on, if the table annotates several.
    layer
        Layer with the raw counts; by default ``X``.
    duplicates
        Treatment of genes in several columns of the table: refuse them, ``"sum"`` their counts, or take the ``"first"``.
    ignore_case
        Whether to match gene symbols without regard to case.
    id_column
        Column of ``.var`` with gene identifiers. By default ``var_names``, or the only column with genes of the panel.
    aliases
        Table of former gene symbols, in the format of the HGNC complete set; see :func:`st_predict.pp.align_panel`.
    genes
        Genes to map. By default the ``n_genes`` reliable genes with the best scores on held-out sections; if the card
        has no scores, the genes whose predictions have the highest spatial autocorrelation (Moran's I).
    n_genes
        Maximum number of genes to map.
    held_out
        Held-out sections that decide which genes are reliable: other patients (``"patient"``) or other sections of
        training patients (``"section"``). By default other patients if the card has them.
    evaluation
        Scores of this prediction; for a cohort, a mapping from name to scores. By default,
        :func:`st_predict.tl.evaluate` computes them without training sections if the table has counts.
    score
        Whether to score the prediction if ``evaluation`` is not given.
    overwrite
        Whether to replace an existing file; folders are never replaced.
    progress
        Whether to show progress bars. By default in a terminal or a notebook, after two seconds.

    Returns
    -------
    Path
        Path of the file, or of ``index.html`` for a cohort.

    Raises
    ------
    FileExistsError
        If ``path`` is an existing file and ``overwrite`` is false, or a folder with files.
    KeyError, TypeError, ValueError
        If the prediction, a gene or an element does not exist or is ambiguous.

    Examples
    --------
    >>> import tempfile
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> with tempfile.TemporaryDirectory() as out:
    ...     result = stp.tl.train(sdata, "ridge", panel=["GENE1", "GENE2", "GENE3"], out=out)
    ...     stp.tl.predict(sdata, result)
    ...     path = stp.pl.report(sdata, path=out + "/toy.html", n_genes=1)
    ...     path.name
    'toy.html'
    """
    target, table_key = Path(check("path", path, File)), named_table(_first(sdata), table_key, bin_um)
    matching = GeneMatching(duplicates=duplicates, ignore_case=ignore_case, id_column=id_column, aliases=aliases)
    shapes_key = check("region", region, Text | None)
    shown = Shown(
        genes=check("genes", genes, Texts | None),
        n_genes=check("n_genes", n_genes, Count),
        held_out=held_out,
        score=check("score", score, Flag),
        where=Where(image_key=image_key, table_key=table_key, shapes_key=shapes_key, layer=layer, genes=matching),
    )
    _check_new(target, overwrite=check("overwrite", overwrite, Flag), cohort=isinstance(sdata, Mapping))
    if isinstance(sdata, Mapping):
        return _cohort(sdata, key, target, shown, evaluations={} if evaluation is None else evaluation)
    if isinstance(evaluation, Mapping):
        raise InvalidValueError("evaluation must be an Evaluation for a single slide; a mapping is for a cohort.")
    _write(target, "report.html", page=page_of(sdata, key, shown, title=target.stem, evaluation=evaluation), index=None)
    return target


def _first(sdata: SpatialData | Mapping[str, SpatialData]) -> SpatialData:
    """Check the slides; return the first one."""
    slides = list(sdata.values()) if isinstance(sdata, Mapping) else [sdata]
    if not slides:
        raise InvalidValueError("A cohort needs at least one slide, got an empty mapping.")
    for slide in slides:
        check_slide(slide)
    return slides[0]


def _check_new(path: Path, *, overwrite: bool, cohort: bool) -> None:
    if not cohort and path.suffix != ".html":
        raise InvalidValueError(f"path must be an .html file, got {str(path)!r}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"Cannot write {str(path)!r}: the folder {str(path.parent)!r} does not exist.")
    if path.is_file() and cohort:
        raise InvalidValueError(f"path must be a folder for several slides, got the file {str(path)!r}.")
    if path.exists() and not overwrite and not cohort:
        raise FileExistsError(f"{str(path)!r} exists; choose another name, or replace it with overwrite=True.")


def _cohort(
    slides: Mapping[str, SpatialData],
    key: str | None,
    folder: Path,
    shown: Shown,
    *,
    evaluations: Evaluation | Mapping[str, Evaluation],
) -> Path:
    """Write one page per slide, and an index page."""
    if not isinstance(evaluations, Mapping):
        raise InvalidValueError(
            "evaluation must be a mapping from the name of a slide to its evaluation, for a cohort."
        )
    names, pages = _file_names(slides), {}
    with whole(folder) as fresh:
        fresh.mkdir()
        for name, sdata in track(slides.items(), "Writing reports", len(slides), unit="slide"):
            page = _page_of(sdata, key, shown, name=name, evaluation=evaluations.get(name))
            _write(fresh / names[name], "report.html", page=page, index=INDEX)
            pages[names[name]] = page.without_figures()  # a cohort may be large
        _write(fresh / INDEX, "report_index.html", pages=pages)
    return folder / INDEX


def _page_of(sdata: SpatialData, key: str | None, shown: Shown, *, name: str, evaluation: Evaluation | None) -> Page:
    """Collect the content of a slide of a cohort; errors name it."""
    try:
        return page_of(sdata, key, shown, title=_title(name), evaluation=evaluation)
    except StPredictError as error:
        raise error.about(f"Slide {name!r}:") from error


def _title(name: str) -> str:
    """Name of a slide, which may be the path of its store."""
    return Path(name).name.removesuffix(".zarr")


def _file_names(slides: Mapping[str, SpatialData]) -> dict[str, str]:
    """File name of each slide."""
    names = {name: f"{_title(name)}.html" for name in slides}
    if len({*names.values(), INDEX}) <= len(slides):
        raise InvalidValueError(f"Each slide of a cohort needs a different file name, got {list(slides)}.")
    return names


def _write(path: Path, template: str, **values: Any) -> None:
    text = _templates().get_template(template).render(**values)
    with whole(path) as fresh:
        fresh.write_text(text, encoding="utf-8")
    logger.info("Wrote %s (%.1f MB).", path, len(text) / 1e6)


@cache
def _templates() -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: files("st_predict.pl").joinpath(f"{name}.jinja").read_text("utf-8")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
