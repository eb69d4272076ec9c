"""Tables of measurements: what `glm4v bench --json` printed, and the same workloads of transformers beside it."""

from __future__ import annotations

import json
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

# Keys of a shape that say which workloads are the same.
SAME = ("batch_size", "image_tokens", "text_tokens", "depth", "method")
HEAD = ["workload", "shape", "median ms", "min", "max", "rate", "GFLOP/s", "GB/s", "of ceiling", "launches", "device GB", "process GB"]


def workloads(values: Iterable[Mapping[str, Any]]) -> List[Mapping[str, Any]]:
    """The measured workloads of reports, or the objects themselves."""
    found: List[Mapping[str, Any]] = []
    for value in values:
        found += value["workloads"] if isinstance(value.get("workloads"), list) else [value]
    return [entry for entry in found if "workload" in entry]


def rows(values: Iterable[Mapping[str, Any]]) -> List[List[str]]:
    """A row for each workload; empty cells for what was not measured."""
    return [row(entry) for entry in workloads(values)]


def row(entry: Mapping[str, Any]) -> List[str]:
    seconds, memory = entry.get("seconds") or {}, entry.get("peak_memory") or {}
    rate = entry.get("rate") or {}
    share = entry.get("share_of_ceiling")
    return [
        str(entry["workload"]),
        shape(entry),
        *(scaled(seconds.get(key), 1e3, 2) for key in ("median", "min", "max")),
        f"{rounded(rate['value'])} {rate['unit']}" if rate else str(entry.get("error") or ""),
        rounded(entry.get("gflop_per_s")),
        rounded(entry.get("gb_per_s")),
        f"{100 * share:.0f} % {entry.get('ceiling') or ''}" if share is not None else "",
        scaled(entry.get("kernel_launches"), 1, 0),
        scaled(memory.get("device_bytes"), 1e-9, 2),
        scaled(memory.get("process_bytes"), 1e-9, 2),
    ]


def scaled(value: Optional[float], factor: float, digits: int) -> str:
    return "" if value is None else f"{value * factor:.{digits}f}"


def rounded(value: Optional[float]) -> str:
    """Three digits, without exponents."""
    return "" if value is None else f"{float(f'{value:.3g}'):g}" if value < 1e6 else f"{value:.0f}"


def headline(values: Iterable[Mapping[str, Any]]) -> str:
    """The rates, in a few words."""
    return "; ".join(f"{entry['workload']} {speed(entry)}" for entry in workloads(values) if entry.get("seconds"))


def speed(entry: Mapping[str, Any]) -> str:
    """The rate, or the time where no rate is given."""
    rate = entry.get("rate")
    return f"{rounded(rate['value'])} {rate['unit']}" if rate else f"{rounded(entry['seconds']['median'] * 1e3)} ms"


def shape(entry: Mapping[str, Any]) -> str:
    values = entry.get("shape") or {}
    return ", ".join(f"{key} {values[key]}" for key in SAME if key in values)


def ceilings(values: Iterable[Mapping[str, Any]]) -> List[str]:
    """The measured limits of the device, as sentences."""
    lines = []
    for value in values:
        found = value.get("ceilings")
        if found:
            copy, matmul = found["copy_bytes_per_s"]["median"], found["matmul_flops_per_s"]["median"]
            lines.append(f"Ceilings: copy {rounded(copy / 1e9)} GB/s, matrix product {rounded(matmul / 1e9)} GFLOP/s.")
        lines += [f"Skipped: {entry['workload']}: {entry['reason']}" for entry in value.get("skipped") or []]
    return lines


def kernels(values: Iterable[Mapping[str, Any]]) -> List[List[str]]:
    """The kernels with the most time, with the workload they are of."""
    found = []
    for entry in workloads(values):
        listed = entry.get("kernels") or []
        for kernel in listed:
            microseconds = kernel["seconds"] * 1e6
            each = microseconds / max(kernel["launches"], 1)
            found.append([str(entry["workload"]), kernel["name"], str(kernel["launches"]), f"{microseconds:.0f}", f"{each:.1f}"])
    return found


KERNELS_HEAD = ["workload", "kernel", "launches", "total us", "us each"]


def key(entry: Mapping[str, Any]) -> Tuple[str, str]:
    """What two measurements of the same workload have in common."""
    values = entry.get("shape") or {}
    return str(entry["workload"]), json.dumps({name: values[name] for name in SAME if name in values}, sort_keys=True)


def beside(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> List[List[str]]:
    """Ratios of the medians, for workloads that both measured."""
    others: Dict[Tuple[str, str], float] = {
        key(entry): entry["seconds"]["median"] for entry in workloads(theirs) if entry.get("seconds")
    }
    found = []
    for entry in workloads(ours):
        other = others.get(key(entry))
        if other and entry.get("seconds"):
            median = entry["seconds"]["median"]
            found.append([str(entry["workload"]), shape(entry), f"{median * 1e3:.2f}", f"{other * 1e3:.2f}", f"{median / other:.2f}"])
    return found


BESIDE_HEAD = ["workload", "shape", "glm4v ms", "transformers ms", "ratio"]
