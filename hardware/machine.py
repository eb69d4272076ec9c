"""The machine: GPU, driver, compiler, processor, memory, disk, Python and its packages, tools, as one JSON object.

    python3 hardware/machine.py --glm4v target/release/glm4v

What is missing is named in `problems`; nothing here can fail because of it.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, Optional, Sequence

import cuda_libraries

PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "triton")
TOOLS = ("nvidia-smi", "nvcc", "nsys", "ncu", "compute-sanitizer", "xz")
GPU_FIELDS = ("name", "driver_version", "memory.total", "memory.used", "clocks.max.sm", "clocks.max.memory", "power.limit", "compute_mode", "mig.mode.current")


def output_of(command: Sequence[str], limit: float = 10) -> Optional[str]:
    """Standard output, none where the command is missing, fails or hangs."""
    try:
        done = subprocess.run(
            list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=limit
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None


def gpus() -> List[Dict[str, str]]:
    text = output_of(["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader"])
    rows = [line.split(", ") for line in (text or "").splitlines()]
    return [dict(zip(GPU_FIELDS, row)) for row in rows if len(row) == len(GPU_FIELDS)]


def driver() -> Dict[str, object]:
    """What libcuda answers: the program gets the same answers, but shows less of them."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return {"error": str(error)}
    version, count = ctypes.c_int(), ctypes.c_int()
    code = library.cuInit(0)
    library.cuDriverGetVersion(ctypes.byref(version))
    counted = library.cuDeviceGetCount(ctypes.byref(count))
    return {"cuda": version.value, "cuInit": code, "devices": count.value if counted == 0 else 0}


def compiler() -> Dict[str, object]:
    """NVRTC under the names that the program tries."""
    for name in ("libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        major, minor = ctypes.c_int(), ctypes.c_int()
        library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        return {"library": name, "version": f"{major.value}.{minor.value}"}
    return {"error": "libnvrtc.so, libnvrtc.so.13 and libnvrtc.so.12 cannot be loaded"}


def packages() -> Dict[str, str]:
    """Versions without importing anything."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def field_of(path: str, key: str) -> str:
    """A value of a file of `key : value` lines, such as those in /proc."""
    try:
        lines = Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key) and ":" in line), "")


def problems(found: Dict[str, object], backend: str) -> List[str]:
    """What the program will miss."""
    if not backend.startswith("cuda"):
        return []
    missing = []
    if "error" in found["driver"]:
        missing.append(f"no NVIDIA driver: {found['driver']['error']}")
    elif found["driver"]["cuInit"] != 0:
        missing.append(f"the driver refuses: cuInit gives {found['driver']['cuInit']}")
    elif not found["driver"]["devices"]:
        missing.append("the driver has no device")
    if "error" in found["compiler"]:
        missing.append(f"no NVRTC: {found['compiler']['error']}")
    if not found["toolkit"]:
        missing.append("no CUDA headers (include/cuda_fp16.h); needed: CUDA_PATH, the directory above include")
    return missing


def describe(glm4v: str, backend: str) -> Dict[str, object]:
    home = cuda_libraries.toolkit(os.environ)
    disk = shutil.disk_usage(os.environ.get("TMPDIR", "/tmp"))
    found: Dict[str, object] = {
        "program": output_of([glm4v, "--version"], 30),
        "info": output_of([glm4v, "info"], 60),
        "gpus": gpus(),
        "driver": driver(),
        "compiler": compiler(),
        "toolkit": str(home) if home else None,
        "nvcc": (output_of(["nvcc", "--version"]) or "").rsplit("\n", 1)[-1],
        "processor": field_of("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(int(field_of("/proc/meminfo", "MemTotal").split(" ")[0] or 0) * 1024 / 1e9, 1),
        "disk_free_gb": round(disk.free / 1e9, 1),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "packages": packages(),
        "tools": [name for name in TOOLS if shutil.which(name)],
    }
    found["problems"] = problems(found, backend)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glm4v", required=True)
    parser.add_argument("--backend", default="cuda")
    args = parser.parse_args()
    print(json.dumps(describe(args.glm4v, args.backend)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
