"""Time of loading a model against `cat` of the same files to /dev/null, and the peak memory of loading.

    glm4v init --config CONFIG_FOLDER --out /tmp/big --dtype bf16
    python benches/load/compare.py --glm4v target/release/glm4v --model /tmp/big --rounds 5

Rounds alternate, with the files in the page cache. `glm4v generate -v` says when the model is loaded; it is ended there,
before it generates anything. Both figures of a ratio come from the same round.
"""

import argparse
import re
import signal
import subprocess
import time
from pathlib import Path
from statistics import median


def cat(files):
    start = time.perf_counter()
    with open("/dev/null", "wb") as nowhere:
        subprocess.run(["cat", *files], check=True, stdout=nowhere)
    return time.perf_counter() - start


def load(program, model, dtype):
    """Seconds, and the most memory held until then in bytes."""
    command = [program, "generate", "-v", "--backend", "cpu", "--model", model, "--dtype", dtype, "--prompt", "x", "--max-new-tokens", "1"]
    run = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said = []
    for line in run.stderr:
        said.append(line)
        found = re.search(r"loaded (\d+) bytes as \w+ in ([\d.]+) s", line)
        if found:
            peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{run.pid}/status").read_text())[1]) * 1024
            run.send_signal(signal.SIGKILL)
            run.wait()
            return float(found[2]), peak, int(found[1])
    raise SystemExit("".join(said))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glm4v", default="target/release/glm4v")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "f32"])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    files = sorted(args.model.glob("*.safetensors"))
    cat(files)  # into the page cache
    for dtype in args.dtypes:
        load(args.glm4v, args.model, dtype)  # and memory into the machine
        rounds = []
        for _ in range(args.rounds):
            base = cat(files)
            seconds, peak, size = load(args.glm4v, args.model, dtype)
            rounds.append((seconds / base, base, seconds))
            print(f"{dtype}: cat {base:.2f} s, load {seconds:.2f} s, ratio {seconds / base:.2f}, peak {peak / 1e9:.2f} GB, files {size / 1e9:.2f} GB", flush=True)
        ratios = sorted(ratio for ratio, _, _ in rounds)
        print(f"{dtype}: median ratio {median(ratios):.2f}, best {ratios[0]:.2f}")


if __name__ == "__main__":
    main()
