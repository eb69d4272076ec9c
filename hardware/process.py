"""A child process with a time limit: its output within bounds, how it ended, and no process of it left behind."""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, List, Mapping, Optional, Sequence

# In the environment of every child, so that those which left their process group are found too.
MARK = "HARDWARE_RUN_MARK"
# Bytes kept of the beginning and of the end of an output.
KEPT = 512 << 10
# Seconds between the request to end and the kill, for the kernel to carry out the kill, and for output to arrive after the end.
GRACE = 3.0
DYING = 5.0
DRAIN = 1.0
PR_SET_PDEATHSIG = 1


class Kept:
    """The beginning and the end of an output of any length."""

    def __init__(self, limit: int = KEPT) -> None:
        self.limit, self.head, self.tail, self.size = limit, bytearray(), bytearray(), 0

    def add(self, data: bytes) -> None:
        self.size += len(data)
        room = self.limit - len(self.head)
        self.head += data[:room]
        self.tail = (self.tail + data[room:])[-self.limit :]

    def text(self) -> str:
        left_out = self.size - len(self.head) - len(self.tail)
        middle = f"\n[{left_out} bytes left out]\n".encode() if left_out else b""
        return bytes(self.head + middle + self.tail).decode("utf-8", "replace")


@dataclass
class Ended:
    """How a child ended, and what it wrote."""

    code: Optional[int] = None  # negative: the signal that killed it; none: it could not be ended
    timed_out: bool = False
    stopped: bool = False  # by a signal to this program
    error: str = ""  # why it could not be started
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    stdout: str = ""
    stderr: str = ""


@dataclass
class Child:
    """A started process and its output so far."""

    process: subprocess.Popen
    mark: str
    began: float = field(default_factory=time.monotonic)
    stdout: Kept = field(default_factory=Kept)
    stderr: Kept = field(default_factory=Kept)
    usage: Optional[object] = None

    def has_ended(self) -> bool:
        """Whether it has ended; it stays a zombie, so that its number and group are not given to another."""
        found = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return found is not None

    def kill(self) -> None:
        """Ends it and its group: first politely, as Ctrl-C would, then by force."""
        for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, DYING)):
            kill_group(self.process.pid, number)
            wait(self.has_ended, patience)

    def reap(self) -> None:
        """Ends what it left behind, and collects exit status and resources; a process stuck in a driver has none yet."""
        kill_group(self.process.pid, signal.SIGKILL)
        pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        if pid:
            self.usage = usage
            self.process.returncode = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        kill_marked(self.mark)
        for pipe in (self.process.stdout, self.process.stderr):
            pipe.close()


def kill_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        pass


def marked(mark: str) -> List[int]:
    """Processes other than this one with the mark in their environment."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def kill_marked(mark: str) -> None:
    """Returns when they are gone, or when it is clear that they cannot be ended."""
    for pid in marked(mark):
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
    wait(lambda: not marked(mark), DYING)


def wait(condition: Callable[[], bool], patience: float) -> None:
    end = time.monotonic() + patience
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)


def end_with_parent() -> None:
    """In the child: the kernel kills it if this program is killed."""
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        pass


def start(command: Sequence[str], environment: Mapping[str, str], folder: Path, mark: str) -> Child:
    """Starts a command in a process group of its own, without a terminal.

    Raises OSError where it cannot be started.
    """
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environment, MARK: mark},
        cwd=folder,
        start_new_session=True,
        preexec_fn=end_with_parent,
    )
    return Child(process, mark)


def listen(child: Child, deadline: float, is_stopped: Callable[[], bool]) -> str:
    """Collects output until the child has ended; returns "", "timed out" or "stopped"."""
    with selectors.DefaultSelector() as selector:
        for pipe, kept in ((child.process.stdout, child.stdout), (child.process.stderr, child.stderr)):
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ, kept)
        drained_by = None
        while True:
            now = time.monotonic()
            if child.has_ended():
                # A grandchild may hold the pipes open for ever.
                drained_by = drained_by or now + DRAIN
                if not selector.get_map() or now > drained_by:
                    return ""
            elif is_stopped():
                return "stopped"
            elif now > deadline:
                return "timed out"
            read_ready(selector)


def read_ready(selector: selectors.BaseSelector) -> None:
    if not selector.get_map():
        time.sleep(0.02)
        return
    for key, _ in selector.select(0.1):
        try:
            data = os.read(key.fd, 1 << 16)
        except BlockingIOError:
            continue
        if data:
            key.data.add(data)
        else:
            selector.unregister(key.fileobj)


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    limit: float,
    mark: str,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Ended:
    """Runs a command for at most `limit` seconds, until it ends or `is_stopped`."""
    began = time.monotonic()
    try:
        child = start(command, environment, folder, mark)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return Ended(error=str(error), seconds=time.monotonic() - began)
    why = ""
    try:
        why = listen(child, began + limit, is_stopped)
    finally:
        if not child.has_ended():
            child.kill()
        child.reap()
    return ended(child, why, time.monotonic() - began)


def ended(child: Child, why: str, seconds: float) -> Ended:
    usage = child.usage
    return Ended(
        code=child.process.returncode,
        timed_out=why == "timed out",
        stopped=why == "stopped",
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime if usage else 0.0,
        peak_bytes=usage.ru_maxrss * 1024 if usage else 0,
        stdout=child.stdout.text(),
        stderr=child.stderr.text(),
    )
