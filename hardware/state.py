"""Results on disk: one JSON file and one log a part, complete or absent, so that an interrupted run goes on."""

from __future__ import annotations

import json
import os
import sys
import tarfile
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional

# Ways in which a part can end. The first is success.
OK = "ok"
FAILED = "failed"
TIMED_OUT = "timed out"
CRASHED = "crashed"
GARBAGE = "unreadable output"
NOT_STARTED = "not started"
UNAVAILABLE = "not available here"
LEFT_OUT = "left out"
INTERRUPTED = "interrupted"
# After these a part is run again without being asked for.
NOT_DONE = (LEFT_OUT, INTERRUPTED)


@dataclass
class Result:
    """How a part ended."""

    part: str
    status: str
    reason: str = ""
    command: List[str] = field(default_factory=list)
    key: Dict[str, str] = field(default_factory=dict)  # program, backend and profile
    code: Optional[int] = None
    seconds: float = 0.0
    limit: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    gpu: Dict[str, float] = field(default_factory=dict)
    # Values that the part printed; what was complete, if it did not end by itself.
    output: List[Any] = field(default_factory=list)
    ended: str = ""

    @property
    def is_done(self) -> bool:
        return self.status not in NOT_DONE


def write(path: Path, text: str) -> bool:
    """Writes a file, which appears whole or not at all; a full disk is reported, not fatal."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8", errors="replace")
        os.replace(partial, path)
        return True
    except OSError as error:
        say(f"{path}: cannot write: {error}")
        try:
            partial.unlink()
        except OSError:
            pass
        return False


def say(line: str) -> None:
    """Progress, for whoever is listening."""
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass


class Store:
    """Results of a run, in memory and in a directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results: Dict[str, Result] = {}

    @property
    def parts(self) -> Path:
        return self.folder / "parts"

    def load(self) -> None:
        """Reads the results that are there; a file that is no result counts as absent."""
        for path in sorted(self.parts.glob("*.json")):
            try:
                result = Result(**json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError) as error:
                say(f"{path}: is no result and will be replaced: {error}")
                continue
            self.results[result.part] = result

    def save(self, result: Result, log: str = "") -> None:
        result.ended = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.results[result.part] = result
        write(self.parts / f"{result.part}.log", log)
        write(self.parts / f"{result.part}.json", json.dumps(asdict(result), indent=1) + "\n")

    def finish(self, report: str) -> bool:
        """Writes the report, all results in one file, and everything in one archive."""
        everything = {name: asdict(result) for name, result in self.results.items()}
        written = write(self.folder / "report.md", report)
        write(self.folder / "results.json", json.dumps(everything, indent=1) + "\n")
        self.pack()
        return written

    def pack(self) -> None:
        path = self.folder / "results.tar.gz"
        partial = path.with_name(path.name + ".partial")
        try:
            with tarfile.open(partial, "w:gz") as archive:
                for name in ("report.md", "results.json", "parts"):
                    if (self.folder / name).exists():
                        archive.add(self.folder / name, name)
            os.replace(partial, path)
        except OSError as error:
            say(f"{path}: cannot write: {error}")


def writable(wanted: Path) -> Path:
    """The directory, or one for temporary files where it cannot be written."""
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=wanted) as probe:
            probe.write(b"x" * 4096)
        return wanted
    except OSError as error:
        reason = error
    try:
        other = Path(tempfile.mkdtemp(prefix="glm4v-hardware-"))
    except OSError:
        # Nowhere: the report goes to standard output all the same.
        other = wanted
    say(f"{wanted}: cannot write: {reason}; results go to {other}")
    return other
