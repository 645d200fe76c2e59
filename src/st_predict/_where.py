"""Location of a slide's data: elements, counts, genes, patients, resolution."""

from __future__ import annotations

from collections.abc import Mapping  # pydantic needs it at run time
from dataclasses import field
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator

from st_predict._identifiers import GeneAliases
from st_predict._keys import Keys
from st_predict._stain import Stain
from st_predict._validated import Flag, Positive, Text, validated

__all__ = ["Duplicates", "GeneMatching", "Missing", "Where"]

Duplicates: TypeAlias = Literal["error", "sum", "first"]
Missing: TypeAlias = Literal["error", "drop"]
MissingLevels: TypeAlias = Literal["error", "mask"]


@validated
class GeneMatching:
    """Options to match panel genes to a table; see :func:`st_predict.pp.align_panel`.

    Parameters
    ----------
    missing
        Handling of genes that a table lacks: error, or drop.
    duplicates
        Handling of genes with several columns in a table.
    ignore_case
        Whether to ignore case when gene symbols are matched.
    id_column
        Column of ``.var`` with the identifiers; ``None`` to find it.
    aliases
        Other names of genes, as :class:`~st_predict._identifiers.GeneAliases`, a table or a file.
    """

    missing: Missing = "error"
    duplicates: Duplicates = "error"
    ignore_case: Flag = False
    id_column: Text | None = None
    aliases: Annotated[Any, BeforeValidator(GeneAliases.of)] = None


@validated
class Where:
    """Elements of a slide to use.

    Parameters
    ----------
    image_key
        Key of the image, or a mapping from region to key.
    table_key
        Key of the spots' table.
    bin_um
        Bin size of Visium HD in micrometres; alternative to ``table_key``.
    shapes_key
        Key of the spots' shapes.
    layer
        Layer with the raw counts; ``None`` for ``.X``.
    mpp
        Micrometres per pixel of the image at level 0, if given, or a mapping from region to mpp.
    group_key
        Column of ``.obs`` that names the patient.
    tissue_only
        Whether to leave out spots off the tissue (``in_tissue`` in ``.obs`` is 0).
    genes
        Options to match panel genes to the table.
    stain
        Reference stain for normalisation; ``None`` for none.
    missing_levels
        Handling of crop levels that are finer than the image: refused, or masked.
    """

    image_key: Text | Mapping[str, str] | None = None
    table_key: Text | None = None
    bin_um: Positive | None = None
    shapes_key: Text | None = None
    layer: Text | None = None
    mpp: Positive | Mapping[str, Positive] | Literal["spots"] | None = None
    group_key: Text = Keys.PATIENT
    tissue_only: Flag = True
    genes: GeneMatching = field(default_factory=GeneMatching)
    stain: Stain | None = None
    missing_levels: MissingLevels = "error"
