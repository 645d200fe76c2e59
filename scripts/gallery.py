"""Run the code of docs/gallery.md, in order, and put its figures where the page shows them.

python scripts/gallery.py
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import matplotlib as mpl
from PIL import Image

mpl.use("agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gallery.md"
PICTURES = ROOT / "docs" / "_static"
COLOURS = 256
WIDTH = 1300


def main() -> None:
    """Write the pictures that the page names."""
    page = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    space: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), space)
            plt.close("all")
        for path in Path(folder).glob("gallery_*.png"):
            with Image.open(path) as picture:
                picture.thumbnail((WIDTH, 10 * WIDTH))
                small = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
                small.save(PICTURES / path.name, optimize=True)
        os.chdir(ROOT)


if __name__ == "__main__":
    main()
