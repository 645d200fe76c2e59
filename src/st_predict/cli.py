"""Command line: each command reads files, makes one or two calls of the library and writes files."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup, TyperOption

import st_predict as stp
from st_predict._errors import Advice, InvalidValueError, StPredictError
from st_predict._files import whole
from st_predict._keys import Keys
from st_predict._progress import shown
from st_predict._version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from spatialdata import SpatialData

    from st_predict.specs import ModelCard, Reliability

__all__ = ["app"]


class _Commands(TyperGroup):
    """Command group that prints input errors in one line, and advice to report faults of the program."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            # typer handles its own errors: wrong options, exits
            if os.environ.get("ST_PREDICT_DEBUG") or type(error).__module__.partition(".")[0] in {"typer", "click"}:
                raise
            typer.secho(f"Error: {self._explain(error, ctx.invoked_subcommand)}", fg="red", err=True)
            raise typer.Exit(1) from error

    def _explain(self, error: Exception, command: str | None) -> str:
        if isinstance(error, StPredictError):
            params = self.commands[str(command)].params
            options = {str(p.name): p.opts[0] for p in params if isinstance(p, TyperOption)}
            options |= {_NOT + str(p.name): p.secondary_opts[0] for p in params if p.secondary_opts}
            said = " ".join(_in_files(error).say(lambda way: _option(way, options)).split())
            name = said.partition(" ")[0]
            return f"{options[name]}{said.removeprefix(name)}" if name in options else said
        if isinstance(error, OSError | ImportError):
            return " ".join(str(error).split())
        if _lacks_memory(error):
            return f"Out of memory ({' '.join(str(error).split())})."
        what = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        return (
            f"This is a fault of st_predict {__version__} ({what}). Please report it to the developers, with the command and its "
            "output with ST_PREDICT_DEBUG=1 in front."
        )


def _lacks_memory(error: Exception) -> bool:
    from st_predict._memory import is_out_of_memory

    return is_out_of_memory(error) or "can't start new thread" in str(error)


_CODE = re.compile(r"\b(?:sdata|spatialdata|st_predict)\.|\.(?:obs|var|uns)\b|uns_merge=")

_CALL = re.compile(
    r"st_predict\.tl\.(?P<verb>train|predict|embed|evaluate|calibrate|superresolve)(?:\(\.\.\., (?P<option>\w+)=[^)]*\))?"
)

_NOT = "not "
"""Prefix of the name of an option that switches another option off."""

_EXPORTS = (".geojson", ".parquet", ".csv", ".ome.tif", ".ome.zarr")
"""File types of exported predictions."""

_NAMES = {
    "key_added": "key",
    "checkpoints": "model",
    "sdatas": "sections",
    "client": "scheduler",
    "n_workers": "workers",
    "check_first": "check",
}
"""Options with another name than the function's argument."""


def _in_files(error: StPredictError) -> StPredictError:
    """Name files instead of objects, and mark advice that only works in Python."""
    ways = [_in_shell(way) if isinstance(way, str) else way for way in error.advice]
    return type(error)(re.sub(r"\bsdata\b", "the file", _commands(error.found)), *ways)


def _in_shell(way: str) -> str:
    way = _commands(way)
    return f"in Python, {way}" if _CODE.search(way) else way


def _commands(text: str) -> str:
    """Write verbs as commands: ``st_predict.tl.predict(..., n_samples=...)`` is ``st-predict predict --n-samples``."""

    def command(call: re.Match[str]) -> str:
        option = "" if call["option"] is None else f" --{call['option'].replace('_', '-')}"
        return f"st-predict {call['verb']}{option}"

    return _CALL.sub(command, text)


def _option(way: Advice, options: Mapping[str, str]) -> str | None:
    """Write an argument as the option of a command; ``None`` if it has no such option."""
    name = _NAMES.get(way.argument, way.argument)
    option = options.get(_NOT + name if way.value is False else name)
    if option is None or way.value is False:
        return option
    if isinstance(way.value, list):
        return " ".join(f"{option} {value}" for value in way.value)
    return option if way.value is None or way.value is True else f"{option} {way.value}"


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Spatial gene expression from H&E images.",
)

Sections = Annotated[list[Path], typer.Argument(help="SpatialData stores (.zarr), one per section.")]
Out = Annotated[Path, typer.Option(help="New folder for the results.")]
Key = Annotated[str | None, typer.Option(help="Key of the prediction; needed if there are several.")]
Preset = Annotated[
    str,
    typer.Option(
        help="Target, panel and training settings: recommended (corrects for sequencing depth), paper (settings of the M2OST paper) or original (settings of the model's own publication)."
    ),
]
MinCounts = Annotated[
    int | None, typer.Option(help="Minimum panel counts per spot; by default 50 for spots of at least 50 um.")
]
MissingLevels = Annotated[
    str,
    typer.Option(
        help="Levels of the network with finer pixels than the image has: error, or mask to use only the other levels."
    ),
]
TissueOnly = Annotated[
    bool,
    typer.Option("--tissue-only/--all-spots", help="Leave out spots whose in_tissue in .obs is 0, or keep all spots."),
]
Regions = Annotated[
    int | None, typer.Option(help="Section-level models: number of random regions per section and epoch.")
]
Checkpoints = Annotated[
    list[str] | None,
    typer.Option(help="Released checkpoint (default: m2ost) or path of a .safetensors file; several are an ensemble."),
]
ImageKey = Annotated[str | None, typer.Option(help="Name of the image; needed if there are several.")]
TableKey = Annotated[str | None, typer.Option(help="Name of the spot table; needed if there are several.")]
BinUm = Annotated[float | None, typer.Option(help="Visium HD: side of the bins in um; by default 8.")]
ShapesKey = Annotated[str | None, typer.Option(help="Name of the spot shapes; takes the table that annotates them.")]
Layer = Annotated[str | None, typer.Option(help="Layer of the table with the raw counts; by default X.")]
MissingGenes = Annotated[
    str, typer.Option("--missing", help="How to treat panel genes that a table lacks: error or drop.")
]
DuplicateGenes = Annotated[
    str, typer.Option("--duplicates", help="How to treat genes in several columns: error, sum or first.")
]
IgnoreCase = Annotated[bool, typer.Option("--ignore-case", help="Ignore case when gene symbols are matched.")]
IdColumn = Annotated[str | None, typer.Option(help="Column of .var with gene identifiers.")]
Aliases = Annotated[
    Path | None, typer.Option(help="Table of former gene symbols, in the format of the HGNC complete set.")
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Resume from the last epoch in --out. Its files are read as data and never executed."
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Accept everything that the checkpoint's card names: encoders from any source, paths of files.",
    ),
]
Device = Annotated[str, typer.Option(help="Device: auto (first GPU, if any), cpu, cuda, cuda:1 or mps.")]
PitchUm = Annotated[float, typer.Option(help="Slides without spots: distance between grid spots in um.")]
ShapesToPredict = Annotated[str | None, typer.Option(help="Name of the shapes to predict; ignores tables.")]
PredictionKey = Annotated[str | None, typer.Option(help="Key of the prediction; by default pred_ and the model name.")]
Precision = Annotated[str, typer.Option(help="Floating-point precision: auto, float32 or bfloat16.")]
CutTissue = Annotated[
    str, typer.Option(help="Spots whose field of view is cut by the image border within tissue: keep or nan.")
]
Symmetries = Annotated[int | None, typer.Option(help="Number of crop symmetries averaged at test time: 1 or 8.")]
HparamsAtPrediction = Annotated[
    str | None, typer.Option(help="Hyper-parameters that may change at prediction, as JSON: '{\"k\": 20}'.")
]
Seed = Annotated[int, typer.Option(help="Random seed for sampling.")]
IgnoreStain = Annotated[
    bool,
    typer.Option("--ignore-stain", help="Do not normalise the stain, although the network was trained with --stain."),
]
Samples = Annotated[
    int | None, typer.Option(help="Number of stochastic predictions per spot; adds their standard deviation.")
]


def _print_version(asked: bool) -> None:  # noqa: FBT001  # as typer calls it
    if asked:
        typer.echo(f"st-predict {__version__}")
        raise typer.Exit


@app.callback()
def _start(
    context: typer.Context,
    *,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Report every step.")] = False,
    progress: Annotated[
        bool | None, typer.Option("--progress/--no-progress", help="Progress bars; by default only in a terminal.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    context.with_resource(shown(progress=progress))
    handler = logging.StreamHandler()
    handler.setLevel("INFO" if verbose else "WARNING")  # distributed sets its own loggers to INFO
    logging.basicConfig(level="WARNING", format="%(message)s", handlers=[handler])
    logging.getLogger("st_predict").setLevel("INFO" if verbose else "WARNING")
    if not verbose:  # library warnings for developers
        for about in ("zarr v3 autosharding", "Call to deprecated class", "The '.*' option is deprecated"):
            warnings.filterwarnings("ignore", message=about)


@app.command()
def demo(
    out: Out = Path("st-predict-demo"),
    seed: Annotated[int, typer.Option(help="Random seed for simulation and training.")] = 0,
) -> None:
    """Simulate sections, train a small M2OST, predict an unseen patient and score it against baselines. Works offline."""
    folder = _new_folder(out)
    typer.echo("Simulating one section per patient, for six patients ...")
    *train, choose, held_out = stp.datasets.simulate(6, 1, n_genes=40, seed=seed).sections.values()
    typer.echo("Training a small M2OST on four patients, with a fifth for validation ...")
    result = stp.tl.train(
        train,
        "m2ost",
        panel=train[0].tables["table"].var_names.tolist(),
        out=folder / "model",
        validation=[choose],
        mpp=3.5,  # 64 px see the 224 um that 224 px see at 1 um/px
        hparams={"dim": 96, "depth": 2, "head_dim": 32, "size": 64},
        config=stp.tl.TrainConfig(epochs=40, batch_size=16, lr=5e-4, schedule="cosine", seed=seed),
    )
    typer.echo("Predicting the sixth patient ...")
    stp.tl.predict(held_out, result.checkpoint)
    evaluation = stp.tl.evaluate([held_out], train=train)
    best = evaluation.genes.query("predictor == 'pred_m2ost'").nlargest(3, "partial")["gene"].tolist()
    held_out.write(folder / "P6S1.zarr")
    stp.pl.spatial(held_out, best, save=folder / "predicted.png", show=False)
    stp.pl.scores(evaluation, save=folder / "scores.png", show=False)
    evaluation.summary.to_csv(folder / "scores.csv", index=False)
    typer.echo(str(evaluation))
    for name in ("P6S1.zarr", "predicted.png", "scores.png", "scores.csv", "model/m2ost.safetensors"):
        typer.echo(f"Wrote {folder / name}")


@app.command()
def train(  # noqa: PLR0913  # options of a command line
    sections: Sections,
    out: Out,
    panel: Annotated[str, typer.Option(help="File with one gene per line, or number of genes to select.")],
    model: Annotated[str, typer.Option(help="Name of a model.")] = "m2ost",
    validation: Annotated[
        list[Path] | None, typer.Option(help="Validation sections, which choose the best epoch.")
    ] = None,
    hold_out: Annotated[list[str] | None, typer.Option(help="Patients whose sections are used for validation.")] = None,
    group_key: Annotated[str, typer.Option(help="Column of .obs with the patient.")] = "patient",
    allow_shared: Annotated[
        list[str] | None, typer.Option(help="Patients that may be in training and in validation.")
    ] = None,
    image_key: ImageKey = None,
    table_key: TableKey = None,
    bin_um: BinUm = None,
    shapes_key: ShapesKey = None,
    layer: Layer = None,
    missing: MissingGenes = "error",
    duplicates: DuplicateGenes = "error",
    ignore_case: IgnoreCase = False,  # noqa: FBT002
    id_column: IdColumn = None,
    aliases: Aliases = None,
    mpp: Annotated[float | None, typer.Option(help="Training resolution in um/px.")] = None,
    preset: Preset = "recommended",
    min_counts: MinCounts = None,
    tissue_only: TissueOnly = True,  # noqa: FBT002
    missing_levels: MissingLevels = "error",
    stain: Annotated[
        str | None, typer.Option(help="Stain normalisation to the training slides: macenko or reinhard.")
    ] = None,
    hparams: Annotated[str | None, typer.Option(help="Hyper-parameters as JSON: '{\"depth\": 6}'.")] = None,
    unlabelled: Annotated[
        list[Path] | None, typer.Option(help="Slides without counts, for semi-supervised training.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Number of rounds of pseudo-labelling of the --unlabelled slides.")] = 5,
    epochs: Annotated[int | None, typer.Option(help="Number of epochs; by default the preset's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Number of spots per step, for spot-level models.")] = None,
    regions: Regions = None,
    regions_per_step: Annotated[
        int | None, typer.Option(help="Section-level models: number of sections or regions per step.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Schedule of the learning rate: constant or cosine.")] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after this number of epochs without a better validation score.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed for initial weights, order and augmentation.")] = None,
    device: Device = "auto",
    devices: Annotated[int, typer.Option(help="Number of devices per machine; each has a process.")] = 1,
    num_nodes: Annotated[
        int, typer.Option(help="Number of machines, on which torchrun or srun starts the command once per device.")
    ] = 1,
    strategy: Annotated[
        str, typer.Option(help="Strategy of Lightning: auto, ddp or ddp_find_unused_parameters_true.")
    ] = "auto",
    resume: Resume = False,  # noqa: FBT002
) -> None:
    """Train a model on measured sections."""
    if validation and hold_out:
        raise InvalidValueError("--validation and --hold-out exclude each other; leave out one of them.")
    sizes = {"epochs": epochs, "batch_size": batch_size, "regions": regions, "regions_per_step": regions_per_step}
    config = {**sizes, "lr": lr, "schedule": schedule, "patience": patience, "seed": seed, "device": device}
    result = stp.tl.train(
        _read(sections),
        model,
        panel=int(panel) if panel.isdecimal() else stp.pp.read_panel(panel),
        out=out,
        validation=_read(validation) if validation else hold_out or None,
        group_key=group_key,
        allow_shared=allow_shared or (),
        image_key=image_key,
        table_key=table_key,
        bin_um=bin_um,
        shapes_key=shapes_key,
        layer=layer,
        missing=missing,  # type: ignore[arg-type]  # checked by the function
        duplicates=duplicates,  # type: ignore[arg-type]
        ignore_case=ignore_case,
        id_column=id_column,
        aliases=aliases,
        mpp=mpp,
        preset=preset,  # type: ignore[arg-type]  # checked by the function
        min_counts=min_counts,
        tissue_only=tissue_only,
        missing_levels=missing_levels,  # type: ignore[arg-type]  # checked by the function
        stain=stain,  # type: ignore[arg-type]  # checked by the function
        hparams=_parse(hparams),
        config={name: value for name, value in config.items() if value is not None},
        unlabelled=_read(unlabelled) if unlabelled else None,
        rounds=rounds,
        resume=resume,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,  # type: ignore[arg-type]  # checked by the function
    )
    typer.echo(f"Wrote {result.checkpoint}")


@app.command()
def predict(  # noqa: PLR0913  # options of a command line
    slide: Annotated[Path, typer.Argument(help="SpatialData store (.zarr), slide, TIFF, PNG or JPEG.")],
    out: Annotated[
        Path, typer.Option(help="New .zarr with the slide and the prediction, or .h5ad with only the prediction.")
    ],
    model: Checkpoints = None,
    image_key: ImageKey = None,
    table_key: TableKey = None,
    bin_um: BinUm = None,
    mpp: Annotated[
        float | None, typer.Option(help="Micrometres per pixel; needed if the file does not state it.")
    ] = None,
    pitch_um: PitchUm = 100.0,
    shapes_key: ShapesToPredict = None,
    key: PredictionKey = None,
    device: Device = "auto",
    precision: Precision = "auto",
    cut_tissue: CutTissue = "keep",
    tissue_only: TissueOnly = True,  # noqa: FBT002
    missing_levels: MissingLevels = "error",
    ignore_stain: IgnoreStain = False,  # noqa: FBT002
    symmetries: Symmetries = None,
    hparams: HparamsAtPrediction = None,
    trust: Trust = False,  # noqa: FBT002
    n_samples: Samples = None,
    seed: Seed = 0,
    context: Annotated[
        str | None, typer.Option(help="Boolean column of .obs that selects the context spots, whose counts are read.")
    ] = None,
    layer: Layer = None,
    duplicates: DuplicateGenes = "error",
    ignore_case: IgnoreCase = False,  # noqa: FBT002
    id_column: IdColumn = None,
    aliases: Aliases = None,
    calibration: Annotated[
        Path | None, typer.Option(help="File from st-predict calibrate; adds prediction intervals.")
    ] = None,
    reliable: Annotated[  # noqa: FBT002
        bool, typer.Option("--reliable", help="Write only reliable genes, to an .h5ad; st-predict card lists them.")
    ] = False,
    min_score: Annotated[
        float | None, typer.Option(help="Write only genes with at least this partial correlation on held-out sections.")
    ] = None,
    held_out: Annotated[
        str | None, typer.Option(help="Held-out sections behind --reliable and --min-score: patient or section.")
    ] = None,
) -> None:
    """Predict gene expression of a slide's spots; for slides without spots, of a grid over the tissue."""
    _check_new(out, suffixes=(".zarr", ".h5ad"))
    intervals = None if calibration is None else stp.tl.Calibration.load(calibration)
    if intervals is not None:
        key = key or intervals.key
        _check_intervals(intervals, key, spreads=n_samples is not None or len(model or []) > 1)
    checkpoints = [stp.checkpoints.find_weights(name) for name in model or ["m2ost"]]
    chosen = _Genes(min_score=min_score, reliable=reliable, held_out=held_out)
    chosen.check(out, checkpoints)
    sdata = _read_one(slide)
    if not sdata.shapes and not sdata.tables:
        stp.pp.make_grid(sdata, image_key=image_key, pitch_um=pitch_um, mpp=mpp)
    names = {stp.specs.ModelCard.of_file(checkpoint).model for checkpoint in checkpoints}
    key = key or Keys.joint_prediction(names)
    stp.tl.predict(
        sdata,
        checkpoints,
        image_key=image_key,
        table_key=table_key,
        bin_um=bin_um,
        shapes_key=shapes_key,
        mpp=mpp,
        key_added=key,
        device=device,
        precision=precision,  # type: ignore[arg-type]  # checked by the function
        cut_tissue=cut_tissue,  # type: ignore[arg-type]  # checked by the function
        tissue_only=tissue_only,
        missing_levels=missing_levels,  # type: ignore[arg-type]  # checked by the function
        stain=False if ignore_stain else None,
        symmetries=symmetries,  # type: ignore[arg-type]  # checked by Inference
        hparams=_parse(hparams),
        trust=trust,
        n_samples=n_samples,
        seed=seed,
        context=context,
        layer=layer,
        duplicates=duplicates,  # type: ignore[arg-type]  # checked by the function
        ignore_case=ignore_case,
        id_column=id_column,
        aliases=aliases,
    )
    if intervals is not None:
        intervals.apply(sdata, table_key=table_key, bin_um=bin_um)
    _write_result(out, sdata, key, chosen)


@app.command()
def embed(  # noqa: PLR0913  # every one is an option
    slide: Annotated[Path, typer.Argument(help="SpatialData store (.zarr) with spots.")],
    out: Annotated[Path, typer.Option(help="New .zarr with the slide and the features.")],
    encoder: Annotated[str, typer.Option(help="Encoder: rgb, uni, ..., or the name of a timm model.")] = "rgb",
    image_key: ImageKey = None,
    mpp: Annotated[
        float | None, typer.Option(help="Micrometres per pixel; needed if the file does not state it.")
    ] = None,
    at_mpp: Annotated[
        float | None, typer.Option(help="Resolution of the crops in um/px; by default the encoder's.")
    ] = None,
    features: Annotated[
        str | None, typer.Option(help="Features to use: head, or stages (the middle layers of a timm network).")
    ] = None,
    fields: Annotated[list[int] | None, typer.Option(help="Field of view in pixels; repeat for several.")] = None,
    neighbours: Annotated[
        int | None, typer.Option(help="Number of nearest spots whose mean features are appended.")
    ] = None,
    standardize: Annotated[
        bool | None, typer.Option("--standardize", help="Standardise each feature over the spots of each section.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Compute encoder features of the image around each spot."""
    _check_new(out, suffixes=(".zarr",))
    sdata = _read_one(slide)
    stp.tl.embed(
        sdata,
        encoder,
        image_key=image_key,
        mpp=mpp,
        at_mpp=at_mpp,
        features=features,  # type: ignore[arg-type]  # checked by the function
        fields=fields,
        neighbours=neighbours,
        standardize=standardize,
        device=device,
    )
    _write_whole(out, sdata.write)
    typer.echo(f"Wrote {out}")


@app.command()
def evaluate(  # noqa: PLR0913  # options of a command line
    sections: Sections,
    out: Annotated[Path, typer.Option(help="New .csv with one row per section and predictor.")],
    key: Key = None,
    train: Annotated[
        list[Path] | None, typer.Option(help="Training sections, to which the baselines are fitted.")
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            help="Baseline to fit to --train: global_mean, patient_mean, position or ridge (the only one that reads the "
            "images); repeat for several. By default all."
        ),
    ] = None,
    group_key: Annotated[str, typer.Option(help="Column of .obs with the patient.")] = "patient",
    image_key: ImageKey = None,
    table_key: TableKey = None,
    bin_um: BinUm = None,
    shapes_key: ShapesKey = None,
    layer: Layer = None,
    missing: MissingGenes = "error",
    duplicates: DuplicateGenes = "error",
    ignore_case: IgnoreCase = False,  # noqa: FBT002
    id_column: IdColumn = None,
    aliases: Aliases = None,
    mpp: Annotated[
        float | None, typer.Option(help="Micrometres per pixel of the images, for the baseline ridge.")
    ] = None,
    min_counts: MinCounts = None,
    tissue_only: TissueOnly = True,  # noqa: FBT002
) -> None:
    """Score stored predictions and baselines against measured counts."""
    _check_new(out, suffixes=(".csv",))
    evaluation = stp.tl.evaluate(
        _read(sections),
        key=key,
        train=_read(train) if train else None,
        baselines=baseline,  # type: ignore[arg-type]  # checked by the function
        group_key=group_key,
        image_key=image_key,
        table_key=table_key,
        bin_um=bin_um,
        shapes_key=shapes_key,
        layer=layer,
        missing=missing,  # type: ignore[arg-type]
        duplicates=duplicates,  # type: ignore[arg-type]
        ignore_case=ignore_case,
        id_column=id_column,
        aliases=aliases,
        mpp=mpp,
        min_counts=min_counts,
        tissue_only=tissue_only,
    )
    _write_whole(out, lambda path: evaluation.summary.to_csv(path, index=False))
    typer.echo(str(evaluation))
    typer.echo(f"Wrote {out}")


@app.command()
def export(  # noqa: PLR0913  # options of a command line
    section: Annotated[Path, typer.Argument(help="SpatialData store (.zarr) with a prediction.")],
    out: Annotated[Path, typer.Option(help="New .geojson (QuPath), .parquet, .csv, .ome.tif, or folder .ome.zarr.")],
    key: Key = None,
    genes: Annotated[
        list[str] | None, typer.Option("--gene", help="Gene to write; repeat for several. By default all.")
    ] = None,
    color: Annotated[
        str | None, typer.Option(help="Gene, or column of .obs, that colours the spots of a .geojson.")
    ] = None,
    square: Annotated[  # noqa: FBT002
        bool,
        typer.Option("--square", help="Draw spots with a radius as squares, not circles; for .geojson and rasters."),
    ] = False,
    downsample: Annotated[float | None, typer.Option(help="Pixels of the image per pixel of a raster.")] = None,
    image_key: ImageKey = None,
    table_key: TableKey = None,
    bin_um: BinUm = None,
    region: Annotated[str | None, typer.Option(help="Section of a table that annotates several.")] = None,
) -> None:
    """Export a prediction for other programs: QuPath, R, napari, image viewers."""
    kind = next((ending for ending in _EXPORTS if out.name.endswith(ending)), None)
    _check_new(out, suffixes=_EXPORTS if kind is None else (out.suffix,))
    raster, outline = kind in {".ome.tif", ".ome.zarr"}, "square" if square else None
    if (color and kind != ".geojson") or (downsample and not raster) or (square and kind in {".parquet", ".csv"}):
        raise InvalidValueError(f"An option does not apply to {kind} files; see st-predict export --help.")
    sdata = _read_one(section)
    prediction = stp.get.prediction(sdata, key, table_key=table_key, bin_um=bin_um)
    write: Callable[..., Path] = stp.io.write_table
    if raster:
        write = partial(stp.io.write_raster, outline=outline, downsample=downsample)  # type: ignore[arg-type]
    elif kind == ".geojson":
        write = partial(stp.io.write_geojson, color=color, outline=outline)  # type: ignore[arg-type]
    write(prediction, out, sdata=sdata, genes=genes or None, image_key=image_key, region=region)
    typer.echo(f"Wrote {out}")


@app.command()
def calibrate(  # noqa: PLR0913  # options of a command line
    sections: Sections,
    out: Annotated[Path, typer.Option(help="New .json file for st-predict predict --calibration.")],
    key: Key = None,
    coverage: Annotated[float, typer.Option(help="Share of measured values that the intervals should cover.")] = 0.9,
    spots: Annotated[
        str | None, typer.Option(help="Boolean column of .obs that selects the calibration spots; by default all.")
    ] = None,
    scaled: Annotated[  # noqa: FBT002
        bool, typer.Option(help="Scale interval widths by standard deviations where available.")
    ] = True,
    train: Annotated[
        list[Path] | None, typer.Option(help="Training sections; needed if the card does not name them.")
    ] = None,
    group_key: Annotated[str, typer.Option(help="Column of .obs with the patient.")] = "patient",
    image_key: ImageKey = None,
    table_key: TableKey = None,
    bin_um: BinUm = None,
    shapes_key: ShapesKey = None,
    layer: Layer = None,
    missing: MissingGenes = "error",
    duplicates: DuplicateGenes = "error",
    ignore_case: IgnoreCase = False,  # noqa: FBT002
    id_column: IdColumn = None,
    aliases: Aliases = None,
    min_counts: MinCounts = None,
    tissue_only: TissueOnly = True,  # noqa: FBT002
) -> None:
    """Calibrate prediction intervals on held-out sections with a prediction."""
    _check_new(out, suffixes=(".json",))
    calibration = stp.tl.calibrate(
        _read(sections),
        key=key,
        coverage=coverage,
        spots=spots,
        scaled=None if scaled else False,
        train=_read(train) if train else None,
        group_key=group_key,
        image_key=image_key,
        table_key=table_key,
        bin_um=bin_um,
        shapes_key=shapes_key,
        layer=layer,
        missing=missing,  # type: ignore[arg-type]  # checked by the function
        duplicates=duplicates,  # type: ignore[arg-type]
        ignore_case=ignore_case,
        id_column=id_column,
        aliases=aliases,
        min_counts=min_counts,
        tissue_only=tissue_only,
    )
    calibration.save(out)
    typer.echo(f"Wrote {out}, calibrated on {calibration.n_spots} spots")


@app.command()
def superresolve(
    slide: Annotated[Path, typer.Argument(help="SpatialData store (.zarr), slide, TIFF, PNG or JPEG.")],
    out: Annotated[Path, typer.Option(help="New .zarr with the slide and the cells, or .h5ad with only the cells.")],
    model: Annotated[str, typer.Option(help="Path of a .safetensors file of a cell-level network (istar).")],
    image_key: ImageKey = None,
    mpp: Annotated[
        float | None, typer.Option(help="Micrometres per pixel; needed if the file does not state it.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Name of the new table; by default cells_ and the model name.")
    ] = None,
    hparams: Annotated[
        str | None,
        typer.Option(
            help='Hyper-parameters that may change at prediction, as JSON: \'{"weights": "hipt.safetensors"}\'.'
        ),
    ] = None,
    trust: Trust = False,  # noqa: FBT002
    device: Device = "auto",
) -> None:
    """Predict every cell of the tissue: squares of 8 um, unless the network was trained with another size."""
    _check_new(out, suffixes=(".zarr", ".h5ad"))
    sdata = _read_one(slide)
    checkpoint = stp.checkpoints.find_weights(model)
    key = key or Keys.cells(stp.specs.ModelCard.of_file(checkpoint).model)
    stp.tl.superresolve(
        sdata,
        checkpoint,
        image_key=image_key,
        mpp=mpp,
        key_added=key,
        hparams=_parse(hparams),
        trust=trust,
        device=device,
    )
    _write_result(out, sdata, key)


@app.command()
def report(  # noqa: PLR0913  # options of a command line
    slides: Annotated[list[Path], typer.Argument(help="SpatialData stores (.zarr) with a prediction.")],
    out: Annotated[Path, typer.Option(help="New .html file; for several slides, new folder with index.html.")],
    key: Key = None,
    image_key: ImageKey = None,
    table_key: TableKey = None,
    bin_um: BinUm = None,
    region: Annotated[str | None, typer.Option(help="Section to report on, if the table annotates several.")] = None,
    layer: Layer = None,
    duplicates: DuplicateGenes = "error",
    ignore_case: IgnoreCase = False,  # noqa: FBT002
    id_column: IdColumn = None,
    aliases: Aliases = None,
    gene: Annotated[
        list[str] | None, typer.Option(help="Gene to map; repeat for several. By default reliable genes.")
    ] = None,
    n_genes: Annotated[int, typer.Option(min=1, help="Maximum number of genes to map.")] = 12,
    held_out: Annotated[
        str | None, typer.Option(help="Held-out sections behind the reliable genes: patient or section.")
    ] = None,
    train: Annotated[
        list[Path] | None, typer.Option(help="Training sections, to which the baselines are fitted.")
    ] = None,
    score: Annotated[bool, typer.Option("--score/--no-score", help="Score the prediction if there are counts.")] = True,  # noqa: FBT002
) -> None:
    """Write a report of a prediction: weights, maps of reliable genes, scores and warnings."""
    _check_new(out, suffixes=(".html",) if len(slides) == 1 else ("",))
    read = _read(slides)
    evaluate = partial(
        stp.tl.evaluate,
        key=key,
        table_key=table_key,
        bin_um=bin_um,
        layer=layer,
        missing="drop",
        duplicates=duplicates,  # type: ignore[arg-type]  # checked by the function
        ignore_case=ignore_case,
        id_column=id_column,
        aliases=aliases,
    )
    learned = _read(train) if train and score else None
    scores = {} if learned is None else {name: evaluate([sdata], train=learned) for name, sdata in read.items()}
    one = len(slides) == 1
    written = stp.pl.report(
        next(iter(read.values())) if one else read,
        key,
        out,
        image_key=image_key,
        table_key=table_key,
        bin_um=bin_um,
        region=region,
        layer=layer,
        duplicates=duplicates,  # type: ignore[arg-type]
        ignore_case=ignore_case,
        id_column=id_column,
        aliases=aliases,
        genes=gene,
        n_genes=n_genes,
        held_out=held_out,  # type: ignore[arg-type]
        evaluation=next(iter(scores.values()), None) if one else scores,
        score=score,
    )
    typer.echo(f"Wrote {written}")


@app.command()
def batch(  # noqa: PLR0913  # options of a command line
    slides: Annotated[
        list[str],
        typer.Argument(
            help="CSV file with the columns path, id, mpp, image_key and pitch_um; or slides, images, stores or patterns."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for one .h5ad per slide and the report; may hold earlier results.")],
    model: Checkpoints = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a dask scheduler; by default workers start on this machine.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Number of workers on this machine; by default as cores and memory allow.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(help="Part of the list, such as 3/20: every 20th slide, from the third.")
    ] = None,
    check: Annotated[  # noqa: FBT002
        bool, typer.Option("--check", help="Open all slides first; compute nothing if one cannot be used.")
    ] = False,
    retry_failed: Annotated[  # noqa: FBT002
        bool, typer.Option("--retry-failed", help="Try slides again that failed in an earlier run.")
    ] = False,
    retries: Annotated[int, typer.Option(help="Further attempts after errors of reading and of memory.")] = 2,
    merge: Annotated[bool, typer.Option("--merge", help="Join all results in merged.h5ad.")] = False,  # noqa: FBT002
    pitch_um: PitchUm = 100.0,
    table_key: TableKey = None,
    bin_um: BinUm = None,
    shapes_key: ShapesToPredict = None,
    key: PredictionKey = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: Annotated[int | None, typer.Option(help="Number of spots per step, for spot-level models.")] = None,
    cut_tissue: CutTissue = "keep",
    tissue_only: TissueOnly = True,  # noqa: FBT002
    missing_levels: MissingLevels = "error",
    ignore_stain: IgnoreStain = False,  # noqa: FBT002
    symmetries: Symmetries = None,
    hparams: HparamsAtPrediction = None,
    trust: Trust = False,  # noqa: FBT002
    n_samples: Samples = None,
    seed: Seed = 0,
) -> None:
    """Predict many slides, here or on a cluster, with a report. Run again, only slides without a result are done."""
    report = stp.cohort.predict_many(
        slides,
        model or ["m2ost"],
        out=out,
        client=scheduler,
        n_workers=workers,
        shard=_shard(shard),
        check_first=check,
        retry_failed=retry_failed,
        retries=retries,
        merge=merge,
        pitch_um=pitch_um,
        table_key=table_key,
        bin_um=bin_um,
        shapes_key=shapes_key,
        key_added=key,
        device=device,
        precision=precision,  # type: ignore[arg-type]  # checked by the function
        batch_size=batch_size,
        cut_tissue=cut_tissue,  # type: ignore[arg-type]
        tissue_only=tissue_only,
        missing_levels=missing_levels,  # type: ignore[arg-type]
        stain=False if ignore_stain else None,
        symmetries=symmetries,  # type: ignore[arg-type]
        hparams=_parse(hparams),
        trust=trust,
        n_samples=n_samples,
        seed=seed,
    )
    counts = report["status"].value_counts()
    typer.echo(", ".join(f"{counts.get(status, 0)} {status}" for status in ("done", "empty", "failed")) + f": {out}")
    if "failed" in counts:
        raise typer.Exit(1)


@app.command()
def benchmark(
    config: Annotated[
        Path, typer.Argument(help=r"File with the tables \[benchmark], \[sections], \[models.NAME] and \[folds.NAME].")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the results, which may hold earlier ones; by default the name of the file."),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a dask scheduler; by default cells run in this process.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Number of workers on this machine.")] = None,
    check: Annotated[  # noqa: FBT002
        bool, typer.Option("--check", help="Read the file, open the sections and print the folds; compute nothing.")
    ] = False,
    skip_failed: Annotated[  # noqa: FBT002
        bool, typer.Option("--skip-failed", help="Write the scores of finished cells if others failed.")
    ] = False,
) -> None:
    """Compare models on the folds of a protocol. Run again, only cells without a result are done."""
    if check:
        plan = stp.cohort.check_benchmark(config)
        for row in plan.itertuples():
            sides = "; ".join(f"{side}: {' '.join(getattr(row, side)) or '-'}" for side in _SIDES)
            typer.echo(f"{row.model}, fold {row.fold}, seeds {list(row.seeds)}: {sides}; leaks: {row.leaks or 'none'}")
        return
    folder = out or Path(config.stem)
    table = stp.cohort.run_benchmark(config, out=folder, skip_failed=skip_failed, client=scheduler, n_workers=workers)
    summary = stp.cohort.summarize(table)
    _write_table(folder / "scores.csv", table)
    _write_table(folder / "summary.csv", summary)
    typer.echo(summary.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    typer.echo(f"Wrote {folder / 'scores.csv'} and {folder / 'summary.csv'}")


_SIDES = ("train", "validation", "test")
"""Sides of a fold."""


def _write_table(path: Path, table: Any) -> None:
    """Write a table; an earlier one of the same benchmark is replaced."""
    with whole(path) as fresh:
        table.to_csv(fresh, index=False, lineterminator="\n")


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None:
        raise InvalidValueError(f"--shard must be a number and a number of parts, such as 3/20; got {text!r}.")
    return int(found[1]), int(found[2])


@app.command()
def models() -> None:
    """List trainable models with cost and field of view, and released checkpoints."""
    specs = stp.models.table()
    what = Table("model", "family", "description", title="Models", box=SIMPLE_HEAD)
    what.add_column("DOI or address of the paper", overflow="fold")
    cost = Table("model", title="Cost per spot, with 250 genes", box=SIMPLE_HEAD)
    for heading in ("M params", "GMAC", "FOV"):
        cost.add_column(heading, justify="right")
    cost.add_column("levels (px at downsample)")
    cost.add_column("licence of the code", overflow="fold")
    for name, spec in specs.astype(object).where(specs.notna(), None).iterrows():
        what.add_row(str(name), spec["family"], spec["summary"], spec["doi"])
        params = "-" if spec["params"] is None else f"{spec['params'] / 1e6:.2f}"
        gmacs = "-" if spec["gmacs"] is None else f"{spec['gmacs']:.2f}"
        fov = f"{spec['fov_px']:g} px" if spec["fov_um"] is None else f"{spec['fov_um']:g} um"
        cost.add_row(str(name), params, gmacs, fov, spec["levels"], spec["license"].partition(" (")[0])
    released = Table("checkpoint", "MB", "in the package", "trained on", title="Released checkpoints", box=SIMPLE_HEAD)
    for weights in stp.checkpoints.list_weights():
        row = (f"{weights.name}@{weights.version}", f"{weights.n_bytes / 1e6:.1f}", "yes" if weights.embedded else "no")
        released.add_row(*row, weights.summary)
    Console().print(what, cost, released, sep="\n")


@app.command()
def cite(model: Annotated[str, typer.Argument(help="Name of a model; st-predict models lists them.")]) -> None:
    """Print the BibTeX entry of the paper of a model."""
    typer.echo(stp.models.cite(model))


@app.command("import")
def import_(  # noqa: PLR0913  # options of a command line
    model: Annotated[str, typer.Argument(help="Name of a model, or hipt.")],
    files: Annotated[
        list[Path], typer.Argument(help="Downloaded files: weights, and a vocabulary or reference spots.")
    ],
    out: Annotated[Path, typer.Option(help="New .safetensors file.")],
    genes: Annotated[
        Path | None, typer.Option(help="Genes in the order of the outputs: text file with one gene per line, or .npy.")
    ] = None,
    mpp: Annotated[
        str | None, typer.Option(help="Resolution of the training images in um/px; native: pixels are not resampled.")
    ] = None,
    hparams: Annotated[str | None, typer.Option(help='Hyper-parameters as JSON: \'{"organ": "Breast"}\'.')] = None,
    target: Annotated[
        str | None, typer.Option(help="Units of the predictions as JSON; by default the publication's.")
    ] = None,
    pixels: Annotated[
        str | None, typer.Option(help="Mean and std of the training pixels as JSON; by default the publication's.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Source of the files, for the card.")] = None,
    license: Annotated[str | None, typer.Option(help="Licence of the weights, for the card.")] = None,
    citation: Annotated[str | None, typer.Option(help="Publication of the weights, for the card.")] = None,
    organism: Annotated[str | None, typer.Option(help="Organism of the genes, for the card.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,  # noqa: FBT002
) -> None:
    """Convert published weights to a checkpoint. Nothing is downloaded."""
    card = {"license": license, "citation": citation, "organism": organism}
    written = stp.checkpoints.import_published(
        model,
        files,
        genes=genes,
        out=out,
        hparams=_parse(hparams),
        target=_parse(target, "--target", example='{"transform": "log1p"}'),
        pixels=_parse(pixels, "--pixels", example='{"mean": [0.7, 0.5, 0.6], "std": [0.2, 0.2, 0.2]}'),
        mpp=_number_or_native(mpp),
        source=source,
        card={name: value for name, value in card.items() if value is not None} or None,
        overwrite=overwrite,
    )
    typer.echo(f"Wrote {written}")


def _number_or_native(mpp: str | None) -> Any:
    """Return a number, or the text itself for the library to refuse."""
    try:
        return None if mpp is None else float(mpp)
    except ValueError:
        return mpp


@app.command()
def card(
    weights: Annotated[
        str, typer.Argument(help="Released checkpoint, .safetensors file, or output folder of a training.")
    ],
    n_genes: Annotated[int, typer.Option("--genes", min=1, help="Number of best and worst genes to list.")] = 10,
) -> None:
    """Print the card of weights: predicted genes, training data, and reliable genes."""
    path = _weights_in(weights)
    about, notice = stp.specs.ModelCard.of_file(path), stp.checkpoints.notice_of(path)
    facts = Table(title=f"Card of {weights}", box=SIMPLE_HEAD, show_header=False)
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    for name, text in {
        **stp.checkpoints.card_facts(about),
        **({"weights of others": notice} if notice else {}),
    }.items():
        facts.add_row(name, text)
    parts: list[Any] = [facts]
    for scores in about.reliability:
        parts += [f"{stp.checkpoints.score_sentence(scores)}", _gene_table(about, scores, n_genes)]
    if gaps := stp.checkpoints.card_gaps(about):
        parts += ["Unknown:", *(f"- {gap}" for gap in gaps)]
    Console().print(*parts, sep="\n", markup=False, highlight=False)


@app.command()
def download(
    names: Annotated[
        list[str] | None, typer.Argument(help="Checkpoints (listed by st-predict models), or her2st:C2 for a section.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Download all released checkpoints.")] = False,  # noqa: FBT002
    mirror: Annotated[
        str | None, typer.Option(help="Address of a folder with the released files; their hashes are checked.")
    ] = None,
) -> None:
    """Download checkpoints and data to the cache, for later work offline."""
    released = [f"{weights.name}@{weights.version}" for weights in stp.checkpoints.list_weights()]
    if bool(names) == everything:
        raise InvalidValueError(f"Name the checkpoints to download, or give --all; the released ones are {released}.")
    for name in released if everything else names or []:
        kind, _, section = name.partition(":")
        if kind == "her2st":
            if mirror is not None:
                raise InvalidValueError(
                    f"--mirror only applies to checkpoints, but {name!r} is a section.", "leave out --mirror"
                )
            stp.datasets.her2st(section)
            typer.echo(f"{name}: in the cache")
        else:
            typer.echo(f"{name}: {stp.checkpoints.find_weights(name, mirror=mirror)}")


def _weights_in(text: str) -> Path:
    """Return the path of a checkpoint, given by name, file, or output folder of a training."""
    folder = Path(text)
    released = {name for w in stp.checkpoints.list_weights() for name in (w.name, f"{w.name}@{w.version}")}
    if text in released or not folder.is_dir():
        return stp.checkpoints.find_weights(text)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise InvalidValueError(
            f"The folder {text!r} has {len(files)} .safetensors files: {[file.name for file in files]}. Name one file."
        )
    return files[0]


def _gene_table(about: ModelCard, scores: Reliability, n_genes: int) -> Table:
    """Return a table of the best and worst genes."""
    ranked = [one for one in stp.checkpoints.rank_genes(about, scores) if one.partial is not None]
    table = Table("gene", box=SIMPLE_HEAD)
    for heading in ("partial correlation", "95 % interval", "noise ceiling"):
        table.add_column(heading, justify="right")
    cut = len(ranked) > 2 * n_genes
    for one in ranked[:n_genes] if cut else ranked:
        table.add_row(*one.to_row().values())
    if cut:
        table.add_row("...", "", "", "")
        for one in ranked[-n_genes:]:
            table.add_row(*one.to_row().values())
    return table


def _read(paths: Iterable[Path]) -> dict[str, SpatialData]:
    """Read slides; errors name their files."""
    paths = list(paths)
    if twice := sorted({str(path) for path in paths if paths.count(path) > 1}):
        raise InvalidValueError(f"Files occur twice: {twice}.", "name each once")
    return {str(path): _read_one(path) for path in paths}


def _read_one(path: Path) -> SpatialData:
    import spatialdata

    if not path.exists():
        raise FileNotFoundError(f"The file {str(path)!r} does not exist; name a SpatialData store, slide or image.")
    if path.suffix != ".zarr" and not path.is_dir():
        return stp.io.read_image(path)
    try:
        return spatialdata.read_zarr(path)
    except Exception as error:  # zarr and elements raise many types
        if _lacks_memory(error):
            raise
        raise OSError(
            f"{str(path)!r} is not a readable SpatialData store ({error}). Name a store or a slide."
        ) from error


def _check_intervals(calibration: stp.tl.Calibration, key: str, *, spreads: bool) -> None:
    """Refuse intervals that do not fit the prediction, before any computation."""
    if key != calibration.key:
        raise InvalidValueError(
            f"The calibration is for the prediction {calibration.key!r}, not {key!r}: leave out --key."
        )
    if calibration.scaled and not spreads:
        raise InvalidValueError(
            "These intervals follow standard deviations.",
            Advice("predict with {}", "n_samples"),
            "predict with several checkpoints",
        )


def _parse(text: str | None, option: str = "--hparams", *, example: str = '{"depth": 6}') -> dict[str, Any] | None:
    try:
        return None if text is None else dict(json.loads(text))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidValueError(
            f"{option} must be a JSON object such as '{example}'; got {text!r} ({error})."
        ) from error


def _check_new(path: Path, *, suffixes: tuple[str, ...]) -> None:
    """Refuse a result that cannot be written, before any computation."""
    if path.suffix not in suffixes:
        raise InvalidValueError(f"{str(path)!r} must end in one of {suffixes}.")
    if path.exists():
        raise FileExistsError(f"{str(path)!r} exists; choose another name.")
    try:
        with tempfile.TemporaryDirectory(dir=path.parent):
            pass
    except OSError as error:
        raise type(error)(error.errno, f"Cannot write to the folder {str(path.parent)!r}: {error.strerror}") from error


def _new_folder(path: Path) -> Path:
    """Make ``path``, or ``path-2``, ``path-3`` ... if it exists."""
    names = (path if n == 1 else path.with_name(f"{path.name}-{n}") for n in range(1, 1000))
    folder = next(p for p in names if not p.exists())
    folder.mkdir(parents=True)
    return folder


@dataclass(frozen=True, slots=True, kw_only=True)
class _Genes:
    """Genes of a prediction to write; by default all."""

    min_score: float | None = None
    reliable: bool = False
    held_out: str | None = None

    def check(self, out: Path, checkpoints: list[Path]) -> None:
        """Refuse an impossible selection of genes, before any computation."""
        if not self.reliable and self.min_score is None:
            if self.held_out is not None:
                raise InvalidValueError("--held-out only applies to --reliable and --min-score; give one of them.")
            return
        if out.suffix != ".h5ad":
            raise InvalidValueError(f"--reliable and --min-score need an .h5ad as output, got {str(out)!r}.")
        cards = [stp.specs.ModelCard.of_file(path) for path in checkpoints]
        if len(cards) > 1 or not cards[0].reliability:
            raise InvalidValueError(
                "The card has no scores of its genes, so it is not known which of them to trust."
                if len(cards) == 1
                else "The genes of an ensemble have no scores, so it is not known which of them to trust.",
                "leave out --reliable and --min-score",
            )
        scores = cards[0].reliability_on(self.held_out)  # type: ignore[arg-type]  # another kind has no scores
        if scores is None:
            there = [one.held_out for one in cards[0].reliability]
            raise InvalidValueError(
                f"The card has scores for {there}, not for {self.held_out!r}.", "leave out --held-out"
            )
        if not scores.trusted(min_score=self.min_score, reliable=self.reliable):
            raise InvalidValueError(
                f"None of {len(cards[0].genes)} genes passes --reliable and --min-score on {scores.where}.",
                "ask for less",
            )

    def write(self, sdata: SpatialData, key: str, path: Path) -> None:
        """Write the prediction of the selected genes to an ``.h5ad``."""
        held_out: Any = self.held_out  # checked by the function
        found = stp.get.prediction(sdata, key, min_score=self.min_score, reliable=self.reliable, held_out=held_out)
        found.write_h5ad(path)


def _write_result(out: Path, sdata: SpatialData, key: str, genes: _Genes | None = None) -> None:
    """Write the slide to a ``.zarr``, or only the prediction to an ``.h5ad``."""
    chosen = genes or _Genes()
    _write_whole(out, sdata.write if out.suffix == ".zarr" else lambda path: chosen.write(sdata, key, path))
    typer.echo(f"Wrote {out}")


def _write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a result atomically."""
    with whole(path, keep_old=True) as fresh:
        write(fresh)
