"""What a run's CSV log says over its optimizer steps."""

import csv
from pathlib import Path


def read_curve(run: Path, key: str) -> dict[int, float]:
    """A logged metric by optimizer step; empty if the run keeps no CSV log or never logged it.

    A resumed run has a log for each start (`csv/version_0`, …); of steps that were done again the later counts.
    """
    values: dict[int, float] = {}
    for file in sorted(
        run.glob("csv/version_*/metrics.csv"), key=lambda file: int(file.parent.name.rpartition("_")[2])
    ):
        with file.open(encoding="utf-8", newline="") as lines:
            # The run's last line tells its results: the validation there is that of the best epoch.
            rows = [row for row in csv.DictReader(lines) if not row.get("run/seconds")]
            values |= {int(row["step"]): float(row[key]) for row in rows if row.get(key) and row.get("step")}
    return dict(sorted(values.items()))
