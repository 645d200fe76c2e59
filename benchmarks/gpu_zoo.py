"""All models on the same real sections, with the recommended target and with the paper's, in stages that run on different machines.

    python benchmarks/gpu_zoo.py --out runs/zoo --page  # everything on one machine

    python benchmarks/gpu_zoo.py --out runs/zoo --only pack  # where st_predict is installed whole: writes runs/zoo/pack
    python benchmarks/gpu_zoo.py --out runs/zoo --only train --minutes 8  # where the GPU is: needs runs/zoo/pack
    python benchmarks/gpu_zoo.py --out runs/zoo --only score --page  # needs runs/zoo/predictions and the results file

Training needs torch, numpy, scipy, Pillow, scikit-learn, lightning, safetensors and pydantic; bleep, convnext, deepspace, resnet50,
stnet, swin and vit need timm as well. The package is taken from src beside this folder.

C2 to C5 of one patient (HER2-positive breast cancer, Andersson et al. 2021) train; C6 of the same patient and B4 of another one are only
scored. The number of epochs is the one with the best mean validation over the sections of --folds, each left out once, up to
--epochs; without --folds it is --epochs. The network is then trained on C2 to C5 for so many epochs. The panel of the recommended
target, 250 genes with a spatial pattern, is chosen on C2 to C5 once; statistics of the target are of the sections that train.

The results file says of each model, target and left-out section what was done. What was done with as many epochs and sections as are
asked for is not done again, so that a run that was interrupted, or had fewer epochs, is continued.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import _packed
from _packed import FULL, TARGETS, Pack

from st_predict import checkpoints
from st_predict._runtime import Inference, pick_device, pick_precision
from st_predict._training import configure, get_preset, learn
from st_predict.models import get_spec, list_models
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from st_predict._training import TrainConfig
    from st_predict.models import ModelSpec, SpotModel

TRAIN, SCORED = ["C2", "C3", "C4", "C5"], ["C6", "B4"]
N_GENES, PAPER_PANEL = 250, "m2ost_her2"
READ = 256  # spots that are predicted at a time
ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "benchmarks.md", ROOT / "benchmarks" / "results" / "her2st" / "zoo.json"
OLD = ROOT / "benchmarks" / "results" / "her2st" / "models.json"
MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the pack, checkpoints and predictions")
    parser.add_argument("--only", choices=["pack", "train", "score"], help="one of the stages")
    parser.add_argument("--results", type=Path, default=RESULTS, help="results file, read and written")
    parser.add_argument("--models", nargs="*", choices=list_models(), default=list_models())
    parser.add_argument("--targets", nargs="*", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--epochs", type=int, default=100, help="most epochs, where the preset names none")
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument(
        "--folds", nargs="*", choices=TRAIN, default=TRAIN, help="sections left out to choose the epoch"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which no training is begun")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--page", action="store_true", help="put the table into docs/benchmarks.md")
    args = parser.parse_args()
    logging.basicConfig(level="WARNING", format="%(message)s")
    if args.only in {None, "pack"}:
        pack(args.out / "pack")
    if args.only in {None, "train"}:
        train(Pack(args.out / "pack"), args)
    if args.only in {None, "score"}:
        score(args.out, args.results)
    if args.page:
        PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), read(args.results)), encoding="utf-8")


# What is done.


def read(path: Path) -> dict[str, Any]:
    """Read the results; a file that does not exist has none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"runs": {}, "scores": {}}


def keep(path: Path, results: dict[str, Any]) -> None:
    """Write the results, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".part")
    fresh.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    fresh.replace(path)


def is_done(run: dict[str, Any] | None, asked: int, folds: Sequence[str]) -> bool:
    """Whether a training had at least as many epochs to choose from, and as many sections to choose by."""
    return run is not None and run["asked"] >= asked and set(folds) <= set(run["chosen_by"])


# Pack.


def pack(folder: Path) -> None:
    """Write images and arrays of all sections, unless they are there."""
    if (folder / "pack.json").exists():
        print(f"{folder} is there already")
        return
    import st_predict as stp
    from st_predict.datasets import _her2st

    sections = stp.datasets.her2st([*TRAIN, *SCORED])
    root = _her2st._root(None)
    images = {name: root / _her2st._paths(name)["image"] for name in sections}
    panels = {
        "recommended": stp.pp.select_panel([sections[name] for name in TRAIN], n_genes=N_GENES, method="spatial"),
        "paper": stp.datasets.panel(PAPER_PANEL),
    }
    cards = [_packed.card_of(model, target) for model in list_models() for target in TARGETS]
    n_bytes = _packed.write(folder, sections, images, train=TRAIN, panels=panels, cards=cards)
    print(f"{folder}: {n_bytes / MIB:.1f} MiB")


# Train.


def train(packed: Pack, args: argparse.Namespace) -> None:
    """Train what is missing, small networks first, until the time is up."""
    deadline = time.monotonic() + 60 * args.minutes
    for name in sorted(args.models, key=lambda model: n_parameters(packed, model)):
        for target in args.targets:
            try:
                train_model(packed, name, target, args, deadline=deadline)
            except TimeoutError:
                print(f"The {args.minutes:g} minutes are over; run again for the rest.")
                return
            except Exception as error:  # noqa: BLE001  # whatever it is, the other models are trained
                print(f"{name}, {target}: {type(error).__name__}: {error}", flush=True)


def n_parameters(packed: Pack, name: str) -> float:
    """Number of parameters; infinite for a network whose libraries are not installed, which training then says."""
    try:
        with torch.device("meta"):
            return sum(p.numel() for p in checkpoints.build(packed.card(name, TARGETS[0], FULL)).parameters())
    except ModuleNotFoundError:
        return float("inf")


def train_model(packed: Pack, name: str, target: str, args: argparse.Namespace, *, deadline: float) -> None:
    """Choose the epoch by leaving out sections, train on all of them, and predict those that are scored."""
    spec = get_spec(name)
    folds = [] if spec.closed_form else args.folds
    asked = asked_epochs(packed, spec, target, args)
    known = read(args.results)["runs"]
    if is_done(known.get(f"{name}/{target}/{FULL}"), asked, folds):
        return
    validated = []
    for fold in folds:
        run = known.get(f"{name}/{target}/{fold}")
        if not is_done(run, asked, []):
            check_time(deadline)
            run = fit(packed, name, target, fold, epochs=asked, args=args)
        validated.append(run["validation"])
    check_time(deadline)
    epochs = 1 + int(np.mean(validated, axis=0).argmax()) if folds else asked
    fit(packed, name, target, FULL, epochs=epochs, args=args, asked=asked, chosen_by=folds)


def check_time(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError


def asked_epochs(packed: Pack, spec: ModelSpec, target: str, args: argparse.Namespace) -> int:
    """Most epochs. A step of a network that sees sections is a section: it gets as many steps as the others have."""
    if spec.closed_form:
        return 1
    epochs = int(get_preset(spec, target).training.get("epochs", args.epochs))
    n_batches = packed.n_spots(target) / config_of(spec, target, args, 1).batch_size
    return epochs if spec.scope == "spot" else epochs * max(1, round(n_batches / len(packed.train)))


def config_of(spec: ModelSpec, target: str, args: argparse.Namespace, epochs: int) -> TrainConfig:
    preset = get_preset(spec, target)
    changes = {"batch_size": args.batch_size, **preset.training, "epochs": epochs}
    return configure(preset, {**changes, "device": args.device})


def fit(
    packed: Pack,
    name: str,
    target: str,
    fold: str,
    *,
    epochs: int,
    args: argparse.Namespace,
    asked: int | None = None,
    chosen_by: Sequence[str] = (),
) -> dict[str, Any]:
    """Train without a section, which then validates, or on all sections; note it in the results."""
    start = time.perf_counter()
    card, config = packed.card(name, target, fold), config_of(get_spec(name), target, args, epochs)
    data = packed.store([n for n in packed.train if n != fold], card, target=target, fold=fold)
    held_out = None if fold == FULL else packed.store([fold], card, target=target, fold=fold)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out) as folder:
        network, history = learn(card, data, held_out, config=config, folder=Path(folder))
    device = pick_device(args.device)
    run = {
        "asked": asked or epochs,
        "epochs": epochs,
        "chosen_by": list(chosen_by),
        "batch_size": config.batch_size,
        "validation": [round(row["val_pearson"], 4) for row in history if "val_pearson" in row],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "precision": pick_precision(config.precision, device),
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - start, 1),
    }
    results = read(args.results)
    if fold == FULL:
        predict(packed, card, network, args.out, target=target, config=config)
        results["scores"].pop(f"{name}/{target}", None)
    results["runs"][f"{name}/{target}/{fold}"] = run
    keep(args.results, results)
    print(json.dumps({"run": f"{name}/{target}/{fold}", **run, "validation": run["validation"][-1:]}), flush=True)
    return run


def predict(packed: Pack, card: ModelCard, network: SpotModel, out: Path, *, target: str, config: TrainConfig) -> None:
    """Write the checkpoint, as float16, and the predictions of the sections that are scored."""
    folder = out / "checkpoints" / target
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.save(folder / f"{card.model}.safetensors", network, card, dtype=torch.float16)
    arrays: dict[str, NDArray[Any]] = {"card": np.array(card.to_json())}
    for section in packed.scored:
        rows, store = packed.inputs(section, card)
        spec = get_spec(card.model)
        inference = Inference(
            network,
            device=pick_device(config.device),
            precision=config.precision,
            scope=spec.scope,
            symmetries=spec.symmetries,
        )
        step = READ if spec.scope == "spot" else len(rows)
        batches = (store.batch(np.arange(i, min(i + step, len(rows)))) for i in range(0, len(rows), step))
        arrays[f"{section}/rows"] = rows
        arrays[f"{section}/values"] = torch.cat([values for _, values in inference.over(batches)]).numpy()
    (out / "predictions").mkdir(exist_ok=True)
    np.savez_compressed(out / "predictions" / f"{card.model}-{target}.npz", **arrays)


# Score.


def score(out: Path, path: Path) -> None:
    """Score the predictions that have no scores yet."""
    import st_predict as stp

    files = {file.stem.replace("-", "/"): file for file in sorted((out / "predictions").glob("*.npz"))}
    known = read(path)["scores"]
    missing = {name: file for name, file in files.items() if name not in known}
    if not missing:
        return
    sections = stp.datasets.her2st(SCORED)
    for name, file in missing.items():
        found = scores_of(file, sections, name.partition("/")[2])
        print(json.dumps({name: found}), flush=True)
        results = read(path)  # a training may have added to it meanwhile
        results["scores"][name] = found
        keep(path, results)


def scores_of(file: Path, sections: dict[str, Any], target: str) -> dict[str, dict[str, float | None]]:
    """Score stored predictions with :func:`st_predict.tl.evaluate`, section by section."""
    import st_predict as stp

    with np.load(file, allow_pickle=False) as arrays:
        card = ModelCard.from_json(str(arrays["card"]))
        for section, sdata in sections.items():
            attach(sdata, card, arrays[f"{section}/rows"], arrays[f"{section}/values"])
    found: dict[str, dict[str, float | None]] = {}
    for section, sdata in sections.items():
        scores = stp.tl.evaluate(
            sdata, key="zoo", missing="drop", min_counts=get_preset(get_spec(card.model), target).min_counts
        )
        summary = scores.summary.query("predictor == 'zoo'").iloc[0]
        paper = scores.paper.query("predictor == 'zoo'").iloc[0]
        columns = ("gene_partial", "gene_partial_low", "gene_partial_high", "gene_residual", "gene_pearson", "n_spots")
        values = {c: float(summary[c]) for c in columns} | {c: float(paper[c]) for c in ("spot_pearson", "spot_rmse")}
        found[section] = {c: round(v, 4) if np.isfinite(v) else None for c, v in values.items()}
    return found


def attach(sdata: Any, card: ModelCard, rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
    """Write a prediction into a section as ``tl.predict`` does, under the key ``"zoo"``."""
    from st_predict._record import Record
    from st_predict._sections import open_sdata
    from st_predict._where import Where

    slide = open_sdata(sdata, Where())
    whole = np.full((sdata["table"].n_obs, values.shape[1]), np.nan, np.float32)
    whole[slide.sections[0].rows[rows]] = values
    slide.slot("zoo").write_prediction(whole, Record(card=card, params={"sections": slide.describe()}))


# The page.


def fill(page: str, results: dict[str, Any]) -> str:
    """Replace what stands between the marks."""
    pattern = re.compile(r"(<!-- zoo -->\n).*?(<!-- end of zoo -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}{tables(results)}\n{match[2]}", page)


def tables(results: dict[str, Any]) -> str:
    """Markdown: the recommended target, then the target of the paper beside earlier figures."""
    old = {row["variant"]: row for row in json.loads(OLD.read_text(encoding="utf-8"))["rows"]}
    first = [["model", "epochs", "C6 partial", "interval", "C6 residual", "B4 partial", "interval", "B4 residual"]]
    second = [["model", "epochs", "C6 gene PCC", "before", "B4 gene PCC", "before", "C6 spot PCC", "B4 spot PCC"]]
    for name in list_models():
        first.append([f"`{name}`", *row_of(results, name, "recommended", cells=recommended_cells)])
        second.append([f"`{name}`", *row_of(results, name, "paper", cells=partial(paper_cells, old=old.get(name)))])
    return "\n\n".join(
        f"{title}\n\n{markdown(rows)}"
        for title, rows in (
            ('Recommended target (`preset="recommended"`), 250 genes with a spatial pattern on C2 to C5:', first),
            ('Target of the M2OST paper (`preset="paper"`) and its panel; *before* is the table above:', second),
        )
    )


def row_of(results: dict[str, Any], name: str, target: str, *, cells: Any) -> list[str]:
    """Cells of a model; one that was not trained yet is marked."""
    run, scores = results["runs"].get(f"{name}/{target}/{FULL}"), results["scores"].get(f"{name}/{target}")
    if run is None or scores is None:
        return ["not run", *["-"] * 6]
    if get_spec(name).closed_form:
        return ["closed form", *cells(scores)]
    how = f" of {run['asked']}, by {', '.join(run['chosen_by'])}" if run["chosen_by"] else ", fixed"
    return [f"{run['epochs']}{how}", *cells(scores)]


def recommended_cells(scores: dict[str, Any]) -> list[str]:
    found = []
    for section in SCORED:
        s = scores[section]
        low, high = s["gene_partial_low"], s["gene_partial_high"]
        found += [
            number(s["gene_partial"]),
            "-" if low is None else f"{low:.2f} to {high:.2f}",
            number(s["gene_residual"]),
        ]
    return found


def paper_cells(scores: dict[str, Any], *, old: dict[str, Any] | None) -> list[str]:
    before = [None if old is None else old[f"{section} gene_pearson"] for section in SCORED]
    genes = [
        text for s, b in zip(SCORED, before, strict=True) for text in (number(scores[s]["gene_pearson"]), number(b))
    ]
    return [*genes, *(number(scores[s]["spot_pearson"]) for s in SCORED)]


def number(value: float | None) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.3f}"


def markdown(rows: list[list[str]]) -> str:
    head, *others = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *others])


if __name__ == "__main__":
    main()
