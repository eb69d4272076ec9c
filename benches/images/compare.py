"""Pictures a second against transformers with its default backend (torchvision), from the same JPEG files with the same threads.

    python benches/images/compare.py --threads 1 2 --rounds 3

Builds our side (`cargo bench --no-run`); `--program` takes one that is built. Needs torch, torchvision, transformers and pillow. Rounds alternate between the two; a stage's figure is the median of its rounds,
a ratio is taken within a round. Stages:

- decode: a file to 8-bit RGB (`load_image`: orientation and all);
- resize: that picture to the size of the model's grid (bicubic, antialiased);
- whole: a file to `pixel_values`, from decoding to patches.

transformers works on one picture after another with torch's threads inside; `pool` is the same with a thread for each picture and
none inside, as a careful user would write it. We work on a picture with one thread, and on several pictures at once.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

STAGES = ["decode", "resize", "whole"]
PICTURES = 8


def picture(width, height, file):
    """Smooth colours, edges and noise, of about the bytes of a photograph."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / height
    waves = [np.sin(x * a + y * b + c) for a, b, c in random.uniform(-9, 9, (9, 3))]
    colours = np.stack([128 + 25 * sum(waves[c::3]) for c in range(3)], -1)
    for _ in range(40):
        top, left = random.integers(0, height), random.integers(0, width)
        colours[top : top + height // 9, left : left + width // 12] = random.uniform(0, 255, 3)
    colours += random.normal(0, 7, (height, width, 1))
    Image.fromarray(colours.clip(0, 255).astype(np.uint8)).save(file, quality=85)


def oracle(file, threads):
    """Pictures a second of transformers, in this process."""
    from concurrent.futures import ThreadPoolExecutor

    import torch
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as F
    from transformers import Glm4vImageProcessor
    from transformers.image_utils import load_image

    processor = Glm4vImageProcessor()
    loaded = load_image(file)
    grid = processor(images=[loaded], return_tensors="pt")["image_grid_thw"][0].tolist()
    levels = F.pil_to_tensor(loaded)
    size = [grid[1] * 14, grid[2] * 14]
    work = {
        "decode": lambda: load_image(file),
        "resize": lambda: F.resize(levels, size, interpolation=InterpolationMode.BICUBIC, antialias=True),
        "whole": lambda: processor(images=[load_image(file)], return_tensors="pt"),
    }

    def best(run):
        times = []
        for _ in range(4):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return PICTURES / min(times)

    out = {}
    for stage, once in work.items():
        torch.set_num_threads(threads)
        out[stage] = best(lambda: [once() for _ in range(PICTURES)])
        torch.set_num_threads(1)
        with ThreadPoolExecutor(threads) as pool:
            out[f"{stage} pool"] = best(lambda: list(pool.map(lambda _: once(), range(PICTURES))))
    out["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return out


def build():
    """The benchmark's executable, as cargo names it."""
    command = ["cargo", "bench", "--workspace", "--bench", "images", "--no-run", "--message-format", "json"]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    built = (json.loads(line) for line in lines)
    return next(one["executable"] for one in built if one.get("executable") and one["target"]["name"] == "images")


def ours(program, file, threads):
    """The program's figures and its peak memory."""
    command = [program, "--threads", threads, "--images", PICTURES, file]
    run = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True)
    said = run.stdout.read()
    _, status, used = os.wait4(run.pid, 0)
    if status:
        raise SystemExit(f"{program} ended with {status}")
    return json.loads(said) | {"peak": used.ru_maxrss * 1024}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", help="default: built by cargo")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--oracle", nargs=2, help=argparse.SUPPRESS)  # a file and threads: measure transformers
    # A process started from a large one is said to have been as large: pictures are made in one of their own.
    parser.add_argument("--make", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        picture(int(args.make[0]), int(args.make[1]), args.make[2])
        return
    if args.oracle:
        print(json.dumps(oracle(args.oracle[0], int(args.oracle[1]))))
        return

    program = args.program or build()
    with tempfile.TemporaryDirectory() as folder:
        for width, height in [(1024, 1024), (4000, 3000)]:
            file = Path(folder) / f"{width}x{height}.jpg"
            subprocess.run([sys.executable, __file__, "--make", str(width), str(height), file], check=True)
            print(f"\n{file.name}, {file.stat().st_size / 1e6:.2f} MB\n")
            print("| threads | stage | here, pictures/s | transformers | its pool | times as fast | as its pool |\n|---|---|---|---|---|---|---|")
            for threads in args.threads:
                rounds = []
                for _ in range(args.rounds):
                    command = [sys.executable, __file__, "--oracle", str(file), str(threads)]
                    theirs = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                    rounds.append((ours(program, file, threads), json.loads(theirs.splitlines()[-1])))
                for stage in STAGES:
                    here, plain, pool = (median(f(a, b) for a, b in rounds) for f in (lambda a, b: a[stage], lambda a, b: b[stage], lambda a, b: b[f"{stage} pool"]))
                    ratio, strict = (median(a[stage] / b[name] for a, b in rounds) for name in (stage, f"{stage} pool"))
                    print(f"| {threads} | {stage} | {here:.1f} | {plain:.1f} | {pool:.1f} | {ratio:.2f} | {strict:.2f} |", flush=True)
                peaks = [max(round[which]["peak"] for round in rounds) / 1e6 for which in (0, 1)]
                print(f"| {threads} | peak memory | {peaks[0]:.0f} MB | {peaks[1]:.0f} MB | | | |", flush=True)


if __name__ == "__main__":
    main()
