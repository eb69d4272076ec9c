"""Records per second of the data loader against a PyTorch DataLoader with the processor of transformers, on the same files.

    python benches/loader/compare.py --workers 1 2 --rounds 3

Builds our side (`cargo bench --no-run`); `--program` takes one that is built. Needs torch, torchvision, transformers and pillow. Rounds
alternate between the two; a figure is the median of its rounds, a ratio is taken within a round. Each record is a question about one
JPEG of 1024x1024 pixels and its answer; no image is kept between records. A worker is a thread here and a process there (with one
thread of torch, as its DataLoader sets it). Both sides collate batches of 4.

`memory` is a dataset ten times as large (each file ten times): the peak must not follow it. `cached` reads images from `data.cache_dir`,
filled by a run before.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from paired import ROOT, alternate, run, spread, table  # noqa: E402

MODEL = ROOT / "configs/models/digits"
BATCH = 4
SIDE = 1024
QUESTION, ANSWER = "What is in this picture?", "Waves of colour, and rectangles."


def make(directory, files):
    """JPEG files, each with noise of its own, and the records about them."""
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) / SIDE
    for number in range(files):
        random = np.random.default_rng(number)
        waves = [np.sin(x * a + y * b + c) for a, b, c in random.uniform(-9, 9, (9, 3))]
        colours = np.stack([128 + 25 * sum(waves[c::3]) for c in range(3)], -1)
        for _ in range(40):
            top, left = random.integers(0, SIDE, 2)
            colours[top : top + SIDE // 9, left : left + SIDE // 12] = random.uniform(0, 255, 3)
        colours += random.normal(0, 7, (SIDE, SIDE, 1))
        Image.fromarray(colours.clip(0, 255).astype(np.uint8)).save(directory / f"{number:04}.jpg", quality=85)


def write_records(directory, files, times):
    content = [{"type": "image", "path": None}, {"type": "text", "text": QUESTION}]
    path = directory / f"x{times}.jsonl"
    with path.open("w") as out:
        for number in range(files * times):
            content[0]["path"] = f"{number % files:04}.jpg"
            messages = [{"role": "user", "content": content}, {"role": "assistant", "content": ANSWER}]
            out.write(json.dumps({"messages": messages}) + "\n")
    return path


def oracle(data, workers):
    """Records per second of PyTorch and transformers, in this process and its workers."""
    import torch
    from torch.utils.data import DataLoader
    from transformers import AutoProcessor
    from transformers.image_utils import load_image

    processor = AutoProcessor.from_pretrained(MODEL)
    records = [json.loads(line) for line in Path(data).read_text().splitlines()]
    directory = Path(data).parent

    class Records(torch.utils.data.Dataset):
        def __len__(self):
            return len(records)

        def __getitem__(self, index):
            messages = records[index]["messages"]
            text = processor.apply_chat_template(messages, tokenize=False)
            image = load_image(str(directory / messages[0]["content"][0]["path"]))
            encoded = processor(text=[text], images=[image], return_tensors="pt")
            labels = encoded["input_ids"][0].clone()
            labels[: -len(processor.tokenizer(ANSWER)["input_ids"])] = -100
            return encoded, labels

    def collate(items):
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            "input_ids": pad([one["input_ids"][0] for one, _ in items], batch_first=True),
            "labels": pad([labels for _, labels in items], batch_first=True, padding_value=-100),
            "pixel_values": torch.cat([one["pixel_values"] for one, _ in items]),
            "image_grid_thw": torch.cat([one["image_grid_thw"] for one, _ in items]),
        }

    start = time.perf_counter()
    seen = tokens = 0
    for batch in DataLoader(Records(), batch_size=BATCH, num_workers=workers, collate_fn=collate):
        seen += len(batch["input_ids"])
        tokens += batch["input_ids"].numel()
    seconds = time.perf_counter() - start
    return {"records": seen, "tokens": tokens, "records_per_second": seen / seconds}


def build():
    """The benchmark's executable, as cargo names it."""
    command = ["cargo", "bench", "--workspace", "--bench", "loader", "--no-run", "--message-format", "json"]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout.splitlines()
    built = (json.loads(line) for line in lines)
    return next(one["executable"] for one in built if one.get("executable") and one["target"]["name"] == "loader")


def ours(program, data, workers, *more):
    done = run([program, "--model", MODEL, "--workers", workers, "--batch-size", BATCH, *more, data])
    return json.loads(done.stdout) | {"peak": done.peak_bytes, "cpu": done.cpu_seconds}


def theirs(data, workers):
    done = run([sys.executable, __file__, "--oracle", data, workers])
    return json.loads(done.stdout.splitlines()[-1]) | {"peak": done.peak_bytes, "cpu": done.cpu_seconds}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", help="default: built by cargo")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=64)
    parser.add_argument("--oracle", nargs=2, help=argparse.SUPPRESS)  # a file and workers: measure the other side
    # A process started from a large one counts as large: images are made in one of their own.
    parser.add_argument("--make", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make(Path(args.make), args.files)
        return
    if args.oracle:
        print(json.dumps(oracle(args.oracle[0], int(args.oracle[1]))))
        return

    program = Path(args.program).resolve() if args.program else build()
    with tempfile.TemporaryDirectory() as directory:
        directory = Path(directory)
        run([sys.executable, __file__, "--make", directory, "--files", args.files])
        data = write_records(directory, args.files, 1)
        rows = []
        for workers in args.workers:
            pairs = alternate(args.rounds, lambda: ours(program, data, workers), lambda: theirs(data, workers))
            mine, other = ([pair[which]["records_per_second"] for pair in pairs] for which in (0, 1))
            ratio = [a / b for a, b in zip(mine, other)]
            rows.append([workers, f"{median(mine):.1f}", f"{median(other):.1f}", spread(ratio)])
        print(table(["workers", "here, records/s", "PyTorch, records/s", "times as fast"], rows), end="\n\n", flush=True)

        large = write_records(directory, args.files, 10)
        peaks = [ours(program, file, max(args.workers))["peak"] / 1e6 for file in (data, large)]
        print(f"memory, {args.files} and {10 * args.files} records: {peaks[0]:.0f} MB, {peaks[1]:.0f} MB", flush=True)

        cached = [ours(program, data, max(args.workers), "--cache-dir", directory / "cache") for _ in range(2)]
        rates = [one["records_per_second"] for one in cached]
        size = sum(file.stat().st_size for file in (directory / "cache").rglob("*") if file.is_file())
        print(f"cached: filling {rates[0]:.1f} records/s, then {rates[1]:.1f}; {size / args.files / 1e6:.2f} MB an image")


if __name__ == "__main__":
    main()
