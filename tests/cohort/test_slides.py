"""Lists of slides are read from files, patterns and tables, and refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from st_predict._errors import InvalidValueError
from st_predict.cohort._key import key_of
from st_predict.cohort._slides import list_slides, of_shard


def listed(slides: Any) -> list[tuple[Path, str, float | None, str | None, float | None]]:
    found = list_slides(slides, pitch_um=100.0)
    return [(slide.path, slide.id, slide.mpp, slide.image_key, slide.pitch_um) for slide in found]


def test_a_csv_file_of_all_columns(tmp_path: Path) -> None:
    path = tmp_path / "slides.csv"
    path.write_text("\ufeffpath,id,mpp,image_key,pitch_um,patient\na.svs,A,0.25,,55,P1\n/b/b c.svs,,,he,,P2\n", "utf-8")
    assert listed(path) == [
        (tmp_path / "a.svs", "A", 0.25, None, 55.0),
        (Path("/b/b c.svs"), "b_c", None, "he", 100.0),
    ]


def test_columns_that_are_not_used_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "slides.csv"
    path.write_text("path,pitch\na.svs,3\n")
    listed(path)
    assert "['pitch'] of the list are not used" in caplog.text


def test_paths_patterns_and_tables(tmp_path: Path) -> None:
    for name in ("b.svs", "a.svs", "c.tif", "x[1].svs"):
        (tmp_path / name).touch()
    assert [row[1] for row in listed([f"{tmp_path}/*.svs", tmp_path / "c.tif"])] == ["a", "b", "x_1_", "c"]
    assert [row[1] for row in listed(tmp_path / "x[1].svs")] == ["x_1_"]  # a file of this name, not a pattern
    assert listed(pd.DataFrame({"path": ["q.svs"], "mpp": [float("nan")]})) == [(Path("q.svs"), "q", None, None, 100.0)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("path,id\na.svs,x\nb.svs,X\n", r"same identifier: \{'x': .*a\.svs.*b\.svs"),
        ("slide\na.svs\n", r"no column 'path'; it has \['slide'\]"),
        ("path,mpp\na.svs,0.5\nb.svs,half\n", r"mpp in row 2 of the list must be a number, got 'half'"),
        ("path,mpp\na.svs,-1\n", r"Row 1 of the list is invalid: mpp must be above 0"),
        ("path,id\na.svs,../x\n", r"Row 1 of the list is invalid: id must be a name"),
        ("path,id\n,x\n", "Row 1 of the list has no path"),
        ("path\n", "has no slides"),
        ("", "is not a CSV file with a header"),
        ("path,id\na.svs,Merged\n", r"\['merged'\] are names of other results"),
    ],
)
def test_invalid_lists(tmp_path: Path, rows: str, message: str) -> None:
    path = tmp_path / "slides.csv"
    path.write_text(rows)
    with pytest.raises(InvalidValueError, match=message):
        listed(path)


def test_a_pattern_without_match(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"No file matches '.*\*\.svs'"):
        listed(f"{tmp_path}/*.svs")


def test_shards_are_disjoint_and_together_whole() -> None:
    slides = list_slides([f"{i}.svs" for i in range(45)], pitch_um=100.0)
    parts = [of_shard(slides, (i, 20)) for i in range(1, 21)]
    assert [slide.id for slide in parts[2]] == ["2", "22", "42"]
    assert sorted(slide.id for part in parts for slide in part) == sorted(slide.id for slide in slides)
    with pytest.raises(InvalidValueError, match="shard 21 of 20 does not exist"):
        of_shard(slides, (21, 20))


def test_the_folder_of_a_mirax_slide_is_a_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.mrxs").touch()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "Data0000.dat").write_bytes(b"1")
    (slide,) = list_slides(tmp_path / "a.mrxs", pitch_um=100.0)
    before = key_of(slide, {})
    assert key_of(slide, {}) == before
    (tmp_path / "a" / "Data0000.dat").write_bytes(b"12")
    assert key_of(slide, {}) != before
