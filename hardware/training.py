"""A few training steps on a device against the same steps on the CPU, through `glm4v train`: full and LoRA.

    python3 hardware/training.py --glm4v target/release/glm4v --backend cuda

The CPU's gradients and losses are held to PyTorch's by the suite `parity`; random weights and the order of records do
not depend on the backend. So in f32 each loss and each gradient norm of the device must equal the CPU's. In bf16 the
loss must follow it loosely, and fall.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Sequence

from parts import ROOT, limit_of_a_run

STEPS = 6
# AdamW divides by the root of the second moment, which makes early steps follow the sign of small gradients; as in the suite `parity`.
LOSSES = 2e-3
NORMS = 5e-3
# A bf16 value has 8 bits: a loss of 7 moves by up to 0.4 %.
BF16_LOSSES = 1e-2


@dataclass(frozen=True)
class Method:
    """What is trained."""

    name: str
    settings: Sequence[str]


METHODS = (
    Method("full", ()),
    Method("lora", ("lora.r=8", "lora.lora_alpha=16", 'lora.target_modules=["q_proj", "v_proj", "o_proj", "down_proj", "gate_up_proj"]')),
)


class RunFailed(Exception):
    """The program ended with an error."""


def train(glm4v: str, backend: str, dtype: str, method: Method, model: Path, out: Path, limit: float) -> List[Dict[str, float]]:
    """Metrics of each step."""
    settings = [
        f"model.path={model}",
        "model.init=pretrained",
        f"data.dir={ROOT / 'datasets'}",
        "data.batch_size=4",
        "eval.data=",
        "schedule.warmup_steps=0",
        f"schedule.max_steps={STEPS}",
        "optim.lr=1e-3",
        "run.save_steps=0",
        f"run.output_dir={out}",
        *method.settings,
    ]
    flags = [word for setting in settings for word in ("--set", setting)]
    config = str(ROOT / "configs/finetune/digits-full-cpu.toml")
    run_program([glm4v, "--quiet", "--backend", backend, "--dtype", dtype, "train", config, *flags], limit)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line and "step" in line]
    if len(steps) != STEPS:
        raise RunFailed(f"{len(steps)} steps in metrics.jsonl, needed {STEPS}")
    return steps


def run_program(command: Sequence[str], limit: float) -> None:
    done = subprocess.run(
        list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=limit
    )
    if done.returncode != 0:
        raise RunFailed(f"exit code {done.returncode}: {done.stderr.decode(errors='replace').strip()[-600:]}")


def largest(pairs: Iterator[Sequence[float]]) -> float:
    """Largest relative difference; infinite if a value is no number."""
    worst = 0.0
    for found, expected in pairs:
        difference = abs(found - expected) / max(abs(expected), 1.0)
        worst = max(worst, difference if math.isfinite(difference) else math.inf)
    return worst


def checks(name: str, dtype: str, found: List[Dict[str, float]], expected: List[Dict[str, float]]) -> Iterator[dict]:
    """Comparisons of one run with the CPU's."""
    tolerances = {"loss": LOSSES, "grad_norm": NORMS} if dtype == "f32" else {"loss": BF16_LOSSES}
    for key, tolerance in tolerances.items():
        deviation = largest(zip([step[key] for step in found], [step[key] for step in expected]))
        yield check(name, f"{key}, {STEPS} steps", deviation < tolerance, deviation, tolerance)
    losses = [step["loss"] for step in found]
    falls = all(map(math.isfinite, losses)) and losses[-1] < losses[0]
    yield check(name, "the loss falls", falls, detail=" ".join(f"{loss:.4f}" for loss in losses))


def check(case: str, quantity: str, ok: bool, deviation: float = None, tolerance: float = None, detail: str = "") -> dict:
    finite = deviation if deviation is None or math.isfinite(deviation) else None
    return {"case": case, "quantity": quantity, "ok": ok, "deviation": finite, "tolerance": tolerance, "detail": detail}


def all_checks(args: argparse.Namespace, folder: Path) -> Iterator[dict]:
    model = folder / "model"
    init = [args.glm4v, "--quiet", "--backend", "cpu", "init", "--config", str(ROOT / "configs/models/digits"), "--out", str(model)]
    run_program(init, args.limit)
    for method in METHODS:
        yield from attempt(f"{method.name} cpu f32", compare(args, method, model, folder))


def compare(args: argparse.Namespace, method: Method, model: Path, folder: Path) -> Iterator[dict]:
    """Runs of one method on the device, against the CPU's."""
    expected = train(args.glm4v, "cpu", "f32", method, model, folder / f"{method.name}-reference", args.limit)
    for dtype in args.dtypes:
        name = f"{method.name} {args.backend} {dtype}"
        yield from attempt(name, compare_dtype(args, method, dtype, model, folder, expected))


def compare_dtype(args: argparse.Namespace, method: Method, dtype: str, model: Path, folder: Path, expected: list) -> Iterator[dict]:
    found = train(args.glm4v, args.backend, dtype, method, model, folder / f"{method.name}-{dtype}", args.limit)
    yield from checks(f"{method.name} {args.backend} {dtype}", dtype, found, expected)


def attempt(name: str, found: Iterator[dict]) -> Iterator[dict]:
    """The checks; whatever ends them early becomes one that failed."""
    try:
        yield from found
    except subprocess.TimeoutExpired as error:
        yield check(name, "run", False, detail=f"no end after {error.timeout:.0f} s")
    except (RunFailed, OSError, ValueError, KeyError) as error:
        yield check(name, "run", False, detail=f"{type(error).__name__}: {error}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glm4v", required=True)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--dtypes", type=lambda text: text.split(","), default=["f32", "bf16"], help="f32,bf16")
    parser.add_argument("--limit", type=float, default=limit_of_a_run(), help="seconds of one run")
    args = parser.parse_args()
    failed: List[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        for found in all_checks(args, Path(folder)):
            print(json.dumps(found), flush=True)
            failed += [] if found["ok"] else [found]
    if failed:
        first = failed[0]
        print(f"error: {len(failed)} failed, first {first['case']}: {first['quantity']}: {first['detail']}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
