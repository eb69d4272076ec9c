"""The program under test: found, unpacked, and placed where it may be executed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, List, Optional

from parts import ROOT

# Where `pack.py` puts it, and where cargo does.
PLACES = (ROOT / "target/hardware/glm4v.xz", ROOT / "target/release/glm4v")


class BinaryError(Exception):
    """The program cannot be run here."""


@dataclass(frozen=True)
class Binary:
    """An executable file and its checksum."""

    path: Path
    sha256: str


def nowhere() -> Binary:
    """No program: a report needs none."""
    return Binary(Path("glm4v"), "")


def find(wanted: Optional[Path], scratch: Path, others: List[Path]) -> Binary:
    """The program at `wanted` or in its usual places, executable, unpacked to `scratch` or one of the other directories."""
    places = [wanted] if wanted else list(PLACES)
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        names = " or ".join(map(str, places))
        raise BinaryError(f"{names}: no such file; needed: --glm4v, or a bundle made by hardware/pack.py")
    reasons = []
    for candidate in candidates(path.resolve(), [scratch, *others]):
        reason = refusal(candidate)
        if not reason:
            return Binary(candidate, hashlib.sha256(candidate.read_bytes()).hexdigest())
        reasons.append(f"{candidate}: {reason}")
    raise BinaryError("; ".join(reasons))


def candidates(path: Path, folders: List[Path]) -> Iterator[Path]:
    """The file itself, if it is no archive, and copies of it: a directory may forbid execution."""
    if path.suffix != ".xz":
        yield path
    for folder in folders:
        target = folder / "glm4v"
        if target == path:
            continue
        try:
            place(path, target)
        except (OSError, EOFError) as error:
            raise BinaryError(f"{path}: cannot unpack to {target}: {error}") from error
        yield target


def place(path: Path, target: Path) -> None:
    """Copies or unpacks the file, executable."""
    with open(target, "wb") as out:
        if path.suffix == ".xz":
            unpack(path, out)
        else:
            with open(path, "rb") as source:
                shutil.copyfileobj(source, out, 1 << 20)
    os.chmod(target, 0o755)


def unpack(path: Path, out) -> None:
    """By Python's own module, or by the program `xz` where Python was built without it."""
    try:
        import lzma
    except ImportError:
        done = subprocess.run(["xz", "--decompress", "--stdout", str(path)], stdout=out, stderr=subprocess.PIPE)
        if done.returncode != 0:
            raise OSError(done.stderr.decode(errors="replace").strip()) from None
        return
    try:
        with lzma.open(path) as source:
            shutil.copyfileobj(source, out, 1 << 20)
    except lzma.LZMAError as error:
        raise OSError(str(error)) from error


def refusal(path: Path) -> str:
    """Why the file cannot be executed; empty if it can."""
    try:
        done = subprocess.run(
            [str(path), "--version"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else f"--version: exit code {done.returncode}: {done.stdout.decode(errors='replace')[:300]}"
