"""Packs the program and what `run.py` needs for a machine without cargo and without network.

    cargo build --release --workspace --features gpu
    python3 hardware/pack.py                 target/hardware/glm4v.xz, to be carried beside a checkout
    python3 hardware/pack.py --archive       also target/hardware/glm4v-hardware.tar.xz, which needs no checkout

There:

    tar xf glm4v-hardware.tar.xz && python3 glm4v-hardware/hardware/run.py --out results
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import List, Optional

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "target/hardware"
# What the parts read, as files and directories of the repository.
CONTENT = (
    "hardware",
    "benches",
    "configs",
    "datasets",
    "tests/fixtures/golden",
    "LICENSE-APACHE",
    "LICENSE-MIT",
)
LEFT_OUT = ("__pycache__", ".pyc", "golden/processor", "golden/rope", "golden/template", "golden/decoders")


def compress(source: Path, target: Path, preset: int) -> None:
    partial = target.with_name(target.name + ".partial")
    with open(source, "rb") as data, lzma.open(partial, "wb", preset=preset) as out:
        shutil.copyfileobj(data, out, 1 << 20)
    os.replace(partial, target)


def is_wanted(name: str) -> bool:
    return not any(part in name for part in LEFT_OUT)


def archive(target: Path, packed: Path, manifest: Path, preset: int) -> None:
    """A copy of the repository's layout, so that `run.py` finds everything in the same places."""
    partial = target.with_name(target.name + ".partial")
    with tarfile.open(partial, "w:xz", preset=preset) as tar:
        for name in CONTENT:
            tar.add(ROOT / name, f"glm4v-hardware/{name}", filter=lambda entry: entry if is_wanted(entry.name) else None)
        for path in (packed, manifest):
            tar.add(path, f"glm4v-hardware/target/hardware/{path.name}")
    os.replace(partial, target)


def answer(command: List[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""


def describe(program: Path) -> dict:
    """What the program is: version, backends, checksum, and the commit of the tree it was packed from."""
    info = answer([str(program), "info"])
    return {
        "version": answer([str(program), "--version"]),
        "backends": next((line.split(None, 2)[2] for line in info.splitlines() if line.startswith("compiled in")), ""),
        "sha256": hashlib.sha256(program.read_bytes()).hexdigest(),
        "bytes": program.stat().st_size,
        "commit": answer(["git", "rev-parse", "--short=12", "HEAD"]),
        "modified": bool(answer(["git", "status", "--porcelain"])),
    }


def main() -> Optional[str]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glm4v", type=Path, default=ROOT / "target/release/glm4v", help="the program")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--archive", action="store_true", help="also everything in one file")
    parser.add_argument("--preset", type=int, default=6, help="compression, 0 to 9")
    parser.add_argument("--limit-mib", type=float, default=64, help="largest allowed size of a file")
    parser.add_argument("--without-cuda", action="store_true", help="allow a program without the backend cuda, for a rehearsal")
    args = parser.parse_args()
    manifest = describe(args.glm4v)
    if "cuda" not in manifest["backends"] and not args.without_cuda:
        return f"{args.glm4v}: compiled in: {manifest['backends']}; needed: cuda; build with --features gpu"
    args.out.mkdir(parents=True, exist_ok=True)
    packed, described = args.out / "glm4v.xz", args.out / "manifest.json"
    compress(args.glm4v, packed, args.preset)
    described.write_text(json.dumps(manifest, indent=1) + "\n")
    made = [packed]
    if args.archive:
        made.append(args.out / "glm4v-hardware.tar.xz")
        archive(made[-1], packed, described, args.preset)
    for path in made:
        size = path.stat().st_size / (1 << 20)
        print(f"{path}: {size:.1f} MiB, the program unpacked {manifest['bytes'] / (1 << 20):.1f} MiB")
        if size > args.limit_mib:
            return f"{path}: {size:.1f} MiB; needed: at most {args.limit_mib:.0f}"
    return None


if __name__ == "__main__":
    sys.exit(main())
