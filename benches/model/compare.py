"""Vision tower, prefill, decoding, training and loading of a model, here and in transformers (with PEFT for LoRA).

    python benches/model/compare.py --config configs/models/digits --threads 2
    python benches/model/compare.py --model DIR --workload load,decode --dtype bf16 --device cuda

Both sides get the same shapes, which `glm4v bench --json` reports, and random weights, or with --model those of a directory. Every
workload of every round is a process of its own; rounds alternate, and a ratio compares the medians of one round. Peak memory is
that of the process from the first warm-up on, and what each holds of the device's memory.

Needs the packages of tests/fixtures/oracle/requirements.txt, and a machine that does nothing else.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from paired import PROGRAM, alternate, run, spread, table  # noqa: E402

WORKER = Path(__file__).with_name("worker.py")
HEADER = ["workload", "glm4v s", "transformers s", "ratio", "CPU s", "ratio", "peak MB", "ratio"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=Path, help="config.json or its directory; random weights")
    source.add_argument("--model", type=Path, help="a model directory")
    parser.add_argument("--workload", default="vision,prefill,decode,train")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="f32", choices=["f32", "bf16", "f16"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds of processes")
    parser.add_argument("--repeats", type=int, default=5, help="measured rounds in a process")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--image-size", default="448x448")
    parser.add_argument("--text-tokens", type=int, default=64)
    parser.add_argument("--decode-depth", type=int, default=256)
    parser.add_argument("--decode-tokens", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--train-batch-size", type=int, default=2)
    parser.add_argument("--method", default="full,lora")
    parser.add_argument("--freeze", default="")
    parser.add_argument("--labels", type=int, default=32)
    parser.add_argument("--attention", default="sdpa", help="attn_implementation of transformers")
    parser.add_argument("--glm4v", type=lambda path: Path(path).resolve(), default=PROGRAM)
    parser.add_argument("--out", type=Path, help="also write every round to this JSON file")
    return parser.parse_args()


def ours(args, workload, method):
    """`glm4v bench` of one workload; its object in the report, and the report."""
    source = ["--model", args.model] if args.model else ["--config", args.config]
    batch = args.train_batch_size if workload == "train" else args.batch_size
    flags = {"workload": workload, "backend": args.device, "dtype": args.dtype, "threads": args.threads, "rounds": args.repeats,
             "warmup": args.warmup, "image-size": args.image_size, "text-tokens": args.text_tokens, "decode-depth": args.decode_depth,
             "decode-tokens": args.decode_tokens, "batch-size": batch, "method": method, "labels": args.labels}
    if args.freeze:
        flags["freeze"] = args.freeze
    command = [args.glm4v, "bench", *source, "--json", "--quiet", "--no-ceilings"]
    command += [part for name, value in flags.items() for part in (f"--{name}", value)]
    report = json.loads(run(command).stdout)
    entry, memory = report["workloads"][0], report["workloads"][0]["peak_memory"]
    measured = {"seconds": entry["seconds"]["rounds"], "cpu_seconds": entry["cpu_seconds"]["rounds"]} | memory
    return {"shape": entry["shape"], "report": report} | measured


def theirs(args, workload, shape):
    """transformers with the same shape."""
    source = ["--config", args.model, "--weights"] if args.model else ["--config", args.config]
    flags = {"workload": workload, "shape": json.dumps(shape), "device": args.device, "dtype": args.dtype, "threads": args.threads,
             "rounds": args.repeats, "warmup": args.warmup, "decode-tokens": args.decode_tokens, "attention": args.attention}
    command = [sys.executable, WORKER, *source, *(part for name, value in flags.items() for part in (f"--{name}", value))]
    env = {"OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return json.loads(run(command, env=env).stdout.splitlines()[-1])


def compare(args, workload, method):
    """All rounds of a workload, as pairs."""
    shape = ours(args, workload, method)["shape"]  # and files into the cache
    return alternate(args.rounds, lambda: ours(args, workload, method), lambda: theirs(args, workload, shape))


def peak(measured):
    """Of the device, or of the process where that is the device."""
    return (measured["device_bytes"] or measured["process_bytes"]) / 1e6


def row(name, pairs):
    median = statistics.median
    of = {
        "wall": [[median(side["seconds"]) for side in pair] for pair in pairs],
        "cpu": [[median(side["cpu_seconds"]) for side in pair] for pair in pairs],
        "peak": [[peak(side) for side in pair] for pair in pairs],
    }
    both = lambda key, form: " / ".join(form.format(median(values)) for values in zip(*of[key]))  # noqa: E731
    ratio = lambda key: spread([mine / other for mine, other in of[key]], "{:.3g}")  # noqa: E731
    mine, other = zip(*of["wall"])
    return [name, spread(mine, "{:.4g}"), spread(other, "{:.4g}"), ratio("wall"), both("cpu", "{:.4g}"), ratio("cpu"), both("peak", "{:.0f}"),
            ratio("peak")]


def cases(args):
    for workload in args.workload.split(","):
        for method in args.method.split(",") if workload == "train" else ["full"]:
            yield workload, method, f"{workload} {method}" if workload == "train" else workload


def main():
    args = arguments()
    rows, rounds, busy = [], {}, os.getloadavg()[0]
    for workload, method, name in cases(args):
        pairs = compare(args, workload, method)
        rows.append(row(name, pairs))
        rounds[name] = pairs
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    mine, other = next(iter(rounds.values()))[0]
    machine = mine["report"]["machine"]
    device = other["device"] or args.device
    print(f"{machine['cpu']}, {machine['threads']} threads, {args.dtype}, {device}; "
          f"torch {other['versions']['torch']} ({args.attention}), transformers {other['versions']['transformers']}; "
          f"{args.rounds} alternating rounds, medians of {args.repeats} (decode: {args.decode_tokens} tokens); median (least to most); "
          f"load average before: {busy:.1f}\n")
    print(table(HEADER, rows))
    if args.out:
        args.out.write_text(json.dumps(rounds, indent=1) + "\n")


if __name__ == "__main__":
    main()
