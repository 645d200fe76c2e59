"""Every block of code of README and of the documentation runs as it stands, or a mark before it says why it does not.

A page is run as a whole, in an empty folder with the files that it names. ``<!-- skip: next "reason" -->`` marks a block.
"""

from __future__ import annotations

import ast
import builtins
import copy
import gzip
import json
import re
import shutil
import sys
import tomllib
from collections import Counter
from dataclasses import replace
from functools import partial
from importlib.metadata import packages_distributions
from pathlib import Path

import anndata
import distributed
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import scanpy
import spatialdata
import tifffile
import torch
from PIL import Image
from spatialdata.transformations import Scale, set_transformation

import st_predict as stp
from st_predict import checkpoints
from st_predict.models import get_spec
from st_predict.specs import ModelCard

ROOT = Path(__file__).parents[2]
GENERATED = [ROOT / "docs" / name for name in ("_build", "cli", "generated", "models", "weights")]
PAGES = [
    str(path.relative_to(ROOT))
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if not set(GENERATED) & set(path.parents)
]
LANGUAGES = ("bash", "console", "py", "python", "sh", "shell")
REASONS = {
    "installs or checks a clone": 14,
    "measures for hours": 21,
    "weights that the reader downloads": 9,
    "opens a window": 1,
    "needs a GPU or a cluster": 9,
}
"""Why blocks are not run, and how many: a new mark changes a number here."""

RUN = 94
"""Number of blocks that are run."""

PLACES = ("first", "second", "third", "fourth")

# The released network takes a fifth of a second a spot.
FEW = {"n_rows": 4, "n_cols": 8}

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of readers


def test_every_block_is_run_or_marked(read_page):
    """A page whose blocks nothing runs, and a mark with a reason of its own, are found."""
    tests = "\n".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    run = set(re.findall(r'run\(\s*"([^"]+)"', tests)) | {"docs/how-to/add-a-model.md"}  # by tests/models/test_table.py
    marked, unrun, blocks = Counter(), [], 0
    for page in PAGES:
        fences = re.findall(rf"^ *```({'|'.join(LANGUAGES)})$", (ROOT / page).read_text("utf-8"), flags=re.MULTILINE)
        examples = list(read_page(page))
        reasons = [example.parsed for example in examples if isinstance(example.parsed, tuple)]
        assert len(examples) - len(reasons) == len(fences), page
        assert all(action == "next" for action, _ in reasons), page
        marked.update(reason.strip('"') for _, reason in reasons)
        blocks += len(fences)
        if len(fences) > len(reasons) and page not in run:
            unrun.append(page)
    assert unrun == []
    assert marked == REASONS
    assert run <= set(PAGES)
    assert blocks - marked.total() == RUN


def names_in(tree):
    """Names that code reads, and names that it makes."""
    nodes = list(ast.walk(tree))
    read = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    made = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    made |= {(alias.asname or alias.name).partition(".")[0] for node in nodes for alias in getattr(node, "names", [])}
    made |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    made |= {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.ExceptHandler))}
    return read, made


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_what_the_names_are_that_its_code_takes_for_granted(page):
    """A reader who types the blocks has no ``sdata`` yet."""
    text = (ROOT / page).read_text("utf-8")
    known, unknown = set(dir(builtins)), set()
    for indent, code in re.findall(r"^( *)```(?:py|python)\n(.*?)^ *```$", text, flags=re.MULTILINE | re.DOTALL):
        read, made = names_in(ast.parse("".join(line.removeprefix(indent) for line in code.splitlines(keepends=True))))
        unknown |= read - made - known
        known |= made
    prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert not [name for name in unknown if f"`{name}`" not in prose]


@pytest.mark.parametrize("command", ["python other.py", "st-predict card nothing"])
def test_a_command_that_fails_or_is_another_programs_is_an_error(run, tmp_path, command):
    page = tmp_path / "page.md"
    page.write_text(f'<!-- skip: next "never run" -->\n\n```bash\nfalse\n```\n\n```bash\n{command}\n```\n')
    with pytest.raises(AssertionError, match=r"mark this block|nothing"):
        run(page)


def test_blocks_run_in_order_with_what_earlier_ones_defined(run, tmp_path):
    (tmp_path / "page.md").write_text(
        "```python\nfound = [1]\n```\n\n- as well:\n\n  ```python\n  found += [2]\n  ```\n"
    )
    assert run(tmp_path / "page.md")["found"] == [1, 2]


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A network of tiny size, with the genes of the released one, under its name, for images of up to 1 um per pixel."""
    find = checkpoints.find_weights
    released = ModelCard.of_file(find("m2ost"))
    spec = get_spec("m2ost")
    crop = replace(spec.crop_for(spec.tiny), mpp=1.0)
    card = replace(released, crop=crop, hparams=dict(spec.tiny))
    path = tmp_path / "weights" / "tiny.safetensors"
    path.parent.mkdir()
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        checkpoints.save(path, checkpoints.build(card), card)
    monkeypatch.setattr(
        checkpoints,
        "find_weights",
        lambda name, **options: path if name in ("m2ost", "m2ost@1") else find(name, **options),
    )


@pytest.fixture(scope="module")
def simulated():
    """Sections of two patients, with the genes of the released network; five of them rise from left to right, five fall."""
    known = ModelCard.of_file(checkpoints.find_weights("m2ost")).genes
    names = list(dict.fromkeys([*known, "ERBB2", "COL1A1", "GNAS", "CD74", "MARCH1"]))
    sections = stp.datasets.simulate(
        2, 1, n_genes=len(names), shape=(1120, 1120), mpp=1.0, mean_count=100, seed=0
    ).sections
    for section in sections.values():
        table = section["table"]
        slope = np.zeros(table.n_vars)
        slope[:5], slope[5:10] = 1 / 150, -1 / 150  # per pixel
        x = table.obsm["spatial"][:, :1]
        table.X = np.round(table.X.toarray() * np.exp((x - x.mean()) * slope)).astype(np.float32)
        table.var_names = names
    sections["P1S1"].tables["table"] = sections["P1S1"]["table"][:16].copy()
    return sections


@pytest.fixture
def quick(monkeypatch, tmp_path, simulated, tiny):
    """Trainings of an epoch, two sections, tiny networks and a dozen genes, from random weights; her2st is simulated."""

    def her2st(names, **_):
        if not isinstance(names, str):
            return {name: her2st(name) for name in names}
        section = copy.deepcopy(simulated["P2S1" if names in {"B4", "C4"} else "P1S1"])
        section["table"].obs["patient"], section["table"].obs["section"] = names[0], names
        return section

    real_train, real_select = stp.tl.train, stp.pp.select_panel

    def train(sdatas, model="m2ost", *, panel, hparams=None, config=None, **options):
        if isinstance(config, stp.tl.TrainConfig):
            config = replace(config, epochs=1)
        config = {**(config or {}), "epochs": 1} if config is None or isinstance(config, dict) else config
        spec = get_spec(model)
        random = {"weights": None} if "weights" in spec.hparams else {}
        own = spec.original.hparams if options.get("preset") == "original" else {}
        hparams = {**spec.tiny, **{name: own[name] for name in {"encoder"} & set(own)}, **random, **(hparams or {})}
        if isinstance(sdatas, dict):
            sdatas = dict(list(sdatas.items())[:2])
        if isinstance(panel, int):
            sections = list(sdatas.values()) if isinstance(sdatas, dict) else sdatas
            first = sections[0] if isinstance(sections, list) else sections
            genes, n = first.tables[options.get("table_key") or "table"].var_names, min(panel, 12)
            panel = list(genes[:: len(genes) // n][:n])
        return real_train(sdatas, model, panel=panel, hparams=hparams, config=config, **options)

    class InThreads(distributed.Client):
        """Starts no processes, which would import everything again."""

        def __init__(self, **options):
            super().__init__(**{**options, "processes": False})

    monkeypatch.setenv("ST_PREDICT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(distributed, "Client", InThreads)
    monkeypatch.setattr(stp.datasets, "her2st", her2st)
    monkeypatch.setattr(stp.tl, "train", train)
    monkeypatch.setattr(
        stp.pp, "select_panel", lambda *a, n_genes, **options: real_select(*a, n_genes=min(n_genes, 4), **options)
    )
    return her2st


TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))


def cells_of(path, kind):
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs(path, quick, tmp_path, monkeypatch, gauss, simulate_small):
    """In a short form: sections are small and simulated, networks are tiny."""
    mpl.use("agg")
    monkeypatch.chdir(tmp_path)
    known = {}
    for number, cell in enumerate(cells_of(path, "code")):
        if "download" not in cell["metadata"].get("tags", ()):
            exec(compile("".join(cell["source"]), f"{path.name}, code cell {number}", "exec"), known)
    mpl.pyplot.close("all")


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_shows_what_a_run_from_top_to_bottom_gave(path):
    cells = [cell for cell in cells_of(path, "code") if "download" not in cell["metadata"].get("tags", ())]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", ()) for output in outputs)
    assert path.stat().st_size < 1.5e6
    assert not re.search(r"/(home|root|tmp|work)/", json.dumps([output.get("text", "") for output in outputs]))


def imports_of(path):
    """Top packages that the cells of a notebook import."""
    nodes = [node for cell in cells_of(path, "code") for node in ast.walk(ast.parse("".join(cell["source"])))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"st_predict"}


def test_the_installation_for_tutorials_has_all_that_they_import():
    page = (ROOT / "docs" / "installation.md").read_text("utf-8").partition("## To follow the tutorials")[2]
    command = page.partition("```bash")[2].partition("```")[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = re.search(r"\[(.*)\]", command)[1].split(",")
    required = project["dependencies"] + [need for extra in extras for need in project["optional-dependencies"][extra]]
    installed = {re.match(r"[\w.-]+", need)[0] for need in required} | set(command.split())
    installed = {re.sub("[-_.]+", "-", name.lower()) for name in installed}
    modules = packages_distributions()
    for path in TUTORIALS:
        for module in imports_of(path):
            provided = {re.sub("[-_.]+", "-", name.lower()) for name in modules[module]}
            assert provided & installed, f"{path.stem} imports {module}"


def test_the_index_names_every_tutorial():
    readme = (ROOT / "README.md").read_text("utf-8")
    assert not [path.name for path in TUTORIALS if f"docs/tutorials/{path.name}" not in readme]
    listed = re.findall(r"^tutorials/(.*)$", (ROOT / "docs" / "index.md").read_text("utf-8"), flags=re.MULTILINE)
    assert sorted(listed) == [path.stem for path in TUTORIALS]


@pytest.fixture
def simulate_small(monkeypatch):
    """Simulations have at most two patients, and 960 px."""
    simulate = stp.datasets.simulate

    def small(n_patients=2, n_sections=2, *, shape=(2000, 2000), **options):
        return simulate(min(n_patients, 2), n_sections, shape=tuple(min(side, 960) for side in shape), **options)

    monkeypatch.setattr(stp.datasets, "simulate", small)


def finite(table, key="pred_m2ost"):
    return np.isfinite(table.obsm[key]).all()


def test_visium(visium_folder, run):
    for name in ("outs", "A", "B"):
        visium_folder(name, **FEW)
    known = run("docs/how-to/visium.md")
    assert finite(known["sdata"].tables["table"])
    assert known["prediction"].n_vars == 250
    assert all(finite(section.tables["table"]) for section in known["sections"].values())


def test_anndata(visium_folder, run, tmp_path):
    import anndata

    for name in ("outs", "A", "B"):
        visium_folder(name, library=name, **FEW)
    visium_folder("slide", **FEW).path.joinpath("tissue.tif").rename(tmp_path / "slide.svs")
    tables = {name: scanpy.read_visium(tmp_path / name) for name in ("A", "B")}
    cells = tables["A"].copy()
    cells.obsm["centroids"] = cells.obsm["spatial"]
    del cells.uns["spatial"]
    joined = anndata.concat(tables, label="library_id", uns_merge="unique", index_unique="-")
    known = run("docs/how-to/anndata.md", cells=cells, joined=joined)
    assert finite(known["adata"])
    assert sorted(known["sdata"].images) == ["A_full_image", "B_full_image"]


def test_several_sections(tiny, visium_folder, run):
    for name in ("A", "B"):
        visium_folder(name, **FEW)
    known = run("docs/how-to/several-sections.md")
    assert finite(known["joined"].tables["table"], "pred_joined")
    assert known["joined"].tables["table"].n_obs == 18


def test_visium_hd(tiny, hd_folder, run):
    hd_folder("hd", n_bins=10)
    tables = run("docs/how-to/visium-hd.md")["sdata"].tables
    assert finite(tables["square_008um"])
    assert finite(tables["square_016um"])
    assert "pred_m2ost" not in tables["square_002um"].obsm


def test_xenium(tiny, xenium_folder, run, tmp_path, monkeypatch):
    import spatialdata_io

    few = {"genes": ("EPCAM", "CD3E", "X", "Y"), "n_cells": 36, "pitch": 110, "mpp": 0.4}
    folder = xenium_folder("xenium", **few)
    for source, name in (("s_he_image.ome.tif", "he.ome.tif"), ("s_he_imagealignment.csv", "alignment.csv")):
        shutil.copy(folder.path / source, tmp_path / name)
    other = spatialdata_io.xenium(xenium_folder("other", **{**few, "mpp": 0.42}).path)
    other.tables["table"].obs["patient"], other.tables["table"].obs["section"] = "B", "S2"
    reader = spatialdata_io.xenium

    def with_patient(path, **options):
        sdata = reader(path, **options)
        sdata.tables["table"].obs["patient"], sdata.tables["table"].obs["section"] = "A", "S1"
        return sdata

    monkeypatch.setattr(spatialdata_io, "xenium", with_patient)
    known = run("docs/how-to/xenium.md", other=other)
    assert finite(known["sdata"].tables["table"])
    assert finite(other.tables["table"], "pred_ridge")
    assert set(known["evaluation"].genes["gene"]) == {"EPCAM", "CD3E"}


@pytest.fixture
def write_slide(tmp_path):
    """Writes a slide file of 0.5 um per pixel with grey noise in its middle, 400 um wide."""
    image = np.full((1600, 1600, 3), 245, np.uint8)
    image[400:1200, 400:1200] = np.random.default_rng(0).integers(60, 200, (800, 800, 1))

    def write(name):
        pixels_per_cm = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(tmp_path / name, image, tile=(256, 256), photometric="rgb", **pixels_per_cm)
        return image

    return write


def test_own_slide(run, write_slide, tmp_path, monkeypatch):
    predict = stp.tl.predict
    image = write_slide("slide.svs")
    Image.fromarray(image).save(tmp_path / "scan.png")
    tifffile.imwrite(tmp_path / "slide.tif", image.astype(np.uint16) * 16, photometric="rgb")
    seen = []
    monkeypatch.setattr(stp.tl, "predict", lambda sdata, **options: seen.append(sdata) or predict(sdata, **options))
    known = run("docs/how-to/own-slide.md")
    assert np.isfinite(known["prediction"].X).all()
    assert np.isfinite(seen[1].tables["pred_m2ost"].X).all()
    assert (seen[1].shapes["grid"]["radius"] * 2 * 0.5 == 100).all()
    np.testing.assert_allclose(known["sdata"]["he8"]["scale0"]["image"].values, image.transpose(2, 0, 1), atol=1)


def test_export(tiny, run, tmp_path):
    """Genes of a shipped checkpoint, on a simulated section."""
    (section,) = stp.datasets.simulate(1, 1, n_genes=6, shape=(960, 1120), mpp=0.688, seed=0).sections.values()
    stp.tl.predict(section, "m2ost", device="cpu")
    section.write(tmp_path / "section.zarr")
    known = run("docs/how-to/export.md")
    assert known["sdata"]["predicted"].n_vars == 250
    assert "predicted" in spatialdata.read_zarr(tmp_path / "section.zarr")
    objects = json.loads((tmp_path / "section.geojson").read_text())["features"]
    assert len(objects) == known["prediction"].n_obs
    assert set(objects[0]["properties"]["measurements"]) == {"ERBB2", "GNAS"}
    assert tifffile.imread(tmp_path / "section.ome.tif").shape[0] == 2


def test_stain(run):
    known = run("docs/how-to/stain.md")
    table = known["other"].tables["table"]
    assert np.isfinite(table.obsm["pred_ridge"]).any()
    assert known["trained"].card.training["stain"]["method"] == "macenko"


def test_readme(quick, run):
    known = run("README.md")
    assert finite(known["sdata"].tables["table"])
    assert known["prediction"].n_vars == 250


def test_index(quick, write_slide, run, tmp_path, monkeypatch):
    monkeypatch.setattr("st_predict.pl._report_figures.DPI", 30)
    write_slide("slide.svs")
    known = run("docs/index.md")
    assert finite(known["sdata"].tables["table"])
    assert (tmp_path / "slide.html").read_text("utf-8").count("data:image/webp") > 1


def test_faq(tiny, write_slide, run, tmp_path, monkeypatch):
    monkeypatch.setattr("st_predict.pl._report_figures.DPI", 30)
    write_slide("slide.svs")
    run("docs/faq.md")
    assert (tmp_path / "slide.html").exists()


def test_troubleshooting(write_slide, run, tmp_path):
    image = write_slide("slide.svs")
    tifffile.imwrite(tmp_path / "slide.tif", image, photometric="rgb")
    sdata = stp.datasets.toy()
    pixels = sdata["he"]["scale0"]["image"].values.astype(np.uint16) * 16
    sdata.images["he"] = spatialdata.models.Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=list("rgb"))
    known = run("docs/troubleshooting.md", sdata=sdata, stp=stp)
    assert stp.io.find_mpp(known["sdata"]).value == pytest.approx(0.5)


def test_gallery(quick, run, tmp_path):
    run("docs/gallery.md")
    assert len(list(tmp_path.glob("gallery_*.png"))) == 8
    assert (tmp_path / "C6.html").exists()


def test_cohorts(tiny, write_slide, run, tmp_path, monkeypatch):
    """The workers are threads of this process."""
    from distributed import LocalCluster

    start = partial(LocalCluster, n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0")
    monkeypatch.setattr("st_predict.cohort._cluster._local", lambda *_: start())
    write_slide("slide.svs")
    (tmp_path / "slides.csv").write_text("path,id,mpp\nslide.svs,one,0.5\n")
    known = run("docs/how-to/cohorts.md", __name__="__main__")
    assert known["report"]["status"].tolist() == ["done"]
    assert (tmp_path / "predictions" / "one.h5ad").exists()


def test_compare_models(run, tmp_path):
    page = (ROOT / "docs" / "how-to" / "benchmark.md").read_text(encoding="utf-8")
    (tmp_path / "small.toml").write_text(page.split("```toml\n")[1].split("```")[0], encoding="utf-8")
    known = run("docs/how-to/benchmark.md")
    assert set(known["table"]["section"]) == {"P3S1"}
    assert set(pd.read_csv(tmp_path / "runs" / "small" / "summary.csv")["model"]) == {"ridge", "near"}


def test_api(run):
    run("docs/api.md")


def test_outputs(quick, run, tmp_path):
    sdata = quick("C2")
    trained = stp.tl.train(sdata, "m2ost", panel=4, out=tmp_path / "runs" / "m2ost")
    stp.tl.predict(sdata, trained)
    tables = [sdata["table"], quick("C3")["table"]]
    tables[1].obsm["pred_m2ost"] = np.zeros((tables[1].n_obs, 4), np.float32)
    tables[1].uns = copy.deepcopy(tables[0].uns)
    known = run("docs/outputs.md", sdata=sdata, tables=tables, anndata=anndata, stp=stp)
    assert list(known["frame"].columns) == list(known["sdata"]["predicted"].var_names)
    assert known["prediction"].n_obs == sum(table.n_obs for table in tables)


def test_depth(quick, run):
    known = run("docs/concepts/depth.md")
    assert finite(known["held_out"].tables["table"], "pred_ridge")


def test_cells(quick, run):
    known = run("docs/how-to/cells.md")
    assert known["section"].tables["cells_istar"].n_vars == 3


def test_embed(quick, gauss, run):
    sections, slide = [quick("C2")], quick("B4")
    slide.tables["table"] = slide["table"][:10].copy()
    module = torch.nn.Sequential(torch.nn.AvgPool2d(56), torch.nn.Flatten())
    sdata = quick("C2")
    for element in (sdata["he"], sdata["spots"]):
        set_transformation(element, Scale([0.5, 0.5], axes=("x", "y")), "um")  # twice as fine as it was drawn
    known = run("docs/how-to/embed.md", sdata=sdata, sections=sections, slide=slide, module=module)
    obsm = known["sdata"].tables["table"].obsm
    assert obsm["X_mine"].shape[1] == 48
    assert obsm["X_wide"].shape[1] == 8 * obsm["X_efficientnet_lite0"].shape[1]
    assert finite(known["slide"].tables["table"], "pred_ridge")


def test_features(quick, run):
    run("docs/how-to/features.md", sections=[quick("C2")], stp=stp)


def test_gene_names(quick, run, tmp_path):
    def section(name):
        sdata = quick(name)
        table = sdata.tables.pop("table")
        table.layers["counts"], table.X = table.X, table.X * 0.5
        sdata.tables["square_008um"] = table
        sdata.tables["table"] = table.copy()
        sdata.tables["table"].X = table.layers["counts"].copy()
        return sdata

    names = pd.DataFrame({"symbol": ["MARCHF1"], "prev_symbol": ["MARCH1"]})
    names.to_csv(tmp_path / "hgnc_complete_set.txt", sep="\t", index=False)
    held_out, sdata = section("B4"), quick("C3")
    known = run(
        "docs/how-to/gene-names.md",
        sections=[section("C2")],
        held_out=held_out,
        sdata=sdata,
        panel=[*sdata["table"].var_names[:3], "absent"],
    )
    assert finite(held_out.tables["square_008um"])
    assert known["match"].missing == ("absent",)


def test_legacy_st(quick, run, tmp_path):
    xs, ys = (axis.ravel() for axis in np.meshgrid(range(2, 6), range(2, 5)))
    names = [f"{x}x{y}" for x, y in zip(xs, ys, strict=True)]
    counts = pd.DataFrame(np.arange(24).reshape(12, 2), index=names, columns=["ERBB2", "GNAS"])
    with gzip.open(tmp_path / "counts.tsv.gz", "wt") as file:
        counts.to_csv(file, sep="\t")
    spots = pd.DataFrame({"x": xs, "y": ys, "new_x": xs, "new_y": ys, "pixel_x": xs * 200, "pixel_y": ys * 200})
    spots.assign(selected=1).to_csv(tmp_path / "spots.tsv", sep="\t", index=False)
    Image.fromarray(np.full((1100, 1300, 3), 200, np.uint8)).save(tmp_path / "he.jpg")
    known = run("docs/how-to/legacy-st.md")
    np.testing.assert_array_equal(known["sdata"]["table"].to_df().loc[:, "GNAS"].to_numpy(), np.arange(24)[1::2])


@pytest.fixture
def gauss(monkeypatch):
    """Neighbours of scanpy by another kernel: umap compiles for long."""
    monkeypatch.setattr(scanpy.pp, "neighbors", partial(scanpy.pp.neighbors, method="gauss", transformer="sklearn"))


def test_hpc(tiny, write_slide, quick, run, tmp_path):
    (tmp_path / "slides").mkdir()
    write_slide("slides/b.svs")
    (tmp_path / "slides" / "a.svs").write_bytes(b"broken")
    known = run("docs/how-to/hpc.md", sdata=quick("C2"))
    assert list(known["failed"]) == ["a.svs"]
    assert np.isfinite(spatialdata.read_zarr(tmp_path / "results" / "b.zarr").tables["pred_m2ost"].X).all()


def test_other_tools(quick, gauss, run):
    sdata = quick("B4")
    stp.tl.predict(sdata, "m2ost")
    known = run("docs/how-to/other-tools.md", sdata=sdata)
    assert known["prediction"].uns["moranI"]["I"].between(-1, 1).all()


def test_add_an_input(tiny, run):
    rng = np.random.default_rng(0)
    pixels = rng.integers(90, 230, (800, 900, 3)).astype(np.uint8)
    xy, genes = rng.uniform(200, 600, (5, 2)), ["ERBB2", "GNAS"]
    known = run("docs/how-to/add-an-input.md", pixels=pixels, xy=xy, genes=genes, counts=rng.poisson(3, (5, 2)))
    assert finite(known["sdata"].tables["table"])


def test_published_weights(run, tmp_path):
    state = {"weight": torch.ones(2)}
    torch.save({"state_dict": state, "more": {1}}, tmp_path / "last_train_-htg_her2st_785_32_cv_5.ckpt")
    run("docs/how-to/published-weights.md")
    assert torch.load(tmp_path / "histogene.pth")["weight"].tolist() == [1, 1]  # noqa: TID251  # written above


def test_report(tiny, write_slide, run, tmp_path, monkeypatch):
    monkeypatch.setattr("st_predict.pl._report_figures.DPI", 30)
    write_slide("slide.svs")
    run("docs/how-to/report.md")
    for name in ("P1S1.html", "slide.html", "reports/P1S1.html"):
        assert (tmp_path / name).read_text("utf-8").count("data:image/webp") > 1


def test_train(quick, run, tmp_path):
    known = run("docs/how-to/train.md")
    assert finite(known["other_patient"].tables["table"])
    assert len(list((tmp_path / "runs").glob("*/*.safetensors"))) == 8


def test_trust(quick, run, tmp_path):
    quick("C4").write(tmp_path / "slide.zarr")
    known = run("docs/how-to/trust.md", sdata=quick("C4"), sections=[quick("C2"), quick("C3")], held_out=[quick("B4")])
    assert known["evaluation"].genes["held_out"].unique().tolist() == ["patient"]
    assert 0 < anndata.read_h5ad(tmp_path / "genes.h5ad").n_vars < 250


def test_uncertainty(quick, run, tmp_path):
    slides = {name: quick(section) for name, section in zip(PLACES, ("C2", "C3", "C4", "B4"), strict=True)}
    runs = tmp_path / "runs"
    stp.tl.train(quick("C2"), "histogene", panel=4, out=runs / "histogene")
    for seed in (1, 2):
        stp.tl.train(quick("C2"), "m2ost", panel=4, out=runs / f"seed{seed}", config={"seed": seed})
    before = stp.tl.train(quick("C6"), "ridge", panel=4, out=runs / "before")
    stp.tl.predict(slides, before)
    known = run("docs/how-to/uncertainty.md", sdata=quick("C2"), **slides)
    assert known["report"]["coverage"].between(0, 1).all()
    assert finite(known["sdata"].tables["table"], "pred_m2ost_std")
