"""Tests of `run.py` with a program that fails in every way: the rest survives, and the report says what happened.

    python3 -m unittest discover --start-directory hardware
"""

import contextlib
import io
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from dataclasses import replace
from pathlib import Path
from unittest import mock

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import pack
import process
import report
import run
import state
from parts import PARTS, Part

# How a part ends by how the stand-in behaves.
ENDS = {
    None: state.OK,
    "fail": state.FAILED,
    "hang": state.TIMED_OUT,
    "crash": state.CRASHED,
    "garbage": state.GARBAGE,
    "flood": state.TIMED_OUT,
    "empty": state.GARBAGE,
    "unavailable": state.UNAVAILABLE,
}
# Seconds that a hanging part gets; the others have time enough on any machine.
HANG = 0.3


def stand_in_parts(faults):
    """The table of parts, with the stand-in as every command."""
    limits = {name: HANG for name, fault in faults.items() if fault in ("hang", "flood")}
    return [replace(part, command=("{glm4v}", "x"), limit=limits.get(part.name, 60), least=0) for part in PARTS]


class Desk(unittest.TestCase):
    """A directory with a space in its name, and the stand-in in it."""

    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory(prefix="hardware test ")))
        self.program = self.folder / "glm4v"
        self.program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(HERE / "stand_in.py"))} "$@"\n')
        self.program.chmod(0o755)
        self.out = self.folder / "out"
        self.log = self.folder / "calls"
        self.enterContext(mock.patch.object(process, "GRACE", 0.15))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self.addCleanup(signal.signal, number, signal.getsignal(number))

    def run_parts(self, faults, *args, parts=None):
        """Exit code and report of a run in this process."""
        shown = io.StringIO()
        environment = {"STAND_IN_FAULTS": json.dumps(faults), "STAND_IN_LOG": str(self.log)}
        command = ["--glm4v", str(self.program), "--out", str(self.out), "--backend", "cpu", "--profile", "small", *args]
        with mock.patch.dict(os.environ, environment), contextlib.redirect_stdout(shown), contextlib.redirect_stderr(io.StringIO()):
            code = run.main(command, stand_in_parts(faults) if parts is None else parts)
        return code, shown.getvalue()

    def statuses(self):
        return {path.stem: json.loads(path.read_text())["status"] for path in (self.out / "parts").glob("*.json")}

    def calls(self):
        return self.log.read_text().split() if self.log.exists() else []

    def assert_nothing_runs(self):
        mark = run.mark_of(self.out)
        self.assertEqual(process.marked(mark), [])


class EveryPart(Desk):
    def test_each_part_fails_in_each_way_and_the_others_survive(self):
        kinds = [None, "fail", "crash", "garbage"]
        for shift in range(len(kinds)):
            faults = {part.name: kinds[(at + shift) % len(kinds)] for at, part in enumerate(PARTS)}
            self.check(faults)

    def test_every_second_part_hangs_and_the_others_survive(self):
        for shift in range(2):
            self.check({part.name: "hang" if (at + shift) % 2 else None for at, part in enumerate(PARTS)})

    def check(self, faults):
        code, text = self.run_parts(faults, "--again", "all")

        self.assertEqual(self.statuses(), {name: ENDS[fault] for name, fault in faults.items()})
        self.assertEqual(code, 1)
        for name, fault in faults.items():
            self.assertRegex(text, rf"\| {name} \| \**{ENDS[fault]}\** \|")
            self.assertTrue((self.out / f"parts/{name}.log").exists())
        self.assertEqual((self.out / "report.md").read_text().strip(), text.strip())
        self.assert_nothing_runs()


class OnePart(Desk):
    PART = [Part("only", "Only", ("{glm4v}", "x"), 60, least=0)]

    def test_a_report_gives_the_reason(self):
        for fault, words in {
            "fail": "exit code 3; error: made to fail",
            "crash": "killed by SIGSEGV",
            "garbage": "no JSON",
            "empty": "nothing was printed",
            "unavailable": "made unavailable",
        }.items():
            code, text = self.run_parts({"only": fault}, "--again", "all", parts=self.PART)
            self.assertIn(words, text)
            self.assertEqual(code, 0 if fault == "unavailable" else 1)
            self.assertNotIn("\x1b", text)

    def test_what_a_hanging_part_printed_before_is_kept(self):
        _, text = self.run_parts({"only": "hang"}, parts=[replace(self.PART[0], limit=6)])

        self.assertIn("no end after 6 s", text)
        self.assertIn("before the hang", text)
        self.assert_nothing_runs()

    def test_output_without_end_is_kept_within_bounds(self):
        self.run_parts({"only": "flood"}, parts=[replace(self.PART[0], limit=3)])

        self.assertEqual(self.statuses(), {"only": state.TIMED_OUT})
        self.assertLess((self.out / "parts/only.log").stat().st_size, 3 * process.KEPT)

    def test_a_program_that_is_none_is_refused_with_its_path(self):
        self.program.chmod(0o644)
        self.program.write_text("no program")
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            code = run.main(["--glm4v", str(self.program), "--out", str(self.out)], self.PART)
        self.assertEqual(code, 1)
        self.assertIn(str(self.program), errors.getvalue())

    def test_a_packed_program_is_unpacked(self):
        packed = self.folder / "glm4v.xz"
        pack.compress(self.program, packed, 1)
        code, _ = self.run_parts({}, "--glm4v", str(packed), parts=self.PART)
        self.assertEqual((code, self.statuses()), (0, {"only": state.OK}))

    def test_a_damaged_archive_is_an_error_with_its_path(self):
        packed = self.folder / "glm4v.xz"
        pack.compress(self.program, packed, 1)
        packed.write_bytes(packed.read_bytes()[:40])
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            code = run.main(["--glm4v", str(packed), "--out", str(self.out)], self.PART)
        self.assertEqual(code, 1)
        self.assertIn(str(packed), errors.getvalue())

    def test_a_result_of_an_unexpected_form_is_shown_or_named(self):
        for output in (
            [{"ok": True, "quantity": 1, "deviation": "much", "tolerance": 0}],
            [[1, 2]],
            ["text"],
            [{"a": {"b": [None]}}],
            [{"ok": None}],
            [{"workloads": [{"workload": "decode", "seconds": "none", "rate": 3}]}],
            [{"workloads": [{"workload": "decode", "shape": None, "kernels": [{}]}], "ceilings": []}],
        ):
            result = state.Result("only", state.OK, output=output, command=["glm4v"])
            self.assertIn("## Only", report.markdown({"only": result}, self.PART))

    def test_a_damaged_output_does_not_reach_the_terminal_or_break_a_table(self):
        result = state.Result("only", state.OK, output=[{"a": "\x1b[2J|<b>\nnext", "b": 1}] * 2, command=["glm4v"])
        text = report.markdown({"only": result}, self.PART)
        self.assertNotIn("\x1b", text)
        self.assertIn("\\|&lt;b> next | 1 |", text)

    def test_a_result_of_another_program_is_run_again(self):
        self.run_parts({}, parts=self.PART)
        self.run_parts({}, parts=self.PART)
        self.assertEqual(self.calls(), ["only"])
        with open(self.program, "a") as script:
            script.write("# another\n")
        self.run_parts({}, parts=self.PART)
        self.assertEqual(self.calls(), ["only", "only"])

    def test_a_directory_that_cannot_be_written_is_replaced(self):
        self.out = Path("/dev/null/out")
        code, text = self.run_parts({}, parts=self.PART)
        self.assertEqual(code, 0)
        self.assertIn("| only | ok |", text)


class Budget(Desk):
    def test_parts_without_time_are_left_out_and_named(self):
        parts = [replace(part, least=30) for part in stand_in_parts({})]
        code, text = self.run_parts({}, "--budget", str(run.RESERVE + 10), parts=parts)

        self.assertEqual(code, 1)
        self.assertEqual(set(self.statuses().values()), {state.LEFT_OUT})
        self.assertIn("s of the budget were left, it needs at least 30 s", text)

        # With time they are run.
        code, _ = self.run_parts({}, parts=parts)
        self.assertEqual((code, set(self.statuses().values())), (0, {state.OK}))

    def test_a_part_gets_what_is_left_of_the_budget(self):
        part = Part("only", "Only", ("{glm4v}", "x"), 60, least=0)
        began = time.monotonic()
        self.run_parts({"only": "hang"}, "--budget", str(run.RESERVE + 1.5), parts=[part])
        self.assertEqual(self.statuses(), {"only": state.TIMED_OUT})
        self.assertLess(time.monotonic() - began, 30)

    def test_limits_fit_into_the_session(self):
        # All that tests: whatever happens, there is time for these.
        self.assertLessEqual(sum(part.limit for part in PARTS[:5]), 540)
        for part in PARTS:
            self.assertLessEqual(part.least, part.limit, part.name)
        self.assertEqual(len({part.name for part in PARTS}), len(PARTS))


class Interruption(Desk):
    """Runs in a process of their own, which can be killed."""

    def start(self, faults, **how):
        code = (
            "import sys, json; sys.path.insert(0, sys.argv[1]); import run, test_run;"
            "sys.exit(run.main(sys.argv[3:], test_run.stand_in_parts(json.loads(sys.argv[2]))))"
        )
        command = [sys.executable, "-c", code, str(HERE), json.dumps({}), "--glm4v", str(self.program), "--out", str(self.out)]
        environment = {**os.environ, "STAND_IN_FAULTS": json.dumps(faults), "STAND_IN_LOG": str(self.log)}
        return subprocess.Popen(
            [*command, "--backend", "cpu", "--profile", "small"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            **how,
        )

    def until(self, condition):
        end = time.monotonic() + 60
        while not condition():
            self.assertLess(time.monotonic(), end, "the condition did not hold within a minute")
            time.sleep(0.02)

    def interrupted_in(self, at, number):
        """A run that hangs in a part and is then sent a signal; its exit code and output."""
        started = self.start({PARTS[at].name: "hang"})
        self.until(lambda: self.calls()[-1:] == [PARTS[at].name])
        started.send_signal(number)
        output, _ = started.communicate(timeout=60)
        return started.returncode, output.decode()

    def test_after_a_kill_the_report_is_made_and_the_run_goes_on(self):
        code, _ = self.interrupted_in(2, signal.SIGKILL)
        self.assertEqual(code, -signal.SIGKILL)
        done = [part.name for part in PARTS[:2]]
        self.assertEqual(sorted(self.statuses()), sorted(done))

        # What is there after the kill, and again on request.
        for text in ((self.out / "report.md").read_text(), self.run_parts({}, "--report-only")[1]):
            self.assertIn(f"| {done[0]} | ok |", text)
            self.assertIn(f"| {PARTS[2].name} | **not reached** |", text)

        # What the killed run left behind is ended before anything else is done.
        self.assertNotEqual(process.marked(run.mark_of(self.out)), [])
        self.run_parts({}, "--part", done[0])
        self.assert_nothing_runs()

        self.log.unlink()
        code, text = self.run_parts({})
        self.assertEqual(code, 0, text)
        self.assertEqual(self.calls(), [part.name for part in PARTS[2:]])
        self.assert_nothing_runs()

    def test_a_signal_ends_the_part_and_writes_the_report(self):
        code, text = self.interrupted_in(1, signal.SIGTERM)

        self.assertEqual(code, 128 + signal.SIGTERM)
        self.assertIn(f"| {PARTS[1].name} | **interrupted** |", text)
        self.assertIn("**left out**", text)
        self.assert_nothing_runs()
        self.log.unlink()
        code, _ = self.run_parts({})
        self.assertEqual(code, 0)
        self.assertEqual(self.calls(), [part.name for part in PARTS[1:]])

    def test_a_full_disk_takes_the_files_and_not_the_report(self):
        full = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        started = self.start({}, preexec_fn=full)
        self.log = self.folder / "none"
        output, errors = started.communicate(timeout=120)
        self.assertIn("cannot write", errors.decode())
        self.assertRegex(output.decode(), rf"\| {PARTS[-1].name} \| ")

    def test_nobody_reads_the_report(self):
        started = self.start({})
        started.stdout.close()
        started.stderr.read()
        self.assertEqual(started.wait(timeout=120), 0)
        self.assertTrue((self.out / "report.md").exists())


if __name__ == "__main__":
    unittest.main()
