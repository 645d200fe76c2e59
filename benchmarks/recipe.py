"""What helps M2OST on tokens: one setting changed at a time, trained without a section or a patient, which then validates.

    python benchmarks/recipe.py --out runs/recipe --page  # everything on one machine

    python benchmarks/recipe.py --out runs/recipe --only pack  # where st_predict is installed whole
    python benchmarks/recipe.py --out runs/recipe --only train --minutes 8  # needs the packs
    python benchmarks/recipe.py --out runs/recipe --page --only train --minutes 0  # the table of what is done

Two data sets. "her2st": sections C2 to C5 of one patient (HER2-positive breast cancer, Andersson et al. 2021), each left out once; the
panel of 250 genes with a spatial pattern was chosen on all four. "simulated": five patients of st_predict.datasets.simulate, who differ
in stain, tissue and level of each gene, each left out once. C6 and B4 are not looked at. The score is the mean correlation over genes with the target, Pearson residuals, after the last epoch.

"distilled" learns the mean of the measured target and of what ridge regression of rank 8, on features of the same backbone, predicts of
each training section after it was fitted to the others. A frozen backbone reads each crop once in all trainings of a run on a CPU.

The results file says what was done; a later run fills the gaps, cheap variants first.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import re
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import _packed
from _packed import Pack

from st_predict._runtime import pick_device
from st_predict._training import configure, get_preset, learn, teach
from st_predict.models import get_spec
from st_predict.models._m2ost_tokens import FeatureMaps

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from st_predict._training import CropStore, TrainConfig
    from st_predict.specs import ModelCard

HPARAMS: dict[str, Any] = {
    "tokens": "efficientnet_lite0",
    "size": 96,
    "dim": 96,
    "depth": 2,
    "heads": 3,
    "head_dim": 32,
    "mlp_dim": 96,
    "drop": 0.1,
}
CONFIG: dict[str, Any] = {
    "epochs": 24,
    "batch_size": 16,
    "lr": 5e-4,
    "optimizer": "adamw",
    "weight_decay": 0.05,
    "schedule": "cosine",
    "warmup": 2,
    "clip": 1.0,
    "loss": "model",
}
RIDGE = {"encoder": "efficientnet_lite0", "fields": [96, 192, 384], "rank": 8}
BASE = "base"
VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ridge of rank 8, three fields": ("ridge", RIDGE, {}),
    BASE: ("m2ost", {}, {}),
    "another seed": ("m2ost", {}, {"seed": 1}),
    "loss standardized": ("m2ost", {}, {"loss": "standardized"}),
    "loss correlation": ("m2ost", {}, {"loss": "correlation"}),
    "average 0.98": ("m2ost", {}, {"average": 0.98}),
    "drop 0.3": ("m2ost", {"drop": 0.3}, {}),
    "distilled": ("m2ost", {}, {"teacher": RIDGE}),
    "distilled, standardized": ("m2ost", {}, {"teacher": RIDGE, "loss": "standardized"}),
    "crops of 160 px": ("m2ost", {"size": 160}, {}),
    "stain jitter 0.1": ("m2ost", {}, {"stain_jitter": 0.1}),
    "crops of 224 px": ("m2ost", {"size": 224}, {}),
    "fine-tuned": ("m2ost", {"tune": True}, {"lr": 2e-4}),
    "pixels": ("m2ost", {"tokens": None}, {}),
}
MOST_MAPS = 40_000  # crops whose maps are remembered
TARGET = "recommended"
TRAIN, N_GENES = ["C2", "C3", "C4", "C5"], 250
N_PATIENTS, SHAPE, MPP = 5, (2000, 2000), 0.688
DATA = ("her2st", "simulated")
ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "benchmarks.md", ROOT / "benchmarks" / "results" / "her2st" / "recipe.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the packs")
    parser.add_argument("--only", choices=["pack", "train"], help="one of the stages")
    parser.add_argument("--data", nargs="*", choices=DATA, default=list(DATA))
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument(
        "--folds", nargs="*", help="what to leave out, C5 and P5S1 for example; by default each in turn"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="results file, read and written")
    parser.add_argument("--epochs", type=int, default=CONFIG["epochs"])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which no training is begun")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--page", action="store_true", help="put the table into docs/benchmarks.md")
    args = parser.parse_args()
    logging.basicConfig(level="WARNING", format="%(message)s")
    if args.only in {None, "pack"}:
        for data in args.data:
            pack(args.out / data, data)
    if args.only in {None, "train"}:
        train(args)
    if args.page:
        PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), read(args.results)), encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """Read the runs; a file that does not exist has none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


# Pack.


def pack(folder: Path, data: str) -> None:
    """Write images and arrays of a data set, unless they are there."""
    if (folder / "pack.json").exists():
        print(f"{folder} is there already")
        return
    cards = [_packed.card_of("ridge", TARGET, RIDGE)]
    n_bytes = (pack_her2st if data == "her2st" else pack_simulated)(folder, cards)
    print(f"{folder}: {n_bytes / 2**20:.1f} MiB")


def pack_her2st(folder: Path, cards: Sequence[ModelCard]) -> int:
    """Write C2 to C5, with the panel that was chosen on them; return the size in bytes."""
    import st_predict as stp
    from st_predict.datasets import _her2st

    sections = stp.datasets.her2st(TRAIN)
    root = _her2st._root(None)
    images = {name: root / _her2st._paths(name)["image"] for name in TRAIN}
    panel = stp.pp.select_panel(list(sections.values()), n_genes=N_GENES, method="spatial")
    return _packed.write(folder, sections, images, train=TRAIN, panels={TARGET: panel}, cards=cards)


def pack_simulated(folder: Path, cards: Sequence[ModelCard]) -> int:
    from PIL import Image

    import st_predict as stp
    from st_predict.io import open_pyramid

    sections = stp.datasets.simulate(N_PATIENTS, 1, shape=SHAPE, mpp=MPP).sections
    with tempfile.TemporaryDirectory() as temporary:
        images = {name: Path(temporary) / f"{name}.webp" for name in sections}
        for name, sdata in sections.items():
            height, width = SHAPE
            pixels = open_pyramid(sdata).read(0, 0, width, height, level=0)
            Image.fromarray(np.ascontiguousarray(pixels)).save(images[name], lossless=True)
        panel = list(next(iter(sections.values()))["table"].var_names)
        return _packed.write(folder, sections, images, train=list(sections), panels={TARGET: panel}, cards=cards)


# Train.


def train(args: argparse.Namespace) -> None:
    """Train what is missing, until the time is up."""
    deadline = time.monotonic() + 60 * args.minutes
    packs = {data: Pack(args.out / data) for data in args.data if (args.out / data / "pack.json").exists()}
    with remembered_maps():
        for variant in args.variants:
            for data, packed in packs.items():
                for fold in packed.train:
                    if args.folds and fold not in args.folds:
                        continue
                    if is_done(read(args.results).get(f"{data}/{variant}/{fold}"), args.epochs):
                        continue
                    if time.monotonic() > deadline:
                        print(f"The {args.minutes:g} minutes are over; run again for the rest.")
                        return
                    keep(args.results, f"{data}/{variant}/{fold}", run(packed, variant, fold, args))


def is_done(known: dict[str, Any] | None, epochs: int) -> bool:
    """Whether a run has as many epochs as are asked for; a closed form has one."""
    return known is not None and known["epochs"] in {1, epochs}


def keep(path: Path, name: str, found: dict[str, Any]) -> None:
    """Add a run to the results, written whole or not at all."""
    results = {**read(path), name: found}
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".part")
    fresh.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    fresh.replace(path)
    print(json.dumps({"run": name, **found, "validation": found["validation"][-1:]}), flush=True)


def run(packed: Pack, variant: str, fold: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train a variant without a section, which validates each epoch."""
    start = time.perf_counter()
    model, hparams, changes = VARIANTS[variant]
    spec = get_spec(model)
    names = [name for name in packed.train if name != fold]
    card = packed.card(model, TARGET, fold, {**HPARAMS, **hparams} if model == "m2ost" else hparams)
    data = packed.store(names, card, target=TARGET, fold=fold)
    held_out = packed.store([fold], card, target=TARGET, fold=fold)
    settings = {} if spec.closed_form else {**CONFIG, **changes, "epochs": args.epochs}
    config = configure(get_preset(spec, TARGET), {**settings, "device": args.device})
    data = distilled(data, packed, names, config, fold=fold)
    with tempfile.TemporaryDirectory(dir=args.out) as folder:
        _, history = learn(card, data, held_out, config=config, folder=Path(folder))
    device = pick_device(args.device)
    return {
        "epochs": len(history),
        "validation": [round(row["val_pearson"], 4) for row in history],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - start, 1),
    }


def distilled(
    data: CropStore, packed: Pack, names: Sequence[str], config: TrainConfig, *, fold: str, mpp: float | None = None
) -> CropStore:
    """Return training spots whose targets are mixed with the predictions of the teacher that ``config`` asks for, if any."""
    if config.teacher is None:
        return data
    card = packed.card("ridge", TARGET, fold, config.teacher, mpp=mpp)
    return teach(data, packed.store(names, card, target=TARGET, fold=fold), card, share=config.teacher_share)


@contextmanager
def remembered_maps() -> Iterator[None]:
    """Let a frozen backbone on a CPU compute the maps of the same pixels once; crops whose colours change are not kept."""
    compute, known = FeatureMaps.forward, {}

    def look_up(maps: FeatureMaps, x_BCSS: Tensor, n_maps: int) -> list[Tensor]:
        if maps.tune or x_BCSS.device.type != "cpu" or maps.tokens is None:
            return compute(maps, x_BCSS, n_maps)
        keys = [(n_maps, digest(x_CSS)) for x_CSS in x_BCSS]
        new = [i for i, key in enumerate(keys) if key not in known]
        if new:
            fresh = compute(maps, x_BCSS[new], n_maps)
            if len(known) < MOST_MAPS:
                known.update({keys[i]: [m[j] for m in fresh] for j, i in enumerate(new)})
            else:
                return compute(maps, x_BCSS, n_maps)
        return [torch.stack([known[key][m] for key in keys]) for m in range(n_maps)]

    with patch.object(FeatureMaps, "forward", look_up):
        yield


def digest(x_CSS: Tensor) -> bytes:
    return hashlib.blake2b(x_CSS.contiguous().numpy(), digest_size=16).digest()


# The page.


def fill(page: str, results: dict[str, Any]) -> str:
    """Replace what stands between the marks."""
    pattern = re.compile(r"(<!-- recipe -->\n).*?(<!-- end of recipe -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}{table(results)}\n{match[2]}", page)


def table(results: dict[str, Any]) -> str:
    """Markdown: mean over what was left out, and the difference from the base, left-out section by section."""
    head = ["variant", *(f"{data}: {column}" for data in DATA for column in ("score", "minus base", "better in"))]
    lines = [head, ["---"] * len(head)]
    for variant in VARIANTS:
        cells = [cell for data in DATA for cell in cells_of(results, data, variant)]
        lines.append([variant, *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cells_of(results: dict[str, Any], data: str, variant: str) -> list[str]:
    own, base = scores_of(results, data, variant), scores_of(results, data, BASE)
    if not own:
        return ["not run", "-", "-"]
    mean = f"{np.mean(list(own.values())):.3f}"
    if variant == BASE or not own.keys() <= base.keys():
        return [mean, "-", "-"]
    # runs that are missing would change the mean of scores, and hardly that of differences
    done = mean if own.keys() == base.keys() else f"- ({len(own)} of {len(base)} runs)"
    gains = [own[fold] - base[fold] for fold in own]
    low, high = min(gains), max(gains)
    return [done, f"{np.mean(gains):+.3f} ({low:+.3f} to {high:+.3f})", f"{sum(g > 0 for g in gains)} of {len(gains)}"]


def scores_of(results: dict[str, Any], data: str, variant: str) -> dict[str, float]:
    """Score after the last epoch, for each section or patient that was left out."""
    prefix = f"{data}/{variant}/"
    return {name.removeprefix(prefix): r["validation"][-1] for name, r in results.items() if name.startswith(prefix)}


if __name__ == "__main__":
    main()
