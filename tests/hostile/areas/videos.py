"""Clips: folders, animations that never end, and an `ffmpeg` that is not what it should be."""

import os
import shutil
import signal

import forge
from harness import Area
from world import FIXTURES

AREA = Area("videos")
ANIMATED = FIXTURES / "processor/formats/animated.gif"


def add_file(name, content, *words, file="clip.gif", codes=(1,), **limits):
    def play(desk):
        made = content() if callable(content) else content
        outcome = desk.watch(desk.file(file, made)).expect(*codes).within(**limits)
        if outcome.code == 1:
            outcome.says(*words)

    AREA.add(name, play)


add_file("gif-empty", b"", "clip.gif")
add_file("gif-no-frames", forge.gif_header(8, 8) + b";", "clip.gif")
add_file("gif-cut", ANIMATED.read_bytes()[:700], codes=(0, 1))
add_file("gif-one-frame", forge.gif(56, 56, 1), codes=(0, 1))
add_file("gif-delay-0", forge.gif(56, 56, 8, delay=0), codes=(0, 1))
add_file("gif-delay-longest", forge.gif(56, 56, 8, delay=65535), codes=(0, 1))
add_file("gif-100000-tiny-frames", lambda: forge.gif(1, 1, 100_000), codes=(0, 1))
add_file("gif-5000-frames", lambda: forge.gif(56, 56, 5000), codes=(0, 1), seconds=30)
add_file("gif-400-large-frames", lambda: forge.gif(2000, 2000, 400), codes=(0, 1), seconds=30, megabytes=1000)
add_file(
    "gif-screen-16000-frames-small",
    lambda: forge.gif_header(16000, 16000) + forge.gif_frame(8, 8) * 500 + b";",
    codes=(0, 1),
    seconds=40,
)
add_file("gif-screen-65535", forge.gif_header(65535, 65535) + forge.gif_frame(8, 8) * 9 + b";", "65535")
add_file("gif-frame-outside", forge.gif_header(56, 56) + forge.gif_frame(56, 56, left=9999) * 4 + b";", codes=(0, 1))
add_file(
    "gif-frames-differ",
    forge.gif_header(56, 56) + forge.gif_frame(56, 56) + forge.gif_frame(1, 1, left=60000) * 4 + b";",
    codes=(0, 1),
)
add_file("apng", forge.apng(6, 56, 56), file="a.png", codes=(0,))
add_file("apng-announces-2-32", forge.apng(6, 56, 56, announced=2**32 - 1), file="a.png", codes=(0, 1))
add_file("apng-delay-of-nothing", forge.apng(6, 56, 56, delay=(1, 0)), file="a.png", codes=(0, 1))
add_file("apng-delay-0", forge.apng(6, 56, 56, delay=(0, 0)), file="a.png", codes=(0, 1))
add_file("apng-20000-frames", lambda: forge.apng(20_000, 56, 56), file="a.png", codes=(0, 1))
add_file("still-picture", forge.png(56, 56), file="a.png", codes=(0, 1))
add_file("webp-still", (FIXTURES / "processor/formats/lossy.webp").read_bytes(), file="a.webp", codes=(0, 1))
add_file("audio", forge.wav(), "a.wav", file="a.wav")
add_file("text-as-mp4", b"hello", "a.mp4", file="a.mp4")
add_file("subtitle-playlist", b"#EXTM3U\nfile:///etc/passwd\n", "a.m3u8", file="a.m3u8")
add_file("concat-list", b"ffconcat version 1.0\nfile /etc/passwd\n", "a.txt", file="a.txt")


def add_folder(name, fill, *words, codes=(1,), flags=(), **how):
    def play(desk):
        folder = desk.path("frames")
        folder.mkdir()
        fill(desk, folder)
        outcome = desk.watch(folder, *flags, **how).expect(*codes)
        if outcome.code == 1:
            outcome.says(*words)

    AREA.add(f"folder-{name}", play)


def frames(count, width=56, height=56):
    def fill(desk, folder):
        raw = forge.png(width, height)
        for number in range(count):
            (folder / f"{number:05}.png").write_bytes(raw)

    return fill


def one_broken(desk, folder):
    frames(8)(desk, folder)
    (folder / "00004.png").write_bytes(b"broken")


def two_sizes(desk, folder):
    frames(4)(desk, folder)
    (folder / "00009.png").write_bytes(forge.png(84, 28))


def loop_inside(desk, folder):
    frames(4)(desk, folder)
    (folder / "99.png").symlink_to("99.png")


def fifo_inside(desk, folder):
    frames(4)(desk, folder)
    os.mkfifo(folder / "99.png")


def folder_inside(desk, folder):
    frames(4)(desk, folder)
    (folder / "99.png").mkdir()


add_folder("empty", frames(0), "frames")
add_folder("of-texts", lambda desk, folder: (folder / "a.txt").write_text("x"), "frames")
add_folder("of-hidden-files", lambda desk, folder: (folder / ".a.png").write_bytes(forge.png()), "frames")
add_folder("of-one", frames(1), codes=(0, 1))
add_folder("of-odd-many", frames(7), codes=(0,))
add_folder("of-3000", frames(3000), codes=(0, 1))
add_folder("one-broken", one_broken, "00004.png")
add_folder("two-sizes", two_sizes, codes=(0, 1))
add_folder("loop-inside", loop_inside, "99.png", codes=(0, 1))
add_folder("fifo-inside", fifo_inside, "99.png", codes=(0, 1))
add_folder("folder-inside", folder_inside, codes=(0, 1))
add_folder("of-giants", frames(12, 6000, 6000), codes=(0, 1))
add_folder(
    "not-permitted", lambda desk, folder: (frames(2)(desk, folder), folder.chmod(0)), "frames", unprivileged=True
)
for rate in ("0", "-1", "nan", "inf", "1e-300", "1e300", "2", "x", ""):
    add_folder(f"rate-{rate or 'empty'}", frames(8), codes=(0, 1, 2), flags=(f"--frame-rate={rate}",))
for most in ("0", "1", "-1", str(2**63), str(2**64), "12544"):
    add_folder(f"most-pixels-{most}", frames(8), codes=(0, 1, 2), flags=(f"--max-video-pixels={most}",))


@AREA.case
def rate_is_asked_for_once(desk):
    # Three clips without a rate in each of six steps: one warning is enough.
    folder = desk.path("frames")
    folder.mkdir()
    frames(4)(desk, folder)
    record = {
        "messages": [{"role": "user", "content": "<video>What?"}, {"role": "assistant", "content": "x"}],
        "videos": [str(folder)],
    }
    data = desk.lines("a.jsonl", [record] * 24)
    outcome = desk.train(f"data.train={data}", "schedule.max_steps=6").accepted()
    if outcome.stderr.count("frame rate") > 2:
        outcome.blame(f"warns {outcome.stderr.count('frame rate')} times of a frame rate that is not known")


# A film needs ffmpeg; these are in its place. Each has `$*` as its arguments and is both ffprobe and ffmpeg.
LISTED = "echo 'stream|width=64|height=48|avg_frame_rate=25/1|time_base=1/25'"
PACKETS = 'i=0; while [ $i -lt 8 ]; do echo "packet|pts=$i|duration=1|flags=K__"; i=$((i+1)); done'
PROGRAMS = {
    "missing": (None, (1,)),
    "not-executable": ("not a program", (1,)),
    "fails": ("echo no such codec >&2; exit 1", (1,)),
    "says-nothing": ("exit 0", (1,)),
    "dies": ("kill -SEGV $$", (1,)),
    "lists-without-end": ("yes 'packet|pts=1|duration=1|flags=K__'", (1,)),
    "line-without-end": ("cat /dev/zero", (1,)),
    "lists-garbage": ("head -c 100000 /dev/urandom", (1,)),
    "width-0": ("echo 'stream|width=0|height=0|avg_frame_rate=1/1|time_base=1/1'; " + PACKETS, (1,)),
    "width-2-31": (
        "echo 'stream|width=2147483647|height=2147483647|avg_frame_rate=1/1|time_base=1/1'; " + PACKETS,
        (1,),
    ),
    "rate-0": ("echo 'stream|width=64|height=48|avg_frame_rate=0/0|time_base=0/0'; " + PACKETS, (1,)),
    "times-of-2-63": (
        LISTED + "; echo 'packet|pts=9223372036854775807|duration=9223372036854775807|flags=K__';"
        " echo 'packet|pts=-9223372036854775808|duration=1|flags=K__'",
        (1,),
    ),
    "frames-missing": (LISTED + "; " + PACKETS, (1,)),
    "frames-of-lies": (
        'case "$0" in *ffprobe) ' + LISTED + "; " + PACKETS + ";; *) printf 'P6\\n99999999 99999999\\n255\\n';; esac",
        (1,),
    ),
    "frames-without-end": ('case "$0" in *ffprobe) ' + LISTED + "; " + PACKETS + ";; *) yes P6;; esac", (1,)),
    "frames-of-zeros": ('case "$0" in *ffprobe) ' + LISTED + "; " + PACKETS + ";; *) cat /dev/zero;; esac", (1,)),
}


def add_program(name, script, codes):
    def play(desk):
        tools = desk.path("bin")
        tools.mkdir()
        for tool in ("ffprobe", "ffmpeg"):
            if script is not None:
                path = desk.file(f"bin/{tool}", f"#!/bin/sh\n{script}\n" if name != "not-executable" else script)
                path.chmod(0o644 if name == "not-executable" else 0o755)
        for tool in ("sh", "yes", "cat", "head", "sleep", "kill", "echo"):
            os.symlink(shutil.which(tool) or "/bin/true", tools / tool)
        outcome = desk.watch(desk.file("a.mp4", b"\0\0\0\x18ftypmp42" + bytes(99)), env={"PATH": str(tools)}).expect(
            *codes
        )
        outcome.says("a.mp4" if script is not None and name != "not-executable" else "ffmpeg")

    AREA.add(f"ffmpeg-{name}", play)


for program, (text, allowed) in PROGRAMS.items():
    add_program(program, text, allowed)


def add_stuck(name, script):
    """A film may take ten minutes, so a program that never ends is only left by a signal, in good order."""

    def play(desk):
        for tool in ("ffprobe", "ffmpeg"):
            desk.file(f"bin/{tool}", f"#!/bin/sh\n{script}\n").chmod(0o755)
        film = desk.file("a.mp4", b"\0\0\0\x18ftypmp42" + bytes(99))
        started = desk.start(
            "generate",
            "--model",
            desk.world.model,
            "--prompt",
            "x",
            "--video",
            film,
            env={"PATH": str(desk.folder / "bin")},
        )
        started.after(3, signal.SIGINT).wait().stopped_by(signal.SIGINT).within(seconds=10, megabytes=500)

    AREA.add(f"ffmpeg-{name}", play)


add_stuck("hangs", "exec /bin/sleep 1000")
add_stuck("complains-without-end", "exec /usr/bin/yes complaint >&2")
