"""Programs beside the tests, which run them."""

from __future__ import annotations

collect_ignore = ["input_cases.py", "inputs.py", "kills.py"]
