"""From a slide to predictions in its table: `tl.predict` beside the network alone, and beside the published way.

    python benchmarks/end_to_end.py --out end_to_end.json

The main job is a section of the simulator with so many spots, or with ``--section C2`` a real one of
:func:`st_predict.datasets.her2st`. ``bare forward`` is the same network on crops that are cut already. ``published way`` cuts
crops with Pillow, spot by spot, out of an image in memory and runs the plain network in float32, 48 spots at a time.

The large slide is 100,000 x 100,000 px with up to 100,000 spots; its zarr has all its chunks on disk, most of them links to
the same few. A network that is far too small is used there, so that what is seen is all the rest.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

STARTED = time.perf_counter()

import numpy as np  # noqa: E402
from _measure import Goal, interleave, peak_mib, print_table, report, run_alone, summarise, write_json  # noqa: E402

MAIN = ["published way", "bare forward", "tl.predict"]
LEVELS = 3
SIDE, CHUNK = 100_000, 512
N_WRITTEN, N_GENES = 5_000, 250
STAGES = {
    "opening the slide": ("io_zarr.py", "read_zarr"),
    "loading the network": ("_file.py", "load"),
    "finding spots and mpp": ("_section.py", "open_sdata"),
    "planning crops": ("_cutters.py", "__init__"),
    "waiting for crops": ("_cutters.py", "finish"),
    "network": ("_inference.py", "__call__"),
    "writing": ("_results.py", "write_prediction"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", help="a section of her2st; by default one is simulated")
    parser.add_argument("--spots", type=int, default=300, help="of the simulated section")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", type=int, nargs="+", default=[25_000, 100_000], help="spots of the large slide")
    parser.add_argument("--side", type=int, default=SIDE, help="of the large slide, in pixels")
    parser.add_argument("--quick", action="store_true", help="a few spots, to see that it runs")
    parser.add_argument("--folder", type=Path, help="where the slides are made, and kept")
    parser.add_argument("--out", type=Path, help="JSON file for what was measured")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.spots, args.rounds, args.large, args.side = 1, 1, [16], 4096
    if args.variant:
        run_variant(args)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        compare(args, folder)


def compare(args: argparse.Namespace, folder: Path) -> None:
    options = [
        "--spots",
        str(args.spots),
        "--side",
        str(args.side),
        "--folder",
        str(folder),
        *(["--section", args.section] if args.section else []),
    ]
    run_alone(__file__, "make section", *options)
    samples = interleave(__file__, MAIN, *options, rounds=args.rounds)
    goals = {
        "tl.predict": [
            Goal(at_least=7),
            Goal(figure="share of bare forward", at_least=0.95),
            Goal(figure="start-up s", at_most=6),
            Goal(figure="peak MiB", at_most=1024),
        ]
    }
    for bare, ours in zip(samples["bare forward"], samples["tl.predict"], strict=True):
        ours["share of bare forward"] = ours["spots/s"] / bare["spots/s"]
    rows = summarise(samples, figure="spots/s", reference="published way", goals=goals)
    print_table(rows, ["spots/s", "spread", "ratio", "peak MiB"], title=f"{rows[0]['spots']:.0f} spots of a section")
    ours = rows[-1]
    print(f"of bare forward: {ours['share of bare forward']:.1%}; start-up: {ours['start-up s']:.1f} s")
    write = run_alone(__file__, "write", *options)
    share = write["seconds"] / (N_WRITTEN / ours["spots/s"])
    print(
        f"writing {N_WRITTEN:,} spots x {N_GENES} genes: {write['seconds'] * 1e3:.1f} ms, {share:.3%} of predicting (goal < 10 %)"
    )
    stages = run_alone(__file__, "profile", *options)
    print(
        "\nWhere the time of tl.predict goes: "
        + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in stages.items())
    )
    run_alone(__file__, "make large slide", *options)
    large = [large_row(n, options) for n in args.large]
    for one in large:
        one["ratio"] = one["ms/spot"] / large[0]["ms/spot"]
    print_table(
        large,
        ["spots", "ms/spot", "ratio", "peak MiB"],
        title=f"A slide of {args.side:,} x {args.side:,} px, tiny network",
    )
    if args.out:
        write_json(args.out, main=rows, write=write, write_share=share, profile=stages, large=large)


def large_row(n_spots: int, options: list[str]) -> dict[str, object]:
    one = run_alone(__file__, f"large {n_spots}", *options)
    goal = Goal(figure="peak MiB", at_most=3 * 1024)
    met = "yes" if goal.met(one["peak MiB"]) else "NO"
    return one | {
        "variant": f"{n_spots} spots",
        "ms/spot": one["seconds"] / one["spots"] * 1e3,
        "goal": str(goal),
        "met": met,
    }


def run_variant(args: argparse.Namespace) -> None:
    name, _, number = args.variant.partition(" ")
    if name == "make":
        {"section": make_section, "large slide": make_large_slide}[number](args)
    elif name == "large":
        predict_large(args.folder, int(number), args.side)
    else:
        variants = {
            "published": published,
            "bare": bare,
            "tl.predict": predict,
            "write": write_table,
            "profile": stages,
        }
        variants[name](args)


def make_section(args: argparse.Namespace) -> None:
    """Write the section, if it is not there."""
    import st_predict as stp

    path = section_path(args)
    if not path.exists():
        if args.section:
            sdata = stp.datasets.her2st(args.section)
        else:
            side = (round(args.spots**0.5 * 291) + 900) // 8 * 8  # as wide as the lattice, plus the widest crop
            sdata = stp.datasets.simulate(1, 1, shape=(side, side), mpp=0.688).sections["P1S1"]
        sdata.write(path)
    report(done=True)


def section_path(args: argparse.Namespace) -> Path:
    return args.folder / f"{args.section or f'simulated-{args.spots}'}.zarr"


def predict(args: argparse.Namespace) -> None:
    """Everything that a user's script does."""
    import spatialdata

    import st_predict as stp

    stp.tl.predict  # noqa: B018  # imports what it needs
    sdata = spatialdata.read_zarr(section_path(args))
    opened = time.perf_counter() - STARTED
    loading = time.perf_counter()
    stp.checkpoints.load(stp.checkpoints.find_weights("m2ost@1"))
    loaded = time.perf_counter() - loading
    start = time.perf_counter()
    stp.tl.predict(sdata, "m2ost@1", mpp="spots")
    seconds = time.perf_counter() - start
    n = sdata["table"].n_obs
    report(**{"spots": n, "spots/s": n / seconds, "start-up s": opened + loaded, "peak MiB": peak_mib()})


def stages(args: argparse.Namespace) -> None:
    """Tell how long each stage of a prediction keeps the main thread."""
    import cProfile
    import pstats

    import spatialdata

    import st_predict as stp

    stp.tl.predict  # noqa: B018  # imports what it needs
    imported = time.perf_counter() - STARTED
    profile = cProfile.Profile()
    profile.runcall(lambda: stp.tl.predict(spatialdata.read_zarr(section_path(args)), "m2ost@1", mpp="spots"))
    functions = pstats.Stats(profile).stats.items()
    found = {(Path(file).name, function): figures[3] for (file, _, function), figures in functions}
    report(**{"imports": imported} | {stage: found[function] for stage, function in STAGES.items()})


def bare(args: argparse.Namespace) -> None:
    """Run the network alone, on crops that are there."""
    import spatialdata
    import torch

    from st_predict import checkpoints
    from st_predict._runtime import Inference
    from st_predict._sections import open_sdata
    from st_predict._where import Where
    from st_predict.crops import iter_batches

    sdata = spatialdata.read_zarr(section_path(args))
    network, card = checkpoints.load(checkpoints.find_weights("m2ost@1"))
    (section,) = open_sdata(sdata, Where(mpp="spots"), need_mpp=True).sections
    batches = list(iter_batches(section.reader, section.plan(card.crop), batch_size=64))
    inference = Inference(network, device=torch.device("cpu"))
    start = time.perf_counter()
    for batch in batches:
        inference(batch)
    seconds = time.perf_counter() - start
    n = sum(len(batch) for batch in batches)
    report(**{"spots": n, "spots/s": n / seconds, "peak MiB": peak_mib()})


def published(args: argparse.Namespace) -> None:
    """Cut with Pillow and compute plainly, as the published loop does."""
    import spatialdata
    import torch
    from _published import PublishedM2OST
    from PIL import Image

    from st_predict import checkpoints
    from st_predict._sections import open_sdata
    from st_predict._where import Where

    sdata = spatialdata.read_zarr(section_path(args))
    network, card = checkpoints.load(checkpoints.find_weights("m2ost@1"))
    plain = PublishedM2OST(network).eval()
    (section,) = open_sdata(sdata, Where(mpp="spots"), need_mpp=True).sections
    height, width = section.reader.level_shapes[0]
    image = Image.fromarray(np.ascontiguousarray(section.reader.read(0, 0, width, height, level=0)))
    centres = section.spots.xy.tolist()
    size = card.crop.levels[0].size
    start = time.perf_counter()
    with torch.no_grad():
        for first in range(0, len(centres), 48):
            crops = [
                [cut(image, xy, size, level.downsample) for level in card.crop.levels]
                for xy in centres[first : first + 48]
            ]
            plain(*(torch.from_numpy(np.stack(level)) for level in zip(*crops, strict=True)))
    seconds = time.perf_counter() - start
    report(**{"spots": len(centres), "spots/s": len(centres) / seconds, "peak MiB": peak_mib()})


def cut(image: object, xy: list[float], size: int, downsample: float) -> np.ndarray:
    """A square around a spot, shrunk to ``size``: ``(3, size, size)`` between 0 and 1."""
    half = size * downsample / 2
    box = [round(xy[0] - half), round(xy[1] - half), round(xy[0] + half), round(xy[1] + half)]
    square = image.crop(box).resize((size, size))
    return np.asarray(square, dtype=np.float32).transpose(2, 0, 1) / 255


def write_table(args: argparse.Namespace) -> None:
    """Time the writer alone."""
    import anndata
    import spatialdata

    import st_predict as stp
    from st_predict._record import Record
    from st_predict._results import Slot
    from st_predict.models import get_spec
    from st_predict.specs import ModelCard

    spec = get_spec("m2ost")
    genes = tuple(f"g{i}" for i in range(N_GENES))
    sdata = spatialdata.SpatialData(tables={"table": anndata.AnnData(np.zeros((N_WRITTEN, 10), np.float32))})
    values = np.random.default_rng(0).normal(size=(N_WRITTEN, N_GENES)).astype(np.float32)
    card = ModelCard(model="m2ost", genes=genes, crop=spec.crop)
    start = time.perf_counter()
    slot = Slot(sdata=sdata, key="pred", table_key="table", regions=())
    slot.write_prediction(values, Record(card=card))
    seconds = time.perf_counter() - start
    assert stp.get.prediction(sdata, "pred").shape == values.shape
    report(seconds=seconds)


def make_large_slide(args: argparse.Namespace) -> None:
    """Make a pyramid of which each level has 64 chunks of tissue, and links to these everywhere else."""
    import zarr

    import st_predict as stp

    path = args.folder / "large.zarr"
    if not path.exists():
        width = min(4096, args.side // 4)
        sections = stp.datasets.simulate(1, 1, shape=(width, width), mpp=0.688).sections
        tissue = sections["P1S1"]["he"]["scale0"]["image"].data
        fresh = args.folder / "large.part"
        shutil.rmtree(fresh, ignore_errors=True)
        for level in range(LEVELS):
            side = args.side >> level
            array = zarr.create_array(
                fresh / str(level), shape=(3, side, side), chunks=(3, CHUNK, CHUNK), dtype="uint8"
            )
            array[:, :width, :width] = tissue.compute()
            link_chunks(fresh / str(level) / "c" / "0", -(-side // CHUNK), width // CHUNK)
        fresh.rename(path)
    report(done=True)


def link_chunks(folder: Path, n: int, n_real: int) -> None:
    for row in range(n):
        (folder / str(row)).mkdir(exist_ok=True)
        for col in range(n):
            if row >= n_real or col >= n_real:
                os.link(folder / str(row % n_real) / str(col % n_real), folder / str(row) / str(col))


def predict_large(folder: Path, n_spots: int, side: int) -> None:
    """Predict a lattice over the whole large slide with a tiny network."""
    import dask.array as da
    import geopandas
    import spatialdata
    from shapely import points

    import st_predict as stp
    from st_predict import checkpoints
    from st_predict._multiscale import image_of_levels
    from st_predict.models import get_spec
    from st_predict.specs import ModelCard

    spec = get_spec("m2ost")
    hparams = {**spec.tiny, "size": 224, "patch": 56}
    card = ModelCard(model="m2ost", genes=tuple("abcde"), crop=spec.crop_for(hparams), hparams=hparams)
    levels = [da.from_zarr(folder / "large.zarr" / str(level)) for level in range(LEVELS)]
    n = round(n_spots**0.5)
    line = (np.arange(n) + 0.5) * side / n
    xy = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    frame = geopandas.GeoDataFrame({"radius": np.full(len(xy), 50.0)}, geometry=points(xy))
    sdata = spatialdata.SpatialData(
        images={"he": image_of_levels(levels, mpp=None)}, shapes={"grid": spatialdata.models.ShapesModel.parse(frame)}
    )
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "tiny.safetensors"
        checkpoints.save(path, checkpoints.build(card), card)
        start = time.perf_counter()
        stp.tl.predict(sdata, path, key_added="tiny")
        seconds = time.perf_counter() - start
    assert np.isfinite(sdata["tiny"].X).all()
    report(**{"spots": len(xy), "seconds": seconds, "peak MiB": peak_mib()})


if __name__ == "__main__":
    main()
