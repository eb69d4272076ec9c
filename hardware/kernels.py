"""Kernels of a command on a GPU: how often each was launched, and how long it took.

    python3 hardware/kernels.py --glm4v target/release/glm4v -- --backend cuda bench …

The kernel library times every launch and writes a line for each. Timed kernels run one after another, so their sum is
more than the time of a run that overlaps them; the order of the kernels is what this shows.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Dict, Iterable, List, Tuple

from parts import UNAVAILABLE

LINE = re.compile(r"^\| *([0-9.]+)(ns|µs|us|ms|s) *\| *(.+?) *$")
MICROSECONDS = {"ns": 1e-3, "µs": 1.0, "us": 1.0, "ms": 1e3, "s": 1e6}
# Enough for a name with its types.
NAME = 100


def timed_launches(lines: Iterable[str]) -> Dict[str, List[float]]:
    """Microseconds of each launch, by kernel."""
    found: Dict[str, List[float]] = defaultdict(list)
    for line in lines:
        match = LINE.match(line)
        if match:
            found[match[3][:NAME]].append(float(match[1]) * MICROSECONDS[match[2]])
    return found


def rows(launches: Dict[str, List[float]], top: int) -> List[dict]:
    """The kernels with the most time, and one row for all."""
    total = sum(map(sum, launches.values()))
    ordered = sorted(launches.items(), key=lambda entry: -sum(entry[1]))
    entries: List[Tuple[str, List[float]]] = [("all", [us for times in launches.values() for us in times]), *ordered[:top]]
    return [
        {
            "kernel": name,
            "launches": len(times),
            "total_ms": sum(times) / 1e3,
            "mean_us": sum(times) / len(times),
            "share": sum(times) / total if total else 0.0,
        }
        for name, times in entries
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glm4v", required=True)
    parser.add_argument("--top", type=int, default=25)
    parser.add_argument("command", nargs="+", help="arguments of the program, after --")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "kernels.log"
        environment = {**os.environ, "CUBECL_DEBUG_LOG": str(log), "CUBECL_DEBUG_OPTION": "profile"}
        # Its output is shown where people look: this script's standard output is the table.
        done = subprocess.run([args.glm4v, *args.command], env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr)
        launches = {}
        if log.exists():
            with open(log, encoding="utf-8", errors="replace") as lines:
                launches = timed_launches(lines)
    if not launches:
        reason = "no kernel was timed: the backend has none to time, or the command ended before the first"
        print(json.dumps({"reason": reason, "exit_code": done.returncode}))
        return done.returncode or UNAVAILABLE
    for row in rows(launches, args.top):
        print(json.dumps(row))
    return 1 if done.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
