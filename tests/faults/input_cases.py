"""The bad inputs of ``inputs.py``, and the valid ones that they are twins of."""

from __future__ import annotations

import gzip
import json
import re
import struct
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import tifffile
import torch
from anndata import AnnData
from inputs import Bench, Case
from PIL import Image
from scipy.sparse import csr_matrix
from shapely import Point, Polygon
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Image3DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, set_transformation
from typer.testing import CliRunner

import st_predict as stp
from st_predict import checkpoints
from st_predict.cli import app
from st_predict.models import get_spec
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xarray import DataTree

GENES = ("a", "b", "c", "d")
TINY = dict(get_spec("m2ost").tiny)
XY = np.array([(x, y) for y in (60, 200, 340) for x in (60, 210, 360, 510)], dtype=np.float64)
KEY = "pred_m2ost"


def make_section(seed: int = 0, patient: str = "P1", section: str = "S1") -> SpatialData:
    """Make a section of 12 spots on an image of 400 x 600 pixels of 1 um that says where it is."""
    both = {"global": Identity(), "um": Scale([1.0, 1.0], axes=("x", "y"))}
    names = [f"s{i}" for i in range(12)]
    shapes = gpd.GeoDataFrame({"radius": 30.0}, geometry=[Point(p) for p in XY], index=names)
    obs = pd.DataFrame({"region": pd.Categorical(["spots"] * 12), "instance": names}, index=names)
    obs["array_row"], obs["array_col"] = np.repeat([0, 1, 2], 4), np.tile([0, 1, 2, 3], 3)
    obs["patient"], obs["section"] = patient, section
    counts = np.random.default_rng(seed).poisson(20, (12, 4)).astype(np.float32)
    table = AnnData(counts, obs=obs, var=pd.DataFrame(index=list(GENES)))
    return SpatialData(
        images={"he": deepcopy(_image())},
        shapes={"spots": ShapesModel.parse(shapes, transformations=dict(both))},
        tables={"table": TableModel.parse(table, region="spots", region_key="region", instance_key="instance")},
    )


@cache
def _image() -> DataTree:
    """Make the image of all sections, with levels that are in memory: each case hashes them twice."""
    yy, xx = np.mgrid[:400, :600]
    pixels = np.stack([xx // 4, yy // 4, (xx + yy) // 8]).astype(np.uint8)
    both = {"global": Identity(), "um": Scale([1.0, 1.0], axes=("x", "y"))}
    image = Image2DModel.parse(
        pixels, dims=("c", "y", "x"), scale_factors=[2, 2], c_coords=["r", "g", "b"], transformations=both
    )
    for level in image.children.values():
        level["image"] = level["image"].copy(data=da.from_array(level["image"].values))
    return image


def save_weights(path: Path, **fields: Any) -> Path:
    """Save a tiny M2OST with random weights that reads images at 1 um/px."""
    spec = get_spec("m2ost")
    crop = replace(spec.crop_for(TINY), mpp=1.0)
    card = ModelCard(**{"model": "m2ost", "genes": GENES, "crop": crop, "hparams": TINY, **fields})
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        checkpoints.save(path, checkpoints.build(card), card)
    return path


def make_bench(folder: Path) -> Bench:
    """Make the bench, and the results of valid inputs."""
    bench = Bench(folder=folder, make=make_section, weights=save_weights(folder / "tiny.safetensors"))
    bench.sdata = make_section()
    bench.twins["prediction"] = predict(bench)
    # counts, not the package: the mean of ln(1 + 1e6 c / n), and the names of genes
    counts = make_section()["table"].X.astype(np.float64)
    bench.twins["mean"] = np.log1p(1e6 * counts / counts.sum(axis=1, keepdims=True)).mean(axis=0).astype(np.float32)
    bench.twins["panel"] = list(GENES)
    _WEIGHTS[:] = [bench.weights]
    write_legacy(folder)
    bench.twins["legacy"] = np.array([[x * 100.0, y * 100.0, i + 1, 1] for i, (x, y) in enumerate(LEGACY)])
    return bench


def predict(bench: Bench, **options: Any) -> np.ndarray:
    """Predict the spots of the table with the tiny weights."""
    options = {"device": "cpu", "precision": "float32", "key_added": KEY, **options}
    model = options.pop("model", bench.weights)
    bench.sdata = make_section() if bench.sdata is None else bench.sdata
    stp.tl.predict(bench.sdata, model, **options)
    holder = bench.sdata.tables[options.get("table_key") or "table"] if "table" in bench.sdata.tables else None
    return bench.sdata.tables[KEY].X if holder is None else np.array(holder.obsm[options["key_added"]])


def train(bench: Bench, **options: Any) -> np.ndarray:
    """Train the model ``mean`` on M2OST's units; what it has learned is the mean of the targets."""
    bench.sdata = make_section() if bench.sdata is None else bench.sdata
    options = {"model": "mean", "panel": list(GENES), "preset": "paper", "out": bench.new() / "m", **options}
    config = (
        {"device": "cpu", "precision": "float32", **options.pop("config", {})}
        if not isinstance(options.get("config"), int | str | list)
        else options.pop("config")
    )
    result = stp.tl.train(options.pop("sdatas", bench.sdata), options.pop("model"), config=config, **options)
    other = make_section()
    stp.tl.predict(other, result, key_added="pred_mean", device="cpu", precision="float32")
    return np.array(other["table"].obsm["pred_mean"][0])


def evaluate(bench: Bench, **options: Any) -> None:
    """Score a prediction that is there."""
    predicted(bench)
    stp.tl.evaluate(options.pop("sdatas", bench.sdata), **{"key": KEY, "min_counts": 0, **options})


def calibrate(bench: Bench, **options: Any) -> None:
    """Calibrate a prediction that is there."""
    predicted(bench)
    stp.tl.calibrate(options.pop("sdatas", bench.sdata), **{"key": KEY, "min_counts": 0, "coverage": 0.5, **options})


def predicted(bench: Bench) -> None:
    """Add a prediction to the object, unless a case has."""
    bench.sdata = make_section() if bench.sdata is None else bench.sdata
    table = bench.sdata.tables["table"]
    if KEY not in table.obsm:
        predict(bench)


def short(value: Any) -> str:
    """Return how a value is written in the name of a case."""
    text = repr(value)
    return text if len(text) < 40 else f"{type(value).__name__} of {text[:20]}..."


# ---------------------------------------------------------------------------------------------------------------- arguments


def pattern(value: Any) -> str:
    """Pattern of a message that names a value."""
    if isinstance(value, dict) and value:
        return "|".join(re.escape(str(one)) for pair in value.items() for one in pair)
    text = repr(value)[:20] if not isinstance(value, str) else value[:20]
    return re.escape(text) if text else "empty|''"


NUMBERS = ("0.5", None.__class__, [], True)
BAD: dict[str, dict[str, list[Any]]] = {
    "predict": {
        "mpp": [0, -1.0, float("nan"), float("inf"), "1.0", True, [1.0]],
        "batch_size": [0, -3, 1.5, "8", True],
        "symmetries": [0, 2, "8", 1.5],
        "n_samples": [0, 1, -1, 2.5, "3"],
        "seed": [-1, 0.5, "0", True],
        "key_added": ["", "a/b", "..", ".", "__x", "k" * 300, 5, "spots", "he", "a b"],
        "image_key": ["none", "", 3, {}, {"other": "he"}, {"spots": "none"}, ["he"]],
        "table_key": ["none", "", 3],
        "shapes_key": ["none", "", 3],
        "context": ["none", "patient", "", 3],
        "layer": ["raw"],
        "duplicates": ["sum", "drop"],
        "ignore_case": [True, "yes"],
        "id_column": ["gene_ids", 3],
        "hparams": [{"nope": 1}, {"dim": 8}, 3, "x", [1]],
        "trust": ["yes", 1, None],
        "device": ["gpu", "cuda:9", "GPU", "tpu", "", 0, None],
        "precision": ["float16", "fp32", "", 32, None],
        "model": ["nope", "", "nope.safetensors", "/none/x.safetensors", 3, [], None, "ridge", "M2OST"],
    },
    "train": {
        "panel": [["nope"], [], "abc", 0, -1, 1.5, 99, None, {"a": 1}, ["a", "a"], [1, 2], True],
        "model": ["nope", "", 3, "Mean"],
        "preset": ["best", "", 3, None],
        "validation": [["nobody"], "nobody", 3, [], b"x"],
        "group_key": ["nope", "", 3],
        "allow_shared": [3, {"P1": 1}],
        "image_key": ["none", 3],
        "table_key": ["none", 3],
        "shapes_key": ["none", 3],
        "layer": ["raw", "", 3],
        "missing": ["ignore", "", None],
        "duplicates": ["add", None],
        "mpp": [0, -1.0, "x", float("nan")],
        "min_counts": [-1, 1.5, "5", 10**9, True],
        "tissue_only": ["yes", 1, None],
        "hparams": [{"nope": 1}, 3, "x"],
        "rounds": [0, 1.5],
        "resume": ["yes"],
        "card": [{"licence": "MIT"}, {"genes": ["a"]}, 3, {"license": 3}, {"training": {"config": 1}}],
        "out": [3, ""],
        "sdatas": [[], None, "x.zarr", 3, [3], {}],
    },
    "evaluate": {
        "key": ["nope", "", 3, "ridge"],
        "group_key": ["nope", 3],
        "table_key": ["none", 3],
        "shapes_key": ["none", 3],
        "layer": ["raw", 3],
        "missing": ["ignore"],
        "duplicates": ["add"],
        "mpp": [0, -1.0, "x"],
        "min_counts": [-1, 1.5, 10**9],
        "tissue_only": ["no"],
        "sdatas": [[], None, "x.zarr"],
    },
    "calibrate": {
        "coverage": [0, 1, -0.1, 1.5, float("nan"), "0.9", 0.999],
        "spots": ["nope", "patient", "", 3],
        "scaled": ["yes", True],
        "key": ["nope", 3],
        "tissue_only": ["no"],
    },
}
CALLS: dict[str, Any] = {
    "predict": (predict, stp.tl.predict),
    "train": (train, stp.tl.train),
    "evaluate": (evaluate, stp.tl.evaluate),
    "calibrate": (calibrate, stp.tl.calibrate),
}
PANEL_ARGUMENTS: dict[str, list[Any]] = {
    "n_genes": [0, -1, 1.5, 99, "3"],
    "method": ["best", "", 3, None],
    "seed": [-1, 0.5],
    "n_variable": [0, 1],
    "min_mean": [-1.0, "x"],
    "fdr": [0, 2.0, -1.0],
    "layer": ["raw"],
    "id_column": ["gene_ids"],
    "duplicates": ["add"],
    "tissue_only": ["no"],
}
GRID_ARGUMENTS: dict[str, list[Any]] = {
    "pitch_um": [0, -1.0, "x", float("nan")],
    "mpp": [0, -1.0, "x"],
    "min_tissue": [0, 2.0],
    "layout": ["round"],
    "image_key": ["none", 3],
}
GET_ARGUMENTS: dict[str, list[Any]] = {
    "key": ["nope", 3],
    "table_key": ["none", 3],
    "units": ["cpm", 3],
    "min_score": ["high", 0.5],
    "reliable": ["yes", True],
    "held_out": ["slide"],
    "genes": [["a"], 3, "none.safetensors"],
}
PLOT_ARGUMENTS: dict[str, list[Any]] = {
    "genes": ["nope", [], ["a", "nope"], 3],
    "key": ["nope"],
    "region": ["nope"],
    "scale": ["log"],
    "percentiles": [(98, 2), (0, 200), 3],
    "spot_scale": [0, -1.0],
    "tissue_strength": [2.0],
    "ncols": [0, 1.5],
    "cmap": ["nope"],
    "margin": [-1.0],
}
# accepted: texts of gene aliases and the like may be anything; context without effect is refused with all names
SAYS = {
    ("predict", "layer"): "layer",
    ("predict", "duplicates"): "duplicates",
    ("predict", "ignore_case"): "ignore_case",
    ("predict", "id_column"): "id_column",
    ("train", "panel"): "panel|genes",
}


def argument_cases() -> Iterator[Case]:
    """Arguments of another type, out of range, or that name what does not exist."""
    for verb, arguments in BAD.items():
        call, function = CALLS[verb]
        for argument, values in arguments.items():
            for value in values:
                says = SAYS.get((verb, argument), f"{pattern(value)}|{argument}")
                twin = {"predict": "prediction", "train": "mean"}.get(verb)
                yield Case(
                    kind="arguments",
                    name=f"{verb}({argument}={short(value)})",
                    call=partial(_with, call, argument, value),
                    spoil=lambda _sdata: None,
                    says=says,
                    function=function,
                    twin=twin,
                )
    others: list[tuple[str, dict[str, list[Any]], Any, Any]] = [
        ("select_panel", PANEL_ARGUMENTS, stp.pp.select_panel, _select),
        ("make_grid", GRID_ARGUMENTS, stp.pp.make_grid, _grid),
        ("prediction", GET_ARGUMENTS, stp.get.prediction, _take),
        ("spatial", PLOT_ARGUMENTS, stp.pl.spatial, _draw),
    ]
    for verb, arguments, function, call in others:
        for argument, values in arguments.items():
            for value in values:
                yield Case(
                    kind="arguments",
                    name=f"{verb}({argument}={short(value)})",
                    call=partial(_with, call, argument, value),
                    spoil=lambda _sdata: None,
                    says=f"{pattern(value)}|{argument}",
                    function=function,
                    twin=None,
                )


def _with(call: Callable[..., Any], argument: str, value: Any, bench: Bench) -> Any:
    return call(bench, **{argument: value})


def _select(bench: Bench, **options: Any) -> list[str]:
    return stp.pp.select_panel([bench.sdata["table"]], **{"n_genes": 2, "method": "m2ost", **options})


def _grid(bench: Bench, **options: Any) -> None:
    stp.pp.make_grid(bench.sdata, **{"tissue_only": False, **options})


def _take(bench: Bench, **options: Any) -> None:
    predicted(bench)
    stp.get.prediction(bench.sdata, **{"key": KEY, **options})


def _draw(bench: Bench, **options: Any) -> None:
    predicted(bench)
    stp.pl.spatial(bench.sdata, options.pop("genes", "a"), **{"key": KEY, **options})


# ----------------------------------------------------------------------------------------------------------- configurations

CONFIG: dict[str, list[Any]] = {
    "epochs": [0, -1, 1.5, "3", True],
    "batch_size": [0, -1, 1.5],
    "lr": [0, -1.0, "x", float("nan"), float("inf")],
    "loss": ["mae", "", 3],
    "optimizer": ["lion", 3],
    "schedule": ["step", 3],
    "monitor": ["loss", 3],
    "patience": [-1, 1.5],
    "weight_decay": [-1.0, "x"],
    "momentum": [-1.0, 2.0],
    "warmup": [-1, 1.5],
    "clip": [-1.0, 0],
    "stain_jitter": [-1.0, 2.0],
    "level_drop": [-1.0, 2.0],
    "average": [-1.0, 1.0],
    "seed": [-1, 0.5],
    "device": ["gpu", "tpu"],
    "precision": ["float16"],
    "regions": [-1, 3],
    "augment": ["yes"],
    "epoch": [3],
}


def configuration_cases() -> Iterator[Case]:
    """Settings of training that do not exist or are out of range."""
    for name, values in CONFIG.items():
        for value in values:
            yield Case(
                kind="configurations",
                name=f"{name}={short(value)}",
                call=lambda bench, name=name, value=value: train(bench, config={name: value}),
                spoil=lambda _sdata: None,
                says=name,
                function=stp.tl.train,
                twin="mean",
            )
    for value in (3, "x", [1]):
        yield Case(
            kind="configurations",
            name=f"config={value!r}",
            call=lambda bench, value=value: train(bench, config=value),
            spoil=lambda _sdata: None,
            says="config",
            function=stp.tl.train,
            twin="mean",
        )


# ------------------------------------------------------------------------------------------------------------------- images


def set_image(sdata: SpatialData, change: Callable[[np.ndarray], Any], **options: Any) -> None:
    """Replace the image by changed pixels, in one level."""
    pixels = sdata["he"]["scale0"]["image"].data.compute()
    both = {"global": Identity(), "um": Scale([1.0, 1.0], axes=("x", "y"))}
    options = {"dims": ("c", "y", "x"), "c_coords": ["r", "g", "b"], "transformations": both, **options}
    sdata.images["he"] = Image2DModel.parse(change(pixels), **options)


def _set_3d(sdata: SpatialData) -> None:
    sdata.images["he"] = Image3DModel.parse(np.zeros((3, 4, 40, 60), np.uint8), dims=("c", "z", "y", "x"))


def _set_names(sdata: SpatialData, names: list[str], order: list[int]) -> None:
    set_image(sdata, lambda x: x[order].copy(), c_coords=names, scale_factors=[2, 2])


def image_cases() -> Iterator[Case]:
    """Pixels of another depth, number of channels, or that cannot be read."""
    changes: dict[str, tuple[Callable[[SpatialData], Any], str]] = {
        "float from 0 to 1": (lambda s: set_image(s, lambda x: x / 255), "float64|8-bit"),
        "uint16": (lambda s: set_image(s, lambda x: x.astype(np.uint16) * 257), "uint16"),
        "12 bits in 16": (lambda s: set_image(s, lambda x: x.astype(np.uint16) * 16), "uint16"),
        "int64": (lambda s: set_image(s, lambda x: x.astype(np.int64)), "int64"),
        "bool": (lambda s: set_image(s, lambda x: x > 100), "bool"),
        "one channel": (lambda s: set_image(s, lambda x: x[:1], c_coords=["r"]), "1 channel"),
        "two channels": (lambda s: set_image(s, lambda x: x[:2], c_coords=["r", "g"]), "2 channel"),
        "four channels": (
            lambda s: set_image(s, lambda x: np.concatenate([x, x[:1]]), c_coords=["r", "g", "b", "a"]),
            "4 channel",
        ),
        "RGBA of 2 x 2 pixels": (
            lambda s: set_image(s, lambda x: np.concatenate([x, x[:1]])[:, :2, :2], c_coords=list("rgba")),
            "4 channel",
        ),
        "three dimensions": (_set_3d, "z"),
        "one pixel": (lambda s: set_image(s, lambda x: x[:, :1, :1].copy()), "outside the image"),
        "one row": (lambda s: set_image(s, lambda x: x[:, :1].copy()), "outside the image"),
        "half of the image": (lambda s: set_image(s, lambda x: x[:, :, :300].copy()), "outside the image"),
        "no image": (lambda s: s.images.pop("he"), "no image"),
        "two images": (lambda s: s.images.update(second=s.images["he"]), r"\['he', 'second'\]"),
        "beside one of 16 bits": (lambda s: _add_image(s, np.uint16, 3), "only"),
        "beside one channel": (lambda s: _add_image(s, np.uint8, 1), "only"),
        "beside five channels": (lambda s: _add_image(s, np.uint8, 5), "only"),
        "labels in place of the image": (_labels_for_image, "no image"),
        "channels b, g, r": (lambda s: _set_names(s, ["b", "g", "r"], [2, 1, 0]), "channel"),
        "channels of markers": (lambda s: _set_names(s, ["DAPI", "CD3", "CD8"], [0, 1, 2]), "channel|DAPI"),
        "only 0 and 1": (
            lambda s: set_image(s, lambda x: (x > 60).astype(np.uint8)),
            "black: the brightest grey value is 1 of 255",
        ),
        "a block that cannot be read": (lambda s: set_image(s, _broken), "he|block|read"),
        "all white": (lambda s: set_image(s, lambda x: np.full_like(x, 255)), "tissue|glass|white"),
    }
    for name, (spoil, says) in changes.items():
        yield Case(kind="images", name=name, spoil=spoil, call=predict, says=says, function=stp.tl.predict)
    for mpp in (0.01, 100.0):
        yield Case(
            kind="images",
            name=f"mpp={mpp}",
            spoil=lambda _sdata: None,
            call=lambda bench, mpp=mpp: predict(bench, mpp=mpp),
            says="mpp|um/px",
            function=stp.tl.predict,
        )


def _add_image(sdata: SpatialData, dtype: Any, n_channels: int) -> None:
    pixels = np.zeros((n_channels, 40, 60), dtype)
    sdata.images["another"] = Image2DModel.parse(pixels, dims=("c", "y", "x"))


def _labels_for_image(sdata: SpatialData) -> None:
    del sdata.images["he"]
    sdata.labels["he"] = Labels2DModel.parse(np.zeros((40, 60), np.int64), dims=("y", "x"))


def _broken(pixels: np.ndarray) -> da.Array:
    def read(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        if block_info and block_info[0]["chunk-location"][1:] == (1, 1):
            raise OSError("damaged")
        return block

    return da.from_array(pixels, chunks=(3, 200, 200)).map_blocks(
        read, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8)
    )


# ---------------------------------------------------------------------------------------------------------- transformations


def affine(*rows: list[float]) -> Affine:
    """Transformation of x and y."""
    return Affine([*rows, [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))


def transformation_cases() -> Iterator[Case]:
    """Transformations of image and spots that are singular, wrong, or do not fit."""
    odd: dict[str, Any] = {
        "zero": Scale([0.0, 0.0], axes=("x", "y")),
        "zero in x": Scale([0.0, 1.0], axes=("x", "y")),
        "NaN": Scale([np.nan, 1.0], axes=("x", "y")),
        "infinite": Scale([np.inf, np.inf], axes=("x", "y")),
        "rank 1": affine([1, 1, 0], [1, 1, 0]),
        "shear": affine([1, 0.5, 0], [0, 1, 0]),
        "unequal": Scale([1.0, 2.0], axes=("x", "y")),
        "translation NaN": affine([1, 0, np.nan], [0, 1, 0]),
        "translation infinite": affine([1, 0, np.inf], [0, 1, 0]),
        "far away": affine([1, 0, 1e9], [0, 1, 1e9]),
        "nearly singular": Scale([1e-12, 1e-12], axes=("x", "y")),
        "huge": Scale([1e12, 1e12], axes=("x", "y")),
        "x and y exchanged": affine([0, 1, 0], [1, 0, 0]),
        "mirrored": affine([-1, 0, 600], [0, 1, 0]),
    }
    for element in ("he", "spots"):
        for name, transformation in odd.items():
            yield Case(
                kind="transformations",
                name=f"{name}, of {'the image' if element == 'he' else 'the spots'}",
                spoil=lambda s, e=element, t=transformation: set_transformation(s[e], {"global": t}, set_all=True),
                call=lambda bench: predict(bench, mpp=1.0),
                says="transformation|coordinate|outside|mirror|lattice|singular",
                function=stp.tl.predict,
            )
    extra: dict[str, tuple[Callable[[SpatialData], Any], str]] = {
        "no shared system": (
            lambda s: set_transformation(s["spots"], {"other": Identity()}, set_all=True),
            "share no coordinate system",
        ),
        "two systems that disagree": (
            lambda s: set_transformation(s["spots"], Scale([2.0, 2.0], axes=("x", "y")), "um"),
            "different pixels",
        ),
        "um of unequal pixels": (
            lambda s: (
                set_transformation(s["he"], Scale([1.0, 2.0], axes=("x", "y")), "um"),
                set_transformation(s["spots"], Scale([1.0, 2.0], axes=("x", "y")), "um"),
            ),
            "not square",
        ),
        "um of nothing": (lambda s: set_transformation(s["he"], Scale([0.0, 0.0], axes=("x", "y")), "um"), "um"),
        "um of NaN": (lambda s: set_transformation(s["he"], Scale([np.nan, np.nan], axes=("x", "y")), "um"), "um"),
        "no um": (
            lambda s: (
                set_transformation(s["he"], {"global": Identity()}, set_all=True),
                set_transformation(s["spots"], {"global": Identity()}, set_all=True),
            ),
            "micrometres",
        ),
    }
    for name, (spoil, says) in extra.items():
        yield Case(kind="transformations", name=name, spoil=spoil, call=predict, says=says, function=stp.tl.predict)


# -------------------------------------------------------------------------------------------------------------------- spots


def set_column(name: str, values: Any) -> Callable[[SpatialData], None]:
    """Return a change of a column of ``.obs``."""

    def spoil(sdata: SpatialData) -> None:
        table = sdata.tables["table"]
        table.obs[name] = pd.Series(list(values), index=table.obs_names)

    return spoil


def set_places(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[SpatialData], None]:
    """Return a change of the centres of spots."""

    def spoil(sdata: SpatialData) -> None:
        sdata["spots"]["geometry"] = [Point(p) for p in change(XY.copy())]

    return spoil


def _moved(xy: np.ndarray, row: int, to: tuple[float, float]) -> np.ndarray:
    xy[row] = to
    return xy


def _set_radius(value: float) -> Callable[[SpatialData], None]:
    def spoil(sdata: SpatialData) -> None:
        sdata["spots"]["radius"] = value

    return spoil


def _rename(sdata: SpatialData, names: list[Any]) -> None:
    sdata["spots"].index = pd.Index(names)


def _square(sdata: SpatialData) -> None:
    corners = [Polygon([(x - 9, y - 9), (x + 9, y - 9), (x + 9, y + 9), (x - 9, y + 9)]) for x, y in XY]
    sdata.shapes["spots"] = ShapesModel.parse(
        gpd.GeoDataFrame(geometry=corners, index=sdata["spots"].index),
        transformations={"global": Identity(), "um": Scale([1.0, 1.0], axes=("x", "y"))},
    )


def spot_cases() -> Iterator[Case]:
    """Centres, radii, names and places on the lattice."""
    changes: dict[str, tuple[Callable[[SpatialData], Any], str]] = {
        "NaN coordinate": (set_places(lambda xy: _moved(xy, 3, (np.nan, 1))), "1 of 12 spots.*s3"),
        "infinite coordinate": (set_places(lambda xy: _moved(xy, 3, (np.inf, 1))), "1 of 12 spots.*s3"),
        "all outside": (set_places(lambda xy: xy + 10_000), "12 spots.*outside"),
        "negative": (set_places(lambda xy: -xy - 5), "12 spots.*outside"),
        "one outside": (set_places(lambda xy: _moved(xy, 0, (-50, 5))), "1 of 12 spots"),
        "no shapes": (lambda s: s.shapes.pop("spots"), "spots"),
        "other names": (lambda s: _rename(s, [f"x{i}" for i in range(12)]), "12 of 12 rows"),
        "numbers as names": (lambda s: _rename(s, list(range(12))), "12 of 12 rows.*int64"),
        "names twice": (lambda s: _rename(s, ["s0", *[f"s{i}" for i in range(11)]]), "unique.*s0"),
        "some missing": (lambda s: s.shapes.update(spots=s["spots"].iloc[:8]), "4 of 12 rows"),
        "instances twice": (set_column("instance", ["s0"] * 12), "unique"),
        "instance missing": (set_column("instance", ["none", *[f"s{i}" for i in range(1, 12)]]), "1 of 12 rows.*none"),
        "no column of instances": (lambda s: s["table"].obs.pop("instance"), "instance"),
        "no column of regions": (lambda s: s["table"].obs.pop("region"), "region"),
        "region that is not there": (set_column("region", ["other"] * 12), "other"),
        "squares": (_square, "."),
        "other order of shapes": (lambda s: s.shapes.update(spots=s["spots"].iloc[::-1]), "."),
    }
    for name, (spoil, says) in changes.items():
        yield Case(kind="spots", name=name, spoil=spoil, call=predict, says=says, function=stp.tl.predict)
    lattices: dict[str, tuple[list[Any], str]] = {
        "text": (["c1", "c2"] * 6, "array_col.*c1"),
        "half": ([0.5] * 12, "array_col.*0.5"),
        "measured": ([0.02, 0.97, 2.03, 2.98] * 3, "."),
        "infinite": ([np.inf] * 12, "array_col.*inf"),
        "huge": ([1e300] * 12, "array_col.*e.?300"),
        "numbers as text": (["0", "1", "2", "3"] * 3, "."),
        "one NaN": ([np.nan, 1, 2, 3] * 3, "."),
        "dates": (list(pd.date_range("2020", periods=12)), "array_col"),
        "lists": ([[1]] * 12, "array_col"),
    }
    for name, (values, says) in lattices.items():
        yield Case(
            kind="spots",
            name=f"array_col: {name}",
            spoil=set_column("array_col", values),
            call=predict,
            says=says,
            function=stp.tl.predict,
        )
    for name, values in {"text": ["c1"] * 12, "NaN": [np.nan] * 12, "half": [0.5] * 12}.items():
        yield Case(
            kind="spots",
            name=f"lattice that a network reads: {name}",
            spoil=set_column("array_row", values),
            call=lambda bench: train(bench, model="histogene", config={"epochs": 1}),
            says="array_row",
            function=stp.tl.train,
            twin=None,
        )
    for radius in (-1.0, 0.0, np.nan, np.inf):
        yield Case(
            kind="spots",
            name=f"radius={radius}, read by nothing",
            spoil=_set_radius(radius),
            call=predict,
            says="radius",
            function=stp.tl.predict,
        )
        yield Case(
            kind="spots",
            name=f"radius={radius}, drawn",
            spoil=_set_radius(radius),
            call=_draw,
            says="radius",
            function=stp.pl.spatial,
            twin=None,
        )
    for name, values in {"text": ["yes"] * 12, "2": [2] * 12, "NaN": [np.nan] * 12, "all 0": [0] * 12}.items():
        yield Case(
            kind="spots",
            name=f"in_tissue: {name}",
            spoil=set_column("in_tissue", values),
            call=train,
            says="in_tissue",
            function=stp.tl.train,
            twin="mean",
        )
    yield Case(
        kind="spots",
        name="in_tissue: some 0",
        spoil=set_column("in_tissue", [0, 1] * 6),
        call=train,
        says="6 of 12 spots are off the tissue",
        function=stp.tl.train,
        twin="mean",
    )


# ------------------------------------------------------------------------------------------------------------------- tables


def set_counts(change: Callable[[np.ndarray], Any]) -> Callable[[SpatialData], None]:
    """Return a change of the counts."""

    def spoil(sdata: SpatialData) -> None:
        sdata.tables["table"].X = change(sdata.tables["table"].X.copy())

    return spoil


def _put(counts: np.ndarray, value: float) -> np.ndarray:
    counts[2, 1] = value
    return counts


def _set_genes(names: list[str]) -> Callable[[SpatialData], None]:
    def spoil(sdata: SpatialData) -> None:
        sdata.tables["table"].var_names = names

    return spoil


def _no_rows(sdata: SpatialData) -> None:
    sdata.tables.data["table"] = sdata.tables["table"][:0].copy()  # SpatialData refuses some


def _foreign(sdata: SpatialData) -> None:
    sdata.tables["table"].obsm[KEY] = np.zeros((12, 2))


def _one_gene(sdata: SpatialData) -> None:
    sdata.tables.data["table"] = sdata.tables["table"][:, :1].copy()


def table_cases() -> Iterator[Case]:
    """Counts, genes and columns of a table."""
    counts: dict[str, tuple[Callable[[np.ndarray], Any], str]] = {
        "NaN": (lambda x: _put(x, np.nan), "nan"),
        "negative": (lambda x: _put(x, -1), "negative"),
        "infinite": (lambda x: _put(x, np.inf), "inf"),
        "normalised": (np.log1p, "whole number|Raw counts"),
        "one half": (lambda x: _put(x, 0.5), "0.5"),
        "all zero": (np.zeros_like, "zero|no counts"),
        "one spot zero": (lambda x: np.vstack([np.zeros(4), x[1:]]).astype(np.float32), "1 of 12 spots"),
        "sparse": (csr_matrix, "."),
        "lazy": (lambda x: da.from_array(x, chunks=(4, 4)), "."),
        "lazy and sparse": (lambda x: da.from_array(csr_matrix(x), chunks=(12, 4)), "."),
        "integers": (lambda x: x.astype(np.int64), "."),
        "complex": (lambda x: x.astype(complex), "complex|numbers"),
        "float16": (lambda x: x.astype(np.float16), "."),
        "none": (lambda _: None, r"no \.X"),
    }
    for name, (change, says) in counts.items():
        yield Case(
            kind="tables",
            name=f"counts: {name}",
            spoil=set_counts(change),
            call=train,
            says=says,
            function=stp.tl.train,
            twin="mean",
        )
    others: dict[str, tuple[Callable[[SpatialData], Any], str, Any]] = {
        "no rows": (_no_rows, "empty|no spots", predict),
        "no rows, trained on": (_no_rows, "empty|no spots", train),
        "foreign prediction": (_foreign, KEY, predict),
        "links lost": (lambda s: s["table"].uns.pop("spatialdata_attrs"), "which shapes", predict),
        "names twice": (lambda s: setattr(s["table"], "obs_names", ["s0"] * 12), "unique.*s0", predict),
        "genes twice": (_set_genes(["a", "a", "c", "d"]), "a", train),
        "other genes": (_set_genes(["w", "x", "y", "z"]), "none of the 4 panel genes", train),
        "lower case": (_set_genes(["A", "B", "C", "D"]), "ignore_case|lacks", train),
        "numbers as genes": (_set_genes(["1", "2", "3", "4"]), "none of the 4 panel genes", train),
        "no patient": (lambda s: s["table"].obs.pop("patient"), "patient", train),
        "patient unknown": (set_column("patient", [None, *["P1"] * 11]), "1 of 12 spots have no 'patient'", train),
        "no table": (lambda s: s.tables.pop("table"), "no table", train),
        "two tables": (_two_tables, "several tables", predict),
        "one gene": (_one_gene, "one gene|lacks", lambda bench: train(bench, panel=["a"])),
        "panel of one": (lambda _s: None, "one gene", lambda bench: train(bench, panel=["a"])),
        "panel of two": (lambda _s: None, "2 genes", lambda bench: train(bench, panel=["a", "b"])),
        "panel of one, all genes of one": (
            _one_gene,
            "one gene",
            lambda bench: train(bench, panel=["a"], preset="recommended"),
        ),
        "twice the same section": (lambda _s: None, "same section", _twice),
        "scored in training": (lambda _s: None, "train", lambda bench: evaluate(bench, train=bench.sdata)),
        "prediction of another panel": (_cut_prediction, "genes|columns", evaluate),
    }
    for name, (spoil, says, call) in others.items():
        function = {predict: stp.tl.predict, evaluate: stp.tl.evaluate}.get(call, stp.tl.train)
        twin = "prediction" if call is predict else "mean" if function is stp.tl.train else None
        yield Case(kind="tables", name=name, spoil=spoil, call=call, says=says, function=function, twin=twin)


def _twice(bench: Bench) -> Any:
    return train(bench, sdatas=[bench.sdata], validation=[bench.sdata])


def _two_tables(sdata: SpatialData) -> None:
    sdata.tables["first"] = sdata.tables["table"].copy()
    sdata.tables["second"] = sdata.tables.pop("table")


def _cut_prediction(sdata: SpatialData) -> None:
    bench = Bench(folder=Path(), make=make_section, weights=_WEIGHTS[0], sdata=sdata)
    predict(bench)
    sdata["table"].obsm[KEY] = sdata["table"].obsm[KEY][:, :2]


_WEIGHTS: list[Path] = []
"""The weights of the bench, for spoiled predictions."""


# -------------------------------------------------------------------------------------------------------------------- cards


def spoil_header(path: Path, change: Callable[[dict[str, Any]], Any], out: Path) -> Path:
    """Copy a checkpoint with a changed header."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    changed = json.dumps(change(header) or header).encode()
    out.write_bytes(struct.pack("<Q", len(changed)) + changed + content[8 + length :])
    return out


def spoil_card(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    """Return a change of the card in a header."""

    def spoil(header: dict[str, Any]) -> None:
        card = json.loads(header["__metadata__"]["st_predict.card"])
        change(card)
        header["__metadata__"]["st_predict.card"] = json.dumps(card)

    return spoil


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Return a change of one field of a card, by its path and new value."""
    *places, name, value = path

    def change(card: dict[str, Any]) -> None:
        for place in places:
            card = card[place]
        card[name] = value

    return change


def card_cases() -> Iterator[Case]:
    """Cards and weights of checkpoints."""
    changes: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
        "no genes": (put("genes", []), "genes"),
        "a gene twice": (put("genes", ["a", "a", "b", "c"]), "genes"),
        "genes of another number": (put("genes", ["a", "b"]), "genes|shape|size|weights"),
        "genes as text": (put("genes", "abcd"), "genes"),
        "genes as numbers": (put("genes", [1, 2, 3, 4]), "genes"),
        "unknown model": (put("model", "nope"), "nope"),
        "model as number": (put("model", 3), "model"),
        "another model": (put("model", "ridge"), "ridge|hyper-parameters|weights"),
        "no model": (lambda c: c.pop("model"), "model"),
        "unknown field": (put("colour", "red"), "colour"),
        "newer format": (put("format_version", 99), "99"),
        "no format": (lambda c: c.pop("format_version"), "format_version"),
        "mpp of 0": (put("crop", "mpp", 0), "mpp"),
        "mpp as text": (put("crop", "mpp", "1"), "mpp"),
        "negative mpp": (put("crop", "mpp", -1), "mpp"),
        "no levels": (put("crop", "levels", []), "level"),
        "size of 0": (put("crop", "levels", 0, "size", 0), "size"),
        "huge size": (put("crop", "levels", 0, "size", 10**9), "size"),
        "levels in the wrong order": (lambda c: c["crop"]["levels"].reverse(), "finest"),
        "pad of 300": (put("crop", "pad_value", 300), "pad_value"),
        "unknown hyper-parameter": (put("hparams", "nope", 1), "nope"),
        "another width": (put("hparams", "dim", 24), "dim|weights|shape|heads"),
        "width as text": (put("hparams", "dim", "8"), "dim"),
        "huge width": (put("hparams", "dim", 10**8), "too large|memory"),
        "hparams as list": (put("hparams", [1]), "hparams"),
        "std of 0": (put("pixels", "std", [0, 1, 1]), "std"),
        "two means": (put("pixels", "mean", [0, 0]), "mean"),
        "unknown transform": (put("target", "transform", "sqrt"), "transform"),
        "total of 0": (put("target", "total", 0), "total"),
        "sum over nothing": (put("target", "over", "none"), "over"),
        "target without statistics": (put("target", {"transform": "pearson_residuals"}), "reference|statistics"),
        "training as text": (put("training", "C2"), "training"),
        "colours as text": (put("training", "colours", {"mean": "red", "sd": 3}), "."),
        "scores of other genes": (
            put(
                "reliability",
                [
                    {
                        "held_out": "patient",
                        "sections": ["S"],
                        "patients": ["P"],
                        "n_spots": 3,
                        "partial": [0.1],
                        "low": [0.0],
                        "high": [0.2],
                        "ceiling": [0.5],
                    }
                ],
            ),
            "scores|genes",
        ),
    }
    for name, (change, says) in changes.items():
        yield Case(
            kind="cards",
            name=name,
            call=lambda bench, change=change: _predict_with(
                bench, spoil_header(bench.weights, spoil_card(change), bench.new() / "w.safetensors")
            ),
            spoil=lambda _sdata: None,
            says=says,
            function=stp.tl.predict,
        )
    contents: dict[str, tuple[Callable[[bytes], bytes], str]] = {
        "empty file": (lambda _: b"", "safetensors"),
        "truncated": (lambda c: c[: len(c) // 2], "safetensors|damaged"),
        "truncated header": (lambda c: c[:20], "safetensors|damaged"),
        "text": (lambda _: b"hello", "safetensors"),
        "zip": (lambda _: b"PK\x03\x04" + bytes(100), "safetensors"),
        "huge header": (lambda c: struct.pack("<Q", 2**60) + c[8:], "header|safetensors"),
        "negative header": (lambda c: struct.pack("<q", -1) + c[8:], "header|safetensors"),
        "trailing bytes": (lambda c: c + bytes(100), "safetensors|damaged"),
    }
    for name, (change, says) in contents.items():
        yield Case(
            kind="cards",
            name=name,
            call=lambda bench, change=change: _predict_with(bench, _rewrite(bench, change)),
            spoil=lambda _sdata: None,
            says=says,
            function=stp.tl.predict,
        )
    headers: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
        "no card": (lambda h: h["__metadata__"].pop("st_predict.card"), "card"),
        "card is no JSON": (lambda h: h["__metadata__"].update({"st_predict.card": "{"}), "JSON"),
        "card is a list": (lambda h: h["__metadata__"].update({"st_predict.card": "[]"}), "mapping"),
        "a tensor is missing": (_drop_tensor, "weights|tensor|lacks|missing"),
        "a tensor too many": (_more_tensors, "weights|tensor|unexpected|extra"),
        "a tensor of another type": (_retype, "dtype|type|weights|safetensors|damaged"),
    }
    for name, (change, says) in headers.items():
        yield Case(
            kind="cards",
            name=name,
            call=lambda bench, change=change: _predict_with(
                bench, spoil_header(bench.weights, lambda h: (change(h), None)[1], bench.new() / "w.safetensors")
            ),
            spoil=lambda _sdata: None,
            says=says,
            function=stp.tl.predict,
        )


def _predict_with(bench: Bench, path: Path) -> np.ndarray:
    return predict(bench, model=path)


def _rewrite(bench: Bench, change: Callable[[bytes], bytes]) -> Path:
    path = bench.new() / "w.safetensors"
    path.write_bytes(change(bench.weights.read_bytes()))
    return path


def _tensors(header: dict[str, Any]) -> list[str]:
    return sorted(name for name in header if name != "__metadata__")


def _drop_tensor(header: dict[str, Any]) -> None:
    header["renamed"] = header.pop(_tensors(header)[0])


def _more_tensors(header: dict[str, Any]) -> None:
    header["more"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


def _retype(header: dict[str, Any]) -> None:
    first = header[_tensors(header)[0]]
    first["dtype"] = {"F32": "I32"}.get(first["dtype"], "F32")


# ------------------------------------------------------------------------------------------------------------------- slides


def slide_cases() -> Iterator[Case]:
    """Files that are no slides, and slides that do not say how wide a pixel is."""

    def read(bench: Bench, file: str, content: bytes | None) -> None:
        path = bench.new() / file
        if content is not None:
            path.write_bytes(content)
        stp.io.read_wsi(path)

    files: dict[str, tuple[str, bytes | None, str]] = {
        "missing": ("a.svs", None, r"a\.svs"),
        "empty": ("a.svs", b"", r"a\.svs"),
        "text": ("a.svs", b"hello", r"a\.svs"),
        "png": ("a.png", b"\x89PNG\r\n\x1a\n", r"\.png"),
        "jpeg": ("a.jpg", b"\xff\xd8\xff", r"\.jpg"),
        "truncated TIFF": ("a.tif", b"II*\x00\x08\x00\x00\x00", r"a\.tif"),
        "zip called svs": ("a.svs", b"PK\x03\x04" + bytes(50), r"a\.svs"),
        "h5ad": ("a.h5ad", b"\x89HDF\r\n\x1a\n", r"a\.h5ad"),
    }
    for name, (file, content, says) in files.items():
        yield Case(
            kind="slides",
            name=name,
            call=partial(read, file=file, content=content),
            says=says,
            function=stp.io.read_wsi,
            twin=None,
        )
    calls: dict[str, tuple[Callable[[Bench], Any], str]] = {
        "a folder": (lambda bench: stp.io.read_wsi(bench.new()), "folder"),
        "a number": (lambda _: stp.io.read_wsi(3), "path"),
        "nothing": (lambda _: stp.io.read_wsi(None), "path"),
        "empty name": (lambda _: stp.io.read_wsi(""), "path|folder|file"),
        "name of the image": (lambda bench: stp.io.read_wsi(bench.folder / "none.svs", image_key="a/b"), "image_key"),
    }
    for name, (call, says) in calls.items():
        yield Case(kind="slides", name=name, call=call, says=says, function=stp.io.read_wsi, twin=None)
    for mpp in (0, -1, "x", float("nan")):
        yield Case(
            kind="slides",
            name=f"mpp={mpp!r}",
            call=lambda bench, mpp=mpp: stp.io.read_wsi(_small_tiff(bench), mpp=mpp),
            says="mpp",
            function=stp.io.read_wsi,
            twin=None,
        )
    for wrong in (3, "x.zarr", None, np.zeros(3), pd.DataFrame(), [make_section]):
        yield Case(
            kind="slides",
            name=f"sdata={short(wrong)}",
            call=lambda _, wrong=wrong: stp.tl.predict(wrong, "m2ost"),
            says="sdata.* must be",
            function=stp.tl.predict,
            twin=None,
        )


def _small_tiff(bench: Bench) -> Path:
    path = bench.new() / "a.tif"
    tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint8), tile=(64, 64), photometric="rgb")
    return path


# ----------------------------------------------------------------------------------------------------------- legacy folders

LEGACY = [(x, y) for y in (2, 3) for x in (2, 3, 4)]


def write_legacy(folder: Path) -> None:
    """Write the three files of a section."""
    names = [f"{x}x{y}" for x, y in LEGACY]
    pd.DataFrame({"A": range(1, 7), "B": 1}, index=names).to_csv(folder / "c.tsv", sep="\t")
    spots = pd.DataFrame(LEGACY, columns=["x", "y"])
    spots["pixel_x"], spots["pixel_y"] = spots["x"] * 100, spots["y"] * 100
    spots.to_csv(folder / "s.tsv", sep="\t", index=False)
    Image.fromarray(np.zeros((500, 500, 3), np.uint8)).save(folder / "h.png")


def read_legacy(bench: Bench, changes: dict[str, Callable[[bytes], bytes | None]], **options: Any) -> np.ndarray:
    """Read a section some of whose files were changed."""
    folder = bench.new()
    for name in ("c.tsv", "s.tsv", "h.png"):
        content: bytes | None = (bench.folder / name).read_bytes()
        content = changes.get(name, lambda c: c)(content)
        if content is not None:
            (folder / name).write_bytes(content)
    options = {"section": "S", "patient": "P", "n_levels": 1, **options}
    sdata = stp.io.read_legacy_st(folder / "c.tsv", folder / "s.tsv", folder / "h.png", **options)
    return np.column_stack([sdata["table"].obsm["spatial"], sdata["table"].X.toarray()]).astype(np.float64)


def legacy_cases() -> Iterator[Case]:
    """Text files and images of the first arrays."""
    both: dict[str, Callable[[bytes], bytes | None]] = {
        "missing": lambda _: None,
        "empty": lambda _: b"",
        "byte order mark": lambda c: b"\xef\xbb\xbf" + c,
        "CRLF": lambda c: c.replace(b"\n", b"\r\n"),
        "CR": lambda c: c.replace(b"\n", b"\r"),
        "UTF-16": lambda c: c.decode().encode("utf-16"),
        "Latin-1": lambda c: c.replace(b"\t", b"\t\xe9", 1),
        "gzip without its suffix": gzip.compress,
        "truncated gzip": lambda c: gzip.compress(c)[:-12],
        "commas": lambda c: c.replace(b"\t", b","),
        "semicolons": lambda c: c.replace(b"\t", b";"),
        "only the header": lambda c: c.split(b"\n")[0] + b"\n",
        "without the header": lambda c: c.split(b"\n", 1)[1],
        "a row twice": lambda c: c + c.strip().split(b"\n")[-1] + b"\n",
        "a number is text": lambda c: c.replace(b"\t1\n", b"\tx\n", 1).replace(b"400", b"x", 1),
        "a decimal comma": lambda c: c.replace(b"\t1\n", b"\t1,5\n", 1).replace(b"400", b"400,5", 1),
        "binary": lambda _: bytes(range(256)),
        "a page of the web": lambda _: b"<!DOCTYPE html><html></html>",
    }
    for file in ("c.tsv", "s.tsv"):
        for name, change in both.items():
            yield _legacy(
                f"{'counts' if file == 'c.tsv' else 'spots'}: {name}", {file: change}, file.replace(".", r"\.")
            )
    files: dict[str, tuple[str, Callable[[bytes], bytes | None], str]] = {
        "counts: a row per gene": ("c.tsv", _transposed, "Transpose|row per gene"),
        "counts: negative": ("c.tsv", lambda c: c.replace(b"\t1\n", b"\t-1\n", 1), "-1"),
        "counts: half": ("c.tsv", lambda c: c.replace(b"\t1\n", b"\t0.5\n", 1), "0.5"),
        "counts: a cell missing": ("c.tsv", lambda c: c.replace(b"\t1\n", b"\n", 1), "1 counts for 2 genes"),
        "counts: no such spots": ("c.tsv", lambda c: re.sub(rb"(\d)x(\d)", rb"9\1x9\2", c), "none of the 6 spots"),
        "counts: names of another form": ("c.tsv", lambda c: c.replace(b"x", b"_"), "names of spots like 7x13"),
        "spots: a column missing": ("s.tsv", lambda c: c.replace(b"pixel_x", b"px"), "pixel_x"),
        "spots: a pixel missing": ("s.tsv", lambda c: c.replace(b"400", b"", 1), "not numbers|NaN"),
        "spots: all in one place": ("s.tsv", lambda c: re.sub(rb"[234]00", b"100", c), "lattice|pitch|line"),
        "image: missing": ("h.png", lambda _: None, r"h\.png"),
        "image: empty": ("h.png", lambda _: b"", r"h\.png"),
        "image: truncated": ("h.png", lambda c: c[: len(c) // 2], r"h\.png"),
        "image: text": ("h.png", lambda _: b"hello", r"h\.png"),
        "image: grey": ("h.png", lambda _: _png("L"), "'L'"),
        "image: with a palette": ("h.png", lambda _: _png("P"), "'P'"),
        "image: transparent": ("h.png", lambda _: _png("RGBA"), "'RGBA'"),
        "image: 16 bits": ("h.png", lambda _: _png("I;16"), "'I;16'"),
        "image: too small": ("h.png", lambda _: _png("RGB"), "outside the image"),
    }
    for name, (file, change, says) in files.items():
        yield _legacy(name, {file: change}, says)
    arguments: dict[str, list[Any]] = {
        "mpp": [0, -1, "x"],
        "section": [3, None],
        "patient": [3],
        "pitch_um": [0, -1],
        "spot_diameter_um": [0],
        "n_levels": [0, 1.5],
        "image_key": ["a/b", 3],
        "table_key": ["", ".."],
        "labels": ["none.tsv", 3],
    }
    for argument, values in arguments.items():
        for value in values:
            yield Case(
                kind="legacy folders",
                name=f"{argument}={value!r}",
                call=lambda bench, argument=argument, value=value: read_legacy(bench, {}, **{argument: value}),
                says=f"{argument}|{pattern(value)}",
                function=stp.io.read_legacy_st,
                twin="legacy",
            )


def _legacy(name: str, changes: dict[str, Callable[[bytes], bytes | None]], says: str) -> Case:
    return Case(
        kind="legacy folders",
        name=name,
        call=lambda bench: read_legacy(bench, changes),
        says=says,
        function=stp.io.read_legacy_st,
        twin="legacy",
    )


def _transposed(content: bytes) -> bytes:
    rows = [line.split(b"\t") for line in content.rstrip().split(b"\n")]
    return b"\n".join(b"\t".join(row) for row in zip(*rows, strict=True)) + b"\n"


def _png(mode: str) -> bytes:
    import io

    file = io.BytesIO()
    Image.new(mode, (50, 50)).save(file, "png")
    return file.getvalue()


# --------------------------------------------------------------------------------------------------------------- gene lists


def gene_cases() -> Iterator[Case]:
    """Files and lists of genes."""

    def read(bench: Bench, content: bytes) -> list[str]:
        path = bench.new() / "panel.txt"
        path.write_bytes(content)
        return list(stp.pp.read_panel(path))

    good = "\n".join(GENES).encode()
    contents: dict[str, tuple[bytes, str]] = {
        "empty": (b"", "panel"),
        "only blank lines": (b"\n\n \n", "panel"),
        "byte order mark": (b"\xef\xbb\xbf" + good, "."),
        "CRLF": (good.replace(b"\n", b"\r\n"), "."),
        "CR": (good.replace(b"\n", b"\r"), "."),
        "blank lines": (good.replace(b"\n", b"\n\n"), "."),
        "spaces": (good.replace(b"\n", b" \n "), "."),
        "UTF-16": (good.decode().encode("utf-16"), "UTF-8|panel"),
        "binary": (bytes(range(256)), "UTF-8|panel"),
        "a gene twice": (good + b"\na", "a"),
        "npy that is none": (b"\x93NUMPY", "panel"),
    }
    for name, (content, says) in contents.items():
        yield Case(
            kind="gene lists",
            name=f"file: {name}",
            call=lambda bench, content=content: read(bench, content),
            says=says,
            function=stp.pp.read_panel,
            twin="panel",
        )
    for value in ("none.txt", 3, None, "", ["a"]):
        yield Case(
            kind="gene lists",
            name=f"read_panel({value!r})",
            call=lambda _, value=value: stp.pp.read_panel(value),
            says=pattern(value) + "|path|panel",
            function=stp.pp.read_panel,
            twin=None,
        )
    lists: list[Any] = [
        ["nope"],
        [],
        ["a", "a"],
        "a",
        3,
        None,
        ["a", None],
        [3],
        {"a": 1},
        ["A"],
        [""],
        ["a "],
        ["ENSG00000141736"],
    ]
    for genes in lists:
        yield Case(
            kind="gene lists",
            name=f"align_panel({genes!r})",
            spoil=lambda _sdata: None,
            call=lambda bench, genes=genes: list(stp.pp.align_panel(bench.sdata["table"], genes).matched),
            says="panel|gene|names",
            function=stp.pp.align_panel,
            twin=None,
        )
    options: list[dict[str, Any]] = [
        {"missing": "ignore"},
        {"duplicates": "add"},
        {"id_column": "nope"},
        {"ignore_case": "yes"},
        {"aliases": "none.tsv"},
        {"aliases": pd.DataFrame({"x": [1]})},
        {"aliases": 3},
    ]
    for option in options:
        ((argument, value),) = option.items()
        yield Case(
            kind="gene lists",
            name=f"align_panel({argument}={short(value)})",
            spoil=lambda _sdata: None,
            call=lambda bench, option=option: stp.pp.align_panel(bench.sdata["table"], list(GENES), **option),
            says=f"{argument}|alias|nope|none",
            function=stp.pp.align_panel,
            twin=None,
        )


# ------------------------------------------------------------------------------------------------------------- command line


def command(bench: Bench, *arguments: str) -> None:
    """Run a command in this process; its message is raised."""
    done = CliRunner().invoke(app, [a.format(folder=bench.folder, new=bench.new()) for a in arguments])
    if done.exit_code:
        raise SystemExit(done.output + (done.stderr if done.stderr_bytes else ""))


def command_cases() -> Iterator[Case]:
    """Commands with files that are missing or of another kind, and options that do not exist."""
    store, weights, out = "{folder}/store.zarr", "{folder}/tiny.safetensors", "{new}/o.zarr"
    lines: dict[str, tuple[tuple[str, ...], str]] = {
        "no such file": (("predict", "{folder}/none.zarr", "--out", out), "none.zarr"),
        "no such slide": (("predict", "{folder}/none.svs", "--out", out), "none.svs"),
        "a folder that is no store": (("predict", "{folder}/plain", "--out", out), "plain"),
        "a store that is empty": (("predict", "{folder}/empty.zarr", "--out", out), "empty.zarr"),
        "a text as slide": (("predict", "{folder}/c.tsv", "--out", out), r"c\.tsv"),
        "a picture as slide": (("predict", "{folder}/h.png", "--out", out), "--mpp"),
        "out of another kind": (("predict", store, "--model", weights, "--out", "{new}/o.csv"), r"o\.csv"),
        "out that exists": (("predict", store, "--model", weights, "--out", store), "store.zarr"),
        "out in no folder": (("predict", store, "--model", weights, "--out", "{folder}/no/o.zarr"), "folder"),
        "no out": (("predict", store), "--out"),
        "no such weights": (("predict", store, "--model", "nope", "--out", out), "nope"),
        "no such file of weights": (("predict", store, "--model", "no.safetensors", "--out", out), "no.safetensors"),
        "a text as weights": (("predict", store, "--model", "{folder}/c.tsv", "--out", out), r"c\.tsv"),
        "device": (("predict", store, "--model", weights, "--out", out, "--device", "gpu"), "gpu"),
        "precision": (("predict", store, "--model", weights, "--out", out, "--precision", "fp8"), "fp8"),
        "mpp of 0": (("predict", store, "--model", weights, "--out", out, "--mpp", "0"), "mpp"),
        "mpp as text": (("predict", store, "--model", weights, "--out", out, "--mpp", "x"), "mpp"),
        "hparams no JSON": (("predict", store, "--model", weights, "--out", out, "--hparams", "{{"), "hparams"),
        "hparams a list": (("predict", store, "--model", weights, "--out", out, "--hparams", "[1]"), "hparams"),
        "unknown option": (("predict", store, "--out", out, "--colour", "red"), "--colour"),
        "unknown command": (("paint",), "paint"),
        "no command": ((), "."),
        "table": (("predict", store, "--model", weights, "--out", out, "--table-key", "none"), "none"),
        "image": (("predict", store, "--model", weights, "--out", out, "--image-key", "none"), "none"),
        "context": (("predict", store, "--model", weights, "--out", out, "--context", "none"), "context|none"),
        "reliable": (("predict", store, "--model", weights, "--out", "{new}/o.h5ad", "--reliable"), "scores"),
        "calibration": (
            ("predict", store, "--model", weights, "--out", out, "--calibration", "{folder}/c.tsv"),
            r"c\.tsv",
        ),
        "train, no panel": (("train", store, "--out", out), "--panel"),
        "train, panel missing": (("train", store, "--out", out, "--panel", "{folder}/none.txt"), "none.txt"),
        "train, too many genes": (("train", store, "--out", out, "--panel", "99", "--model", "mean"), "99"),
        "train, both kinds of validation": (
            ("train", store, "--out", out, "--panel", "2", "--validation", store, "--hold-out", "P1"),
            "--hold-out",
        ),
        "train, nobody to hold out": (
            ("train", store, "--out", out, "--panel", "2", "--model", "mean", "--hold-out", "nobody"),
            "nobody",
        ),
        "train, preset": (("train", store, "--out", out, "--panel", "2", "--preset", "best"), "best"),
        "train, epochs": (("train", store, "--out", out, "--panel", "2", "--epochs", "0"), "epochs"),
        "evaluate, no prediction": (("evaluate", store, "--out", "{new}/e.csv"), "prediction"),
        "evaluate, no sections": (("evaluate", "--out", "{new}/e.csv"), "SECTIONS"),
        "evaluate, twice": (("evaluate", store, store, "--out", "{new}/e.csv"), "twice"),
        "calibrate, coverage": (("calibrate", store, "--out", "{new}/c.json", "--coverage", "2"), "coverage"),
        "embed, encoder": (("embed", store, "--out", out, "--encoder", "nope"), "nope"),
        "embed, fields": (("embed", store, "--out", out, "--fields", "0"), "fields"),
        "card, nothing": (("card", "nope"), "nope"),
        "card, a folder": (("card", "{folder}/plain"), "plain"),
        "download, nothing": (("download",), "--all"),
        "download, unknown": (("download", "nope"), "nope"),
        "import, nothing": (
            ("import", "m2ost", "{folder}/none.pth", "--out", "{new}/w.safetensors"),
            "none.pth|mpp|genes",
        ),
        "superresolve, other weights": (("superresolve", store, "--model", weights, "--out", out), "m2ost|cells"),
    }
    for name, (arguments, says) in lines.items():
        yield Case(
            kind="command line",
            name=name,
            call=lambda bench, arguments=arguments: command(_with_store(bench), *arguments),
            says=says,
            twin=None,
        )


def _with_store(bench: Bench) -> Bench:
    if not (bench.folder / "store.zarr").exists():
        make_section().write(bench.folder / "store.zarr")
        (bench.folder / "plain").mkdir()
        (bench.folder / "empty.zarr").mkdir()
    return bench


def all_cases() -> list[Case]:
    """All bad inputs, in a fixed order."""
    return [
        *image_cases(),
        *transformation_cases(),
        *spot_cases(),
        *table_cases(),
        *argument_cases(),
        *configuration_cases(),
        *card_cases(),
        *slide_cases(),
        *legacy_cases(),
        *gene_cases(),
        *command_cases(),
    ]
