"""Where CUDA's run-time compiler and headers are: the program needs both, and loads them by name.

NVRTC comes with the toolkit, or with the wheels that PyTorch depends on.
"""

from __future__ import annotations

import ctypes
import glob
import os
import shutil
import site
import sys
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Optional

TOOLKITS = ("/usr/local/cuda", "/opt/cuda")


def toolkit(environment: Mapping[str, str]) -> Optional[Path]:
    """The directory above `include/cuda_fp16.h`, as the program will look for it, or a better one."""
    nvcc = shutil.which("nvcc", path=environment.get("PATH"))
    beside_nvcc = [Path(nvcc).resolve().parents[1]] if nvcc else []
    wanted = environment.get("CUDA_PATH")
    places = ([Path(wanted)] if wanted else []) + [Path(place) for place in TOOLKITS] + beside_nvcc
    places += [Path(place) for place in sorted(glob.glob("/usr/local/cuda-*"), reverse=True)] + wheels()
    return next((place for place in places if (place / "include/cuda_fp16.h").is_file()), None)


def wheels() -> List[Path]:
    """Directories of CUDA in site-packages."""
    roots = [*site.getsitepackages(), *sys.path]
    found = [Path(place) for root in roots for place in sorted(glob.glob(f"{root}/nvidia/cu*"), reverse=True)]
    return [place for place in dict.fromkeys(found) if place.is_dir()]


def compiler_folders(home: Optional[Path]) -> Iterator[Path]:
    """Directories with `libnvrtc`, the toolkit's first."""
    homes = ([home] if home else []) + wheels()
    for folder in (place / lib for place in homes for lib in ("lib64", "lib", "targets/x86_64-linux/lib")):
        if any(folder.glob("libnvrtc.so*")):
            yield folder


def loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
        return True
    except OSError:
        return False


def additions(environment: Mapping[str, str]) -> Dict[str, str]:
    """Variables that let the program find headers and NVRTC; none where it does so by itself."""
    added: Dict[str, str] = {}
    home = toolkit(environment)
    if home and str(home) not in (environment.get("CUDA_PATH"), "/usr/local/cuda"):
        added["CUDA_PATH"] = str(home)
    folder = next(compiler_folders(home), None)
    if folder and not (loads("libnvrtc.so") or loads("libnvrtc.so.13")):
        before = environment.get("LD_LIBRARY_PATH")
        added["LD_LIBRARY_PATH"] = os.pathsep.join([str(folder), *([before] if before else [])])
    return added
