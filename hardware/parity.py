"""Golden cases of transformers through the built program on a device: `trace` and `generate`, compared without torch.

    python3 hardware/parity.py --glm4v target/release/glm4v --backend cuda --dtype f32

Prints one JSON object a comparison as soon as it is made; exit code 1 if one is out of tolerance or a run failed. In
f32 the tolerances are those of the suite `parity`. 16-bit logits of these tiny random models differ widely from f32 in
transformers too; they may differ by twice as much as transformers' own bf16 run does, which each case records.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

from parts import ROOT, UNAVAILABLE, limit_of_a_run
from tensors import Tensor, max_difference, read, relative_l2

GOLDEN = ROOT / "tests/fixtures/golden"

LOGITS = 5e-4
ACTIVATIONS = 1e-5
ROUTING = 1e-5
SIXTEEN_BIT = 2.0


@dataclass(frozen=True)
class Case:
    """A row of a golden case, and the conversation that makes it."""

    golden: str
    family: str
    user: Sequence[str]  # parts of the user's turn: "image:NAME" or text
    assistant: str = ""
    row: int = 0
    new_tokens: int = 0
    adapter: str = ""
    logits: str = "out.logits"
    inputs: str = ""  # case with the inputs, if it is another one

    @property
    def name(self) -> str:
        return f"{self.family} {self.golden.split('/')[-1]}" + (f" row {self.row}" if self.row else "")


QUESTION = ("image:shapes_84x140.png", "What is shown in this image?")
LORA = ("image:chelsea_113x75.png", "What is shown?")
# The first cases run most kernels of a family.
CASES = (
    Case("forward/glm4v/image_single", "glm4v", QUESTION, new_tokens=32),
    Case("forward/glm4v_moe/image_single", "glm4v_moe", QUESTION, new_tokens=32),
    Case("forward/glm_ocr/image_single", "glm_ocr", QUESTION),
    Case("lora/lora", "glm4v", LORA, "A striped cat.", adapter="lora/adapter", inputs="train/glm4v/loss_and_grads"),
    Case("forward/glm4v/text_left_pad", "glm4v", ("What digit is this?",)),
    Case("forward/glm4v/image_video_rows", "glm4v", ("image:shapes_56x56.png", "cat?")),
    Case("forward/glm4v/text_left_pad", "glm4v", ("Hi",), row=2),
)


@dataclass
class Check:
    """A comparison as it is printed."""

    case: str
    quantity: str
    ok: bool
    deviation: Optional[float] = None
    tolerance: Optional[float] = None
    detail: str = ""

    def line(self) -> str:
        """JSON has no infinity: numbers that are not finite become null."""
        values = {key: None if value in (math.inf, -math.inf) else value for key, value in vars(self).items()}
        return json.dumps(values)


@dataclass
class Program:
    """The program with its flags."""

    binary: str
    backend: str
    dtype: str
    limit: float
    folder: Path

    def run(self, *args: str) -> subprocess.CompletedProcess:
        command = [self.binary, "--quiet", "--backend", self.backend, "--dtype", self.dtype, *args]
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=self.limit
        )


@dataclass
class Expected:
    """What transformers computed for one row, padding left out."""

    tensors: Dict[str, Tensor]
    rows: int
    row: int
    mask: List[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        mask = self.tensors["in.attention_mask"].rows(self.rows)[self.row]
        self.mask = [bool(value) for value in mask]

    def ids(self) -> List[int]:
        row = self.tensors["in.input_ids"].rows(self.rows)[self.row]
        return [int(value) for value, keep in zip(row, self.mask) if keep]

    def positions(self, name: str) -> List[float]:
        """Values of `[B, S, ..]` (or of `[B * S, ..]`) at unpadded positions of the row."""
        row = Tensor((), self.tensors[name].rows(self.rows)[self.row])
        return [value for part, keep in zip(row.rows(len(self.mask)), self.mask) if keep for value in part]


def expected_of(case: Case) -> Expected:
    tensors = read(GOLDEN / f"{case.golden}.safetensors")
    if case.inputs:
        tensors = {**read(GOLDEN / f"{case.inputs}.safetensors"), **tensors}
    return Expected(tensors, tensors["in.input_ids"].shape[0], case.row)


def messages(case: Case) -> List[dict]:
    def part(text: str) -> dict:
        if text.startswith("image:"):
            return {"type": "image", "path": str(GOLDEN / "images" / text[len("image:") :])}
        return {"type": "text", "text": text}

    turns = [{"role": "user", "content": [part(text) for text in case.user]}]
    if case.assistant:
        turns.append({"role": "assistant", "content": case.assistant})
    return turns


def traced(program: Program, case: Case, activations: bool) -> Dict[str, Tensor]:
    """Tensors that `glm4v trace` writes for a case."""
    talk, out = program.folder / "messages.json", program.folder / "trace.safetensors"
    talk.write_text(json.dumps(messages(case)))
    out.unlink(missing_ok=True)
    args = ["trace", "--model", str(GOLDEN / "checkpoints" / case.family), "--messages", str(talk), "--out", str(out)]
    args += ["--activations"] if activations else []
    args += ["--max-new-tokens", str(case.new_tokens)] if case.new_tokens else []
    args += ["--adapter", str(GOLDEN / case.adapter)] if case.adapter else []
    done = program.run(*args)
    if done.returncode != 0:
        raise failure(done)
    return read(out)


class RunFailed(Exception):
    """The program ended with an error."""


class Unsupported(Exception):
    """The device does not compute in this dtype."""


def failure(done: subprocess.CompletedProcess) -> Exception:
    text = done.stderr.decode(errors="replace").strip()[-600:]
    return Unsupported(text) if "is not supported by" in text else RunFailed(f"exit code {done.returncode}: {text}")


def compare(case: Case, program: Program) -> Iterator[Check]:
    """All comparisons of a case."""
    exact = program.dtype == "f32"
    expected = expected_of(case)
    found = traced(program, case, activations=exact)
    yield from compare_ids(case, expected, found)
    yield compare_logits(case, expected, found, exact)
    if exact:
        yield from compare_activations(case, expected, found)
        yield from compare_generated(case, found)


def compare_ids(case: Case, expected: Expected, found: Dict[str, Tensor]) -> Iterator[Check]:
    """The prompt; a conversation that ends with an answer gets a generation prompt, which the golden case lacks."""
    wanted = expected.ids()
    ids = [int(value) for value in found["input_ids"].values][: len(wanted)]
    yield Check(case.name, "input ids", ids == wanted, detail="" if ids == wanted else f"{ids}, not {wanted}")


def compare_logits(case: Case, expected: Expected, found: Dict[str, Tensor], exact: bool) -> Check:
    wanted = expected.positions(case.logits)
    difference = max_difference(found["logits"].values[: len(wanted)], wanted)
    tolerance = LOGITS if exact else SIXTEEN_BIT * own_bf16_difference(case)
    detail = "largest absolute difference"
    if not exact and case.family == "glm4v_moe":
        tolerance, detail = math.inf, detail + "; finite is enough, for a rounded score may select another expert"
    return Check(case.name, "logits", difference < tolerance, difference, tolerance, detail)


def own_bf16_difference(case: Case) -> float:
    """How far the logits of transformers in bf16 are from those in f32, in this case or in one of the same model."""
    for place in (case.golden, f"forward/{case.family}/image_single"):
        recorded = json.loads((GOLDEN / f"{place}.json").read_text()).get("max_abs_logit_diff", {})
        if "eager_bf16" in recorded:
            return recorded["eager_bf16"]
    raise ValueError(f"{case.golden}: no deviation of bf16 is recorded")


def compare_activations(case: Case, expected: Expected, found: Dict[str, Tensor]) -> Iterator[Check]:
    """The worst activation, and the selected experts."""
    worst, at, gates = 0.0, "", set()
    for name in sorted(expected.tensors):
        if not name.startswith("mid.") or is_left_out(name, case, expected):
            continue
        if ".mlp.gate." in name and not name.endswith(".logits"):
            gates.add(name.rsplit(".", 1)[0])
            continue
        difference = activation_difference(name, expected, found)
        if difference >= worst:
            worst, at = difference, name
    if at:
        yield Check(case.name, "activations", worst < ACTIVATIONS, worst, ACTIVATIONS, f"relative L2, {at}")
    for gate in sorted(gates):
        yield compare_routing(case, gate, expected, found)


def is_left_out(name: str, case: Case, expected: Expected) -> bool:
    """Images of a batch are in one tensor; transformers numbers text-only prompts by column, padding included."""
    text_only = "in.pixel_values" not in expected.tensors
    return (
        (expected.rows > 1 and name.startswith("mid.vision."))
        or name == "mid.text.position_ids"
        or (text_only and name.startswith("mid.text.rotary"))
    )


def activation_difference(name: str, expected: Expected, found: Dict[str, Tensor]) -> float:
    if name not in found:
        return math.inf
    wanted = expected.positions(name) if name.startswith("mid.text.") else expected.tensors[name].values
    return relative_l2(found[name].values, wanted)


def compare_routing(case: Case, gate: str, expected: Expected, found: Dict[str, Tensor]) -> Check:
    """Experts of each token and their weights, in any order within a token."""

    def pairs(tensors: Dict[str, Tensor]) -> List[List[Tuple[int, float]]]:
        indices, weights = tensors[f"{gate}.indices"], tensors[f"{gate}.weights"]
        tokens = indices.shape[0]
        rows = zip(indices.rows(tokens), weights.rows(tokens))
        return [sorted((int(index), weight) for index, weight in zip(*row)) for row in rows]

    ours, theirs = pairs(found), pairs(expected.tensors)
    same = [[index for index, _ in row] for row in ours] == [[index for index, _ in row] for row in theirs]
    flat = [[weight for row in rows for _, weight in row] for rows in (ours, theirs)]
    worst = max_difference(*flat) if same else math.inf
    return Check(case.name, "experts", worst < ROUTING, worst, ROUTING, gate if same else f"{gate}: other experts")


def compare_generated(case: Case, found: Dict[str, Tensor]) -> Iterator[Check]:
    if not case.new_tokens:
        return
    notes = json.loads((GOLDEN / f"generate/{case.family}/greedy_image.json").read_text())
    wanted = notes["new_tokens"][0]
    ids = [int(value) for value in found["generated"].values]
    equal = next((at for at, pair in enumerate(zip(ids, wanted)) if pair[0] != pair[1]), min(len(ids), len(wanted)))
    yield Check(case.name, "greedy tokens", ids == wanted, detail=f"{equal} of {len(wanted)} tokens equal")


def compare_text(program: Program) -> Iterator[Check]:
    """The text of `generate`, which has a decode path and a JSON answer of its own."""
    case = CASES[0]
    notes = json.loads((GOLDEN / "generate/glm4v/greedy_image.json").read_text())
    talk = program.folder / "messages.json"
    talk.write_text(json.dumps(messages(case)))
    model = str(GOLDEN / "checkpoints/glm4v")
    flags = ["--greedy", "--max-new-tokens", "32", "--json"]
    done = program.run("generate", "--model", model, "--messages", str(talk), *flags)
    if done.returncode != 0:
        raise failure(done)
    text = json.loads(done.stdout)["text"]
    yield Check(case.name, "generated text", text == notes["text"][0], detail="" if text == notes["text"][0] else text)


def attempt(name: str, checks: Iterator[Check]) -> Iterator[Check]:
    """The checks; whatever ends them early becomes one that failed."""
    try:
        yield from checks
    except subprocess.TimeoutExpired as error:
        yield Check(name, "run", False, detail=f"no end after {error.timeout:.0f} s")
    except (RunFailed, OSError, ValueError, KeyError, IndexError) as error:
        yield Check(name, "run", False, detail=f"{type(error).__name__}: {error}")


def all_checks(program: Program) -> Iterator[Check]:
    for case in CASES:
        yield from attempt(case.name, compare(case, program))
        if case is CASES[0] and program.dtype == "f32":
            yield from attempt(case.name, compare_text(program))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glm4v", required=True, help="the program")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--dtype", default="f32", choices=("f32", "bf16", "f16"))
    parser.add_argument("--limit", type=float, default=limit_of_a_run(), help="seconds of one run")
    args = parser.parse_args()
    failed: List[Check] = []
    with tempfile.TemporaryDirectory() as folder:
        program = Program(args.glm4v, args.backend, args.dtype, args.limit, Path(folder))
        try:
            for check in all_checks(program):
                print(check.line(), flush=True)
                failed += [] if check.ok else [check]
        except Unsupported as error:
            print(json.dumps({"reason": str(error)}))
            return UNAVAILABLE
    if failed:
        first = failed[0]
        print(f"error: {len(failed)} failed, first {first.case}: {first.quantity}: {first.detail}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
