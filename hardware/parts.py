"""What is run on a GPU machine: a table of parts, the most important first.

`{name}` in a command is filled in by `Setting.values`. A part prints JSON on standard output, one value or one object a
line, and ends with exit code 0; with 77 and `{"reason": …}` where this machine lacks what it needs.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Mapping, Sequence, Tuple

import cuda_libraries

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

# Exit code of a part that cannot run on this machine.
UNAVAILABLE = 77


# Seconds that `run.py` gives a part, for scripts which start several processes.
LIMIT = "HARDWARE_LIMIT"


def limit_of_a_run() -> float:
    """Seconds of one process of a part: half of the part's, so that one which hangs leaves the others time."""
    return float(os.environ.get(LIMIT, "600")) / 2


@dataclass(frozen=True)
class Part:
    """One measurement or test, run by itself."""

    name: str
    title: str
    command: Sequence[str]
    # Seconds after which it is ended.
    limit: float
    # Seconds below which it is not worth a start.
    least: float = 5
    environment: Mapping[str, str] = field(default_factory=dict)
    # An error with this text says that the machine lacks something, not that the part failed.
    unavailable_if: str = "is not supported by"


def program(*args: str) -> Tuple[str, ...]:
    """A command of the built program on the device."""
    return ("{glm4v}", "--backend", "{backend}", *args)


def script(name: str, *args: str) -> Tuple[str, ...]:
    """A script of this directory, which runs the program."""
    return ("{python}", str(HERE / name), *args)


def checked(name: str, *args: str) -> Tuple[str, ...]:
    """A script that compares what the program computes on the device."""
    return script(name, "--glm4v", "{glm4v}", "--backend", "{backend}", *args)


def bench(model: str, workloads: str, *args: str) -> Tuple[str, ...]:
    """Measurements with random weights made on the device."""
    return program("--dtype", "{dtype}", "bench", "--config", model, "--workload", workloads, "--json", "--quiet", *args)


def train(model: str, method: str) -> Tuple[str, ...]:
    return bench(model, "train", "--method", method, "--text-tokens", "{training_text}", "--rounds", "{rounds}", "--warmup", "1")


@dataclass(frozen=True)
class Setting:
    """The program under test, where it runs, and at which shapes."""

    binary: Path
    sha256: str
    backend: str
    profile: str
    scratch: Path
    patience: float = 1.0

    def key(self) -> Dict[str, str]:
        """What results must have in common to be of one run."""
        return {"program": self.sha256[:12], "backend": self.backend, "profile": self.profile}

    def values(self) -> Dict[str, str]:
        """Values of the placeholders in commands."""
        return {
            "glm4v": str(self.binary),
            "python": sys.executable,
            "backend": self.backend,
            "scratch": str(self.scratch),
            **PROFILES[self.profile],
        }

    def fill(self, command: Sequence[str]) -> List[str]:
        """A command with its placeholders filled in."""
        values = self.values()
        return [word.format(**values) for word in command]

    def environment(self) -> Dict[str, str]:
        """That of this process, with caches and temporary files in the scratch directory, and nothing from the network."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("CUBECL_", "BURN_", "GLM4V_"))}
        cache = self.scratch / "cache"
        added = {
            "XDG_CACHE_HOME": str(cache),
            "TMPDIR": str(self.scratch),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "NO_COLOR": "1",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
        }
        if self.backend.startswith("cuda"):
            added.update(cuda_libraries.additions(kept))
        return {**kept, **added}


# Shapes: those of the 9B model for a large GPU, and the smallest for a rehearsal.
PROFILES: Dict[str, Dict[str, str]] = {
    "full": {
        "dtype": "bf16",
        "training_dtypes": "f32,bf16",
        "model": str(ROOT / "configs/models/glm-4.1v-9b-thinking"),
        "small_model": str(ROOT / "configs/models/glm-ocr"),
        "images": "1036x1036,448x448",
        "text": "64",
        "training_text": "448",
        "depths": "2048,128,8192",
        "depth": "2048",
        "tokens": "32",
        "rounds": "5",
        "disk_gb": "3",
    },
    "small": {
        "dtype": "f32",
        "training_dtypes": "f32",
        "model": str(ROOT / "configs/models/digits"),
        "small_model": str(ROOT / "configs/models/digits"),
        "images": "112x112",
        "text": "8",
        "training_text": "16",
        "depths": "16,32",
        "depth": "16",
        "tokens": "4",
        "rounds": "2",
        "disk_gb": "0.1",
    },
}

PARTS: Tuple[Part, ...] = (
    Part("machine", "Machine", script("machine.py", "--glm4v", "{glm4v}", "--backend", "{backend}"), 30, least=1),
    Part("selftest-f32", "Self-test, f32", program("--dtype", "f32", "selftest", "--json"), 100),
    Part("parity-f32", "Golden cases of transformers, f32", checked("parity.py", "--dtype", "f32"), 80),
    Part(
        "decode",
        "Decoding",
        bench("{model}", "decode", "--decode-depth", "{depths}", "--decode-tokens", "{tokens}"),
        100,
        least=20,
    ),
    Part(
        "prefill",
        "Vision tower and prefill",
        bench("{model}", "vision,prefill", "--image-size", "{images}", "--text-tokens", "{text}", "--rounds", "{rounds}"),
        100,
        least=20,
    ),
    Part("selftest-16bit", "Self-test, bf16", program("--dtype", "bf16", "selftest", "--json"), 60),
    Part("training", "Training steps against the CPU", checked("training.py", "--dtypes", "{training_dtypes}"), 60),
    Part(
        "transformers",
        "The same in transformers",
        script("reference.py", "--config", "{model}", "--device", "{backend}", "--dtype", "{dtype}", "--image-size", "{images}")
        + ("--text-tokens", "{text}", "--decode-depth", "{depths}", "--decode-tokens", "{tokens}", "--rounds", "{rounds}"),
        110,
        least=30,
    ),
    Part("train-lora", "Training step, LoRA", train("{model}", "lora"), 60, least=20),
    Part("train-full", "Training step, all weights of a smaller model", train("{small_model}", "full"), 50, least=15),
    Part(
        "kernels-decode",
        "Kernels of a decoded token",
        bench("{model}", "decode", "--decode-depth", "{depth}", "--decode-tokens", "2", "--kernels", "25", "--no-ceilings"),
        45,
        least=20,
    ),
    Part(
        "load",
        "Loading",
        script("load.py", "--glm4v", "{glm4v}", "--backend", "{backend}", "--dtype", "{dtype}", "--config", "{small_model}")
        + ("--needs-gb", "{disk_gb}"),
        60,
        least=30,
    ),
    Part("parity-16bit", "Golden cases of transformers, bf16", checked("parity.py", "--dtype", "bf16"), 40),
    Part(
        "kernels-prefill",
        "Kernels of vision tower, prefill and a LoRA step",
        bench("{model}", "vision,prefill,train", "--method", "lora", "--rounds", "1", "--warmup", "1", "--kernels", "15", "--no-ceilings"),
        60,
        least=25,
    ),
    Part(
        "selftest-tuned",
        "Self-test, f32, with every kernel in the race",
        program("--dtype", "f32", "selftest", "--json"),
        60,
        environment={"CUBECL_AUTOTUNE_LEVEL": "full", "CUBECL_AUTOTUNE_CACHE": "0"},
    ),
    Part(
        "selftest-minimal",
        "Self-test, f32, with the first good kernel",
        program("--dtype", "f32", "selftest", "--json"),
        60,
        environment={"CUBECL_AUTOTUNE_LEVEL": "minimal", "CUBECL_AUTOTUNE_CACHE": "0"},
    ),
    Part(
        "selftest-wgpu",
        "Self-test through Vulkan",
        ("{glm4v}", "--backend", "wgpu", "--dtype", "f32", "selftest", "--json"),
        60,
        unavailable_if="backend wgpu",
    ),
    Part(
        "counters",
        "Counters of the last kernels of a decoded token",
        script("counters.py", "--glm4v", "{glm4v}", "--")
        + bench("{model}", "decode", "--decode-depth", "{depth}", "--decode-tokens", "1", "--warmup", "1", "--no-ceilings")[1:],
        70,
        least=30,
    ),
)
