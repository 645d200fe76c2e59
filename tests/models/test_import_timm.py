"""timm is imported on the CPU, whatever device is the default while a network is built."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import sys
import torch
from importlib.abc import MetaPathFinder
from st_predict._backbones import import_timm

class Watch(MetaPathFinder):
    seen = []
    def find_spec(self, name, path=None, target=None):
        if name == "timm":
            self.seen.append(torch.empty(0).device.type)

sys.meta_path.insert(0, Watch())
with torch.device("meta"):
    import_timm()
    print(Watch.seen, torch.empty(0).device.type)
"""


@pytest.mark.slow
def test_timm_is_imported_on_the_cpu() -> None:
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", CODE], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "['cpu'] meta", result.stderr
