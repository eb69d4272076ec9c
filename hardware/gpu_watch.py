"""Memory, clock and power of the GPU while a part runs, read by one nvidia-smi for the whole run."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Dict, List, Optional

import process

FIELDS = ("memory.used", "clocks.sm", "power.draw", "utilization.gpu")
INTERVAL_MS = 250


class GpuWatch:
    """Collects samples in a file; every method does nothing where there is no nvidia-smi."""

    def __init__(self, scratch: Path, backend: str) -> None:
        self.path = scratch / "gpu.csv"
        self.is_wanted = backend.startswith("cuda")
        self.child: Optional[subprocess.Popen] = None
        self.begun_at = 0

    def start(self, mark: str) -> None:
        if not self.is_wanted:
            return
        query = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits", f"--loop-ms={INTERVAL_MS}"]
        try:
            with open(self.path, "wb") as out:
                # Without the mark: it outlives the parts.
                self.child = subprocess.Popen(
                    query, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.DEVNULL, preexec_fn=process.end_with_parent
                )
        except (OSError, subprocess.SubprocessError):
            self.child = None

    def begin(self) -> None:
        """A part starts."""
        self.begun_at = self.path.stat().st_size if self.child and self.path.exists() else 0

    def end(self) -> Dict[str, float]:
        """Peaks and means since the part started; empty without samples."""
        if self.child is None:
            return {}
        try:
            with open(self.path, "rb") as file:
                file.seek(self.begun_at)
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return {}
        return summary([row for row in map(numbers, lines) if row])

    def stop(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.wait()
            self.child = None


def numbers(line: str) -> List[float]:
    """The values of a complete sample, else nothing."""
    cells = line.split(",")
    try:
        return [float(cell) for cell in cells] if len(cells) == len(FIELDS) else []
    except ValueError:
        return []


def summary(rows: List[List[float]]) -> Dict[str, float]:
    if not rows:
        return {}
    memory, clock, power, busy = zip(*rows)
    return {
        "peak_memory_mib": max(memory),
        "max_clock_mhz": max(clock),
        "max_power_w": max(power),
        "mean_utilization": round(sum(busy) / len(busy), 1),
        "samples": len(rows),
    }
