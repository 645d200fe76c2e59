"""Old-ST folders, written here in each of the layouts."""

from __future__ import annotations

import gzip
import json
import logging
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from spatialdata import SpatialData

from st_predict._errors import InvalidValueError
from st_predict._keys import Keys
from st_predict.io import find_mpp, open_pyramid, read_legacy_st, read_spots

PITCH = 25.0
PLACES = [(x, y) for x in range(3, 7) for y in range(10, 15)]
GENES = ["ERBB2", "ACTB", "GAPDH"]
RNG = np.random.default_rng(0)
COUNTS = pd.DataFrame(RNG.integers(0, 9, (20, 3)), index=[f"{x}x{y}" for x, y in PLACES], columns=GENES)
PIXELS = RNG.integers(0, 256, (401, 303, 3), dtype=np.uint8)


def _centre(x, y):
    return 12.5 + PITCH * x, 7.5 + PITCH * y


def _selection(places=PLACES):
    rows = [(x, y, x + 0.03, y - 0.02, *_centre(x + 0.03, y - 0.02), 1) for x, y in places]
    return pd.DataFrame(rows, columns=["x", "y", "new_x", "new_y", "pixel_x", "pixel_y", "selected"])


@pytest.fixture
def folder(tmp_path):
    COUNTS.sample(frac=1, random_state=0).to_csv(tmp_path / "counts.tsv.gz", sep="\t")
    _selection().to_csv(tmp_path / "spots.tsv", sep="\t", index=False)
    Image.fromarray(PIXELS).save(tmp_path / "he.png")
    return tmp_path


def _read(folder, counts="counts.tsv.gz", spots="spots.tsv", image="he.png", **kwargs):
    return read_legacy_st(
        folder / counts, folder / spots, folder / image, **({"section": "S1", "patient": "P"} | kwargs)
    )


def _check(sdata):
    """Counts, names and places are those that were written."""
    table = sdata["table"]
    names = [name.removeprefix("S1_") for name in table.obs_names]
    assert sorted(names) == sorted(COUNTS.index)
    np.testing.assert_array_equal(table.X.toarray(), COUNTS.loc[names].to_numpy())
    assert list(table.var_names) == GENES
    assert [f"{x}x{y}" for x, y in zip(table.obs[Keys.ARRAY_COL], table.obs[Keys.ARRAY_ROW], strict=True)] == names


def test_her2st_and_cscc_layout(folder):
    sdata = _read(folder)
    _check(sdata)
    table = sdata["table"]
    names = [name.removeprefix("S1_").split("x") for name in table.obs_names]
    truth = [_centre(float(x) + 0.03, float(y) - 0.02) for x, y in names]
    np.testing.assert_allclose(table.obsm["spatial"], truth)
    np.testing.assert_allclose(read_spots(sdata, image_key="he").xy, table.obsm["spatial"])
    np.testing.assert_array_equal(read_spots(sdata).grid, table.obs[["array_row", "array_col"]])
    assert set(table.obs[Keys.PATIENT]) == {"P"}
    assert set(table.obs[Keys.SECTION]) == {"S1"}
    assert table.obs[Keys.LABEL].isna().all()
    assert table.X.dtype == np.float32
    assert table.X.format == "csr"


def test_resolution_and_radius(folder):
    sdata = _read(folder)
    assert find_mpp(sdata).value == pytest.approx(200 / PITCH)
    assert find_mpp(sdata, mpp="spots").value == pytest.approx(200 / PITCH)
    assert sdata["spots"].radius.to_numpy() == pytest.approx(100 / 2 / (200 / PITCH))
    assert sdata["table"].uns[Keys.MPP_SOURCE] == "distance between spots (legacy_st: 200 um, 25.00 px)"
    given = _read(folder, mpp=0.5, spot_diameter_um=50)
    assert find_mpp(given).value == pytest.approx(0.5)
    assert given["spots"].radius.to_numpy() == pytest.approx(50)
    assert given["table"].uns[Keys.MPP_SOURCE] == "argument"


def test_levels_are_means_of_2_by_2(folder):
    reader = open_pyramid(_read(folder))
    assert reader.level_shapes == ((401, 303), (200, 151), (100, 75), (50, 37))
    assert reader.downsamples == (1, 2, 4, 8)
    np.testing.assert_array_equal(reader.read(0, 0, 303, 401, level=0), PIXELS)
    level = PIXELS
    for i in (1, 2, 3):
        height, width = level.shape[0] // 2, level.shape[1] // 2
        blocks = level[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3)
        level = np.floor(blocks.mean(axis=(1, 3)) + 0.5).astype(np.uint8)
        np.testing.assert_array_equal(reader.read(0, 0, width, height, level=i), level)
    assert open_pyramid(_read(folder, n_levels=1)).level_shapes == ((401, 303),)


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("compressed", [True, False])
def test_hbc_layout(folder, header, compressed):
    lines = [",X,Y"] if header else []
    lines += [f"{x}x{y},{_centre(x, y)[0]},{_centre(x, y)[1]}" for x, y in PLACES]
    name = "spots.csv.gz" if compressed else "spots.csv"
    with (gzip.open if compressed else open)(folder / name, "wt") as file:
        file.write("\n".join(lines))
    sdata = _read(folder, spots=name)
    _check(sdata)
    assert find_mpp(sdata).value == pytest.approx(200 / PITCH)
    x, y = (int(n) for n in sdata["table"].obs_names[0].removeprefix("S1_").split("x"))
    assert sdata["table"].obsm["spatial"][0] == pytest.approx(_centre(x, y))


def test_hbc_labels(folder):
    frame = pd.DataFrame([(x, y + 0.1, "a", "tumor" if x < 5 else "non") for x, y in PLACES])
    frame.columns = ["xcoord", "ycoord", "lab", "tumor"]
    frame.to_csv(folder / "coords.tsv", sep="\t")
    obs = _read(folder, labels=folder / "coords.tsv")["table"].obs
    assert ((obs[Keys.LABEL] == "tumor") == (obs[Keys.ARRAY_COL] < 5)).all()


def test_labels_find_their_spots_by_rounding(folder, caplog):
    caplog.set_level(logging.INFO, logger="st_predict")
    rows = [(x + 0.04, y - 0.3, f"label {x}") for x, y in PLACES[:-3]]
    rows += [(np.nan, np.nan, "nowhere"), (40, 40, "no spot")]
    pd.DataFrame(rows, columns=["x", "y", "label"]).to_csv(folder / "labels.tsv", sep="\t", index=False)
    obs = _read(folder, labels=folder / "labels.tsv")["table"].obs
    expected = {f"S1_{x}x{y}": f"label {x}" for x, y in PLACES[:-3]}
    assert obs[Keys.LABEL].dropna().to_dict() == expected
    assert obs[Keys.LABEL].dtype == "category"
    assert "of 19 labels, 1 have no place and 1 no spot" in caplog.text


def test_spots_that_are_missing_on_either_side_are_counted(folder, caplog):
    caplog.set_level(logging.INFO, logger="st_predict")
    selection = _selection([*PLACES[2:], (30, 30)])
    selection.loc[selection.index[:3], "selected"] = 0
    selection.to_csv(folder / "spots.tsv", sep="\t", index=False)
    sdata = _read(folder)
    assert sorted(n.removeprefix("S1_") for n in sdata["table"].obs_names) == sorted(COUNTS.index[5:])
    assert (
        "15 spots are kept; 5 with counts have no place or are not selected, 1 with a place have no counts"
        in caplog.text
    )


def test_spots_outside_the_image_are_reported(folder, caplog):
    Image.fromarray(PIXELS[:300]).save(folder / "small.png")
    _read(folder, image="small.png")
    outside = sum(_centre(x, y - 0.02)[1] >= 300 for x, y in PLACES)
    assert f"{outside} of 20 spots lie outside the image" in caplog.text
    assert outside > 0


def test_repeated_genes_are_kept_and_named(folder, caplog):
    frame = COUNTS.copy()
    frame.columns = ["ACTB", "TBCE", "ACTB"]
    frame.to_csv(folder / "twice.tsv", sep="\t")
    with pytest.warns(UserWarning, match="Variable names are not unique"):
        table = _read(folder, counts="twice.tsv")["table"]
    assert list(table.var_names) == ["ACTB", "TBCE", "ACTB"]
    np.testing.assert_array_equal(table.X.toarray(), COUNTS.to_numpy())
    assert "1 genes more than once, the first are ['ACTB']" in caplog.text


def test_it_survives_writing(folder, tmp_path):
    sdata = _read(folder)
    sdata.write(tmp_path / "s.zarr")
    stored = SpatialData.read(tmp_path / "s.zarr")
    _check(stored)
    assert find_mpp(stored).value == pytest.approx(200 / PITCH)
    np.testing.assert_allclose(read_spots(stored).xy, read_spots(sdata).xy)
    np.testing.assert_array_equal(
        open_pyramid(stored).read(0, 0, 75, 100, level=2), open_pyramid(sdata).read(0, 0, 75, 100, level=2)
    )


@pytest.mark.parametrize(("value", "named"), [("-1", "-1"), ("1.5", "1.5"), ("nan", "nan"), ("inf", "inf")])
def test_counts_that_are_no_counts(folder, value, named):
    frame = COUNTS.astype(str)
    frame.iloc[7, 1] = value
    frame.to_csv(folder / "bad.tsv", sep="\t")
    with pytest.raises(
        ValueError, match=re.escape(f"whole and not negative, but spot {COUNTS.index[7]!r} has {named}")
    ):
        _read(folder, counts="bad.tsv")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("counts", "\tA\tB\n3x10\t1\tx\n", "has a count that is not a number"),
        ("counts", "\tA\tB\n3x10\t1\n", "spot '3x10' has 1 counts for 2 genes"),
        ("counts", "\tA\tB\nspot7\t1\t2\n", "expected names of spots like 7x13, got 'spot7'"),
        ("counts", "\tA\n3x10\t1\n3x10\t2\n", "has spots twice: ['3x10']"),
        ("counts", "\tA\n30x10\t1\n", "none of the 1 spots with counts (['30x10']...)"),
        ("counts", "\tA\n", "holds no counts"),
        ("spots", "barcode,row,col,px,py\nAC,1,2,3,4\n", "its first line is ['barcode', 'row', 'col', 'px', 'py']"),
        ("spots", "3x10,1,2\n3x10,1,2\n", "has spots twice: ['3x10']"),
        (
            "spots",
            "x\ty\tpixel_x\tpixel_y\n3\t10\t\t2\n",
            "has 1 spots with coordinates that are missing or not numbers",
        ),
        ("spots", ",X,Y\n3x10,1,2\n3x11,1,2\n", "on one line of the lattice"),
        ("image", "no image", "is no JPEG, PNG or TIFF image"),
    ],
)
def test_files_that_are_none(folder, file, text, message):
    (folder / "bad.txt").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        _read(folder, **{file: "bad.txt"})


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16"])
def test_images_that_are_not_rgb(folder, mode):
    pixels = np.zeros((400, 300), np.uint16) if mode == "I;16" else np.zeros((400, 300), np.uint8)
    image = Image.fromarray(pixels)
    (image if mode == "I;16" else image.convert(mode)).save(folder / "other.png")
    with pytest.raises(ValueError, match=re.escape(f"expected an 8-bit RGB image, got mode {mode!r}")):
        _read(folder, image="other.png")


def test_missing_files_and_levels(folder):
    with pytest.raises(FileNotFoundError, match=r"none\.tsv"):
        _read(folder, counts="none.tsv")
    with pytest.raises(ValueError, match="n_levels must be at least 1, got 0"):
        _read(folder, n_levels=0)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_a_large_image_takes_little_memory_and_no_warning(folder, warm):
    """A whole section of 9274 x 9911 px, in a process of its own."""
    Image.fromarray(np.tile(np.arange(0, 250, 10, np.uint8)[:, None, None], (397, 9274, 3))[:9911]).save(
        folder / "large.jpg"
    )
    code = """
import json, re, sys, warnings
from pathlib import Path
warnings.simplefilter("error", __import__("PIL.Image").Image.DecompressionBombWarning)
from PIL import Image
from st_predict.io import open_pyramid, read_legacy_st
folder = sys.argv[1]
sdata = read_legacy_st(f"{folder}/counts.tsv.gz", f"{folder}/spots.tsv", f"{folder}/large.jpg", section="S", patient="P")
# not ru_maxrss: on Linux that starts at what the parent held
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(json.dumps([int(peak[1]) / 2**20, open_pyramid(sdata).level_shapes, Image.MAX_IMAGE_PIXELS]))
"""
    run = warm.run(code, folder)
    assert run.returncode == 0, run.stderr
    peak_gib, shapes, limit = json.loads(run.stdout)
    assert peak_gib < 2
    assert shapes == [[9911, 9274], [4955, 4637], [2477, 2318], [1238, 1159]]
    assert limit == Image.MAX_IMAGE_PIXELS


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(("argument", "name"), [("counts", "counts.tsv.gz"), ("image", "he.png")])
def test_a_file_that_was_cut_is_named(folder, argument, name):
    _cut(folder / name)
    with pytest.raises(InvalidValueError, match=rf"{re.escape(name)} cannot be read: .* Get it again\.$"):
        _read(folder, **{argument: name})


@pytest.mark.parametrize(
    ("argument", "content"),
    [
        ("counts", b"\xff\xfe\x00"),
        ("spots", b"x\ty\tpixel_x\tpixel_y\na\tb\tc\td\n"),
        ("spots", b"x\ty\tpixel_x\tpixel_y\n1\t2\t3\t4\t5\t6\n1\t2\t3\n"),
        ("labels", b"x\ty\tlabel\none\ttwo\tcancer\n"),
    ],
)
def test_a_file_of_nonsense_is_named(folder, argument, content):
    (folder / "bad.txt").write_bytes(content)
    with pytest.raises(InvalidValueError, match=r"bad\.txt"):
        _read(folder, **{argument: folder / "bad.txt"})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("section", 3),
        ("patient", None),
        ("mpp", "half"),
        ("spot_diameter_um", 0),
        ("pitch_um", float("nan")),
        ("labels", 3),
        ("image_key", "a/b"),
        ("table_key", ""),
        ("n_levels", 2.5),
    ],
)
def test_arguments_of_another_type_are_named(folder, option, value):
    with pytest.raises(InvalidValueError, match=f"^{option} (should|must) be"):
        _read(folder, **{option: value})


def test_numbers_of_numpy_are_taken(folder):
    _check(_read(folder, mpp=np.float32(0.5), n_levels=np.int64(2), spot_diameter_um=np.float64(100)))
