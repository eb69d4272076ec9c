"""Train the digits with PyTorch and with this program, in turn, from the same weights on the same batches.

    python benches/digits/compare.py --glm4v target/release/glm4v --threads 1 --rounds 3

Prints seconds of the 600 steps alone (evaluation, loading and saving left out on both sides), the ratio round by
round, peak memory of both processes, and how far the losses of the first 20 steps are apart.

Needs the packages of tests/fixtures/oracle/requirements.txt, and a machine that does nothing else.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]


def measured(command, **kwargs):
    """Runs a command; returns its peak memory in MB."""
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **kwargs)
    errors = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{command[0]} failed:\n{errors[-2000:]}")
    return usage.ru_maxrss / 1024


def torch_run(out, threads, steps):
    peak = measured([sys.executable, ROOT / "tests/fixtures/oracle/digits_torch.py", "--threads", threads, "--steps", steps,
                     "--every", steps, "--out", out], cwd=ROOT / "tests/fixtures/oracle")
    report = json.loads((out / "curve.json").read_text())
    return report["curve"][-1]["train_s"], peak, report


def stage(out):
    """A model folder with PyTorch's first weights, and its batches as positions in digits:train."""
    model = out / "start"
    shutil.copytree(out / "model", model)
    shutil.copy(out / "initial.safetensors", model / "model.safetensors")
    table = load_file(str(out / "digits.safetensors"))
    place = {int(index): position for position, index in enumerate(table["train"])}
    order = out / "order.json"
    order.write_text(json.dumps([[place[int(index)] for index in batch] for batch in table["batches"]]))
    return model, order


def our_run(program, out, model, order, threads, steps):
    run = out / "run"
    settings = {"model.path": model, "model.init": "pretrained", "data.batch_order": order, "schedule.max_steps": steps,
                "run.output_dir": run, "eval.steps": 0, "run.save_steps": 0}
    flags = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    peak = measured([program, "train", "configs/finetune/digits-full-cpu.toml", "--backend", "cpu", "--threads", threads, "-q", *flags], cwd=ROOT)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    done = [line for line in lines if "loss" in line]
    return sum(line["tokens"] / line["tokens_per_second"] for line in done), peak, [line["loss"] for line in done], lines[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glm4v", type=Path, default=ROOT / "target/release/glm4v")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    ratios = []
    for number in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder)
            theirs, their_peak, report = torch_run(out, args.threads, args.steps)
            model, order = stage(out)
            ours, our_peak, losses, evaluation = our_run(args.glm4v.resolve(), out, model, order, args.threads, args.steps)
        apart = max(abs(a - b) for a, b in zip(losses[:20], report["losses"][:20]))
        ratios.append(ours / theirs)
        print(json.dumps({
            "round": number + 1, "threads": args.threads, "steps": args.steps,
            "torch_s": round(theirs, 2), "glm4v_s": round(ours, 2), "ratio": round(ours / theirs, 3),
            "torch_peak_mb": round(their_peak), "glm4v_peak_mb": round(our_peak),
            "loss_apart_first_20": apart, "torch_exact": report["final_test_exact"], "glm4v_exact": evaluation["exact_match"],
        }), flush=True)
    print(f"ratio glm4v / torch: median {statistics.median(ratios):.3f} of {args.rounds}")


if __name__ == "__main__":
    main()
