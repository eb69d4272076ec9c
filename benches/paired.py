"""What the measurements share: a process with its time and memory, alternating rounds, and ratios with their spread."""

import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "target/release/glm4v"


@dataclass
class Run:
    """A process that has ended well."""

    stdout: str
    stderr: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def run(command, cwd=ROOT, env=None):
    """Runs a command to its end; a failure ends this program with the end of what the command printed."""
    command = [str(part) for part in command]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cwd, env=os.environ | (env or {}))
    stdout, stderr = read_both(process)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)}\nfailed with {process.returncode}:\n{stderr[-2000:]}")
    # Of a child, in kilobytes. A process started from a large one begins with that one's size: keep callers small.
    return Run(stdout, stderr, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def read_both(process):
    """Both streams to their ends, without one of them filling up meanwhile."""
    import threading

    errors = []
    thread = threading.Thread(target=lambda: errors.append(process.stderr.read()))
    thread.start()
    output = process.stdout.read()
    thread.join()
    return output.decode(errors="replace"), errors[0].decode(errors="replace")


def alternate(rounds, ours, theirs):
    """Results of `ours` and `theirs`, round by round; who is first changes from round to round."""
    pairs = []
    for number in range(rounds):
        if number % 2 == 0:
            mine = ours()
            pairs.append((mine, theirs()))
        else:
            other = theirs()
            pairs.append((ours(), other))
    return pairs


def spread(values, form="{:.2f}"):
    """`1.05 (0.98 to 1.12)`: median, smallest and largest."""
    median, low, high = (form.format(number) for number in (statistics.median(values), min(values), max(values)))
    return median if low == high else f"{median} ({low} to {high})"


def table(header, rows):
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
