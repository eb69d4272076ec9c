"""Adapters whose config, tensors and model disagree."""

import json
import os
import struct

import forge
import mutate
from harness import Area
from world import FIXTURES

AREA = Area("adapters")
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def ask(desk, adapter, **how):
    return desk.look(desk.world.image, "--adapter", adapter, **how)


def changed(desk, config=None, tensors=None, name="adapter"):
    changes = {}
    if config is not None:
        changes[CONFIG] = lambda raw: json.dumps(
            {key: value for key, value in {**json.loads(raw), **config}.items() if value is not ...}
        )
    if tensors is not None:
        changes[TENSORS] = tensors
    return desk.copy(desk.world.adapter, name, changes)


def add_config(name, config, codes=(1,), *words):
    """Loaded by generate and folded by merge: both decide alike."""

    def play(desk):
        adapter = changed(desk, config)
        asked = ask(desk, adapter).expect(*codes)
        out = desk.path("merged")
        merged = desk.run("merge", "--model", desk.world.model, "--adapter", adapter, "--out", out, outs=[out]).expect(
            *codes
        )
        if asked.code != merged.code:
            merged.blame(f"exit code {merged.code}, but generate with the same adapter has {asked.code}")
        if asked.code == 1:
            asked.says(*words)

    AREA.add(f"config-{name}", play)


add_config("rank-8-for-4", {"r": 8}, (1,), "r")
add_config("rank-2-for-4", {"r": 2}, (1,))
add_config("rank-0", {"r": 0})
add_config("rank-negative", {"r": -4})
add_config("rank-text", {"r": "4"})
add_config("rank-giant", {"r": 2**62})
add_config("rank-gone", {"r": ...}, (0, 1))
add_config("alpha-0", {"lora_alpha": 0}, (0, 1))
add_config("alpha-giant", {"lora_alpha": 1e300}, (0, 1))
add_config("alpha-text", {"lora_alpha": "x"})
add_config("alpha-negative", {"lora_alpha": -8}, (0, 1))
add_config("dropout-2", {"lora_dropout": 2}, (0, 1))
add_config("targets-fewer-than-tensors", {"target_modules": ["q_proj"]}, (1,))
add_config("targets-more-than-tensors", {"target_modules": "all-linear", "modules_to_save": ["lm_head"]}, (1,))
add_config("targets-of-nothing", {"target_modules": ["no_such"]})
add_config("targets-null", {"target_modules": None}, (0, 1))
add_config("targets-number", {"target_modules": 5})
add_config("targets-broken-pattern", {"target_modules": "("})
add_config("targets-slow-pattern", {"target_modules": "(a+)+(.*)*(b|b)*$"}, (0, 1))
add_config("targets-giant-pattern", {"target_modules": "((a{1000}){1000}){1000}"}, (1,))
add_config("modules-to-save-without-tensors", {"modules_to_save": ["lm_head"]}, (1,), "lm_head")
add_config("rank-pattern", {"rank_pattern": {"q_proj": 2}}, (1,))
add_config("rank-pattern-of-nothing", {"rank_pattern": {"zzz": 2}}, (0, 1))
add_config("rank-pattern-giant", {"rank_pattern": {"q_proj": 10**12}}, (1,))
add_config("rank-pattern-list", {"rank_pattern": []}, (0, 1))
add_config("alpha-pattern-nan", {"alpha_pattern": {"q_proj": "nan"}}, (1,))
add_config("dora", {"use_dora": True}, (1,), "dora")
add_config("bias-all", {"bias": "all"}, (1,), "bias")
add_config("fan-in-fan-out", {"fan_in_fan_out": True}, (1,))
add_config("another-method", {"peft_type": "LOHA"}, (1,), "LOHA")
add_config("method-gone", {"peft_type": ...}, (0, 1))
add_config("replication", {"layer_replication": [[0, 2]]}, (1,))
add_config("layers-to-transform", {"layers_to_transform": [0]}, (0, 1))
add_config("base-elsewhere", {"base_model_name_or_path": "../../../etc/passwd"}, (0, 1))
add_config("unknown-keys", {"a_key_of_next_year": 5}, (0, 1))
add_config("rslora", {"use_rslora": True}, (0,))


def add_tensors(name, change, codes=(1,), *words):
    def play(desk):
        adapter = changed(desk, tensors=change)
        asked = ask(desk, adapter).expect(*codes)
        out = desk.path("merged")
        desk.run("merge", "--model", desk.world.model, "--adapter", adapter, "--out", out, outs=[out]).expect(*codes)
        if asked.code == 1:
            asked.says(*words)

    AREA.add(f"tensors-{name}", play)


def rewritten(change):
    def rewrite(raw):
        tensors = forge.read_safetensors(raw)
        return forge.safetensors(change(tensors) or tensors)

    return rewrite


def first(tensors, part="lora_A"):
    return next(name for name in tensors if part in name)


def without(part):
    return lambda tensors: {name: value for name, value in tensors.items() if part not in name}


def all_numbers(value):
    return lambda tensors: {
        name: (kind, shape, struct.pack("<f", value) * (len(raw) // 4)) for name, (kind, shape, raw) in tensors.items()
    }


add_tensors("empty-file", lambda raw: b"")
add_tensors("cut", lambda raw: raw[: len(raw) // 2], (1,), TENSORS)
add_tensors("none", rewritten(lambda tensors: {"x": ("F32", [0], b"")}))
add_tensors("no-downs", rewritten(without("lora_A")), (1,))
add_tensors("no-ups", rewritten(without("lora_B")), (1,))
add_tensors(
    "one-missing",
    rewritten(lambda tensors: {name: value for name, value in tensors.items() if name != first(tensors)}),
    (1,),
)
add_tensors(
    "one-more",
    rewritten(
        lambda tensors: tensors.update({"base_model.model.no.such.lora_A.weight": ("F32", [4, 96], bytes(1536))})
    ),
    (1,),
)
add_tensors(
    "other-prefix",
    rewritten(lambda tensors: {name.replace("base_model.model.", ""): value for name, value in tensors.items()}),
    (0, 1),
)
add_tensors(
    "crossed",
    rewritten(
        lambda tensors: {
            name.replace("lora_A", "X").replace("lora_B", "lora_A").replace("X", "lora_B"): value
            for name, value in tensors.items()
        }
    ),
    (1,),
)
add_tensors(
    "integers",
    rewritten(lambda tensors: {name: ("I32", shape, raw) for name, (_, shape, raw) in tensors.items()}),
    (1,),
)
add_tensors(
    "fp8",
    rewritten(
        lambda tensors: {name: ("F8_E4M3", shape, raw[: len(raw) // 4]) for name, (_, shape, raw) in tensors.items()}
    ),
    (1,),
)
add_tensors("nan", rewritten(all_numbers(float("nan"))), (0, 1))
add_tensors("infinite", rewritten(all_numbers(float("inf"))), (0, 1))
add_tensors(
    "turned",
    rewritten(lambda tensors: {name: (kind, shape[::-1], raw) for name, (kind, shape, raw) in tensors.items()}),
    (1,),
)
add_tensors(
    "flat",
    rewritten(
        lambda tensors: {name: (kind, [shape[0] * shape[1]], raw) for name, (kind, shape, raw) in tensors.items()}
    ),
    (1,),
)
add_tensors(
    "rank-0",
    rewritten(
        lambda tensors: {
            name: (kind, [0 if size == 4 else size for size in shape], b"")
            for name, (kind, shape, raw) in tensors.items()
        }
    ),
    (1,),
)
add_tensors(
    "of-a-whole-model", lambda raw: (FIXTURES / "golden/checkpoints/glm4v/model.safetensors").read_bytes(), (1,)
)


@AREA.case
def of_another_model(desk):
    other = FIXTURES / "golden/lora/adapter"
    ask(desk, other).refused()
    desk.generate(
        "--prompt", "x", "--adapter", desk.world.adapter, model=FIXTURES / "golden/checkpoints/glm_ocr"
    ).refused()


@AREA.case
def no_adapter_folders(desk):
    for path in ("no/such", "", "/dev/null", desk.world.image, desk.world.model, desk.folder, "/", "org/name"):
        ask(desk, path).expect(1, 2)


@AREA.case
def files_that_are_none(desk):
    for file in (CONFIG, TENSORS):
        for number, make in enumerate(
            (
                lambda path: None,
                lambda path: path.mkdir(),
                os.mkfifo,
                lambda path: path.symlink_to(path.name),
                lambda path: path.symlink_to("/dev/zero"),
                lambda path: path.write_bytes(b"\xff" * 99),
            )
        ):
            adapter = desk.copy(desk.world.adapter, f"{file}-{number}", {file: None})
            make(adapter / file)
            ask(desk, adapter, seconds=20).refused(file)


@AREA.case
def merged_onto_itself(desk):
    model, adapter = desk.model(), changed(desk)
    desk.run("merge", "--model", model, "--adapter", adapter, "--out", model).held()
    desk.run("merge", "--model", desk.world.model, "--adapter", adapter, "--out", adapter).held()
    desk.run(
        "merge", "--model", adapter, "--adapter", model, "--out", desk.path("x"), outs=[desk.folder / "x"]
    ).refused()


@AREA.case
def pickled(desk):
    adapter = desk.copy(desk.world.adapter, "adapter", {TENSORS: None})
    desk.file("adapter/adapter_model.bin", b"\x80\x02}q\0.")
    ask(desk, adapter).refused("safetensors")


@AREA.case
def evaluated_and_traced(desk):
    adapter = changed(desk, {"r": 8})
    desk.evaluate(desk.world.questions, "--adapter", adapter).refused()
    for command in ("trace", "embed"):
        out = desk.path(f"{command}.safetensors")
        desk.run(
            command, "--model", desk.world.model, "--adapter", adapter, "--prompt", "x", "--out", out, outs=[out]
        ).refused()


def odd(desk):
    if desk.random.random() < 0.5:
        adapter = desk.copy(
            desk.world.adapter, "adapter", {CONFIG: lambda raw: mutate.odd_json(desk.random, json.loads(raw))}
        )
    else:
        adapter = desk.copy(
            desk.world.adapter, "adapter", {TENSORS: lambda raw: mutate.damage(desk.random, raw[:3000]) + raw[3000:]}
        )
    ask(desk, adapter).expect(0, 1)


for number in range(20):
    AREA.add(f"odd-{number:02}", odd)
