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


def program(*args: str) -> Tuple[str, ...]:
    """A command of the built program on the device."""
    return ("{glm4v}", "--backend", "{backend}", *args)


def script(name: str, *args: str) -> Tuple[str, ...]:
    """A script of this directory, which runs the program."""
    return ("{python}", str(HERE / name), *args)


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
        "model": str(ROOT / "configs/models/glm-4.1v-9b-thinking"),
        "small_model": str(ROOT / "configs/models/glm-ocr"),
    },
    "small": {
        "dtype": "f32",
        "model": str(ROOT / "configs/models/digits"),
        "small_model": str(ROOT / "configs/models/digits"),
    },
}

PARTS: Tuple[Part, ...] = (
    Part("machine", "Machine", script("machine.py", "--glm4v", "{glm4v}", "--backend", "{backend}"), 45, least=1),
    Part(
        "parity-f32",
        "Golden cases of transformers, f32",
        script("parity.py", "--glm4v", "{glm4v}", "--backend", "{backend}", "--dtype", "f32"),
        60,
    ),
    Part(
        "training",
        "Training steps against the CPU",
        script("training.py", "--glm4v", "{glm4v}", "--backend", "{backend}"),
        60,
    ),
    Part(
        "parity-bf16",
        "Golden cases of transformers, bf16",
        script("parity.py", "--glm4v", "{glm4v}", "--backend", "{backend}", "--dtype", "bf16"),
        45,
    ),
)
