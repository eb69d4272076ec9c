"""Speed of loading: a folder of weights is written to a local disk, then loaded, beside reading the same files.

    python3 hardware/load.py --glm4v target/release/glm4v --config configs/models/glm-ocr --backend cuda --dtype bf16
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import List

from parts import ROOT, UNAVAILABLE

TINY = ROOT / "tests/fixtures/golden/checkpoints/glm4v"

# Free space that is left alone.
SPARE = 2 << 30


def read_all(folder: Path) -> tuple:
    """Seconds and bytes of reading all weight files once; into the page cache, if there is room."""
    buffer = bytearray(8 << 20)
    began, size = time.monotonic(), 0
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                size += count
    return time.monotonic() - began, size


def show(**values: object) -> None:
    print(json.dumps(values), flush=True)


def bench(args: argparse.Namespace, model: Path, *flags: str) -> List[str]:
    command = [args.glm4v, "--quiet", "--backend", args.backend, "--dtype", args.dtype, "bench", "--model", str(model)]
    return [*command, "--workload", "load", "--json", *flags]


def measure(args: argparse.Namespace, model: Path) -> int:
    # A device that is missing is known before gigabytes are written for it.
    trial = bench(args, TINY, "--rounds", "1", "--warmup", "0", "--no-ceilings")
    done = subprocess.run(trial, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    if done.returncode != 0:
        return done.returncode
    began = time.monotonic()
    program = [args.glm4v, "--quiet"]
    init = [*program, "--backend", "cpu", "--dtype", args.dtype, "init", "--config", args.config, "--out", str(model)]
    done = subprocess.run(init, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    if done.returncode != 0:
        return done.returncode
    seconds, size = time.monotonic() - began, sum(path.stat().st_size for path in model.glob("*.safetensors"))
    show(step="init", seconds=seconds, bytes=size, gb_per_second=size / seconds / 1e9)
    for attempt in ("read", "read again"):
        seconds, size = read_all(model)
        show(step=attempt, seconds=seconds, bytes=size, gb_per_second=size / max(seconds, 1e-9) / 1e9)
    return subprocess.run(bench(args, model), stdin=subprocess.DEVNULL).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glm4v", required=True)
    parser.add_argument("--config", required=True)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--needs-gb", type=float, default=3, help="free space below which nothing is written")
    args = parser.parse_args()
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < args.needs_gb * 1e9 + SPARE:
        show(reason=f"{tempfile.gettempdir()}: {free / 1e9:.1f} GB free, needed {args.needs_gb + SPARE / 1e9:.1f}")
        return UNAVAILABLE
    with tempfile.TemporaryDirectory() as folder:
        return measure(args, Path(folder) / "model")


if __name__ == "__main__":
    sys.exit(main())
