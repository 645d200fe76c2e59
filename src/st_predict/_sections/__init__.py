"""Sections for networks: spots and image, measured values, and network inputs."""

from __future__ import annotations

from st_predict._sections._cell_grid import CellGrid
from st_predict._sections._cells import CellReader
from st_predict._sections._colours import describe_colours
from st_predict._sections._context import Context, read_context
from st_predict._sections._familiar import warn_of_unfamiliar
from st_predict._sections._features import section_features
from st_predict._sections._few_genes import check_sums, warn_of_constant
from st_predict._sections._held_out import (
    HeldOutSection,
    Relation,
    StoredPrediction,
    TrainingSections,
    all_have_sd,
    common_key,
    join_held_out,
    measure_held_out,
    measure_training,
    pairs_of,
    read_stored,
    refuse_duplicates,
    refuse_other_networks,
    refuse_scored_in_training,
    refuse_trained,
    trained_pairs,
    warn_of_missing,
    warn_of_validation,
)
from st_predict._sections._inputs import encoder_of, inputs_of
from st_predict._sections._look import look_over, look_over_for
from st_predict._sections._measured import (
    Measured,
    keep_common,
    measure_each,
    measured_table,
    measured_table_key,
    patients_of,
    placed_table,
    select_genes,
)
from st_predict._sections._missing import advice_for, check_missing_levels
from st_predict._sections._needs import check_needs, needs_mpp
from st_predict._sections._observed import Observed, observe
from st_predict._sections._section import Section, Sections, Slide, as_list, each, naming, open_sdata
from st_predict._sections._slides import open_slides
from st_predict._sections._smooth import smoothed
from st_predict._sections._split import LeakageError, split_patients
from st_predict._sections._stained import mean_stain, stain_of, stained
from st_predict._sections._store import store_of
from st_predict._sections._teacher import taught, teacher_of
from st_predict._sections._unlabelled import open_unlabelled

__all__ = [
    "advice_for",
    "check_missing_levels",
    "CellGrid",
    "CellReader",
    "Context",
    "HeldOutSection",
    "LeakageError",
    "Measured",
    "Observed",
    "Relation",
    "Section",
    "Sections",
    "Slide",
    "StoredPrediction",
    "TrainingSections",
    "all_have_sd",
    "as_list",
    "check_needs",
    "check_sums",
    "common_key",
    "describe_colours",
    "each",
    "encoder_of",
    "inputs_of",
    "join_held_out",
    "keep_common",
    "look_over",
    "look_over_for",
    "measure_each",
    "measure_held_out",
    "measure_training",
    "measured_table",
    "measured_table_key",
    "naming",
    "needs_mpp",
    "observe",
    "mean_stain",
    "open_sdata",
    "open_slides",
    "open_unlabelled",
    "pairs_of",
    "patients_of",
    "placed_table",
    "read_context",
    "read_stored",
    "refuse_duplicates",
    "refuse_other_networks",
    "refuse_scored_in_training",
    "refuse_trained",
    "section_features",
    "select_genes",
    "split_patients",
    "stain_of",
    "stained",
    "smoothed",
    "store_of",
    "taught",
    "teacher_of",
    "trained_pairs",
    "warn_of_constant",
    "warn_of_missing",
    "warn_of_unfamiliar",
    "warn_of_validation",
]
