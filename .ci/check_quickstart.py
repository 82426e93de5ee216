"""The first thing that a newcomer sees must be true: distillation helps by more than two standard deviations.

python .ci/check_quickstart.py runs/digits/summary.json
"""

import json
import sys
from pathlib import Path

results = {row["name"]: row for row in json.loads(Path(sys.argv[1]).read_text())["results"]}
best, alone = results["best"], results["student alone"]
gain, spread = best["mean"] - alone["mean"], max(best["std"], alone["std"])
assert len(best["test_accuracy"]) >= 5, best
assert gain > 2 * spread, f"gain {gain:.4f}, standard deviation {spread:.4f}"
sys.stdout.write(f"gain {gain:.4f}, {gain / spread:.1f} standard deviations\n")
