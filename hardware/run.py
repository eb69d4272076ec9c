"""Tests and measures the program on a GPU machine, without cargo and without network; ends with a Markdown report.

    python3 hardware/run.py --out results                    cuda, at 9B shapes, within nine minutes
    python3 hardware/run.py --out results --report-only      the report, from the results that are there
    python3 hardware/run.py --out try --backend cpu --profile small --glm4v target/release/glm4v

Each part is a process of its own with a time limit and result files of its own (`parts/NAME.json`, `parts/NAME.log`).
The most important comes first. A part that is done is not run again: after an interruption the same command goes on.
Exit code 0 if every part that this machine can run has ended well, else 1. See docs/hardware/README.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import binary
import process
import report
import state
from gpu_watch import GpuWatch
from parts import LIMIT, PARTS, PROFILES, UNAVAILABLE, Part, Setting
from state import Result, Store, say

# Seconds kept back for the report.
RESERVE = 6.0


class Stop:
    """Set by the first SIGINT, SIGTERM or SIGHUP: the running part is ended, the report is written."""

    def __init__(self) -> None:
        self.signal: Optional[int] = None

    def listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self.receive)

    def receive(self, number: int, _frame: object) -> None:
        self.signal = number

    def is_set(self) -> bool:
        return self.signal is not None


def mark_of(folder: Path) -> str:
    """Marks the processes of all runs with results in this directory."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


class Run:
    """A pass over the parts within a budget of seconds."""

    def __init__(self, args: argparse.Namespace, store: Store, setting: Setting, stop: Stop) -> None:
        self.store, self.setting, self.stop = store, setting, stop
        self.again = set(args.again or ())
        self.deadline = time.monotonic() + args.budget - RESERVE
        self.mark = mark_of(store.folder)
        self.watch = GpuWatch(setting.scratch, setting.backend)

    def parts(self, parts: Sequence[Part]) -> None:
        # What an earlier pass left behind when it was killed itself.
        process.kill_marked(self.mark)
        self.watch.start(self.mark)
        try:
            for part in parts:
                self.part(part)
                self.store.finish(report.markdown(self.store.results, parts))
        finally:
            self.watch.stop()

    def part(self, part: Part) -> None:
        if self.is_done(part):
            say(f"{part.name}: done before, {self.store.results[part.name].status}")
            return
        command = self.setting.fill(part.command)
        result = Result(part.name, state.LEFT_OUT, command=command, key=self.setting.key())
        left = self.deadline - time.monotonic()
        result.limit = round(min(part.limit * self.setting.patience, left), 1)
        if self.stop.is_set():
            result.reason = "the run was stopped before"
        elif result.limit < min(part.least, part.limit * self.setting.patience):
            result.reason = f"{max(left, 0):.0f} s of the budget were left, it needs at least {part.least:.0f} s"
        else:
            self.attempt(part, result)
            return
        say(f"{part.name}: LEFT OUT: {result.reason}")
        self.store.save(result)

    def attempt(self, part: Part, result: Result) -> None:
        """A fault of this script itself is one of this part alone, too."""
        try:
            self.execute(part, result)
        except Exception as error:
            result.status, result.reason = state.FAILED, f"fault in run.py: {type(error).__name__}: {error}"
            say(f"{part.name}: {result.reason}")
            self.store.save(result, traceback.format_exc())

    def is_done(self, part: Part) -> bool:
        """Whether there is a result, of this program on this backend, that is not asked for again."""
        result = self.store.results.get(part.name)
        if result is None or part.name in self.again or "all" in self.again:
            return False
        if result.key != self.setting.key():
            say(f"{part.name}: the result there is of another program, backend or profile; it is run again")
            return False
        return result.is_done and not ("failed" in self.again and result.status != state.OK)

    def execute(self, part: Part, result: Result) -> None:
        say(f"{part.name}: at most {result.limit:.0f} s: {' '.join(result.command)}")
        self.watch.begin()
        named = {"HARDWARE_PART": part.name, LIMIT: str(result.limit)}
        environment = {**self.setting.environment(), **part.environment, **named}
        ended = process.run(
            result.command, environment, self.setting.scratch, result.limit, self.mark, self.stop.is_set
        )
        result.gpu = self.watch.end()
        classify(ended, result)
        if result.status == state.FAILED and part.unavailable_if in result.reason:
            result.status = state.UNAVAILABLE
        say(f"{part.name}: {result.status} after {result.seconds:.1f} s" + (f": {result.reason}" if result.reason else ""))
        self.store.save(result, log_of(result, ended))


def classify(ended: process.Ended, result: Result) -> None:
    """Status, reason and values of a part from how its process ended."""
    result.code, result.seconds = ended.code, round(ended.seconds, 2)
    result.cpu_seconds, result.peak_bytes = round(ended.cpu_seconds, 2), ended.peak_bytes
    result.output, unreadable = values_of(ended.stdout)
    error = last_error(ended.stderr)
    if ended.error:
        result.status, result.reason = state.NOT_STARTED, ended.error
    elif ended.stopped:
        result.status, result.reason = state.INTERRUPTED, "stopped by a signal"
    elif ended.timed_out:
        stuck = "" if ended.code is not None else "; it could not be ended"
        result.status, result.reason = state.TIMED_OUT, f"no end after {result.limit:.0f} s{stuck}"
    elif ended.code is None:
        result.status, result.reason = state.CRASHED, "its end could not be observed"
    elif ended.code < 0:
        result.status, result.reason = state.CRASHED, f"{signal_name(-ended.code)}; {error}"
    elif ended.code == UNAVAILABLE:
        result.status, result.reason = state.UNAVAILABLE, reason_of(result.output) or error
    elif ended.code > 0:
        result.status, result.reason = state.FAILED, f"exit code {ended.code}; {error}"
    elif unreadable or not result.output:
        result.status, result.reason = state.GARBAGE, unreadable or "nothing was printed"
    else:
        result.status = state.OK


def values_of(text: str) -> Tuple[List[object], str]:
    """JSON values of an output, and the first line that is none; one value over several lines is one, too."""
    try:
        return [json.loads(text)], ""
    except ValueError:
        pass
    values, unreadable = [], ""
    for line in filter(str.strip, text.splitlines()):
        try:
            values.append(json.loads(line))
        except ValueError:
            unreadable = unreadable or f"no JSON: {line.strip()[:200]!r}"
    return values, unreadable


def reason_of(output: List[object]) -> str:
    return next((value["reason"] for value in output if isinstance(value, dict) and "reason" in value), "")


def last_error(stderr: str) -> str:
    """The line that names the error, else the last one."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    named = [line for line in lines if line.lower().startswith("error")]
    return (named or lines or ["nothing on standard error"])[-1][:500]


def signal_name(number: int) -> str:
    try:
        return f"killed by {signal.Signals(number).name}"
    except ValueError:
        return f"killed by signal {number}"


def log_of(result: Result, ended: process.Ended) -> str:
    command = " ".join(result.command)
    return f"$ {command}\n{result.status} {result.reason}\n\n== stdout\n{ended.stdout}\n\n== stderr\n{ended.stderr}\n"


def arguments(argv: Optional[Sequence[str]], parts: Sequence[Part]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("hardware-results"), help="directory of results")
    parser.add_argument("--glm4v", type=Path, help="the program, or its .xz [default: target/hardware/glm4v.xz]")
    parser.add_argument("--backend", default="cuda", help="cuda, wgpu or cpu")
    parser.add_argument("--profile", default="full", choices=sorted(PROFILES), help="size of the shapes")
    parser.add_argument("--budget", type=float, default=540, help="seconds for everything")
    parser.add_argument("--patience", type=float, default=1.0, help="factor of all time limits, for a slow machine")
    parser.add_argument("--part", action="append", dest="only", metavar="NAME", help="only this part; may be repeated")
    parser.add_argument("--again", action="append", metavar="NAME", help="a part to run again, failed, or all")
    parser.add_argument("--report-only", action="store_true", help="write the report from the results that are there")
    parser.add_argument("--list", action="store_true", help="print the parts, most important first, with limit and command")
    args = parser.parse_args(argv)
    known = [part.name for part in parts]
    for name in (args.only or []) + [name for name in args.again or [] if name not in ("failed", "all")]:
        if name not in known:
            parser.error(f"part {name!r} is unknown; needed: {', '.join(known)}")
    return args


def print_parts(parts: Sequence[Part], args: argparse.Namespace) -> None:
    """One JSON object a part."""
    setting = Setting(args.glm4v or Path("glm4v"), "", args.backend, args.profile, Path(tempfile.gettempdir()))
    for part in parts:
        print(json.dumps({"part": part.name, "limit": part.limit, "command": setting.fill(part.command), "title": part.title}))


def exit_code(results: Dict[str, Result], parts: Sequence[Part], stop: Stop) -> int:
    if stop.signal is not None:
        return 128 + stop.signal
    good = (state.OK, state.UNAVAILABLE)
    return 0 if all(part.name in results and results[part.name].status in good for part in parts) else 1


def measure(args: argparse.Namespace, parts: Sequence[Part], store: Store, stop: Stop) -> None:
    """One pass over the parts, in a scratch directory of its own."""
    scratch = scratch_folder(store.folder)
    try:
        stop.listen()
        program = binary.find(args.glm4v, scratch, [store.folder])
        setting = Setting(program.path, program.sha256, args.backend, args.profile, scratch, args.patience)
        Run(args, store, setting, stop).parts(parts)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def scratch_folder(other: Path) -> Path:
    """A directory for temporary files; beside the results where the system's cannot be written."""
    try:
        return Path(tempfile.mkdtemp(prefix="glm4v-hardware-"))
    except OSError:
        folder = other / f"scratch-{os.getpid()}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def main(argv: Optional[Sequence[str]] = None, table: Sequence[Part] = PARTS) -> int:
    args = arguments(argv, table)
    if args.list:
        print_parts(table, args)
        return 0
    parts = [part for part in table if not args.only or part.name in args.only]
    stop = Stop()
    store = Store(args.out if args.report_only else state.writable(args.out))
    store.load()
    if not args.report_only:
        try:
            measure(args, parts, store, stop)
        except (binary.BinaryError, OSError) as error:
            say(f"error: {error}")
            return 1
    text = report.markdown(store.results, parts)
    store.finish(text)
    show(text)
    return exit_code(store.results, parts, stop)


def show(text: str) -> None:
    """The report on standard output, whether or not it could be written to a file, and whether or not somebody reads it."""
    try:
        print(text, flush=True)
    except (OSError, ValueError):
        # Python would fail again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    sys.exit(main())
