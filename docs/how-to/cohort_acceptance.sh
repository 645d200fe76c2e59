#!/bin/bash
# 30 slides: one is truncated, one does not state its resolution, one has no tissue, and a worker is killed at work.
# Ends with 0 if the report is right.   bash docs/how-to/cohort_acceptance.sh [FOLDER]
set -euo pipefail
python=${PYTHON:-python}
folder=${1:-$(mktemp -d)}
mkdir -p "$folder"
cd "$folder"

cat > prepare.py <<'EOF'
"""Write 30 slides, the list of them, and a small checkpoint of random weights."""
import numpy as np
import tifffile
from st_predict import checkpoints
from st_predict.models import get_spec
from st_predict.specs import ModelCard

for number in range(1, 31):
    pixels = np.full((400, 400, 3), 245, np.uint8)
    if number != 3:
        tissue = np.random.default_rng(number).integers(60, 180, (300, 300, 3), dtype=np.uint8)
        pixels[50:350, 50:350] = tissue
    known = {} if number == 2 else {"resolution": (10_000, 10_000), "resolutionunit": "CENTIMETER"}
    options = {"photometric": "rgb", "tile": (128, 128), "metadata": None, **known}
    tifffile.imwrite(f"S{number:02}.tif", pixels, **options)
whole = open("S01.tif", "rb").read()
open("S01.tif", "wb").write(whole[: len(whole) // 2])

spec = get_spec("m2ost")
tiny = dict(spec.tiny)
card = ModelCard(model="m2ost", genes=("A", "B"), crop=spec.crop_for(tiny), hparams=tiny)
checkpoints.save("tiny.safetensors", checkpoints.build(card), card)
with open("slides.csv", "w") as file:
    file.write("path\n" + "".join(f"S{number:02}.tif\n" for number in range(1, 31)))
EOF
"$python" -W ignore prepare.py

# a scheduler and two workers; the first one is killed while slides are in work
"$python" -W ignore -m distributed.cli.dask_scheduler --port 0 --no-dashboard \
  --scheduler-file scheduler.json > scheduler.log 2>&1 &
scheduler=$!
for number in 1 2; do
  "$python" -W ignore -m distributed.cli.dask_worker --scheduler-file scheduler.json --nthreads 1 \
    --no-nanny --no-dashboard > "worker$number.log" 2>&1 &
  workers[number]=$!
done
trap 'kill -9 $scheduler ${workers[@]} 2> /dev/null || true' EXIT
until [ -s scheduler.json ]; do sleep 0.2; done
address=$("$python" -c 'import json; print(json.load(open("scheduler.json"))["address"])')
"$python" -W ignore -c "from distributed import Client; Client('$address').wait_for_workers(2, timeout=600)"

run() {
  "$python" -W ignore -c 'from st_predict.cli import app; app()' batch slides.csv --out out \
    --model tiny.safetensors --scheduler "$address" --pitch-um 40 --device cpu "$@"
}
run --retries 0 > run.log 2>&1 &
cohort=$!
until [ "$(find out -name 'S*.h5ad' 2> /dev/null | wc -l)" -ge 3 ]; do sleep 0.02; done
kill -9 "${workers[1]}"
status=0
wait "$cohort" || status=$?
cat run.log

cat > check.py <<'EOF'
"""Compare report and files with what was prepared."""
import json
import sys
from pathlib import Path
import pandas as pd

report = pd.read_csv("out/report.csv", index_col="id")
expected = {f"S{number:02}": "done" for number in range(1, 31)}
expected |= {"S01": "failed", "S02": "failed", "S03": "empty"}
assert report["status"].sort_index().to_dict() == expected, report["status"].value_counts()
assert sorted(path.stem for path in Path("out/failed").iterdir()) == ["S01", "S02"]
assert "damaged" in json.loads(Path("out/failed/S01.json").read_text())["error"]
assert "micrometres" in report.loc["S02", "error"]
assert len(list(Path("out").glob("S*.h5ad"))) == 28
assert (report.loc[report["status"] == "done", "spots"] > 0).all()
assert report.loc["S03", "spots"] == 0
assert sys.argv[1] == "1", f"the command ended with {sys.argv[1]}"
if len(sys.argv) > 2:
    assert report["reused"].all()
print("The report is right.")
EOF
"$python" check.py "$status"
status=0
run || status=$?
"$python" check.py "$status" again
