#!/usr/bin/env python3
"""Hundreds of hostile runs of the glm4v binary, each judged by the contract that every run keeps.

    python tests/hostile/run.py --glm4v target/release/glm4v [--seed N] [--only PATTERN] [--list] [--jobs 1]

Prints a table by area and every violation with the command that shows it. Exit code 1 if there is any.
"""

import argparse
import collections
import fnmatch
import itertools
import json
import multiprocessing
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from areas import ALL  # noqa: E402
from harness import play  # noqa: E402
from world import World  # noqa: E402


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--glm4v", type=Path, required=True, help="the binary")
    parser.add_argument("--seed", type=int, default=0, help="start of the random damage [default: 0]")
    parser.add_argument("--only", default="*", help="cases to run, as 'images/*' or '*lora*'")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--jobs", type=int, default=1, help="cases at once [default: 1]")
    parser.add_argument("--patience", type=float, default=1.0, help="times the usual limits, on a busy machine")
    parser.add_argument("--json", type=Path, help="write every result to this file")
    parser.add_argument("--keep", action="store_true", help="keep the folders of all cases, not only of violations")
    parser.add_argument("--scratch", type=Path, help="folder to work in [default: a temporary one]")
    return parser.parse_args()


def chosen(pattern):
    cases = [case for area in ALL for case in area.cases]
    return [case for case in cases if fnmatch.fnmatch(case.full_name, pattern)]


def play_all(world, cases, args):
    """Results in the order of the cases."""
    global play_one

    def play_one(index):
        return play(world, cases[index], args.seed, args.keep)

    if args.jobs == 1:
        yield from map(play_one, range(len(cases)))
    else:
        # Forked, so that workers have the cases, which are closures, without any copying.
        with multiprocessing.get_context("fork").Pool(args.jobs, maxtasksperchild=50) as pool:
            yield from pool.imap(call, range(len(cases)))


def call(index):
    return play_one(index)


def table(results):
    """One line an area, and the sum."""
    areas = collections.defaultdict(list)
    for result in results:
        areas[result.area].append(result)
    titles = ["cases", "runs", "rc 0", "rc 1", "rc 2", "stopped", "killed", "other", "worst s", "worst MB", "bad"]
    yield f"{'area':15}" + "".join(f"{title:>9}" for title in titles)
    for name, of_area in [*areas.items(), ("all", list(results))]:
        codes = collections.Counter()
        for result in of_area:
            codes.update(result.codes)
        stopped = sum(codes.pop(code, 0) for code in ("130", "143", "129"))
        counts = [codes.pop(code, 0) for code in ("0", "1", "2")]
        killed = codes.pop("-9", 0) + codes.pop("timeout", 0)
        bad = sum(bool(result.violations) for result in of_area)
        runs = sum(result.runs for result in of_area)
        seconds = max(result.seconds for result in of_area)
        memory = max(result.rss_mb for result in of_area)
        numbers = [
            len(of_area),
            runs,
            *counts,
            stopped,
            killed,
            sum(codes.values()),
            round(seconds, 1),
            round(memory),
            bad,
        ]
        yield f"{name:15}" + "".join(f"{number:>9}" for number in numbers)


def report(results, args):
    print("\n".join(table(results)))
    for result in results:
        if result.skipped:
            print(f"skipped {result.case}: {result.skipped}")
    bad = [result for result in results if result.violations]
    for result in bad:
        print(f"\n{result.case}")
        by_command = itertools.groupby(
            result.violations, key=lambda violation: (violation["command"], violation["error"])
        )
        for (command, error), violations in by_command:
            for violation in violations:
                print(f"  {violation['problem']}")
            print(f"    it says: {error}\n    {command}")
        again = f"--glm4v {args.glm4v} --seed {args.seed} --only '{result.case}' --keep"
        print(f"    again: python tests/hostile/run.py {again}")
    print(
        f"\n{len(bad)} of {len(results)} cases break the contract"
        if bad
        else f"\nall {len(results)} cases keep the contract"
    )


def main():
    args = parse_args()
    # Stopped in any way, the cases end what they started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cases = chosen(args.only)
    if args.list:
        print("\n".join(case.full_name for case in cases))
        return 0
    if not cases:
        raise SystemExit(f"no case is called {args.only}")
    scratch = args.scratch or Path(tempfile.mkdtemp(prefix="glm4v-hostile-"))
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    scratch.chmod(0o755)
    world = World(args.glm4v.resolve(), scratch, args.patience)
    world.prepare()
    began, results = time.monotonic(), []
    for result in play_all(world, cases, args):
        results.append(result)
        if sys.stderr.isatty():
            print(f"\r{len(results)} of {len(cases)}  {result.case:60.60}", end="", file=sys.stderr, flush=True)
        for violation in result.violations:
            print(f"\r{result.case}: {violation['problem']}", file=sys.stderr)
    report(results, args)
    print(f"{time.monotonic() - began:.0f} s; seed {args.seed}")
    if args.json:
        args.json.write_text(json.dumps([vars(result) for result in results], indent=1))
    bad = any(result.violations for result in results)
    if bad or args.keep:
        print(f"folders of cases that failed: {scratch}")
    else:
        shutil.rmtree(scratch, ignore_errors=True)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
