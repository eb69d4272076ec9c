"""Hardware counters of the last kernels of a command, by Nsight Compute: share of memory and arithmetic throughput.

    python3 hardware/counters.py --glm4v target/release/glm4v -- --backend cuda bench …

The command runs twice: the kernel library logs its launches, so that they can be counted; then ncu replays the last
ones. Kernels with their times are in the output of `glm4v bench --kernels`; this adds what limits them.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Dict, Iterable, Iterator, List

from parts import UNAVAILABLE

# A line of the log for each launch: its duration and its name.
LAUNCH = re.compile(r"^\| *[0-9.]+(?:ns|µs|us|ms|s) *\| ")
METRICS = {
    "gpu__time_duration.sum": "us",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "memory %",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "arithmetic %",
}
# In microseconds.
UNITS = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3}


def count_launches(program: str, command: List[str], folder: Path) -> int:
    """Launches of a command, from the log of the kernel library."""
    log = folder / "launches.log"
    environment = {**os.environ, "CUBECL_DEBUG_LOG": str(log), "CUBECL_DEBUG_OPTION": "profile"}
    subprocess.run([program, *command], env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=True)
    if not log.exists():
        return 0
    with open(log, encoding="utf-8", errors="replace") as lines:
        return sum(1 for line in lines if LAUNCH.match(line))


def measure(program: str, command: List[str], skip: int, count: int, folder: Path) -> List[dict]:
    """Rows of the CSV that ncu writes; clocks are left alone."""
    out = folder / "counters.csv"
    ncu = ["ncu", "--csv", "--log-file", str(out), "--clock-control", "none", "--metrics", ",".join(METRICS)]
    ncu += ["--launch-skip", str(skip), "--launch-count", str(count)]
    subprocess.run([*ncu, program, *command], stdin=subprocess.DEVNULL, stdout=sys.stderr, check=True)
    with open(out, encoding="utf-8", errors="replace", newline="") as lines:
        return list(rows_of(lines))


def rows_of(lines: Iterable[str]) -> Iterator[dict]:
    """The table in ncu's output, which has messages before it."""
    table = (line for line in lines if line.startswith('"'))
    return csv.DictReader(table)


def number(row: dict) -> float:
    """The value of a metric; times in microseconds."""
    value = float(row["Metric Value"].replace(",", ""))
    return value * UNITS.get(row.get("Metric Unit", ""), 1.0)


def by_kernel(rows: Iterable[dict]) -> List[dict]:
    """Launches, time and mean shares of each kernel; the one with the most time first."""
    values: Dict[str, Dict[str, List[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.get("Metric Name") in METRICS:
            values[row["Kernel Name"]][METRICS[row["Metric Name"]]].append(number(row))
    table = []
    for name, metrics in values.items():
        means = {key: round(sum(found) / len(found), 2) for key, found in metrics.items()}
        launches = max(map(len, metrics.values()))
        table.append({"kernel": name[:100], "launches": launches, "total us": round(sum(metrics["us"]), 1), **means})
    return sorted(table, key=lambda row: -row["total us"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glm4v", required=True)
    parser.add_argument("--count", type=int, default=300, help="launches to measure")
    parser.add_argument("command", nargs="+", help="arguments of the program, after --")
    args = parser.parse_args()
    if shutil.which("ncu") is None:
        print(json.dumps({"reason": "ncu (Nsight Compute) is not on the PATH"}))
        return UNAVAILABLE
    with tempfile.TemporaryDirectory() as folder:
        launches = count_launches(args.glm4v, args.command, Path(folder))
        if launches == 0:
            print(json.dumps({"reason": "the command launched no kernel"}))
            return UNAVAILABLE
        rows = measure(args.glm4v, args.command, max(launches - args.count, 0), args.count, Path(folder))
    for row in by_kernel(rows):
        print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
