"""The workloads of `glm4v bench` in transformers, at the same shapes, where torch and transformers are installed.

    python3 hardware/reference.py --config configs/models/digits --device cpu --dtype f32 --workload vision,prefill,decode

Each runs in a process of its own (`benches/model/worker.py`); prints one JSON object a workload, in the form of those in
the report of `glm4v bench --json`.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

import machine
from parts import ROOT, UNAVAILABLE

WORKER = ROOT / "benches/model/worker.py"
PATCH, MERGE = 14, 2
NEEDED = ("torch", "transformers")


def image_shape(size: str) -> Dict[str, object]:
    """Patches and tokens of an image of `WIDTHxHEIGHT` pixels, rounded to whole tokens as `glm4v bench` does."""
    if size == "none":
        return {}
    width, height = (max(round(int(side) / (PATCH * MERGE)), 1) * MERGE for side in size.split("x"))
    return {"image_grid_thw": [1, height, width], "image_tokens": height * width // MERGE**2}


def shapes(args: argparse.Namespace) -> Iterator[Tuple[str, Dict[str, object]]]:
    """Workloads with their shapes: all with the first depth and the first image, then all with the second."""
    depths, images = args.decode_depth.split(","), args.image_size.split(",")
    for depth, image in itertools.zip_longest(depths, images):
        for workload in args.workload.split(","):
            if workload == "decode" and depth:
                yield workload, {"batch_size": 1, "depth": int(depth)}
            elif workload != "decode" and image:
                text = {"text_tokens": args.text_tokens} if workload == "prefill" else {}
                yield workload, {"batch_size": 1, **image_shape(image), **text}


def measure(args: argparse.Namespace, workload: str, shape: Dict[str, object]) -> Dict[str, object]:
    """One workload; the error of a process that fails is the result of its workload alone."""
    flags: List[str] = []
    for name in ("config", "device", "dtype", "rounds", "warmup", "decode_tokens", "threads"):
        flags += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    command = [sys.executable, str(WORKER), "--workload", workload, "--shape", json.dumps(shape), *flags]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        return {"workload": workload, "shape": shape, "ok": False, "error": lines[-1][:400]}
    found = json.loads(done.stdout.splitlines()[-1])
    seconds = {"median": statistics.median(found["seconds"]), "min": min(found["seconds"]), "max": max(found["seconds"])}
    memory = {"process_bytes": found["process_bytes"], "device_bytes": found["device_bytes"]}
    return {"workload": workload, "shape": shape, "seconds": seconds, "peak_memory": memory, "versions": found["versions"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--workload", default="decode,prefill,vision")
    parser.add_argument("--image-size", default="448x448")
    parser.add_argument("--text-tokens", type=int, default=64)
    parser.add_argument("--decode-depth", default="256")
    parser.add_argument("--decode-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if args.device not in ("cpu", "cuda"):
        missing.append(f"torch for {args.device}")
    reason = f"not installed: {', '.join(missing)}" if missing else ""
    if not reason and args.device == "cuda" and not machine.driver().get("devices"):
        # Known here at once; torch takes seconds for each workload to find out.
        reason = "no CUDA device"
    if reason:
        print(json.dumps({"reason": reason}))
        return UNAVAILABLE
    failed = False
    for workload, shape in shapes(args):
        row = measure(args, workload, shape)
        if "error" in row:
            failed = True
            print(f"error: {workload}: {row['error']}", file=sys.stderr)
        print(json.dumps(row), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
