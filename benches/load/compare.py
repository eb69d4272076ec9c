"""Time of loading a model against `cat` of the same files to /dev/null, and the peak memory of loading.

    glm4v init --config CONFIG_FOLDER --out /tmp/big --dtype bf16
    python benches/load/compare.py --glm4v target/release/glm4v --model /tmp/big --rounds 5

Rounds alternate, with the files in the page cache; each load is a process of its own (`glm4v bench --workload load`). Both figures of
a ratio come from the same round.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from paired import PROGRAM, alternate, run, spread  # noqa: E402


def cat(files):
    start = time.perf_counter()
    with open("/dev/null", "wb") as nowhere:
        subprocess.run(["cat", *files], check=True, stdout=nowhere)
    return time.perf_counter() - start


def load(program, model, dtype):
    """Seconds of the first load of a process, and its peak memory in bytes."""
    flags = ["--rounds", 1, "--warmup", 0, "--no-ceilings", "--json", "--quiet", "--backend", "cpu"]
    report = json.loads(run([program, "bench", "--model", model, "--workload", "load", "--dtype", dtype, *flags]).stdout)
    entry = report["workloads"][0]
    return entry["seconds"]["median"], entry["peak_memory"]["process_bytes"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glm4v", type=lambda path: Path(path).resolve(), default=PROGRAM)
    parser.add_argument("--model", type=lambda path: Path(path).resolve(), required=True)
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "f32"])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    files = sorted(args.model.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    cat(files)  # into the page cache
    for dtype in args.dtypes:
        load(args.glm4v, args.model, dtype)  # and memory into the machine
        pairs = alternate(args.rounds, lambda dtype=dtype: load(args.glm4v, args.model, dtype), lambda: cat(files))
        seconds, ratios = [pair[0][0] for pair in pairs], [pair[0][0] / pair[1] for pair in pairs]
        peak = median(pair[0][1] for pair in pairs)
        print(f"{dtype}: cat {spread([pair[1] for pair in pairs])} s, load {spread(seconds)} s, ratio {spread(ratios)}, "
              f"peak {peak / 1e9:.2f} GB, files {size / 1e9:.2f} GB", flush=True)


if __name__ == "__main__":
    main()
