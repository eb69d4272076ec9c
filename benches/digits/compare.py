"""Train the digits with PyTorch and with this program, in turn, from the same weights on the same batches.

    python benches/digits/compare.py --glm4v target/release/glm4v --threads 1 --rounds 3

Prints seconds of the 600 steps alone (evaluation, loading and saving left out on both sides), the ratio round by
round, peak memory of both processes, and how far the losses of the first 20 steps are apart.

Needs the packages of tests/fixtures/oracle/requirements.txt, and a machine that does nothing else.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from safetensors.numpy import load_file  # without torch: a process that is started from a large one counts as large

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from paired import PROGRAM, ROOT, run, spread  # noqa: E402


def torch_run(out, threads, steps):
    script = ROOT / "tests/fixtures/oracle/digits_torch.py"
    done = run([sys.executable, script, "--threads", threads, "--steps", steps, "--every", steps, "--out", out], cwd=script.parent)
    report = json.loads((out / "curve.json").read_text())
    return report["curve"][-1]["train_s"], done.peak_bytes, report


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
    directory = out / "run"
    settings = {"model.path": model, "model.init": "pretrained", "data.batch_order": order, "schedule.max_steps": steps,
                "run.output_dir": directory, "eval.steps": 0, "run.save_steps": 0}
    flags = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    done = run([program, "train", "configs/finetune/digits-full-cpu.toml", "--backend", "cpu", "--threads", threads, "-q", *flags])
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    return sum(line["tokens"] / line["tokens_per_second"] for line in steps), done.peak_bytes, [line["loss"] for line in steps], lines[-1]


def compare(args):
    """One round; its ratio."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory)
        theirs, their_peak, report = torch_run(out, args.threads, args.steps)
        model, order = stage(out)
        ours, our_peak, losses, evaluation = our_run(args.glm4v.resolve(), out, model, order, args.threads, args.steps)
    apart = max(abs(a - b) for a, b in zip(losses[:20], report["losses"][:20]))
    print(json.dumps({
        "threads": args.threads, "steps": args.steps,
        "torch_s": round(theirs, 2), "glm4v_s": round(ours, 2), "ratio": round(ours / theirs, 3),
        "torch_peak_mb": round(their_peak / 1e6), "glm4v_peak_mb": round(our_peak / 1e6),
        "loss_apart_first_20": apart, "torch_exact": report["final_test_exact"], "glm4v_exact": evaluation["exact_match"],
    }), flush=True)
    return ours / theirs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glm4v", type=Path, default=PROGRAM)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    ratios = [compare(args) for _ in range(args.rounds)]
    print(f"ratio glm4v / torch: median {spread(ratios, '{:.3f}')} of {args.rounds}")


if __name__ == "__main__":
    main()
