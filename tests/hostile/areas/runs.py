"""Training: hostile configs, run folders that are not what they were, checkpoints that broke."""

import json
import os
import shutil
import signal
import struct

import forge
import mutate
from harness import Area
from world import SMALL

AREA = Area("runs")

# Every key, with values that are no good for most of them.
KEYS = {
    "model": ["path", "init", "freeze"],
    "lora": [
        "adapter_path",
        "target_modules",
        "target_parameters",
        "exclude_modules",
        "modules_to_save",
        "r",
        "lora_alpha",
        "lora_dropout",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
    ],
    "data": [
        "dir",
        "media_dir",
        "train",
        "batch_size",
        "max_length",
        "on_long",
        "batch_order",
        "workers",
        "on_bad",
    ],
    "optim": ["lr", "betas", "eps", "weight_decay", "max_grad_norm", "router_aux_loss_coef"],
    "schedule": ["type", "warmup_steps", "epochs"],
    "eval": ["data", "steps", "batch_size", "max_new_tokens", "log_samples"],
    "run": ["seed", "save_steps", "save_total_limit"],
}
VALUES = [
    "-1",
    "0",
    "1",
    "1.5",
    "1e300",
    "-1e300",
    "nan",
    "inf",
    "9223372036854775807",
    "9223372036854775808",
    '""',
    '"x"',
    "[]",
    "[1, 2, 3]",
    '["q_proj"]',
    "{}",
    "{a = 1}",
    "true",
    "1979-05-27",
    '"../../.."',
    '"/dev/zero"',
    '"\\u0000"',
]


def add_values(section, key):
    """A config file for each of five values, drawn by chance."""

    def play(desk):
        for value in desk.random.sample(VALUES, 5):
            inner = f"{section}.{key}"
            config = desk.file(f"{len(desk.outcomes)}.toml", f"{inner} = {value}\n")
            arguments = desk.training(config=config, run=f"run-{len(desk.outcomes)}")
            desk.run(*without_setting(arguments, inner)).expect(0, 1)

    AREA.add(f"key-{section}.{key}", play)


def without_setting(arguments, key):
    """The flags without one that would win over the file."""
    kept = []
    for argument in arguments:
        if str(argument).startswith(f"{key}="):
            kept.pop()
        else:
            kept.append(argument)
    return kept


for section, names in KEYS.items():
    for name in names:
        add_values(section, name)


@AREA.case
def steps_that_never_end(desk):
    for steps in (10**12, 2**63 - 1):
        started = desk.start(*desk.training(f"schedule.max_steps={steps}", run=f"run-{steps}"))
        started.after(2.5, signal.SIGINT).wait().stopped_by(signal.SIGINT)


@AREA.case
def epochs_that_never_end(desk):
    for epochs in ("1e15", "1e300", "nan", "-1", "0"):
        started = desk.start(*desk.training("schedule.max_steps=0", f"schedule.epochs={epochs}", run=f"run-{epochs}"))
        started.after(2.5, signal.SIGINT).wait().expect(1, 130)


# TOML that is none.
def add_toml(name, content, *words, codes=(1,)):
    def play(desk):
        made = content() if callable(content) else content
        outcome = desk.train(config=desk.file("a.toml", made)).expect(*codes)
        if outcome.code == 1:
            outcome.says(*(words or ("a.toml",)))

    AREA.add(f"toml-{name}", play)


add_toml("empty", "", codes=(0,))
add_toml("byte-order-mark", "\ufeff[optim]\nlr = 1e-3\n", codes=(0, 1))
add_toml("utf-16", "[optim]\nlr = 1e-3\n".encode("utf-16"))
add_toml("binary", bytes(range(256)))
add_toml("nul", b"[optim]\0")
add_toml(
    "yaml-of-another-tool", "model_name_or_path: zai-org/GLM-4.1V-9B-Thinking\nstage: sft\nfinetuning_type: lora\n"
)
add_toml("json", '{"model": {"folder": "x"}}')
add_toml("duplicate-section", "[optim]\n[optim]\n")
add_toml("duplicate-key", "[optim]\nlr = 1\nlr = 2\n")
add_toml("section-as-value", "optim = 5\n", codes=(1,))
add_toml("section-as-list", "[[optim]]\nlr = 1\n")
add_toml("key-unknown", "[optim]\nlearning_rate = 1\n", "learning_rate")
add_toml("section-unknown", "[trainer]\nx = 1\n", "trainer")
add_toml("deep-list", lambda: "a = " + "[" * 100_000 + "]" * 100_000)
add_toml("deep-tables", lambda: "a = " + "{a=" * 20_000 + "1" + "}" * 20_000)
add_toml("deep-keys", lambda: "[" + "a." * 100_000 + "a]\nb = 1\n")
add_toml("dotted-deep", lambda: "optim." + "a." * 100_000 + "b = 1\n")
add_toml("comment-of-50-mb", lambda: "# " + "x" * (50 << 20) + "\n", codes=(0, 1))
add_toml("million-keys", lambda: "[optim]\n" + "".join(f"k{number} = 1\n" for number in range(300_000)))
add_toml("string-never-ends", '[run]\noutput_dir = """' + "x" * 100_000)
add_toml("number-of-digits", "[optim]\nlr = 0." + "1" * 100_000 + "\n", codes=(0, 1))
add_toml("key-of-a-later-release", '[memory]\nrecompute = "all"\n', "memory")


@AREA.case
def config_is_no_file(desk):
    for path in ("no/such.toml", desk.folder, "", "/proc/self/mem"):
        desk.run("train", path).expect(1, 2)
    desk.run("train", "/dev/zero").refused("/dev/zero").within(megabytes=1000)
    desk.run("train", "/dev/null").refused()


@AREA.case
def config_is_a_fifo(desk):
    os.mkfifo(desk.path("a.toml"))
    desk.run("train", desk.path("a.toml"), seconds=20).refused("a.toml")


@AREA.case
def settings_deep(desk):
    desk.train("a." * 50_000 + "b=1").refused()
    desk.train("optim." + "a." * 30_000 + "b=1").refused()
    desk.train("optim.lr=" + "[" * 100_000).refused()
    desk.train("optim.lr=" + "{a=" * 20_000 + "1" + "}" * 20_000).refused()


@AREA.case
def settings_that_are_none(desk):
    for setting in (
        "",
        "=",
        "a",
        ".=1",
        "optim..lr=1",
        "optim.lr",
        "optim=1",
        "optim.lr.x=1",
        "run.output_dir=\0".replace("\0", "\x01"),
        "data.train=\n",
        "optim.lr=1\nrun.seed=5",
        "model.freeze_vision_tower=true",
    ):
        desk.train(setting).expect(0, 1)


# LoRA sections.
@AREA.case
def lora_rank_without_targets_is_lora(desk):
    for setting in ("lora.r=4", "lora.lora_alpha=8", "lora.lora_dropout=0.1", "lora.use_rslora=true"):
        outcome = desk.train(setting, run=setting).held()
        if outcome.code == 0 and "633,280 of 633,280" in outcome.stderr:
            outcome.blame(f"{setting} trains all weights without a word")


for name, settings in {
    "all-linear": ["lora.target_modules=all-linear", "lora.r=4"],
    "modules-to-save-alone": ["lora.modules_to_save=['lm_head']"],
    "targets-empty": ["lora.target_modules=[]", "lora.r=4"],
    "targets-of-nothing": ["lora.target_modules=['no_such_proj']"],
    "targets-number": ["lora.target_modules=5"],
    "targets-broken-pattern": ["lora.target_modules='('"],
    "targets-slow-pattern": ["lora.target_modules='(a+)+(b+)+((.*)*)*$'"],
    "targets-giant-pattern": ["lora.target_modules='((a{1000}){1000}){1000}'"],
    "targets-everything": ["lora.target_modules='.*'"],
    "targets-a-norm": ["lora.target_modules=['norm']"],
    "targets-twice": ["lora.target_modules=['q_proj', 'q_proj', 'self_attn.q_proj']"],
    "exclude-everything": ["lora.target_modules=all-linear", "lora.exclude_modules='.*'"],
    "save-what-is-adapted": ["lora.target_modules=['lm_head']", "lora.modules_to_save=['lm_head']"],
    "save-nothing": ["lora.target_modules=['q_proj']", "lora.modules_to_save=['no_such']"],
    "experts-without-experts": ["lora.target_parameters=['mlp.experts.gate_up_proj']"],
    "rank-0": ["lora.target_modules=all-linear", "lora.r=0"],
    "rank-65536": ["lora.target_modules=['q_proj']", "lora.r=65536"],
    "rank-pattern-0": ["lora.target_modules=['q_proj']", "lora.rank_pattern={q_proj = 0}"],
    "rank-pattern-of-nothing": ["lora.target_modules=['q_proj']", "lora.rank_pattern={x_proj = 4}"],
    "rank-pattern-broken": ["lora.target_modules=['q_proj']", "lora.rank_pattern={'(' = 4}"],
    "rank-pattern-giant": ["lora.target_modules=['q_proj']", "lora.rank_pattern={q_proj = 1000000000000}"],
    "alpha-pattern-nan": ["lora.target_modules=['q_proj']", "lora.alpha_pattern={q_proj = nan}"],
    "alpha-tiny": ["lora.target_modules=['q_proj']", "lora.lora_alpha=1e-300"],
    "alpha-giant": ["lora.target_modules=['q_proj']", "lora.lora_alpha=1e300"],
    "dropout-almost-1": ["lora.target_modules=['q_proj']", "lora.lora_dropout=0.9999999999999999"],
    "with-frozen": ["lora.target_modules=['q_proj']", "model.freeze=['vision']"],
    "with-fresh": ["lora.target_modules=['q_proj']", "model.init=random"],
    "adapter-missing": ["lora.adapter_path=no/such"],
    "adapter-empty": ["lora.adapter_path=''", "lora.r=4"],
}.items():
    AREA.add(f"lora-{name}", lambda desk, settings=settings: desk.train(*settings).expect(0, 1))


@AREA.case
def lora_goes_on_from_an_adapter(desk):
    desk.train(f"lora.adapter_path={desk.world.adapter}").accepted()
    desk.train(f"lora.adapter_path={desk.world.adapter}", "lora.r=64", run="other").held()
    desk.train(f"lora.adapter_path={desk.world.model}", run="model").refused()


# Numbers that break.
@AREA.case
def broken_weights_are_not_saved(desk):
    for setting in ("optim.lr=1e300", "optim.weight_decay=1e300", "optim.lr=1e38"):
        outcome = desk.train(setting, "schedule.max_steps=1", run=setting).held()
        if outcome.code == 0 and is_broken(desk.folder / setting / "final/model.safetensors"):
            outcome.blame("saves weights that are not numbers, with exit code 0")


def is_broken(path):
    tensors = forge.read_safetensors(path.read_bytes())
    return any(value != value for _, _, raw in tensors.values() for value in struct.unpack(f"<{len(raw) // 4}f", raw))


# A bad evaluation must not cost the run.
@AREA.case
def evaluation_fails_at_its_first_record(desk):
    data = desk.file(
        "bad.jsonl",
        json.dumps(
            {
                "messages": [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "x"}],
                "images": [str(desk.file("a.png", b"x"))],
            }
        ),
    )
    outcome = desk.train(f"eval.data={data}", "schedule.max_steps=5").refused("a.png")
    trained = (desk.folder / "run/metrics.jsonl").exists() and (desk.folder / "run/metrics.jsonl").read_text()
    saved = (desk.folder / "run/final").exists() or any((desk.folder / "run").glob("checkpoints/step-*"))
    if trained and not saved:
        outcome.blame("trained, and lost it all to the evaluation")


# Run folders.
@AREA.case
def folder_holds_a_run(desk):
    desk.train().accepted()
    desk.train().refused("run")


@AREA.case
def folder_is_no_folder(desk):
    for folder in (
        desk.file("file", b""),
        "/dev/null",
        "/proc/1/x",
        "/dev/null/x",
        desk.file("parent", b"") / "run",
        "",
    ):
        desk.train(f"run.output_dir={folder}").expect(0 if folder == "" else 1, 1)


@AREA.case
def folder_is_a_link_loop(desk):
    desk.path("run").symlink_to("run")
    desk.train().refused("run")


@AREA.case
def folder_is_the_model(desk):
    model = desk.model()
    desk.train(f"model.path={model}", f"run.output_dir={model}").held()


@AREA.case
def folder_is_not_permitted(desk):
    desk.path("parent").mkdir(mode=0o555)
    desk.train(run="parent/run", unprivileged=True).refused("parent")


@AREA.case
def folder_is_long(desk):
    desk.train("run.output_dir=" + str(desk.folder / ("x" * 300))).refused()
    desk.train("run.output_dir=" + str(desk.folder) + "/x" * 3000).refused()


@AREA.case
def folder_has_odd_letters(desk):
    for name in ("a b", "ü", "a\nb", "'\"", "%s", "--x", "a=b", "{x}", "*"):
        desk.train(run=name).accepted()


@AREA.case
def folder_vanishes(desk):
    started = desk.start(*desk.training("schedule.max_steps=100000", "run.save_steps=50"))
    metrics = desk.folder / "run/metrics.jsonl"
    started.when(metrics.exists)
    shutil.rmtree(desk.folder / "run", ignore_errors=True)
    started.after(3, signal.SIGINT).wait().expect(1, 130)


# Resume.
def stopped_run(desk):
    """A run with checkpoints at 20 and 40 of 60 steps, and no final weights."""
    run = desk.copy(desk.world.run, "run")
    shutil.rmtree(run / "final")
    shutil.rmtree(run / "checkpoints/step-60", ignore_errors=True)
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace(str(desk.world.run), str(run)))
    kept = (run / "metrics.jsonl").read_text().splitlines(keepends=True)[:45]
    (run / "metrics.jsonl").write_text("".join(kept))
    return run


def resuming(desk, *settings, flags=(), **how):
    return desk.train(
        f"model.path={SMALL}",
        "model.init=random",
        "optim.lr=2e-3",
        "data.batch_size=16",
        "schedule.max_steps=60",
        "run.save_steps=20",
        *settings,
        extra=["--resume", *flags],
        **how,
    )


@AREA.case
def resume_goes_on(desk):
    stopped_run(desk)
    resuming(desk).accepted()


@AREA.case
def resume_without_a_run(desk):
    resuming(desk).refused()


@AREA.case
def resume_advice_helps(desk):
    # What the error proposes must not be what was just tried.
    desk.train("schedule.max_steps=2").accepted()
    outcome = desk.train("schedule.max_steps=4", extra=["--resume"]).held()
    if outcome.code == 1 and "a higher schedule.max_steps lets it go on" in outcome.stderr:
        outcome.blame("advises a higher schedule.max_steps, which was just given")


for name, settings in {
    "batch-size": ["data.batch_size=8"],
    "learning-rate": ["optim.lr=1"],
    "betas": ["optim.betas=[0.5, 0.5]"],
    "frozen": ["model.freeze=['vision']"],
    "fewer-steps": ["schedule.max_steps=10"],
    "seed": ["run.seed=7"],
    "lora": ["lora.target_modules=all-linear"],
    "schedule": ["schedule.type=constant"],
    "decay": ["optim.weight_decay=0.5"],
    "max-length": ["data.max_length=200"],
    "clip": ["optim.max_grad_norm=0.1"],
}.items():

    def resume_with(desk, settings=settings):
        # A change is refused, or said.
        stopped_run(desk)
        outcome = resuming(desk, *settings).held()
        if outcome.code == 0 and settings[0].split("=")[0] not in outcome.stderr:
            outcome.blame(f"goes on with {settings[0]} without a word")

    AREA.add(f"resume-with-another-{name}", resume_with)


@AREA.case
def resume_with_another_type(desk):
    stopped_run(desk)
    outcome = resuming(desk, flags=["--dtype", "bf16"]).held()
    if outcome.code == 0 and "bf16" not in outcome.stderr:
        outcome.blame("goes on in another type without a word")


@AREA.case
def resume_with_reordered_data(desk):
    stopped_run(desk)
    lines = desk.world.data.read_text().splitlines(keepends=True)
    data = desk.file("reordered.jsonl", "".join(reversed(lines)))
    outcome = resuming(desk, f"data.train={data}").held()
    if outcome.code == 0 and "data" not in outcome.stderr.replace("data.train", ""):
        outcome.blame("goes on with other data without a word")


@AREA.case
def resume_with_more_data(desk):
    stopped_run(desk)
    text = desk.world.data.read_text()
    resuming(desk, f"data.train={desk.file('more.jsonl', text + text)}").refused()


CHECKPOINT = "checkpoints/step-40"
for name, file, change in [
    ("weights-cut", "model.safetensors", lambda raw: raw[:1000]),
    ("weights-empty", "model.safetensors", lambda raw: b""),
    ("weights-gone", "model.safetensors", lambda raw: None),
    ("optimizer-cut", "optimizer.safetensors", lambda raw: raw[: len(raw) // 2]),
    ("optimizer-gone", "optimizer.safetensors", lambda raw: None),
    ("optimizer-of-nothing", "optimizer.safetensors", lambda raw: forge.safetensors({})),
    ("state-cut", "trainer.json", lambda raw: raw[:20]),
    ("state-empty", "trainer.json", lambda raw: b""),
    ("state-gone", "trainer.json", lambda raw: None),
    ("state-list", "trainer.json", lambda raw: b"[]"),
]:

    def damaged(desk, file=file, change=change):
        # The older checkpoint beside it is whole, and the error says so.
        run = stopped_run(desk)
        path = run / CHECKPOINT / file
        new = change(path.read_bytes())
        path.unlink() if new is None else path.write_bytes(new)
        outcome = resuming(desk).held(file)
        if outcome.code == 1:
            outcome.says("step-20")

    AREA.add(f"checkpoint-{name}", damaged)


@AREA.case
def checkpoint_state_lies(desk):
    run = stopped_run(desk)
    path = run / CHECKPOINT / "trainer.json"
    state = json.loads(path.read_text())
    for place, value in [
        (("step",), 2**63),
        (("step",), -1),
        (("step",), 0),
        (("step",), 10**9),
        (("steps",), 0),
        (("sampler", "position"), 2**63),
        (("sampler", "position"), 10**6),
        (("sampler", "epoch"), 2**64 - 1),
        (("sampler", "len"), 0),
        (("sampler", "order"), "x"),
        (("sampler",), None),
        (("sampler", "seed"), -1),
        (("version",), 5),
    ]:
        path.write_text(json.dumps(mutate.replaced(state, place, value)))
        resuming(desk).expect(0, 1)
        shutil.rmtree(run)
        stopped_run(desk)


@AREA.case
def checkpoint_names(desk):
    run = stopped_run(desk)
    for name in ("step-abc", "step-99999999999999999999999", "step--1", "step-", "step-60 (copy)", "step-1e9", "notes"):
        (run / "checkpoints" / name).mkdir()
    resuming(desk).held()


@AREA.case
def checkpoint_of_the_future(desk):
    run = stopped_run(desk)
    (run / "checkpoints/step-18446744073709551615").mkdir()
    resuming(desk).refused("18446744073709551615")


@AREA.case
def checkpoint_is_a_file(desk):
    run = stopped_run(desk)
    (run / "checkpoints/step-50").write_text("x")
    resuming(desk).refused("step-50")


@AREA.case
def checkpoint_is_a_loop(desk):
    run = stopped_run(desk)
    (run / "checkpoints/step-50").symlink_to("step-50")
    resuming(desk).refused("step-50")


for name, change in {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_text(""),
    "torn": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "garbage": lambda path: path.write_bytes(bytes(range(256))),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "numbers": lambda path: path.write_text("5\n" * 99),
    "too-short": lambda path: path.write_text(path.read_text().splitlines()[0] + "\n"),
    "one-long-line": lambda path: path.write_text("x" * (20 << 20)),
    "link-to-full": lambda path: (path.unlink(), path.symlink_to("/dev/full")),
    "link-to-zero": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "fifo": lambda path: (path.unlink(), os.mkfifo(path)),
}.items():

    def metrics(desk, change=change):
        change(stopped_run(desk) / "metrics.jsonl")
        resuming(desk, seconds=30).expect(0, 1)

    AREA.add(f"metrics-{name}", metrics)


@AREA.case
def leftovers_are_removed(desk):
    run = stopped_run(desk)
    (run / "checkpoints/.step-60.999999.partial").mkdir()
    (run / ".final.999999.partial").mkdir()
    resuming(desk).accepted()


@AREA.case
def lock_left_by_a_dead_run(desk):
    # Whatever the lock is called: a run that was killed must not keep its folder for ever.
    desk.partial_is_allowed = True
    run = stopped_run(desk)
    started = desk.start(
        *desk.training(
            f"model.path={SMALL}",
            "model.init=random",
            "optim.lr=2e-3",
            "data.batch_size=16",
            "schedule.max_steps=60000",
            "run.save_steps=20",
            extra=["--resume"],
        )
    )
    lines = lambda: (run / "metrics.jsonl").read_text().count("\n")  # noqa: E731
    before = lines()
    started.when(lambda: lines() > before + 3)
    started.send(signal.SIGKILL)
    started.wait().expect(-signal.SIGKILL)
    resuming(desk).accepted()


def folder_entry(make):
    def play(desk):
        run = stopped_run(desk)
        for name in (".lock", "lock", "run.lock", ".glm4v.lock"):
            (run / name).unlink(missing_ok=True)
            make(run / name)
        resuming(desk, seconds=30).expect(0, 1)

    return play


AREA.add("lock-is-a-folder", folder_entry(lambda path: path.mkdir()))
AREA.add("lock-is-a-loop", folder_entry(lambda path: path.symlink_to(path.name)))
AREA.add("lock-is-a-fifo", folder_entry(os.mkfifo))


@AREA.case
def order_files(desk):
    for content in (
        "",
        "[]",
        "[[]]",
        "[[0]]",
        "[[0, 0, 0, 0], [99999, 1, 2, 3]]",
        "[[-1]]",
        "[[1.5]]",
        "[" * 50_000,
        "{}",
        b"\xff",
        "[[9223372036854775808]]",
    ):
        desk.train(f"data.batch_order={desk.file('o.json', content)}", run=f"run-{len(desk.outcomes)}").expect(0, 1)
    desk.train("data.batch_order=/dev/zero", run="zero").refused("/dev/zero").within(megabytes=1000)
    desk.train(f"data.batch_order={desk.folder}", run="folder").refused()


# Damage by chance.
CONFIG = f"""[model]
path = "{SMALL}"
init = "random"
freeze = ["vision"]

[lora]
target_modules = ["q_proj", "v_proj"]
r = 4
lora_alpha = 8.0
rank_pattern = {{ q_proj = 2 }}

[data]
batch_size = 4
max_length = 300
on_long = "drop"
workers = 1

[optim]
lr = 1e-3
betas = [0.9, 0.95]

[schedule]
type = "cosine"
max_steps = 1

[eval]
log_samples = 2

[run]
seed = 0
"""
WORDS = [
    "nan",
    "-1",
    '"',
    "[",
    "]",
    "{",
    "}",
    "=",
    "lr = 5",
    "[optim]",
    "[[data]]",
    "'''",
    "1e999",
    "true",
    "\\u0000",
    "#",
    ".",
    "full",
    "0x",
    "inf",
    ",",
]


def odd_config(desk):
    desk.train(config=desk.file("a.toml", mutate.odd_text(desk.random, CONFIG, WORDS))).expect(0, 1)


def odd_state(desk):
    run = stopped_run(desk)
    file = desk.random.choice(["trainer.json", "optimizer.safetensors", "model.safetensors", "config.json"])
    path = run / CHECKPOINT / file
    raw = path.read_bytes()
    path.write_bytes(
        mutate.odd_json(desk.random, json.loads(raw)).encode()
        if file == "trainer.json"
        else mutate.damage(desk.random, raw)
    )
    resuming(desk).expect(0, 1)


for number in range(15):
    AREA.add(f"odd-config-{number:02}", odd_config)
    AREA.add(f"odd-checkpoint-{number:02}", odd_state)
