"""Images per second against transformers with its default backend (torchvision), from the same JPEG files with the same threads.

    python benches/images/compare.py --threads 1 2 --rounds 3

Builds our side (`cargo bench --no-run`); `--program` takes one that is built. Needs torch, torchvision, transformers and pillow. Rounds
alternate between the two; a stage's figure is the median of its rounds, a ratio is taken within a round. Stages:

- decode: a file to 8-bit RGB (`load_image`: orientation and all);
- resize: that image to the size of the model's grid (bicubic, antialiased);
- whole: a file to `pixel_values`, from decoding to patches.

transformers works on one image after another with torch's threads inside; `pool` is the same with a thread for each image and none
inside, as a careful user would write it. We work on an image with one thread, and on several images at once.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from paired import ROOT, alternate, run, table  # noqa: E402

STAGES = ["decode", "resize", "whole"]
IMAGES = 8


def make_image(width, height, file):
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
    """Images per second of transformers, in this process."""
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
        return IMAGES / min(times)

    out = {}
    for stage, once in work.items():
        torch.set_num_threads(threads)
        out[stage] = best(lambda: [once() for _ in range(IMAGES)])
        torch.set_num_threads(1)
        with ThreadPoolExecutor(threads) as pool:
            out[f"{stage} pool"] = best(lambda: list(pool.map(lambda _: once(), range(IMAGES))))
    out["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return out


def build():
    """The benchmark's executable, as cargo names it."""
    command = ["cargo", "bench", "--workspace", "--bench", "images", "--no-run", "--message-format", "json"]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout.splitlines()
    built = (json.loads(line) for line in lines)
    return next(one["executable"] for one in built if one.get("executable") and one["target"]["name"] == "images")


def ours(program, file, threads):
    """The program's figures and its peak memory."""
    done = run([program, "--threads", threads, "--images", IMAGES, file])
    return json.loads(done.stdout) | {"peak": done.peak_bytes}


def theirs(file, threads):
    """Those of transformers, in a process of its own."""
    return json.loads(run([sys.executable, __file__, "--oracle", file, threads]).stdout.splitlines()[-1])


HEADER = ["threads", "stage", "here, images/s", "transformers", "its pool", "times as fast", "as its pool"]


def rows(program, file, threads, rounds):
    """Rows of the table for a number of threads."""
    pairs = alternate(rounds, lambda: ours(program, file, threads), lambda: theirs(file, threads))
    for stage in STAGES:
        here = median(mine[stage] for mine, _ in pairs)
        plain, pool = (median(other[name] for _, other in pairs) for name in (stage, f"{stage} pool"))
        ratio, strict = (median(mine[stage] / other[name] for mine, other in pairs) for name in (stage, f"{stage} pool"))
        yield [threads, stage, f"{here:.1f}", f"{plain:.1f}", f"{pool:.1f}", f"{ratio:.2f}", f"{strict:.2f}"]
    peaks = [max(pair[which]["peak"] for pair in pairs) / 1e6 for which in (0, 1)]
    yield [threads, "peak memory", f"{peaks[0]:.0f} MB", f"{peaks[1]:.0f} MB", "", "", ""]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", help="default: built by cargo")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--oracle", nargs=2, help=argparse.SUPPRESS)  # a file and threads: measure transformers
    # A process started from a large one counts as large: images are made in one of their own.
    parser.add_argument("--make", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make_image(int(args.make[0]), int(args.make[1]), args.make[2])
        return
    if args.oracle:
        print(json.dumps(oracle(args.oracle[0], int(args.oracle[1]))))
        return

    program = Path(args.program).resolve() if args.program else build()
    with tempfile.TemporaryDirectory() as directory:
        for width, height in [(1024, 1024), (4000, 3000)]:
            file = Path(directory) / f"{width}x{height}.jpg"
            run([sys.executable, __file__, "--make", width, height, file])
            lines = [row for threads in args.threads for row in rows(program, file, threads, args.rounds)]
            print(f"\n{file.name}, {file.stat().st_size / 1e6:.2f} MB\n\n{table(HEADER, lines)}", flush=True)


if __name__ == "__main__":
    main()
