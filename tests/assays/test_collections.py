"""HEST-1k and STimage-1K4M, in the layouts of their downloads."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy
import tifffile
from PIL import Image

import st_predict as stp
from st_predict._errors import InvalidValueError, NotFoundError

CONFIGS = Path(__file__).parents[2] / "benchmarks" / "configs"
KEY = "pred_ridge"
TITLE = "Spatial maps of something"


def sections(table, key=KEY):
    return json.loads(table.uns["st_predict"][key]["params"])["sections"]


def write_tiff(path, image):
    """Write a pyramid as HEST stores slides; without loss, so that squares keep their colour."""
    levels = [image]
    while min(levels[-1].shape[:2]) > 256:
        levels.append(levels[-1][::2, ::2])
    with tifffile.TiffWriter(path) as file:
        for level, pixels in enumerate(levels):
            # what the file says of its resolution is wrong, as it often is
            file.write(
                pixels,
                tile=(256, 256),
                photometric="rgb",
                resolution=(72, 72),
                resolutionunit="INCH",
                subfiletype=int(level > 0),
            )


@pytest.fixture
def hest_folder(visium_folder, quietly, tmp_path):
    """Writes a sample of HEST-1k from a Visium section; ``more`` are fields of its metadata."""

    def make(sample="TENX1", *, mpp=0.5, degrees=0, strip=False, **more):
        section = visium_folder(f"raw-{sample}", mpp=mpp, degrees=degrees)
        adata = quietly(scanpy.read_visium, section.path)
        adata.obs["pxl_col_in_fullres"], adata.obs["pxl_row_in_fullres"] = adata.obsm["spatial"].T
        adata.uns["spatial"] = {"ST": {"images": {"downscaled_fullres": section.image[::8, ::8]}, "metadata": {}}}
        if strip:
            adata.obs = adata.obs[[]]
        root = tmp_path / "hest"
        for part in ("st", "wsis", "metadata"):
            (root / part).mkdir(parents=True, exist_ok=True)
        adata.write_h5ad(root / "st" / f"{sample}.h5ad")
        write_tiff(root / "wsis" / f"{sample}.tif", section.image)
        known = {
            "dataset_title": TITLE,
            "id": sample,
            "organ": "Breast",
            "species": "Homo sapiens",
            "patient": "Patient 1",
            "st_technology": "Visium",
            "inter_spot_dist": 100.0,
            "spot_diameter": 55.0,
            "pixel_size_um_embedded": 0.3528,
            "pixel_size_um_estimated": mpp * 1.002,
            "license": "CC BY 4.0",
            **more,
        }
        (root / "metadata" / f"{sample}.json").write_text(json.dumps(known), encoding="utf-8")
        return root, section

    return make


def test_a_sample_of_hest_in_one_line(hest_folder, decoder):
    root, section = hest_folder(degrees=20)
    sdata = stp.io.read_hest(root, "TENX1")
    stp.tl.predict(sdata, decoder(1.0))
    table = sdata.tables["table"]
    assert section.right(table, table.obsm[KEY]) == 1
    (found,) = sections(table)
    assert found["mpp"] == pytest.approx(0.501)
    assert table.uns["mpp_source"] == "metadata of HEST (pixel_size_um_estimated)"
    assert set(table.obs["patient"]) == {f"patient 1 ({TITLE})"}
    assert set(table.obs["section"]) == {"TENX1"}
    assert table.uns["hest"]["species"] == "Homo sapiens"
    assert "images" not in table.uns["spatial"]["TENX1"]
    radius = sdata.shapes["TENX1"]["radius"].unique()
    assert radius == pytest.approx([55 / 0.501 / 2])
    assert stp.io.find_mpp(sdata, mpp="spots").value == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("patient", "expected"),
    [
        ("  patient   1 ", f"patient 1 ({TITLE})"),
        ("   ", None),
        ("", None),
        (None, None),
        (float("nan"), None),
        (7, f"7 ({TITLE})"),
    ],
)
def test_patients_are_known_or_not(hest_folder, decoder, caplog, patient, expected):
    root, _ = hest_folder(patient=patient)
    with caplog.at_level(logging.WARNING):
        sdata = stp.io.read_hest(root, "TENX1")
    table = sdata.tables["table"]
    assert list(table.obs["patient"].cat.categories) == ([expected] if expected else [])
    assert ("does not say whose tissue" in caplog.text) == (expected is None)
    if expected is None:
        with pytest.raises(InvalidValueError, match="spots have no 'patient', so their patient is unknown"):
            stp.tl.train([sdata], "mean", panel=["ENSG01", "ENSG02"], out=root / "out")


def test_xenium_of_mouse_without_lattice_or_diameter(hest_folder, decoder):
    root, section = hest_folder(
        "X1",
        strip=True,
        st_technology="Xenium",
        species="Mus musculus",
        inter_spot_dist=None,
        spot_diameter=float("nan"),
    )
    sdata = stp.io.read_hest(root, "X1")
    stp.tl.predict(sdata, decoder(1.0))
    table = sdata.tables["table"]
    assert section.right(table, table.obsm[KEY]) == 1
    assert list(sdata.points) == ["X1"]
    assert "assay" not in table.uns
    assert table.uns["hest"]["species"] == "Mus musculus"


def test_the_pixel_size_is_the_estimate_or_an_argument(hest_folder, caplog):
    root, _ = hest_folder(pixel_size_um_estimated=None)
    with pytest.raises(
        InvalidValueError,
        match=r"'TENX1' has no pixel_size_um_estimated. Its file said 0.3528 .* Give micrometres per pixel with mpp=",
    ):
        stp.io.read_hest(root, "TENX1")
    sdata = stp.io.read_hest(root, "TENX1", mpp=0.5)
    assert stp.io.find_mpp(sdata).value == pytest.approx(0.5)
    assert sdata.tables["table"].uns["mpp_source"] == "argument"
    hest_folder("OTHER")
    with caplog.at_level(logging.INFO):
        stp.io.read_hest(root, "OTHER")
    assert "the file said 0.3528 um per pixel; the estimate of HEST, 0.501, is taken" in caplog.text


def test_what_is_missing_is_named(hest_folder, tmp_path):
    root, _ = hest_folder()
    with pytest.raises(
        NotFoundError, match=r"no sample 'TENX9' in .*; there are 1, the first are \['TENX1'\]. Choose one with sample="
    ):
        stp.io.read_hest(root, "TENX9")
    with pytest.raises(FileNotFoundError, match="is not a copy of HEST-1k"):
        stp.io.read_hest(tmp_path / "raw-TENX1", "TENX1")
    (root / "wsis" / "TENX1.tif").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"'TENX1' lacks .*TENX1.tif. Download them: st_predict.datasets.hest\('TENX1'\)"
    ):
        stp.io.read_hest(root, "TENX1")
    write_tiff(root / "wsis" / "TENX1.tif", np.zeros((300, 300, 3), np.uint8))
    (root / "st" / "TENX1.h5ad").write_bytes(b"no hdf5")
    with pytest.raises(InvalidValueError, match=r"TENX1.h5ad cannot be read"):
        stp.io.read_hest(root, "TENX1")
    anndata.AnnData(np.ones((2, 2), np.float32)).write_h5ad(root / "st" / "TENX1.h5ad")
    with pytest.raises(InvalidValueError, match=r"TENX1.h5ad has no places of spots"):
        stp.io.read_hest(root, "TENX1")
    (root / "metadata" / "TENX1.json").write_text("{")
    with pytest.raises(InvalidValueError, match=r"TENX1.json cannot be read"):
        stp.io.read_hest(root, "TENX1")


def test_samples_of_hest_are_listed_from_the_table_or_the_metadata(hest_folder):
    root, _ = hest_folder("A1")
    hest_folder("B1", organ="Skin", species="Mus musculus", patient="   ", dataset_title="Other")
    hest_folder("C1", patient="patient 1", dataset_title="Other", st_technology="Xenium")
    by_metadata = stp.datasets.list_hest(root)
    assert list(by_metadata.index) == ["A1", "B1", "C1"]
    patients = by_metadata["patient"]
    assert patients["A1"] == f"patient 1 ({TITLE})"
    assert patients["C1"] == "patient 1 (Other)"
    assert patients.isna().tolist() == [False, True, False]
    assert by_metadata["on_disk"].all()
    rows = [json.loads(path.read_text()) for path in sorted((root / "metadata").glob("*.json"))]
    pd.DataFrame(rows[:1]).to_csv(root / "HEST_v1_9_0.csv", index=False)
    pd.DataFrame(rows).to_csv(root / "HEST_v1_10_0.csv", index=False, encoding="utf-8-sig")
    (root / "wsis" / "A1.tif").unlink()
    by_table = stp.datasets.list_hest(root)
    assert list(by_table.index) == ["A1", "B1", "C1"]  # of version 1.10
    assert by_table["patient"].fillna("").tolist() == patients.fillna("").tolist()
    assert by_table["on_disk"].tolist() == [False, True, True]
    assert list(stp.datasets.list_hest(root, organ="breast").index) == ["A1", "C1"]
    assert list(stp.datasets.list_hest(root, organ=["Skin", "Breast"], technology="Visium").index) == ["A1", "B1"]
    assert list(stp.datasets.list_hest(root, species="mus musculus").index) == ["B1"]
    with pytest.raises(
        NotFoundError, match=r"No sample has the organ 'lung'; there are \['Breast', 'Skin'\]. Correct organ="
    ):
        stp.datasets.list_hest(root, organ="Lung")
    with pytest.raises(FileNotFoundError, match="has neither"):
        stp.datasets.list_hest(root / "st")


@pytest.mark.filterwarnings("ignore")
def test_the_benchmark_of_a_folder(hest_folder, tmp_path, caplog):
    """The shipped file, beside a folder of two patients, a sample without one, and a sample of another organ."""
    hest_folder("A1")
    hest_folder("B1", patient="Patient 2")
    hest_folder("C1", patient="   ")
    hest_folder("D1", organ="Skin", patient="Patient 3")
    text = (CONFIGS / "hest.toml").read_text(encoding="utf-8")
    (tmp_path / "hest.toml").write_text(text, encoding="utf-8")
    plan = stp.cohort.check_benchmark(tmp_path / "hest.toml")
    assert plan["test"].drop_duplicates().tolist() == [("A1",), ("B1",)]
    assert set(plan["leaks"]) == {"panel"}
    assert "1 samples have no patient and are left out: ['C1']" in caplog.text
    small = text.partition("[models.ridge-effnet]")[0].replace(
        '"hest"\nmissing', '"hest"\npanel = 3\nmin_counts = 1\nmissing'
    )
    (tmp_path / "small.toml").write_text(small, encoding="utf-8")
    table = stp.cohort.run_benchmark(tmp_path / "small.toml", out=tmp_path / "out")
    assert set(table["model"]) == {"log_total", "neighbours", "ridge-rgb"}
    assert set(zip(table["section"], table["patient"], strict=True)) == {
        ("A1", f"patient 1 ({TITLE})"),
        ("B1", f"patient 2 ({TITLE})"),
    }
    unknown = text.replace('folder = "hest"', 'samples = ["Z1"]\nfolder = "hest"')
    (tmp_path / "hest.toml").write_text(unknown, encoding="utf-8")
    with pytest.raises(ValueError, match=r"\[sections\]: samples has \['Z1'\], which are not among 3 samples"):
        stp.cohort.check_benchmark(tmp_path / "hest.toml")


class Hub(BaseHTTPRequestHandler):
    """Answers as the Hugging Face Hub does for a data set that asks for consent."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        prefix = "/datasets/MahmoodLab/hest/resolve/main/"
        content = self.server.files.get(self.path.removeprefix(prefix))
        refused = self.headers.get("Authorization") != "Bearer hf_good"
        status = 403 if refused else 404 if content is None else 200
        body = content if status == 200 else b"{}"
        self.send_response(status)
        if status != 200:
            self.send_header("X-Error-Code", "GatedRepo" if refused else "EntryNotFound")
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    """A Hugging Face Hub on loopback, with ``files``."""
    from huggingface_hub import constants, file_download

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.files = {}
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        for module in (constants, file_download):  # older versions keep it in the second
            template = url + "/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_sample_is_downloaded_with_consent(hub, hest_folder, decoder, monkeypatch, tmp_path):
    root, section = hest_folder()
    hub.files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("TENX1.*")}
    copy = tmp_path / "copy"
    with pytest.raises(
        ConnectionError, match=r"gives no access to st/TENX1.h5ad. HEST-1k is free and needs consent: log in at"
    ):
        stp.datasets.hest("TENX1", folder=copy)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    sdata = stp.datasets.hest("TENX1", folder=copy)
    stp.tl.predict(sdata, decoder(1.0))
    table = sdata.tables["table"]
    assert section.right(table, table.obsm[KEY]) == 1
    with pytest.raises(
        InvalidValueError, match=r"HEST-1k has no file st/TENX2.h5ad. Choose another sample with sample="
    ):
        stp.datasets.hest("TENX2", folder=copy)
    hub.shutdown()
    hub.server_close()
    monkeypatch.setattr(time, "sleep", lambda _: None)  # some versions wait half a minute in all before they give up
    with pytest.raises(ConnectionError, match=r"st/TENX3.h5ad could not be downloaded"):
        stp.datasets.hest("TENX3", folder=copy)
    assert stp.datasets.hest("TENX1", folder=copy).tables["table"].n_obs == table.n_obs


def test_downloads_that_cannot_be(tmp_path, monkeypatch):
    monkeypatch.setenv("ST_PREDICT_OFFLINE", "1")
    with pytest.raises(ConnectionError, match="ST_PREDICT_OFFLINE forbids downloads"):
        stp.datasets.hest("TENX1", folder=tmp_path / "hest")
    monkeypatch.delenv("ST_PREDICT_OFFLINE")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConnectionError, match=r"pip install huggingface_hub. HEST-1k is free and needs consent"):
        stp.datasets.hest("TENX1", folder=tmp_path / "hest")
    with pytest.raises(InvalidValueError, match=r"name such as TENX95, got '../x'"):
        stp.datasets.hest("../x", folder=tmp_path)


def test_a_sample_in_the_cache_is_not_downloaded(hest_folder, monkeypatch):
    root, _ = hest_folder()
    monkeypatch.setenv("ST_PREDICT_OFFLINE", "1")
    monkeypatch.setenv("ST_PREDICT_CACHE", str(root.parent))
    assert stp.datasets.hest("TENX1").tables["table"].n_obs > 0


@pytest.fixture
def stimage_folder(visium_folder, quietly, tmp_path):
    """Writes a slide of STimage-1K4M from a Visium section, or on the array of legacy Spatial Transcriptomics."""

    def make(slide="Human_Breast_1", technology="Visium", *, mpp=0.5, form="TIFF", missing=()):
        section = visium_folder(f"raw-{slide}", mpp=mpp)
        adata = quietly(scanpy.read_visium, section.path)
        adata.obs_names = names = [f"{slide}_{name}" for name in adata.obs_names]
        folder = tmp_path / "stimage" / technology
        for part in ("coord", "gene_exp", "image"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        x, y = adata.obsm["spatial"].T
        places = pd.DataFrame({"yaxis": y, "xaxis": x, "r": 27.5 / mpp}, index=names)
        places.sample(frac=1, random_state=2).to_csv(folder / "coord" / f"{slide}_coord.csv")
        counts = pd.DataFrame(adata.X.toarray().astype(int), index=names, columns=adata.var_names)
        counts.to_csv(folder / "gene_exp" / f"{slide}_count.csv")
        with (folder / "image" / f"{slide}.png").open("wb") as file:  # whatever it holds
            Image.fromarray(section.image).save(file, form)
        return folder.parent, section

    return make


@pytest.mark.parametrize("form", ["TIFF", "PNG"])
def test_a_slide_of_stimage_in_one_line(stimage_folder, decoder, caplog, form):
    root, section = stimage_folder(form=form)
    with caplog.at_level(logging.WARNING):
        sdata = stp.io.read_stimage(root, "Human_Breast_1")
    assert "does not say whose tissue this is" in caplog.text
    stp.tl.predict(sdata, decoder(1.0))
    table = sdata.tables["table"]
    names = table.obs_names.str.removeprefix("Human_Breast_1_")
    table.obs_names = names
    assert section.right(table, table.obsm[KEY]) == 1
    assert sections(table)[0]["mpp"] == pytest.approx(0.5, rel=0.01)
    assert "distance between spots (Visium: 100 um" in table.uns["mpp_source"]
    assert sdata.shapes["Human_Breast_1"]["radius"].unique() == pytest.approx([55])
    counts = pd.read_csv(root / "Visium" / "gene_exp" / "Human_Breast_1_count.csv", index_col=0)
    np.testing.assert_array_equal(table.X.toarray(), counts.to_numpy())
    assert table.obs["patient"].isna().all()


def test_spots_of_legacy_st_tell_the_resolution_by_their_array(tmp_path, decoder):
    folder, slide, pitch = tmp_path / "ST", "Human_Breast_A1", 290.0
    for part in ("coord", "gene_exp", "image"):
        (folder / part).mkdir(parents=True)
    places = [(x, y) for x in range(2, 7) for y in range(3, 9) if (x + y) % 3]
    names = [f"{slide}_{x}x{y}" for x, y in places]
    xy = np.array(places) * pitch
    pd.DataFrame({"yaxis": xy[:, 1], "xaxis": xy[:, 0], "r": 72.5}, index=names).to_csv(
        folder / "coord" / f"{slide}_coord.csv"
    )
    pd.DataFrame(np.ones((len(names), 3), int), index=names, columns=list("ABC")).to_csv(
        folder / "gene_exp" / f"{slide}_count.csv"
    )
    Image.fromarray(np.full((2900, 2300, 3), 200, np.uint8)).save(folder / "image" / f"{slide}.png", "JPEG")
    sdata = stp.io.read_stimage(tmp_path, slide)
    assert stp.io.find_mpp(sdata).value == pytest.approx(200 / pitch)
    assert sdata.tables["table"].obs["array_col"].tolist() == [x for x, _ in places]
    assert stp.io.find_mpp(stp.io.read_stimage(tmp_path, slide, pitch_um=150)).value == pytest.approx(150 / pitch)


def test_bins_and_irregular_spots_need_the_resolution(stimage_folder, decoder):
    root, _ = stimage_folder("HD", "VisiumHD")
    with pytest.raises(
        InvalidValueError,
        match=r"bins of VisiumHD have several sizes. Give micrometres per pixel with mpp=, or give the side of a bin",
    ):
        stp.io.read_stimage(root, "HD")
    assert stp.io.find_mpp(stp.io.read_stimage(root, "HD", mpp=0.5)).value == pytest.approx(0.5)
    root, _ = stimage_folder("V")
    path = root / "Visium" / "coord" / "V_coord.csv"
    frame = pd.read_csv(path, index_col=0)
    frame["xaxis"] += np.random.default_rng(0).normal(0, 60, len(frame))
    frame.to_csv(path)
    with pytest.raises(
        InvalidValueError,
        match=r"resolution of 'V' cannot be measured: \d+% of its spots .* Give micrometres per pixel with mpp=",
    ):
        stp.io.read_stimage(root, "V")


def test_damaged_slides_are_named(stimage_folder):
    root, _ = stimage_folder()
    slide, folder = "Human_Breast_1", root / "Visium"
    with pytest.raises(NotFoundError, match=r"no slide 'X' in .* Choose one with slide="):
        stp.io.read_stimage(root, "X")
    with pytest.raises(FileNotFoundError, match="not a copy of STimage-1K4M"):
        stp.io.read_stimage(folder, slide)
    counts, coord = folder / "gene_exp" / f"{slide}_count.csv", folder / "coord" / f"{slide}_coord.csv"
    good = counts.read_text()
    for wrong, message in (
        (re.sub(r",\d+\n", ",-3\n", good), "counts must be whole and not negative"),
        (re.sub(r",\d+\n", ",a\n", good), "is not a table of counts"),
        (good.replace(f"{slide}_", "other_"), "none of .* spots with counts"),
    ):
        counts.write_text(wrong)
        with pytest.raises(InvalidValueError, match=message):
            stp.io.read_stimage(root, slide)
    counts.write_text(good)
    coord.write_text(coord.read_text().replace("xaxis", "x"))
    with pytest.raises(InvalidValueError, match="is not a file of places"):
        stp.io.read_stimage(root, slide)
    counts.unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks .*_count.csv. Download"):
        stp.io.read_stimage(root, slide)


def test_slides_of_stimage_are_listed(stimage_folder):
    root, _ = stimage_folder("V1")
    with pytest.raises(FileNotFoundError, match="has no meta"):
        stp.datasets.list_stimage(root)
    frame = pd.DataFrame(
        {
            "slide": ["V1", "V2"],
            "species": ["human", "mouse"],
            "tissue": ["breast", "brain"],
            "tech": ["Visium", "ST"],
            "title": ["", "b, c"],
        }
    )
    (root / "meta").mkdir()
    frame.assign(species="?").to_csv(root / "meta" / "meta_all_gene.csv", sep="\t", index=False)
    frame.to_csv(root / "meta" / "meta_all_gene02122025.csv", index=False)
    found = stp.datasets.list_stimage(root)
    assert found["on_disk"].to_dict() == {"V1": True, "V2": False}
    assert list(stp.datasets.list_stimage(root, tissue="Brain", technology="ST", species="mouse").index) == ["V2"]
    with pytest.raises(NotFoundError, match=r"No sample has the species 'rat'; there are \['human', 'mouse'\]"):
        stp.datasets.list_stimage(root, species="rat")
    assert stp.io.read_stimage(root, "V1").tables["table"].uns["stimage"] == {
        "species": "human",
        "tissue": "breast",
        "tech": "Visium",
    }
    (root / "meta" / "meta_all_gene02122025.csv").unlink()
    assert set(stp.datasets.list_stimage(root)["species"]) == {"?"}  # of the older one, with tabs
    shutil.rmtree(root / "meta")
    assert stp.io.read_stimage(root, "V1").tables["table"].uns["stimage"] == {}


LEGACY = {
    "cscc": (
        "P2_ST_rep1",
        "GSM4284316_{}_stdata.tsv.gz",
        "GSM4284316_spot_data-selection-{}.tsv.gz",
        "GSM4284316_{}.jpg",
    ),
    "hbc": ("BC23209_C1", "{}_stdata.tsv.gz", "spots_{}.csv.gz", "HE_{}.jpg"),
}


@pytest.fixture
def legacy_folder(tmp_path, coded):
    """Writes a section in the layout of one of two data sets, with a coded square at each spot; 0.5 um per pixel."""

    def make(name):
        section, counts, spots, image = LEGACY[name]
        folder = tmp_path / name / "deep"
        folder.mkdir(parents=True)
        places = [(x, y) for x in range(3, 9) for y in range(4, 10) if x + y != 10]
        xy = np.array(places) * 400.0 - 600
        painted = coded.paint((3700, 3400), xy, 200)
        # high quality and no subsampling of colours, so that squares keep theirs
        Image.fromarray(painted).save(folder / image.format(section), "JPEG", quality=100, subsampling=0)
        names = [f"{x}x{y}" for x, y in places]
        table = pd.DataFrame(
            np.arange(len(places) * 3).reshape(-1, 3), index=names, columns=["ENSG1", "ENSG2", "ENSG3"]
        )
        table.sample(frac=1, random_state=3).to_csv(folder / counts.format(section), sep="\t")
        if name == "cscc":
            frame = pd.DataFrame(places, columns=["x", "y"])
            frame[["new_x", "new_y"]], frame[["pixel_x", "pixel_y"]], frame["selected"] = places, xy, 1
            frame.to_csv(folder / spots.format(section), sep="\t", index=False)
        else:
            pd.DataFrame({"X": xy[:, 0], "Y": xy[:, 1]}, index=names).to_csv(folder / spots.format(section))
        return folder, section, pd.DataFrame(coded.colours(len(names)), index=[f"{section}_{n}" for n in names])

    return make


@pytest.mark.parametrize("name", list(LEGACY))
def test_legacy_sections_from_a_folder(legacy_folder, decoder, coded, name):
    folder, section, expected = legacy_folder(name)
    read = getattr(stp.datasets, name)
    sdata = read(section, folder=folder.parent)
    assert list(read([section], folder=folder)) == [section]
    stp.tl.predict(sdata, decoder(1.0))
    table = sdata.tables["table"]
    np.testing.assert_array_equal(coded.decode(table.obsm[KEY]), expected.loc[table.obs_names])
    assert sections(table)[0]["mpp"] == pytest.approx(0.5, rel=1e-3)
    assert set(table.obs["patient"]) == {section.partition("_")[0]}
    with pytest.raises(InvalidValueError, match=rf"{name} has no section 'X'"):
        read("X", folder=folder)
    shutil.copytree(folder, folder.parent / "again")
    with pytest.raises(
        InvalidValueError, match=r"more than once: .* Move all but one away, or name a folder inside with folder="
    ):
        read(section, folder=folder.parent)


def test_labels_and_other_spellings_of_breast_cancer(legacy_folder):
    folder, section, _ = legacy_folder("hbc")
    (folder / f"HE_{section}.jpg").rename(folder / "HE_BT23209_C1.jpg")
    pd.DataFrame({"xcoord": [3.1, 4], "ycoord": [4, 4.9], "tumor": ["tumor", "non"]}).to_csv(
        folder / f"{section}_Coords.tsv", sep="\t"
    )
    labels = stp.datasets.hbc(section, folder=folder).tables["table"].obs["pathologist_label"]
    assert labels.dropna().to_dict() == {f"{section}_3x4": "tumor", f"{section}_4x5": "non"}


def test_missing_files_of_legacy_sections_are_named(legacy_folder, tmp_path):
    folder, section, _ = legacy_folder("cscc")
    image = folder / f"GSM4284316_{section}.jpg"
    image.rename(f"{image}.gz")
    with pytest.raises(FileNotFoundError, match=rf"image of {section} is compressed: run 'gunzip {image.name}.gz'"):
        stp.datasets.cscc(section, folder=folder)
    (folder / f"{image.name}.gz").unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"Found no {section}.jpg in .* Download the files from https://www.ncbi"
    ):
        stp.datasets.cscc(section, folder=folder)
    with pytest.raises(FileNotFoundError, match=r"Found no BC23209_C2_stdata.tsv in .* from https://data.mendeley.com"):
        stp.datasets.hbc("BC23209_C2", folder=folder)
    with pytest.raises(FileNotFoundError, match="Found no folder"):
        stp.datasets.cscc(section, folder=tmp_path / "none")
    with pytest.raises(TypeError, match="one name or several, got 3"):
        stp.datasets.cscc(3, folder=folder)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_page(hest_folder, stimage_folder, legacy_folder, run, tmp_path):
    hest_folder("TENX95")
    root, _ = stimage_folder("V1")
    frame = pd.DataFrame({"slide": ["V1"], "species": ["human"], "tissue": ["breast"], "tech": ["Visium"]})
    (root / "meta").mkdir()
    frame.to_csv(root / "meta" / "meta_all_gene.csv", index=False)
    root.rename(tmp_path / "STimage-1K4M")
    for name, place in (("hbc", "29ntw7sh4r"), ("cscc", "GSE144239")):
        legacy_folder(name)[0].rename(tmp_path / place)
    known = run("docs/how-to/collections.md")
    assert list(known["samples"].index) == ["TENX95"]
    assert np.isfinite(known["sdata"].tables["table"].obsm["pred_m2ost"]).all()
    assert known["breast"].tables["table"].n_obs == known["skin"].tables["table"].n_obs
