"""A prediction as a page to hand over: one HTML file that asks no network for anything."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_predict._containers import check_slide
from st_predict._errors import InvalidValueError
from st_predict._files import whole
from st_predict._progress import shows_progress, track
from st_predict._validated import Count, File, Flag, Texts, check
from st_predict._where import Duplicates, GeneMatching, Where
from st_predict.io import named_table
from st_predict.pl._report_page import Shown, page_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    import pandas as pd
    from spatialdata import SpatialData

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
    """Write a page about a prediction: facts, weights, maps of genes to trust, scores and warnings.

    The page is one HTML file with its figures in it. It needs no network, and can be sent and printed.

    Parameters
    ----------
    sdata
        Slide with a prediction, or several by name: a cohort.
    key
        Key of the prediction; may be left out if there is only one.
    path
        HTML file to write. For a cohort, the new folder for one page per slide and ``index.html``.
    table_key
        Table of the spots; may be left out unless several tables have a prediction of this key.
    bin_um
        Side of the bins of Visium HD in micrometres, such as 16, instead of ``table_key``.
    image_key
        Image to draw on; may be left out if there is only one.
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
        Genes to map. By default the ``n_genes`` genes with the best scores on held-out sections among those to trust; if the
        card has no scores, the predictions with the highest spatial autocorrelation (Moran's I).
    n_genes
        Number of genes to map, at most.
    held_out
        Held-out sections that decide which genes to trust: other patients (``"patient"``), or other sections of training
        patients (``"section"``). By default other patients if the card has them.
    evaluation
        Scores of this prediction, for a cohort by name. By default, :func:`st_predict.tl.evaluate` computes them without
        training sections if the table has counts.
    score
        Whether the prediction is scored if ``evaluation`` is not given.
    overwrite
        Whether an existing file is replaced; a folder is not.
    progress
        Whether to show progress bars. By default in a terminal or a notebook, after two seconds.

    Returns
    -------
    The file, or ``index.html`` of a cohort.

    Raises
    ------
    FileExistsError
        If ``path`` is a file that exists and ``overwrite`` is false, or a folder that is not empty.
    KeyError, TypeError, ValueError
        If the prediction, a gene or an element does not exist or is ambiguous.

    Examples
    --------
    >>> st_predict.pl.report(sdata, "pred_m2ost", "slide.html")  # doctest: +SKIP
    """
    target, table_key = Path(check("path", path, File)), named_table(_first(sdata), table_key, bin_um)
    matching = GeneMatching(duplicates=duplicates, ignore_case=ignore_case, id_column=id_column, aliases=aliases)
    shown = Shown(
        genes=check("genes", genes, Texts | None),
        n_genes=check("n_genes", n_genes, Count),
        held_out=held_out,
        score=check("score", score, Flag),
        where=Where(image_key=image_key, table_key=table_key, layer=layer, genes=matching),
    )
    _check_new(target, overwrite=check("overwrite", overwrite, Flag), cohort=isinstance(sdata, Mapping))
    if isinstance(sdata, Mapping):
        return _cohort(sdata, key, target, shown, evaluations={} if evaluation is None else evaluation)
    if isinstance(evaluation, Mapping):
        raise InvalidValueError("evaluation must be the evaluation of the slide; a mapping is for a cohort.")
    _write(target, "report.html", page=page_of(sdata, key, shown, title=target.stem, evaluation=evaluation), index=None)
    return target


def _first(sdata: SpatialData | Mapping[str, SpatialData]) -> SpatialData:
    """Check the slides; return the first one."""
    slides = list(sdata.values()) if isinstance(sdata, Mapping) else [sdata]
    if not slides:
        raise InvalidValueError("A cohort has at least one slide, got none.")
    for slide in slides:
        check_slide(slide)
    return slides[0]


def _check_new(path: Path, *, overwrite: bool, cohort: bool) -> None:
    if not cohort and path.suffix != ".html":
        raise InvalidValueError(f"A report is an .html file, got {str(path)!r}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"Cannot write {str(path)!r}: there is no folder {str(path.parent)!r}.")
    if path.is_file() and cohort:
        raise InvalidValueError(f"The reports of several slides need a folder, and {str(path)!r} is a file.")
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
    """Write a page per slide, and one that lists them."""
    if not isinstance(evaluations, Mapping):
        raise InvalidValueError(
            "evaluation must be a mapping from the name of a slide to its evaluation, for a cohort."
        )
    names, pages = _file_names(slides), {}
    with whole(folder) as fresh:
        fresh.mkdir()
        for name, sdata in track(slides.items(), "Writing reports", len(slides), unit="slide"):
            page = page_of(sdata, key, shown, title=Path(name).stem, evaluation=evaluations.get(name))
            _write(fresh / names[name], "report.html", page=page, index=INDEX)
            pages[names[name]] = page
        _write(fresh / INDEX, "report_index.html", pages=pages)
    return folder / INDEX


def _file_names(slides: Mapping[str, SpatialData]) -> dict[str, str]:
    """Name of the file of each slide; a name may be a path."""
    names = {name: f"{Path(name).stem}.html" for name in slides}
    if len({*names.values(), INDEX}) <= len(slides):
        raise InvalidValueError(f"Each slide of a cohort needs a file name of its own, got {list(slides)}.")
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
