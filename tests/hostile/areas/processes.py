"""Signals at all times, and several programs at once."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import time

from harness import Area

AREA = Area("processes")
SIGNALS = {"int": signal.SIGINT, "term": signal.SIGTERM, "hup": signal.SIGHUP}


def wide_model(desk):
    """A model that takes a while to write and to read: some 300 MB. The first case that needs it makes it; others wait."""
    model = desk.world.base / "wide"
    with open(desk.world.base / "wide.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not model.exists():
            desk.run("init", "--config", desk.world.wide_config, "--out", model).accepted()
    return model


def many_questions(desk):
    lines = desk.world.data.read_text().splitlines(keepends=True)
    return desk.file("many.jsonl", "".join(lines * 40))


LONG = {
    "train": lambda desk: desk.training("schedule.max_steps=100000", "run.save_steps=7"),
    "train-lora": lambda desk: desk.training(
        "schedule.max_steps=100000", "run.save_steps=7", "lora.target_modules=all-linear"
    ),
    "train-evaluating": lambda desk: desk.training(
        "schedule.max_steps=100000", "eval.steps=2", f"eval.data={many_questions(desk)}", "eval.batch_size=8"
    ),
    "eval": lambda desk: ["eval", "--model", desk.world.model, "--data", many_questions(desk)],
    "generate": lambda desk: [
        "generate",
        "--model",
        desk.world.fresh,
        "--prompt",
        "x",
        "--max-new-tokens",
        4000,
        "--temperature",
        1,
    ],
    "generate-template": lambda desk: [
        "generate",
        "--prompt",
        "x",
        "--model",
        desk.model(
            {"chat_template.jinja": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"}
        ),
    ],
    "init": lambda desk: ["init", "--config", desk.world.wide_config, "--out", desk.path("out")],
    "convert": lambda desk: ["convert", "--model", wide_model(desk), "--out", desk.path("out"), "--dtype", "bf16"],
    "merge": lambda desk: [
        "merge",
        "--model",
        desk.world.model,
        "--adapter",
        desk.world.adapter,
        "--out",
        desk.path("out"),
    ],
    "trace": lambda desk: [
        "trace",
        "--model",
        desk.world.fresh,
        "--prompt",
        "x",
        "--max-new-tokens",
        4000,
        "--out",
        desk.path("out"),
    ],
    "embed": lambda desk: ["embed", "--model", wide_model(desk), "--prompt", "x", "--out", desk.path("out")],
    "info": lambda desk: ["info", "--model", desk.world.model],
}
# Random times, by the command: most of what it does fits into this many seconds.
LASTS = {"generate-template": 0.3, "merge": 0.1, "info": 0.03, "init": 1.0, "convert": 1.0, "embed": 0.3}


def add_signal(command, name, number):
    def play(desk):
        started = desk.start(*LONG[command](desk), outs=[desk.folder / "out"])
        started.after(desk.random.uniform(0.01, LASTS.get(command, 2.0)), number)
        started.wait().stopped_by(number).within(seconds=15)

    AREA.add(f"{name}-{command}", play)


for command in LONG:
    for name, number in SIGNALS.items():
        add_signal(command, name, number)


@AREA.case
def signals_by_the_dozen(desk):
    # At any time of a run, whatever it writes: afterwards it goes on.
    for _ in range(12):
        started = desk.start(
            *desk.training(
                "schedule.max_steps=100000",
                "run.save_steps=3",
                extra=["--resume"] if list(desk.folder.glob("run/checkpoints/step-*")) else [],
            )
        )
        number = desk.random.choice(list(SIGNALS.values()))
        started.after(desk.random.uniform(0.05, 1.2), number).wait().stopped_by(number)
        if (desk.folder / "run").exists() and not list(desk.folder.glob("run/checkpoints/step-*")):
            shutil.rmtree(desk.folder / "run")


@AREA.case
def killed_by_the_dozen(desk):
    desk.partial_is_allowed = True
    for _ in range(10):
        resume = ["--resume"] if list(desk.folder.glob("run/checkpoints/step-*")) else []
        if not resume:
            shutil.rmtree(desk.folder / "run", ignore_errors=True)
        started = desk.start(*desk.training("schedule.max_steps=100000", "run.save_steps=2", extra=resume))
        started.after(desk.random.uniform(0.2, 1.0), signal.SIGKILL).wait().expect(-signal.SIGKILL)
    resumed = desk.start(*desk.training("schedule.max_steps=100000", "run.save_steps=2", extra=["--resume"]))
    resumed.after(2, signal.SIGINT).wait().stopped_by(signal.SIGINT)
    if list(desk.folder.rglob("*.partial")):
        desk.blame("leftovers of killed runs stay after a resume", desk.outcomes[-1])


for command in ("train", "eval", "generate", "convert"):

    def twice(desk, command=command):
        # The second one ends at once, whatever is being written; what that leaves goes with the next run.
        desk.partial_is_allowed = True
        started = desk.start(*LONG[command](desk))
        started.after(0.4, signal.SIGINT)
        started.after(0.45, signal.SIGINT)
        started.wait().stopped_by(signal.SIGINT).within(seconds=5)

    AREA.add(f"int-twice-{command}", twice)

for command in ("train", "generate", "eval"):

    def mixed(desk, command=command):
        started = desk.start(*LONG[command](desk))
        for wait, number in (
            (0.3, signal.SIGWINCH),
            (0.32, signal.SIGCONT),
            (0.35, signal.SIGTSTP),
            (0.5, signal.SIGCONT),
            (0.6, signal.SIGTERM),
            (0.61, signal.SIGINT),
            (0.62, signal.SIGHUP),
        ):
            started.after(wait, number)
        started.wait().expect(0, 130, 143, 129).within(seconds=15)

    AREA.add(f"signals-mixed-{command}", mixed)


@AREA.case
def reader_leaves_while_words_come(desk):
    reader, writer = os.pipe()
    started = desk.start(*LONG["generate"](desk), stdout=writer)
    started.after(0.3, signal.SIGCONT)
    os.close(reader)
    try:
        started.wait().expect(0, 1).within(seconds=30)
    finally:
        with contextlib.suppress(OSError):  # the run closed it
            os.close(writer)


@AREA.case
def stop_while_reading_a_long_prompt(desk):
    # One Ctrl-C is enough, soon, whatever is under way.
    data = desk.lines(
        "a.jsonl",
        [{"messages": [{"role": "user", "content": "word " * 2_000_000}, {"role": "assistant", "content": "x"}]}],
    )
    started = desk.start("eval", "--model", desk.world.model, "--data", data)
    started.after(2, signal.SIGINT).wait().expect(130, 1).within(seconds=20)


# Leftovers of a killed conversion.
@AREA.case
def leftovers_of_a_killed_conversion_are_removed(desk):
    desk.partial_is_allowed = True
    model, out = wide_model(desk), desk.path("out")
    for wait in (0.1, 0.25, 0.5):
        desk.start("convert", "--model", model, "--out", out, "--dtype", "bf16").after(
            wait, signal.SIGKILL
        ).wait().expect(-signal.SIGKILL, 0)
        shutil.rmtree(out, ignore_errors=True)
    last = desk.run("convert", "--model", model, "--out", out).accepted()
    left = [path.name for path in desk.folder.iterdir() if path.name.endswith(".partial")]
    if left:
        last.blame(f"left by killed conversions and never removed: {left}")


# Several at once.
def at_once(desk, commands, wait=0.0):
    started = []
    for words in commands:
        started.append(desk.start(*words))
        time.sleep(wait)
    return [one.wait() for one in started]


@AREA.case
def two_runs_in_one_folder(desk):
    for pause in (0.0, 0.05, 0.4):
        run = f"run-{pause}"
        first, second = at_once(desk, [desk.training("schedule.max_steps=150", run=run)] * 2, pause)
        one_wins(first, second)


def one_wins(first, second):
    if sorted((first.code, second.code)) != [0, 1]:
        second.blame(f"two runs in one folder end with {first.code} and {second.code}, needed 0 and 1")
    first.expect(0, 1)
    second.expect(0, 1)


@AREA.case
def resume_beside_the_running_run(desk):
    first = desk.start(*desk.training("schedule.max_steps=300", "run.save_steps=10"))
    first.when(lambda: list(desk.folder.glob("run/checkpoints/step-*")))
    second = desk.run(*desk.training("schedule.max_steps=300", "run.save_steps=10", "optim.lr=1e-9", extra=["--resume"]))
    outcome = first.wait()
    if (outcome.code, second.code) != (0, 1):
        second.blame(f"--resume beside the running run: {outcome.code} and {second.code}, needed 0 and 1")
    second.expect(0, 1)


@AREA.case
def three_conversions_to_one_folder(desk):
    for wait in (0.0, 0.02):
        out = desk.path(f"out-{wait}")
        outcomes = at_once(desk, [["convert", "--model", desk.world.model, "--out", out]] * 3, wait)
        if [outcome.code for outcome in outcomes].count(0) != 1:
            outcomes[-1].blame(
                f"three conversions to one folder end with {[outcome.code for outcome in outcomes]}, needed one 0"
            )
        desk.look(desk.world.image, model=out).accepted()


@AREA.case
def conversion_over_the_model_in_use(desk):
    model = desk.model()
    questions = many_questions(desk)
    evaluating = desk.start("eval", "--model", model, "--data", questions)
    time.sleep(0.05)
    os.truncate(model / "model.safetensors", 100)
    evaluating.after(1.5, signal.SIGINT).wait().expect(0, 1, 130)


@AREA.case
def weights_shrink_while_they_are_read(desk):
    for number in range(8):
        model = desk.copy(wide_model(desk), f"wide-{number}")
        reading = desk.start("generate", "--model", model, "--prompt", "x", "--max-new-tokens", 1)
        time.sleep(desk.random.uniform(0.005, 0.15))
        os.truncate(model / "model.safetensors", 1 << 20)
        reading.wait().expect(0, 1)
        shutil.rmtree(model)


@AREA.case
def data_changes_while_it_is_learned(desk):
    pictures = desk.path("pictures")
    shutil.copytree(desk.world.image.parent, pictures)
    records = [json.loads(line) for line in desk.world.data.read_text().splitlines()]
    for record in records:
        part = record["messages"][0]["content"][0]
        part["path"] = str(pictures / os.path.basename(part["path"]))
    data = desk.lines("data.jsonl", records)
    training = desk.start(*desk.training(f"data.train={data}", "schedule.max_steps=100000", "run.save_steps=5"))
    training.when(lambda: list(desk.folder.glob("run/checkpoints/step-*")))
    data.write_text("")
    shutil.rmtree(pictures)
    # Pictures are read when their batch comes: the run ends with a checkpoint, or goes on from what it has.
    training.after(4, signal.SIGINT).wait().expect(1, 130)


@AREA.case
def many_generate_at_once(desk):
    words = [
        "generate",
        "--model",
        desk.world.model,
        "--prompt",
        "x",
        "--image",
        desk.world.image,
        "--max-new-tokens",
        2,
    ]
    for outcome in at_once(desk, [words] * 12):
        outcome.accepted()


@AREA.case
def stopped_run_goes_on_number_for_number(desk):
    desk.train("schedule.max_steps=30", run="straight").accepted()
    started = desk.start(*desk.training("schedule.max_steps=30", "run.save_steps=1000"))
    metrics = desk.folder / "run/metrics.jsonl"
    started.when(lambda: metrics.exists() and metrics.read_text().count("\n") > 5)
    started.send(signal.SIGINT)
    if started.wait().stopped_by(signal.SIGINT).code != 0:
        desk.train("schedule.max_steps=30", extra=["--resume"]).accepted()
    straight, resumed = ((desk.folder / name / "final/model.safetensors").read_bytes() for name in ("straight", "run"))
    if straight != resumed:
        desk.blame("a run that was stopped and resumed ends with other weights", desk.outcomes[-1])
