"""Run the notebooks of the tutorials in place, so that their outputs and pictures are those of this version.

python scripts/tutorials.py             # all of them
python scripts/tutorials.py get-started # those whose name has this in it
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parents[1] / "docs" / "tutorials"
NOT_RUN = "download"
"""Tag of cells that are shown only."""

DPI = 150
"""Resolution of pictures; the 100 of Matplotlib are coarse on most screens."""

COLOURS = 256
"""Pictures are stored with a palette, which takes less than half of the room."""


def run(path: Path) -> float:
    """Execute a notebook in an empty folder, and store it with its outputs; gives the seconds it took."""
    notebook = nbformat.read(path, as_version=4)
    start = time.monotonic()
    folder = _empty()
    (folder / "matplotlibrc").write_text(f"figure.dpi: {DPI}\n")
    NotebookClient(notebook, timeout=1800, kernel_name="python3", skip_cells_with_tag=NOT_RUN).execute(cwd=folder)
    seconds = time.monotonic() - start
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran
        if cell.cell_type == "code":
            cell.outputs = [_small(output) for output in cell.outputs if _is_of_the_package(output)]
        for output in cell.get("outputs", ()):
            if "text" in output:
                output["text"] = output["text"].replace(f"{folder}/", "")
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.write(notebook, path)
    return seconds


def _empty() -> Path:
    from tempfile import mkdtemp

    return Path(mkdtemp(prefix="tutorial-"))


def _is_of_the_package(output: nbformat.NotebookNode) -> bool:
    """Whether an output is worth keeping: bars of progress and warnings about this machine are not."""
    passing = ("\r", "\x1b", "it/s]", "spot/s]", "Warning: ", "notebook_tqdm", "%|")
    if "application/vnd.jupyter.widget-view+json" in output.get("data", ()):
        return False
    text = output.get("text", "")
    return output.output_type != "stream" or (bool(text.strip()) and not any(part in text for part in passing))


def _small(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Store a picture with few colours."""
    encoded = output.get("data", {}).get("image/png")
    if encoded is None:
        return output
    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    file = io.BytesIO()
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    output.data["image/png"] = base64.b64encode(file.getvalue()).decode()
    return output


def main() -> int:
    """Run the notebooks that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=[""], help="Parts of names of notebooks.")
    names = parser.parse_args().names
    for path in sorted(FOLDER.glob("*.ipynb")):
        if any(name in path.stem for name in names):
            print(f"{path.stem}: {run(path):.0f} s, {path.stat().st_size / 1e6:.2f} MB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
