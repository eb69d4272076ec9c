"""A machine with something missing: descriptors, memory, disk, variables, rights."""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess

from harness import Area, Skip
from world import SMALL

AREA = Area("environment")


def each_command(desk, suffix=""):
    """Short runs of every command, by name."""
    model = desk.world.model
    return {
        "generate": [
            "generate",
            "--model",
            model,
            "--prompt",
            "What?",
            "--image",
            desk.world.image,
            "--max-new-tokens",
            3,
        ],
        "eval": ["eval", "--model", model, "--data", desk.world.questions, "--max-new-tokens", 3],
        "train": desk.training("run.save_steps=1", run=f"run{suffix}"),
        "init": ["init", "--config", SMALL, "--out", desk.path(f"init{suffix}")],
        "convert": ["convert", "--model", model, "--out", desk.path(f"convert{suffix}")],
        "merge": ["merge", "--model", model, "--adapter", desk.world.adapter, "--out", desk.path(f"merge{suffix}")],
        "trace": ["trace", "--model", model, "--prompt", "x", "--out", desk.path(f"trace{suffix}")],
        "embed": ["embed", "--model", model, "--prompt", "x", "--out", desk.path(f"embed{suffix}")],
        "info": ["info", "--model", model],
    }


def add(name, codes, commands=("generate", "eval", "train", "convert", "info"), **how):
    """One case a command, run in the given way."""
    for command in commands:
        AREA.add(
            f"{name}-{command}",
            lambda desk, command=command: desk.run(*each_command(desk)[command], **how).expect(*codes),
        )


EVERY = ("generate", "eval", "train", "init", "convert", "merge", "trace", "embed", "info")
add("stdin-closed", (0,), EVERY, close=(0,))
add("stdout-closed", (0, 1), EVERY, close=(1,))
add("stderr-closed", (0,), EVERY, close=(2,))
add("all-closed", (0, 1), EVERY, close=(0, 1, 2))
add("stdout-full", (0, 1), EVERY, stdout="/dev/full")
add("stderr-full", (0,), EVERY, stderr="/dev/full")
add("no-variables", (0,), EVERY, env={"HOME": None, "PATH": None, "LANG": None, "TMPDIR": None})


def gone(name, which):
    for command in ("generate", "eval", "train", "info", "trace"):

        def play(desk, command=command):
            reader, writer = os.pipe()
            os.close(reader)
            try:
                desk.run(*each_command(desk)[command], **{which: writer}).expect(0, 1)
            finally:
                if which:
                    with_closed(writer)

        AREA.add(f"{name}-{command}", play)


def with_closed(descriptor):
    with contextlib.suppress(OSError):  # the run closed it
        os.close(descriptor)


gone("nobody-reads-stdout", "stdout")
gone("nobody-reads-stderr", "stderr")

VARIABLES = {
    "home-gone": {"HOME": "/no/such"},
    "home-file": {"HOME": "/dev/null"},
    "home-empty": {"HOME": ""},
    "tmpdir-gone": {"TMPDIR": "/no/such"},
    "tmpdir-file": {"TMPDIR": "/dev/null"},
    "lang-garbage": {"LANG": "x" * 9999, "LC_ALL": "\udcff"},
    "log-garbage": {"GLM4V_LOG": "[[[=,,"},
    "log-everything": {"GLM4V_LOG": "trace"},
    "log-long": {"GLM4V_LOG": "a=trace," * 3000},
    "rust-log": {"RUST_LOG": "trace", "RUST_BACKTRACE": "full"},
    "rayon-garbage": {"RAYON_NUM_THREADS": "x"},
    "rayon-negative": {"RAYON_NUM_THREADS": "-1"},
    "rayon-0": {"RAYON_NUM_THREADS": "0"},
    "columns-0": {"COLUMNS": "0"},
    "columns-giant": {"COLUMNS": "99999999999999999999"},
    "term-garbage": {"TERM": "\x1b[31m"},
    "color-forced": {"CLICOLOR_FORCE": "1", "FORCE_COLOR": "9"},
    "proxy-garbage": {"http_proxy": "x:y:z", "HTTPS_PROXY": "://", "ALL_PROXY": "socks5://["},
    "allocator": {
        "MIMALLOC_ARENA_EAGER_COMMIT": "x",
        "MIMALLOC_VERBOSE": "0",
        "MIMALLOC_RESERVE_HUGE_OS_PAGES": "9999",
    },
    "timezone": {"TZ": ":/../../etc/passwd"},
    "path-garbage": {"PATH": ":::/dev/null:\udcff"},
    "hf-home-gone": {"HF_HOME": "/no/such"},
    "hf-home-file": {"HF_HOME": "/dev/null"},
    "hf-home-empty": {"HF_HOME": ""},
    "hf-home-bytes": {"HF_HOME": "\udcff"},
}
for name, env in VARIABLES.items():
    AREA.add(
        f"variable-{name}",
        lambda desk, env=env: [
            desk.run(*each_command(desk)[command], env=env).expect(0) for command in ("generate", "train", "info")
        ],
    )


@AREA.case
def too_many_threads_by_variable(desk):
    desk.run(*each_command(desk)["generate"], env={"RAYON_NUM_THREADS": "100000"}).expect(0, 1).avoids(
        "error: Resource temporarily unavailable (os error 11)"
    )


# Names in the cache of the hub.
def cached(desk, commit="abc", refs="abc", repository="models--org--name"):
    """A cache as huggingface_hub leaves it, with the small model in it."""
    place = desk.path(f"hf/hub/{repository}")
    blobs, snapshot = place / "blobs", place / "snapshots" / commit
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in desk.world.model.iterdir():
        shutil.copy(file, blobs / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    if refs is not None:
        desk.file(f"hf/hub/{repository}/refs/main", refs)
    return place


def ask_cache(desk, name="org/name", **env):
    return desk.look(desk.world.image, model=name, env={"HF_HOME": str(desk.folder / "hf"), **env})


@AREA.case
def hub_model_is_found_in_the_cache(desk):
    cached(desk)
    ask_cache(desk).accepted()


for name, refs in {
    "line-end": "abc\n",
    "climbs": "../../../../../../etc",
    "absolute": "/etc",
    "empty": "",
    "binary": b"\xff\0\xfe",
    "of-a-megabyte": b"a" * (1 << 20),
    "unknown": "fff",
    "none": None,
}.items():

    def with_refs(desk, refs=refs):
        cached(desk, refs=refs)
        ask_cache(desk).expect(0, 1)

    AREA.add(f"hub-reference-{name}", with_refs)


@AREA.case
def hub_names(desk):
    cached(desk)
    for name in (
        "org/..",
        "../name",
        "org/name/",
        "/org/name",
        "org//name",
        "org/name/more",
        "org--name",
        "ORG/NAME",
        "org/",
        "/",
        ".",
        "..",
        "org/na me",
        "org/name@main",
        "org\\name",
        "org/" + "x" * 300,
        "https://huggingface.co/org/name",
        "o\0rg".replace("\0", "%00") + "/name",
    ):
        ask_cache(desk, name).expect(0, 1)


@AREA.case
def hub_snapshot_lacks_files(desk):
    place = cached(desk)
    (place / "snapshots/abc/model.safetensors").unlink()
    ask_cache(desk).refused("model.safetensors")


@AREA.case
def hub_links_dangle(desk):
    place = cached(desk)
    shutil.rmtree(place / "blobs")
    ask_cache(desk).refused()


@AREA.case
def hub_cache_loops(desk):
    desk.path("hf/hub").parent.mkdir(exist_ok=True)
    desk.path("hf/hub").symlink_to("hub")
    ask_cache(desk).refused()


@AREA.case
def hub_reference_is_a_fifo(desk):
    place = cached(desk, refs=None)
    (place / "refs").mkdir()
    os.mkfifo(place / "refs/main")
    desk.look(desk.world.image, model="org/name", env={"HF_HOME": str(desk.folder / "hf")}, seconds=20).expect(0, 1)


@AREA.case
def local_folder_comes_before_the_cache(desk):
    cached(desk)
    desk.copy(desk.world.fresh, "org/name")
    desk.look(desk.world.image, model="org/name", cwd=desk.folder, env={"HF_HOME": str(desk.folder / "hf")}).accepted()


# Working directories.
@AREA.case
def cwd_is_removed(desk):
    place = desk.path("place")
    place.mkdir()
    script = 'rmdir "$PWD"; exec "$0" "$@"'
    words = [str(word) for word in each_command(desk)["generate"]]
    desk.run("-c", script, desk.world.binary, *words, binary="/bin/sh", cwd=place).expect(0, 1)


@AREA.case
def cwd_is_not_permitted(desk):
    place = desk.path("place")
    place.mkdir()
    words = [str(word) for word in each_command(desk)["generate"]]
    desk.run("-c", 'chmod 0 .; exec "$0" "$@"', desk.world.binary, *words, binary="/bin/sh", cwd=place).expect(0, 1)
    place.chmod(0o755)


# Limits of the shell.
LIMITS = {
    "files-8": {resource.RLIMIT_NOFILE: 8},
    "files-5": {resource.RLIMIT_NOFILE: 5},
    "memory-2-gb": {resource.RLIMIT_AS: 2 << 30},
    "memory-1-gb": {resource.RLIMIT_AS: 1 << 30},
    "memory-600-mb": {resource.RLIMIT_AS: 600 << 20},
    "stack-256-kb": {resource.RLIMIT_STACK: 256 << 10},
    "locked-0": {resource.RLIMIT_MEMLOCK: 0},
}
for name, limits in LIMITS.items():
    for command in ("generate", "eval", "train", "convert"):
        # A library may not fit into 600 MB of addresses: what it may not do is crash.
        AREA.add(
            f"limit-{name}-{command}",
            lambda desk, limits=limits, command=command: (
                desk.run(*each_command(desk)[command], limits=limits)
                .expect(0, 1)
                .avoids("error: Resource temporarily unavailable (os error 11)")
            ),
        )


@AREA.case
def limit_on_file_sizes(desk):
    # The kernel ends whoever writes beyond the limit.
    desk.allowed_deaths.append(signal.SIGXFSZ)
    desk.partial_is_allowed = True
    for size in (0, 1000, 100_000, 2_000_000):
        for command in ("init", "convert", "train"):
            desk.run(*each_command(desk, f"-{size}")[command], limits={resource.RLIMIT_FSIZE: size}).expect(
                0, 1, -signal.SIGXFSZ
            )


@AREA.case
def limit_on_processes(desk):
    words = each_command(desk)["generate"]
    desk.run(*words, limits={resource.RLIMIT_NPROC: 1}, unprivileged=True).expect(0, 1).avoids(
        "error: Resource temporarily unavailable (os error 11)"
    )


# A disk that fills.
def full_disk(desk, kilobytes):
    place = desk.path("disk")
    place.mkdir()
    mounted = (
        os.geteuid() == 0
        and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", place], capture_output=True
        ).returncode
        == 0
    )
    if not mounted:
        raise Skip("a small disk needs root and mount")
    return place


@AREA.case
def disk_fills(desk):
    for kilobytes in (0, 8, 1000, 2600, 4000, 9000):
        place = desk.path("disk")
        place.mkdir(exist_ok=True)
        place.rmdir()
        disk = full_disk(desk, kilobytes or 4)
        try:
            model, adapter = desk.world.model, desk.world.adapter
            for words in (
                ["init", "--config", SMALL, "--out", disk / "init"],
                ["convert", "--model", model, "--out", disk / "convert"],
                ["merge", "--model", model, "--adapter", adapter, "--out", disk / "merge"],
                desk.training("run.save_steps=1", "schedule.max_steps=4", f"run.output_dir={disk / 'run'}"),
                ["trace", "--model", model, "--prompt", "x", "--out", disk / "trace"],
            ):
                desk.run(*words).held()
                leftovers = [path.name for path in disk.rglob("*") if path.name.endswith(".partial")]
                if leftovers:
                    desk.blame(f"left {leftovers} on a full disk", desk.outcomes[-1])
                for path in disk.iterdir():
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        finally:
            subprocess.run(["umount", disk], check=False)


# Terminals.
@AREA.case
def no_color_is_kept(desk):
    folder = desk.path("frames")
    folder.mkdir()
    for number in range(4):
        shutil.copy(desk.world.image, folder / f"{number}.png")
    record = {
        "messages": [{"role": "user", "content": "<video>What?"}, {"role": "assistant", "content": "x"}],
        "videos": [str(folder)],
    }
    data = desk.lines("a.jsonl", [record] * 8)
    outcome = desk.run(
        *desk.training(f"data.train={data}"), tty=True, env={"NO_COLOR": "1", "TERM": "xterm-256color"}
    ).accepted()
    colors = [code for code in ("\x1b[33m", "\x1b[31m", "\x1b[32m", "\x1b[2m") if code in outcome.stderr]
    if colors:
        outcome.blame(f"writes colors {colors} under NO_COLOR=1")


@AREA.case
def terminal_of_every_size(desk):
    for columns in ("1", "2", "20", "5000"):
        desk.run(*each_command(desk, columns)["train"], tty=True, env={"COLUMNS": columns, "TERM": "xterm"}).accepted()


@AREA.case
def results_and_progress_apart(desk):
    outcome = desk.run(*each_command(desk)["eval"], "--json").accepted()
    for line in outcome.stdout.splitlines():
        try:
            json.loads(line)
        except ValueError:
            outcome.blame(f"--json prints a line that is none: {line[:80]!r}")
            break
