"""Flags, and places to write to."""

import os
import signal

from harness import Area
from world import CONFIGS, SMALL

AREA = Area("commands")


def writers(desk, out, name=None):
    """Every command that writes, into `out`."""
    model, adapter = desk.world.model, desk.world.adapter
    all_of_them = {
        "init": ["init", "--config", SMALL],
        "convert": ["convert", "--model", model],
        "merge": ["merge", "--model", model, "--adapter", adapter],
        "trace": ["trace", "--model", model, "--prompt", "x"],
        "embed": ["embed", "--model", model, "--prompt", "x"],
    }
    return [[*words, "--out", out] for key, words in all_of_them.items() if name in (None, key)]


def add_out(name, make, codes=(1,), **how):
    for command in ("init", "convert", "merge", "trace", "embed"):

        def play(desk, command=command):
            out = make(desk)
            for words in writers(desk, out, command):
                desk.run(*words, **how).expect(*codes)

        AREA.add(f"out-{name}-{command}", play)


def full_folder(desk):
    desk.file("out/precious.txt", "x")
    return desk.folder / "out"


def loop(desk):
    desk.path("out").symlink_to("out")
    return desk.folder / "out"


def locked(desk):
    desk.path("locked").mkdir(mode=0o555)
    return desk.folder / "locked/out"


add_out("holds-something", full_folder)
# A file is moved into its place, whatever link was there.
add_out("link-loop", loop, codes=(0, 1))
add_out("below-a-file", lambda desk: desk.file("file", b"x") / "out")
add_out("long", lambda desk: desk.folder / ("x" * 300))
add_out("not-permitted", locked, unprivileged=True)
add_out("device", lambda desk: "/dev/full", codes=(0, 1))
add_out("proc", lambda desk: "/proc/out")
add_out("empty", lambda desk: "", codes=(1, 2))
add_out("missing-parents", lambda desk: desk.folder / "a/b/c", codes=(0, 1))


@AREA.case
def precious_files_stay(desk):
    for words in writers(desk, full_folder(desk)):
        desk.run(*words)
        if not (desk.folder / "out/precious.txt").exists():
            desk.blame(f"{words[0]} removed what was in --out", desk.outcomes[-1])


@AREA.case
def out_is_the_model(desk):
    model = desk.model()
    before = (model / "model.safetensors").read_bytes()
    for words in (
        ["convert", "--model", model],
        ["merge", "--model", model, "--adapter", desk.world.adapter],
        ["init", "--config", model],
    ):
        outcome = desk.run(*words, "--out", model).held()
        if outcome.code == 1 and (model / "model.safetensors").read_bytes() != before:
            outcome.blame("failed, and changed the model")


@AREA.case
def out_is_inside_the_model(desk):
    model = desk.model()
    desk.run("convert", "--model", model, "--out", model / "inner").held()


@AREA.case
def shard_sizes(desk):
    for size in (
        "0",
        "1",
        "-1",
        "1e99",
        "5 GB",
        "GB",
        "",
        "99999999999999999999GB",
        "18446744073709551615",
        "18446744073709551616",
        "16EiB",
        "nan",
        "0.0000001KB",
        "1B",
        "1KB",
        "½GB",
    ):
        out = desk.path(f"out-{len(desk.outcomes)}")
        desk.run("convert", "--model", desk.world.model, "--out", out, f"--shard-size={size}", outs=[out]).expect(
            0, 1, 2
        )


@AREA.case
def types(desk):
    for kind in ("f32", "bf16", "f16", "int4", "fp8", "", "F32", "float32", "f64", "auto"):
        desk.look(desk.world.image, f"--dtype={kind}").expect(0, 1, 2)


@AREA.case
def backends(desk):
    for backend in (
        "auto",
        "cpu",
        "cpu:0",
        "cpu:7",
        "cuda",
        "cuda:99",
        "wgpu",
        "gpu",
        "tpu",
        "",
        ":",
        "cuda:",
        "cuda:-1",
        "cuda:18446744073709551616",
        "CPU",
    ):
        desk.look(desk.world.image, f"--backend={backend}").expect(0, 1, 2)


@AREA.case
def threads(desk):
    for threads in ("0", "1", "2", "64", "-1", "x", "", "1.5", "18446744073709551616"):
        desk.look(desk.world.image, f"--threads={threads}").expect(0, 1, 2)


@AREA.case
def threads_beyond_the_machine(desk):
    # The error names what ran out.
    for threads in ("100000", "18446744073709551615"):
        desk.look(desk.world.image, f"--threads={threads}").expect(0, 1, 2).avoids(
            "error: Resource temporarily unavailable (os error 11)"
        )


SAMPLING = {
    "--temperature": ["0", "1e-300", "1e300", "nan", "inf", "-1", "x", ""],
    "--top-p": ["0", "1", "2", "-1", "nan", "1e-300"],
    "--top-k": ["0", "1", "-1", "18446744073709551615", "18446744073709551616", "1.5"],
    "--min-p": ["0", "1", "2", "-1", "nan"],
    "--repetition-penalty": ["0", "-1", "1e300", "1e-300", "nan", "inf"],
    "--seed": ["0", "-1", "18446744073709551615", "18446744073709551616", "x"],
    "--max-new-tokens": ["0", "-1", "1", "18446744073709551615", "18446744073709551616", "x"],
    "--stop": ["", " ", "\n", "x" * 100_000, "é"],
    "--thinking": ["on", "off", "maybe", ""],
}
for flag, values in SAMPLING.items():

    def sampled(desk, flag=flag, values=values):
        for value in values:
            limits = [] if flag == "--max-new-tokens" else ["--max-new-tokens", 3]
            desk.run(
                "generate",
                "--model",
                desk.world.fresh,
                "--prompt",
                "x",
                "--temperature=1" if flag != "--temperature" else "-q",
                *limits,
                f"{flag}={value}",
            ).expect(0, 1, 2)

    AREA.add(f"sampling{flag[1:]}", sampled)


@AREA.case
def greedy_with_temperature(desk):
    desk.generate("--prompt", "x", "--greedy", "--temperature", 2).expect(0, 1, 2)


@AREA.case
def many_stops(desk):
    desk.generate(
        "--prompt", "x", *(word for number in range(3000) for word in ("--stop", f"s{number}")), tokens=20
    ).accepted()


@AREA.case
def wrong_usage(desk):
    for words in (
        [],
        ["--no-such-flag"],
        ["no-such-command"],
        ["generate"],
        ["generate", "--model"],
        ["train"],
        ["eval", "--model", "x"],
        ["generate", "--model", "a", "--model", "b", "--prompt", "x"],
        ["init", "--out", "x"],
        ["train", "a", "b"],
        ["--threads"],
        [""],
        ["help", "nothing"],
        ["generate", "--model", "a", "--prompt", "x", "--messages", "y"],
        [b"\xff\xfe"],
        ["-" * 9999],
        ["serve"],
        ["-vvvv", "-q"],
    ):
        desk.run(*words).expect(2, 1)


@AREA.case
def help_and_version(desk):
    desk.run("--help").accepted()
    desk.run("--version").accepted()
    for command in ("train", "generate", "eval", "init", "embed", "convert", "merge", "trace", "info"):
        desk.run(command, "--help").accepted()


@AREA.case
def info_of_sizes(desk):
    giant = 2**63
    for words in (
        ["--batch-size", giant],
        ["--seq-len", giant],
        ["--max-new-tokens", giant],
        ["--lora-rank", giant],
        ["--batch-size", giant, "--seq-len", giant],
        ["--batch-size", 0],
        ["--seq-len", 0],
        ["--max-new-tokens", 0],
        ["--lora-rank", 0],
        ["--seq-len", 2**64],
        ["--image-size", "0x0"],
        ["--image-size", "99999999999x99999999999"],
        ["--image-size", "4294967295x4294967295"],
        ["--image-size", "x"],
        ["--image-size", "1x1"],
        ["--image-size", "-1x5"],
        ["--image-size", "10000x1"],
        ["--image-size", "none"],
        ["--image-size", ""],
        ["--max-new-tokens", 4000, "--seq-len", 10],
        ["--batch-size", 2**32, "--seq-len", 2**32],
        ["--lora-rank", 2**40, "--batch-size", 2**40],
    ):
        desk.run("info", "--model", desk.world.model, *words).expect(0, 1, 2)


@AREA.case
def info_of_published_sizes(desk):
    for config in sorted(CONFIGS.iterdir()):
        if config.is_dir():
            desk.run("info", "--model", config, "--batch-size", 10**6, "--seq-len", 10**6, "--json").expect(0, 1)


@AREA.case
def init_of_giants(desk):
    # Hundreds of gigabytes are to be written: refused, or stopped by the disk or by Ctrl-C; nothing stays.
    for name in ("glm-4.5v", "glm-4.1v-9b-thinking"):
        out = desk.path(name)
        started = desk.start("init", "--config", CONFIGS / name, "--out", out, "--dtype", "bf16", outs=[out])
        started.after(4, signal.SIGINT).wait().expect(0, 1, 130).within(megabytes=4096)


@AREA.case
def long_answers(desk):
    desk.generate("--prompt", "x", model=desk.world.fresh, tokens=2**40).accepted()


@AREA.case
def traces(desk):
    for words in (
        ["--max-new-tokens", 5],
        ["--activations"],
        ["--max-new-tokens", 2**63],
        ["--image", desk.world.image, "--activations"],
        ["--image", "no/such"],
        ["--thinking", "on"],
    ):
        out = desk.path(f"out-{len(desk.outcomes)}")
        desk.run("trace", "--model", desk.world.model, "--prompt", "x", "--out", out, *words, outs=[out]).expect(
            0, 1, 2
        )


@AREA.case
def published_names_without_a_network(desk):
    # The models are on the hub; a name that is not in the cache is answered with how to get it.
    outcome = desk.look(desk.world.image, model="zai-org/GLM-4.1V-9B-Thinking").refused("zai-org/GLM-4.1V-9B-Thinking")
    if "download" not in outcome.stderr:
        outcome.blame("does not say how to download a published model")


@AREA.case
def special_letters_in_paths(desk):
    for name in ("a b", "ü", "a\nb", "'\"", "%s{}", "\x1b[31m", "--x", "a:b", "*", "\u202e"):
        model = desk.copy(desk.world.model, name)
        desk.look(desk.world.image, model=model).accepted()
        desk.look(desk.world.image, model=f"{model}-gone").refused()


@AREA.case
def model_is_read_only(desk):
    model = desk.model()
    for path in model.iterdir():
        path.chmod(0o444)
    model.chmod(0o555)
    desk.look(desk.world.image, model=model, unprivileged=True).accepted()
    model.chmod(0o755)


@AREA.case
def links_to_everything(desk):
    model = desk.path("model")
    model.mkdir()
    for path in desk.world.model.iterdir():
        os.symlink(path, model / path.name)
    desk.look(desk.world.image, model=model).accepted()
