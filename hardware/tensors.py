"""Safetensors files and their comparison with the standard library alone: a GPU machine may have no numpy."""

from __future__ import annotations

import json
import math
import struct
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Sequence

# Type code of `array` by the name in a safetensors header; bf16 and f16 are widened.
CODES = {"F32": "f", "F64": "d", "I64": "q", "I32": "i", "U8": "B", "BOOL": "B"}


@dataclass(frozen=True)
class Tensor:
    """Values in row-major order, with their shape."""

    shape: Sequence[int]
    values: Sequence[float]

    def rows(self, count: int) -> List[Sequence[float]]:
        """The values cut into `count` equal pieces along the first axes."""
        width = len(self.values) // count
        return [self.values[at * width : (at + 1) * width] for at in range(count)]


def widen(kind: str, data: bytes) -> Sequence[float]:
    """Numbers of a tensor's bytes."""
    if kind == "BF16":
        halves = array("H", data)
        return array("f", struct.pack(f"<{len(halves)}I", *(half << 16 for half in halves)))
    if kind == "F16":
        return array("f", struct.unpack(f"<{len(data) // 2}e", data))
    return array(CODES[kind], data)


def read(path: Path) -> Dict[str, Tensor]:
    """All tensors of a safetensors file by name."""
    with open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        content = file.read()
    header.pop("__metadata__", None)
    return {
        name: Tensor(entry["shape"], widen(entry["dtype"], content[slice(*entry["data_offsets"])]))
        for name, entry in header.items()
    }


def max_difference(found: Sequence[float], expected: Sequence[float]) -> float:
    """Largest absolute difference; infinite for other sizes and for values that are not numbers."""
    if len(found) != len(expected):
        return math.inf
    worst = max((abs(a - b) for a, b in zip(found, expected)), default=0.0)
    # `max` passes over a NaN that is not the first; a sum does not.
    return worst if math.isfinite(math.fsum((worst, *(0.0 * a for a in found)))) else math.inf


def relative_l2(found: Sequence[float], expected: Sequence[float]) -> float:
    """L2 norm of the difference, relative to that of `expected`; infinite as above."""
    if len(found) != len(expected):
        return math.inf
    difference = sum((a - b) * (a - b) for a, b in zip(found, expected))
    length = sum(b * b for b in expected)
    ratio = math.sqrt(difference / max(length, 1e-300))
    return ratio if math.isfinite(ratio) else math.inf
