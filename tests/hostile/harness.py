"""Running the binary on hostile input, and judging what comes of it.

A `Case` is a function that gets a `Desk`: a folder of its own, the models that were prepared, and ways to run the
binary. Every process is held to the contract whatever the case expects: an exit code that is documented, no panic, no
abort, an end within a minute, bounded memory, one error line, nothing half-written.
"""

import contextlib
import json
import os
import pty
import random
import resource
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 60
PEAK_MB = 4096
# No run may take the machine with it: a process that asks for more address space is refused by the kernel.
ADDRESS_SPACE = 12 << 30
NOBODY = 65534

# Exit codes of the contract. A program that is stopped answers with 128 and the number of the signal.
STOPPED = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
DOCUMENTED = {0, 1, 2, *STOPPED.values()}

FAULTS = ("fault of its own", "internal error", "panicked at", "has overflowed its stack", "memory allocation of")

# Before the program listens, a signal ends it as it ends any program; a shell reports the same number then.
BEFORE_LISTENING = 0.1


class Skip(Exception):
    """This machine cannot play the case."""


@dataclass
class Case:
    """One thing to try: a name, unique in its area, and what to do at a desk."""

    area: str
    name: str
    play: Callable

    @property
    def full_name(self):
        return f"{self.area}/{self.name}"


class Area:
    """Collects the cases of one module."""

    def __init__(self, name):
        self.name = name
        self.cases = []

    def add(self, name, play):
        if any(case.name == name for case in self.cases):
            raise ValueError(f"two cases are called {self.name}/{name}")
        self.cases.append(Case(self.name, name, play))

    def case(self, play):
        """Decorator: the function's name is the case's."""
        self.add(play.__name__.replace("_", "-"), play)
        return play


@dataclass
class Outcome:
    """How a process ended, and what it wrote."""

    desk: "Desk"
    command: str
    code: int
    stdout: str
    stderr: str
    seconds: float
    rss_mb: float
    timed_out: bool
    signals: list
    outs: list
    judged: bool = False
    # Whether anyone could see what was written to stderr.
    heard: bool = True

    def blame(self, problem):
        self.desk.blame(problem, self)

    def expect(self, *codes):
        self.judged = True
        if self.code not in codes and not self.timed_out:
            wanted = " or ".join(map(str, sorted(codes)))
            self.blame(f"exit code {self.code}, needed {wanted}")
        return self

    def says(self, *words):
        """Every word is in stderr."""
        for word in words:
            if self.heard and word not in self.stderr:
                self.blame(f"stderr does not name {word!r}")
        return self

    def avoids(self, *words):
        """No word is in stderr."""
        for word in words:
            if word in self.stderr:
                self.blame(f"stderr says {word!r}")
        return self

    def refused(self, *words):
        """Exit code 1 and an error with all of these words."""
        self.expect(1)
        return self.says(*words) if self.code == 1 else self

    def misused(self, *words):
        """Exit code 2, that of wrong usage."""
        self.expect(2)
        return self.says(*words) if self.code == 2 else self

    def accepted(self):
        return self.expect(0)

    def held(self, *words):
        """Taken or refused, as the program likes; if refused, with these words."""
        self.expect(0, 1)
        return self.says(*words) if self.code == 1 else self

    def within(self, megabytes=PEAK_MB, seconds=SECONDS):
        """Tighter limits than those of every run."""
        if self.rss_mb > megabytes:
            self.blame(f"peak memory of {self.rss_mb:.0f} MB, needed at most {megabytes}")
        if self.seconds > seconds * self.desk.world.patience and not self.timed_out:
            self.blame(f"took {self.seconds:.1f} s, needed at most {seconds}")
        return self

    def stopped_by(self, number):
        """The code of this signal, or 0 where the work was done before it came."""
        early = [sent for sent, after in self.signals if after < BEFORE_LISTENING * self.desk.world.patience]
        return self.expect(0, STOPPED[number], *(-sent for sent in early))

    def judge(self):
        """The contract that holds for every run."""
        if not self.judged:
            self.expect(0, 1, 2)
        if self.timed_out:
            self.blame(f"no end after {self.seconds:.0f} s")
        elif self.code < 0 and -self.code not in [sent for sent, _ in self.signals] + self.desk.allowed_deaths:
            self.blame(f"died of {signal.Signals(-self.code).name}")
        elif self.code >= 0 and self.code not in DOCUMENTED:
            self.blame(f"exit code {self.code} is not documented")
        for fault in FAULTS:
            if fault in self.stderr:
                self.blame(f"stderr says {fault!r}")
        if self.rss_mb > PEAK_MB:
            self.blame(f"peak memory of {self.rss_mb:.0f} MB, allowed are {PEAK_MB}")
        errors = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        # Without a command, the help is the answer.
        allowed = (1,) if self.code == 1 else (0, 1)
        if self.code in (1, 2) and self.heard and len(errors) not in allowed:
            self.blame(f"{len(errors)} error lines, needed 1")
        if self.code != 0:
            for out in self.outs:
                if os.path.lexists(out):
                    self.blame(f"failed, but left {out.name}")

    def first_error(self):
        errors = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        return (errors or self.stderr.splitlines() or [""])[0]


@dataclass
class Violation:
    """What was wrong, with the command that led to it."""

    case: str
    problem: str
    command: str
    error: str


class Running:
    """A process under way."""

    def __init__(
        self,
        desk,
        args,
        *,
        binary=None,
        env=None,
        cwd=None,
        stdin=None,
        stdout=None,
        stderr=None,
        close=(),
        limits=None,
        unprivileged=False,
        tty=False,
        outs=(),
        seconds=SECONDS,
    ):
        self.desk, self.outs, self.seconds = desk, list(outs), seconds * desk.world.patience
        self.args = [str(binary or desk.world.binary), *(a if isinstance(a, bytes) else str(a) for a in args)]
        self.env = desk.environment(env)
        self.cwd = cwd or desk.folder
        number = len(desk.outcomes)
        self.written = {
            "stdout": stdout or desk.hidden / f"stdout-{number}",
            "stderr": stderr or desk.hidden / f"stderr-{number}",
        }
        self.seen = {name: given is None for name, given in (("stdout", stdout), ("stderr", stderr))}
        self.stdin, self.close, self.limits, self.unprivileged = stdin, close, limits or {}, unprivileged
        self.signals, self.terminal = [], b""
        self.heard = 2 not in close and self.seen["stderr"]
        desk.outcomes.append(None)
        self.place = number
        self.start(tty)

    def start(self, tty):
        leader = follower = None
        if tty:
            leader, follower = pty.openpty()
        files = [self.open_stdin(), *(self.open_output(name, follower) for name in ("stdout", "stderr"))]
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            self.args,
            env=self.env,
            cwd=self.cwd,
            stdin=files[0],
            stdout=files[1],
            stderr=files[2],
            preexec_fn=self.become,
            close_fds=True,
        )
        for file in files:
            if hasattr(file, "close"):
                file.close()
        if tty:
            os.close(follower)
            threading.Thread(target=self.read_terminal, args=(leader,), daemon=True).start()

    def open_stdin(self):
        if isinstance(self.stdin, bytes):
            self.stdin = self.desk.file(f"stdin-{self.place}", self.stdin)
        return open(self.stdin or "/dev/null", "rb")

    def open_output(self, name, follower):
        if follower is not None:
            return follower
        given = self.written[name]
        return given if isinstance(given, int) else open(given, "wb")

    def become(self):
        os.setsid()
        # Under nohup, or in the background of a script, signals would be ignored from the start.
        for number in STOPPED:
            signal.signal(number, signal.SIG_DFL)
        wanted = {resource.RLIMIT_AS: ADDRESS_SPACE, resource.RLIMIT_CORE: 0, **self.limits}
        for what, most in wanted.items():
            resource.setrlimit(what, (most, most))
        if self.unprivileged and os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        for descriptor in self.close:
            os.close(descriptor)

    def read_terminal(self, leader):
        try:
            while chunk := os.read(leader, 65536):
                self.terminal += chunk
        except OSError:
            pass  # the other end is closed
        finally:
            os.close(leader)

    def send(self, number):
        self.signals.append((number, time.monotonic() - self.began))
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def after(self, seconds, number):
        """Sends a signal that many seconds after the start."""
        time.sleep(max(0.0, self.began + seconds - time.monotonic()))
        self.send(number)
        return self

    def when(self, ready, seconds=30):
        """Waits until `ready()`, or until the process is over."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not ready() and not self.is_over():
            time.sleep(0.01)
        return self

    def is_over(self):
        # The process stays to be waited for: its usage of memory is read then.
        done = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return done is not None

    def wait(self):
        timed_out, pause = False, 0.001
        while True:
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() - self.began > self.seconds and not timed_out:
                timed_out = True
                os.killpg(self.process.pid, signal.SIGKILL)
            time.sleep(pause)
            pause = min(pause * 1.5, 0.02)
        seconds = time.monotonic() - self.began
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.sweep()
        outcome = Outcome(
            self.desk,
            self.shell_line(),
            self.process.returncode,
            self.text("stdout"),
            self.text("stderr"),
            seconds,
            usage.ru_maxrss / 1024,
            timed_out,
            self.signals,
            self.outs,
            heard=self.heard,
        )
        self.desk.outcomes[self.place] = outcome
        return outcome

    def sweep(self):
        """Ends what the process may have started and left."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def text(self, name):
        if self.terminal:
            return self.terminal.decode(errors="replace") if name == "stderr" else ""
        path = self.written[name]
        if not self.seen[name] or not Path(path).exists():
            return ""
        with open(path, "rb") as file:
            return file.read(4 << 20).decode(errors="replace")

    def shell_line(self):
        shown = [a.decode(errors="replace") if isinstance(a, bytes) else a for a in self.args]
        words = [word if len(word) < 300 else word[:120] + "…" + word[-60:] for word in shown]
        words = words if len(words) < 40 else words[:20] + ["…"] + words[-10:]
        extra = [f"{key}={value}" for key, value in self.env.items() if self.desk.world.environment.get(key) != value]
        return f"cd {self.cwd} && " + shlex.join(["env", *extra, *words] if extra else words)


class Desk:
    """A case's own folder, and how it runs the binary."""

    def __init__(self, world, case, seed):
        self.world, self.case = world, case
        self.folder = world.scratch / case.full_name.replace("/", "-")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.hidden = self.folder / "written"
        self.hidden.mkdir(parents=True)
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir()
        self.folder.chmod(0o755)
        self.random = random.Random(f"{seed}/{case.full_name}")
        self.outcomes, self.violations, self.allowed_deaths = [], [], []
        self.partial_is_allowed = False
        self.started = []

    def blame(self, problem, outcome=None):
        command, error = (outcome.command, outcome.first_error()) if outcome else ("", "")
        found = Violation(self.case.full_name, problem, command, error[:400])
        if not any(v.problem == problem and v.command == command for v in self.violations):
            self.violations.append(found)

    def environment(self, changes):
        env = {**self.world.environment, "TMPDIR": str(self.temporary), **(changes or {})}
        return {key: value for key, value in env.items() if value is not None}

    def path(self, name):
        """A place in the case's folder that need not exist; its parents do."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def file(self, name, content):
        """Writes bytes, a text, or anything else as JSON."""
        path = self.path(name)
        if isinstance(content, str):
            content = content.encode(errors="surrogatepass")
        elif not isinstance(content, (bytes, bytearray)):
            content = json.dumps(content).encode()
        path.write_bytes(content)
        return path

    def lines(self, name, records):
        return self.file(name, "".join(json.dumps(record) + "\n" for record in records))

    def copy(self, source, name, changes=None):
        """A copy of a folder with files replaced; a change is content, a function of the bytes, or None for no file."""
        target = self.path(name)
        shutil.copytree(source, target)
        for file, change in (changes or {}).items():
            place = target / file
            if callable(change):
                change = change(place.read_bytes())
            if change is None:
                place.unlink()
            else:
                self.file(f"{name}/{file}", change)
        return target

    def model(self, changes=None, source=None):
        return self.copy(source or self.world.model, "model", changes)

    def start(self, *args, **how):
        self.started.append(Running(self, args, **how))
        return self.started[-1]

    def run(self, *args, **how):
        return self.start(*args, **how).wait()

    def generate(self, *args, model=None, tokens=2, **how):
        shown = ["--max-new-tokens", tokens] if tokens is not None else []
        return self.run("generate", "--model", self.world.model if model is None else model, *shown, *args, **how)

    def look(self, image, *args, **how):
        return self.generate("--prompt", "What?", "--image", image, *args, **how)

    def watch(self, video, *args, **how):
        return self.generate("--prompt", "What?", "--video", video, *args, **how)

    def evaluate(self, data, *args, model=None, **how):
        return self.run(
            "eval", "--model", model or self.world.model, "--data", data, "--max-new-tokens", 4, *args, **how
        )

    def training(self, *settings, config=None, extra=(), run="run"):
        """Arguments of a short training of the small model; later settings win."""
        usual = {
            "model.path": self.world.model,
            "model.init": "pretrained",
            "data.train": self.world.data,
            "eval.data": "",
            "data.batch_size": 4,
            "schedule.max_steps": 2,
            "schedule.warmup_steps": 0,
            "run.output_dir": self.folder / run,
            "run.save_steps": 0,
            "eval.max_new_tokens": 4,
        }
        named = [f"{key}={value}" for key, value in usual.items()]
        flags = [part for setting in [*named, *settings] for part in ("--set", setting)]
        return ["train", config or self.world.config, *flags, *extra]

    def train(self, *settings, config=None, extra=(), run="run", **how):
        return self.run(*self.training(*settings, config=config, extra=extra, run=run), **how)

    def end_all(self):
        """Leaves no process behind when the harness itself is stopped."""
        for started in self.started:
            started.sweep()

    def finish(self):
        for outcome in self.outcomes:
            if outcome is not None:
                outcome.judge()
        if not self.partial_is_allowed:
            self.look_for_leftovers()

    def look_for_leftovers(self):
        killed = any(o and (o.timed_out or o.code == -signal.SIGKILL) for o in self.outcomes)
        if killed:
            return
        last = next((o for o in reversed(self.outcomes) if o), None)
        for folder, names, files in os.walk(self.folder):
            for name in names + files:
                if name.endswith((".partial", ".old", ".probe")):
                    self.blame(f"left {os.path.relpath(os.path.join(folder, name), self.folder)} half-written", last)
        if any(self.temporary.iterdir()):
            self.blame(f"left {sorted(p.name for p in self.temporary.iterdir())[:3]} in TMPDIR", last)


@dataclass
class Result:
    """What came of a case."""

    case: str
    area: str
    skipped: str = ""
    runs: int = 0
    codes: dict = field(default_factory=dict)
    seconds: float = 0.0
    rss_mb: float = 0.0
    violations: list = field(default_factory=list)


def play(world, case, seed, keep):
    """Runs one case; its folder stays if something was wrong with it."""
    desk = Desk(world, case, seed)
    result = Result(case.full_name, case.area)
    try:
        case.play(desk)
    except KeyboardInterrupt:
        desk.end_all()
        raise
    except Skip as reason:
        result.skipped = str(reason)
    except Exception as fault:  # what a run should have left is not there, so the case cannot go on
        desk.blame(f"the case cannot go on: {fault!r}")
    desk.finish()
    done = [outcome for outcome in desk.outcomes if outcome]
    result.runs = len(done)
    for outcome in done:
        key = "timeout" if outcome.timed_out else str(outcome.code)
        result.codes[key] = result.codes.get(key, 0) + 1
    result.seconds = max((outcome.seconds for outcome in done), default=0.0)
    result.rss_mb = max((outcome.rss_mb for outcome in done), default=0.0)
    result.violations = [vars(violation) for violation in desk.violations]
    if not keep and not result.violations:
        shutil.rmtree(desk.folder, ignore_errors=True)
    return result
