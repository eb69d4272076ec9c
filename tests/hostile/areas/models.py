"""Model folders that are cut, crossed, looped, enormous, or of another kind."""

import json
import os
import struct

import forge
import mutate
from harness import Area
from world import CONFIGS, FIXTURES, SMALL

AREA = Area("models")
FILES = [
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "generation_config.json",
]
WEIGHTS = "model.safetensors"


def ask(desk, model, **how):
    return desk.look(desk.world.image, model=model, **how)


def add(name, changes, *words, codes=(1,), **how):
    def play(desk):
        outcome = ask(desk, desk.model(changes), **how).expect(*codes)
        if outcome.code == 1:
            outcome.says(*words)

    AREA.add(name, play)


# Each file, in each way that a file can be wrong.
for file in FILES:
    optional = file in ("tokenizer_config.json", "video_preprocessor_config.json", "generation_config.json")
    allowed = (0, 1)
    add(f"missing-{file}", {file: None}, *([] if optional else [file]), codes=(0, 1) if optional else (1,))
    add(f"empty-{file}", {file: b""}, codes=allowed)
    add(f"half-{file}", {file: lambda raw: raw[: len(raw) // 2]}, codes=allowed)
    add(f"binary-{file}", {file: bytes(range(256)) * 9}, codes=(0, 1) if file == "tokenizer_config.json" else (1,))
    add(f"utf-16-{file}", {file: lambda raw: raw[:99].decode("latin-1").encode("utf-16")}, codes=allowed)
    add(
        f"git-lfs-pointer-{file}",
        {file: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"},
        codes=allowed,
    )
    if file.endswith(".json"):
        for kind, text in (
            ("null", "null"),
            ("list", "[]"),
            ("number", "5"),
            ("deep", "[" * 200_000),
            ("deep-object", '{"a":' * 200_000),
        ):
            add(f"{kind}-{file}", {file: text}, codes=allowed)


def replace_by(file, make):
    def play(desk):
        model = desk.model({file: None})
        make(model / file)
        ask(desk, model, seconds=20).expect(0, 1)

    return play


for file in FILES:
    AREA.add(f"folder-{file}", replace_by(file, lambda path: path.mkdir()))
    AREA.add(f"fifo-{file}", replace_by(file, os.mkfifo))
    AREA.add(f"loop-{file}", replace_by(file, lambda path: path.symlink_to(path.name)))
    AREA.add(f"zero-{file}", replace_by(file, lambda path: path.symlink_to("/dev/zero")))


@AREA.case
def sparse_giants(desk):
    for file in ("config.json", "tokenizer.json", "chat_template.jinja", "preprocessor_config.json", WEIGHTS):
        model = desk.copy(desk.world.model, f"model-{file}")
        os.truncate(model / file, 40 << 30)
        ask(desk, model).expect(0, 1).within(megabytes=2000)


@AREA.case
def not_permitted(desk):
    for file in ("config.json", "tokenizer.json", WEIGHTS):
        model = desk.copy(desk.world.model, f"model-{file}")
        (model / file).chmod(0)
        ask(desk, model, unprivileged=True).refused(file, "ermission denied")


@AREA.case
def no_model_folders(desk):
    for path in (
        "no/such",
        "",
        "/dev/null",
        "/dev/zero",
        desk.world.image,
        desk.world.data,
        "/",
        "~",
        "zai-org/GLM-4.1V-9B-Thinking",
        "https://huggingface.co/zai-org/GLM-OCR",
        "hf://a/b",
        "../" * 50,
        "x" * 5000,
        "a/" * 2500,
    ):
        ask(desk, path).expect(1, 2)


@AREA.case
def adapter_as_model_is_named(desk):
    ask(desk, desk.world.adapter).refused("adapter")


@AREA.case
def run_folder_as_model(desk):
    ask(desk, desk.world.run).refused()


@AREA.case
def weights_of_another_network(desk):
    for family in ("glm4v", "glm4v_moe", "glm_ocr"):
        other = FIXTURES / f"golden/checkpoints/{family}"
        ask(desk, desk.copy(desk.world.model, family, {WEIGHTS: (other / WEIGHTS).read_bytes()})).refused()
        ask(
            desk, desk.copy(desk.world.model, f"{family}-config", {"config.json": (other / "config.json").read_bytes()})
        ).refused()
        ask(
            desk,
            desk.copy(desk.world.model, f"{family}-words", {"tokenizer.json": (other / "tokenizer.json").read_bytes()}),
        ).expect(0, 1)


@AREA.case
def published_configs(desk):
    for config in sorted(CONFIGS.iterdir()):
        if config.is_dir() and config.name != "digits":
            # Each has billions of parameters and no tokenizer here.
            desk.run("info", "--model", config).accepted()
            ask(desk, config).refused()


# config.json: every value, with hostile ones.
CONFIG = json.loads((SMALL / "config.json").read_text())


def leaf(path):
    value = CONFIG
    for key in path:
        value = value[key]
    return not isinstance(value, dict)


def add_config(path):
    def play(desk):
        for value in desk.random.sample(
            [0, -1, 1, 3, 10**9, 2**31, 2**63, 1.5, 1e300, None, "x", [], {}, True, "..."], 4
        ):
            changed = mutate.replaced(CONFIG, path, value if value != "..." else ...)
            model = desk.copy(desk.world.model, f"model-{len(desk.outcomes)}", {"config.json": json.dumps(changed)})
            ask(desk, model).expect(0, 1)

    AREA.add("config-" + ".".join(map(str, path)), play)


for place in mutate.places(CONFIG):
    if place and leaf(place) and not isinstance(place[-1], int):
        add_config(place)


@AREA.case
def config_of_giants(desk):
    # Sizes that agree with each other, and with no machine.
    for key, value in (
        ("hidden_size", 2**40),
        ("num_hidden_layers", 10**9),
        ("vocab_size", 2**31),
        ("intermediate_size", 2**40),
        ("max_position_embeddings", 2**62),
        ("num_attention_heads", 2**30),
    ):
        text = json.dumps(mutate.replaced(CONFIG, ("text_config", key), value))
        model = desk.copy(desk.world.model, f"model-{key}", {"config.json": text})
        ask(desk, model).expect(0, 1)
        desk.run("info", "--model", model).expect(0, 1)
        desk.run("init", "--config", model, "--out", desk.path(f"out-{key}"), outs=[desk.folder / f"out-{key}"]).expect(
            0, 1
        )


# Weights.
def header(change):
    return {WEIGHTS: forge.with_header(change)}


def of(name, **changes):
    def change(described):
        described[name].update(changes)

    return change


HEAD = "lm_head.weight"
for name, change in {
    "type-fp8": of(HEAD, dtype="F8_E4M3"),
    "type-unknown": of(HEAD, dtype="X9"),
    "type-number": of(HEAD, dtype=5),
    "type-i64": of(HEAD, dtype="I64"),
    "type-bool": of(HEAD, dtype="BOOL"),
    "type-f64": of(HEAD, dtype="F64"),
    "type-f4": of(HEAD, dtype="F4"),
    "shape-other": of(HEAD, shape=[96, 1200]),
    "shape-negative": of(HEAD, shape=[-1200, -96]),
    "shape-overflow": of(HEAD, shape=[2**33, 2**33]),
    "shape-empty": of(HEAD, shape=[]),
    "shape-deep": of(HEAD, shape=[1] * 99),
    "shape-zero": of(HEAD, shape=[0, 96]),
    "shape-text": of(HEAD, shape="x"),
    "offsets-reversed": of(HEAD, data_offsets=[100, 0]),
    "offsets-beyond": of(HEAD, data_offsets=[0, 2**62]),
    "offsets-overflow": of(HEAD, data_offsets=[2**64 - 1, 2**64]),
    "offsets-negative": of(HEAD, data_offsets=[-1, 5]),
    "offsets-one": of(HEAD, data_offsets=[5]),
    "offsets-same-as-another": lambda d: d[HEAD].update(
        data_offsets=d["model.language_model.embed_tokens.weight"]["data_offsets"]
    ),
    "missing": lambda d: d.pop(HEAD) and None,
    "all-missing": lambda d: {"__metadata__": {}},
    "metadata-of-numbers": lambda d: d.update(__metadata__={"a": 5}),
    "metadata-list": lambda d: d.update(__metadata__=[]),
    "extra": lambda d: d.update({"mtp.weight": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
    "name-climbs": lambda d: d.update({"../../x": d[HEAD]}),
    "tensor-null": lambda d: d.update({HEAD: None}),
    "100000-names": lambda d: d.update(
        {f"x{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)}
    ),
}.items():
    # What the network does not know, and metadata, may be there.
    add(
        f"weights-{name}",
        header(change),
        codes=(1,) if name.startswith(("type-unknown", "shape", "missing", "all")) else (0, 1),
    )


def fp8(raw):
    """All matrices in eight bits, as GLM-4.5V-FP8 is published: with scales beside them."""
    tensors = {}
    for name, (kind, shape, data) in forge.read_safetensors(raw).items():
        if len(shape) == 2:
            tensors[name] = ("F8_E4M3", shape, data[: len(data) // 4])
            tensors[name + "_scale"] = ("F32", [shape[0], 1], b"\0\0\x80?" * shape[0])
        else:
            tensors[name] = (kind, shape, data)
    return forge.safetensors(tensors)


@AREA.case
def fp8_folder_of_chance(desk):
    """Codes and scales of no model: read, and found to be no numbers."""
    config = {**CONFIG, "quantization_config": {"quant_method": "compressed-tensors", "format": "float-quantized"}}
    model = desk.model({WEIGHTS: fp8, "config.json": json.dumps(config)})
    ask(desk, model).expect(0, 1)


for name, raw in {
    "header-0": struct.pack("<Q", 0),
    "header-2-63": struct.pack("<Q", 2**63) + bytes(99),
    "header-2-64": b"\xff" * 8 + bytes(99),
    "header-of-100-mb": struct.pack("<Q", 100_000_001) + b"{}",
    "header-not-json": forge.safetensors({}, header=b"x" * 100),
    "header-list": forge.safetensors({}, header=b"[]"),
    "header-null": forge.safetensors({}, header=b"null"),
    "header-deep": forge.safetensors({}, header=b'{"a":' * 100_000),
    "header-spaces": forge.safetensors({}, header=b"{" + b" " * 1_000_000 + b"}"),
    "header-not-utf-8": forge.safetensors({}, header=b'{"\xff": 5}'),
    "nothing": forge.safetensors({}),
    "pickle": b"\x80\x02}q\0.",
    "gguf": b"GGUF\3\0\0\0" + bytes(99),
    "zip": b"PK\3\4" + bytes(999),
}.items():
    add(f"weights-{name}", {WEIGHTS: raw})


def all_of(value):
    def change(raw):
        return forge.safetensors(
            {
                name: (kind, shape, struct.pack("<f", value) * (len(data) // 4))
                for name, (kind, shape, data) in forge.read_safetensors(raw).items()
            }
        )

    return change


for name, value in (
    ("nan", float("nan")),
    ("infinite", float("inf")),
    ("zero", 0.0),
    ("largest", 3e38),
    ("smallest", 1e-45),
):

    def with_numbers(desk, value=value):
        model = desk.model({WEIGHTS: all_of(value)})
        ask(desk, model).expect(0, 1)
        desk.look(desk.world.image, "--temperature", 1, model=model).expect(0, 1)
        desk.evaluate(desk.world.questions, model=model).expect(0, 1)
        desk.train(f"model.path={model}").expect(0, 1)

    AREA.add(f"weights-all-{name}", with_numbers)


# Shards.
def sharded(desk, index=None, name="model"):
    """The model in files of a megabyte."""
    target = desk.path(name)
    desk.run("convert", "--model", desk.world.model, "--out", target, "--shard-size", "1MB").accepted()
    if index:
        path = target / "model.safetensors.index.json"
        described = json.loads(path.read_text())
        path.write_text(json.dumps(index(described) or described))
    return target


@AREA.case
def shards_are_whole(desk):
    ask(desk, sharded(desk)).accepted()


for name, change in {
    "climb": lambda d: d["weight_map"].update({HEAD: "../../../etc/passwd"}),
    "absolute": lambda d: d["weight_map"].update({HEAD: "/etc/passwd"}),
    "device": lambda d: d["weight_map"].update({HEAD: "/dev/zero"}),
    "missing-file": lambda d: d["weight_map"].update({HEAD: "model-00009-of-00009.safetensors"}),
    "empty-name": lambda d: d["weight_map"].update({HEAD: ""}),
    "itself": lambda d: d["weight_map"].update({HEAD: "model.safetensors.index.json"}),
    "number": lambda d: d["weight_map"].update({HEAD: 5}),
    "no-map": lambda d: {"metadata": {}},
    "map-list": lambda d: {"weight_map": []},
    "map-empty": lambda d: {"weight_map": {}},
    "wrong-file": lambda d: d["weight_map"].update(
        {
            HEAD: sorted(d["weight_map"].values())[0],
            "model.language_model.norm.weight": sorted(d["weight_map"].values())[0],
        }
    ),
    "lost": lambda d: d["weight_map"].pop(HEAD) and None,
    "size-lies": lambda d: d.update(metadata={"total_size": 2**63}),
    "list": lambda d: [],
}.items():
    AREA.add(f"shards-{name}", lambda desk, change=change: ask(desk, sharded(desk, change)).expect(0, 1))


@AREA.case
def shards_cut_and_gone(desk):
    for number, damage in enumerate(
        (
            lambda path: path.unlink(),
            lambda path: os.truncate(path, 100),
            lambda path: (path.unlink(), path.symlink_to(path.name)),
            lambda path: (path.unlink(), os.mkfifo(path)),
        )
    ):
        model = sharded(desk, name=f"model-{number}")
        damage(sorted(model.glob("*.safetensors"))[-1])
        ask(desk, model, seconds=20).refused("safetensors")


# Tokenizers.
def tokenizer(change):
    def rewrite(raw):
        described = json.loads(raw)
        return json.dumps(change(described) or described)

    return {"tokenizer.json": rewrite}


SLOW = "(a+)+(a+)+(x|x)*$"
for name, change in {
    "no-model": lambda d: d.pop("model") and None,
    "no-vocabulary": lambda d: d["model"].update(vocab={}),
    "vocabulary-list": lambda d: d["model"].update(vocab=[]),
    "vocabulary-negative": lambda d: d["model"]["vocab"].update(a=-1),
    "vocabulary-beyond-network": lambda d: d["model"]["vocab"].update(
        {key: value + 10**6 for key, value in d["model"]["vocab"].items()}
    ),
    "vocabulary-2-32": lambda d: d["model"]["vocab"].update(a=2**32),
    "vocabulary-same": lambda d: d["model"].update(vocab={key: 7 for key in d["model"]["vocab"]}),
    "merges-of-nothing": lambda d: d["model"].update(merges=["zz yy"]),
    "merges-garbage": lambda d: d["model"].update(merges=[5]),
    "merges-double": lambda d: d["model"].update(merges=d["model"].get("merges", []) * 2),
    "added-gone": lambda d: d.update(added_tokens=[]),
    "added-same": lambda d: [t.update(id=1164) for t in d["added_tokens"]] and None,
    "added-empty": lambda d: d["added_tokens"].append({**d["added_tokens"][0], "content": "", "id": 1199}),
    "added-letter": lambda d: d["added_tokens"].append({**d["added_tokens"][0], "content": "a", "id": 1199}),
    "added-beyond": lambda d: d["added_tokens"].append({**d["added_tokens"][0], "content": "zzz", "id": 10**9}),
    "added-2-32": lambda d: d["added_tokens"][0].update(id=2**32),
    "added-100000": lambda d: d["added_tokens"].extend(
        {**d["added_tokens"][0], "content": f"<x{i}>", "id": 1200 + i} for i in range(100_000)
    ),
    "model-unknown": lambda d: d["model"].update(type="Magic"),
    "normalizer-slow": lambda d: d.update(normalizer={"type": "Replace", "pattern": {"Regex": SLOW}, "content": "y"}),
    "normalizer-grows": lambda d: d.update(
        normalizer={
            "type": "Sequence",
            "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaa"}] * 9,
        }
    ),
    "normalizer-broken": lambda d: d.update(normalizer={"type": "Replace", "pattern": {"Regex": "("}, "content": ""}),
    "splitter-slow": lambda d: d.update(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": SLOW}, "behavior": "Isolated", "invert": False}
    ),
    "splitter-empty": lambda d: d.update(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": ""}, "behavior": "Isolated", "invert": False}
    ),
    "splitter-unknown": lambda d: d.update(pre_tokenizer={"type": "Magic"}),
    "splitter-giant": lambda d: d.update(
        pre_tokenizer={
            "type": "Split",
            "pattern": {"Regex": "((a{99}){99}){99}"},
            "behavior": "Isolated",
            "invert": False,
        }
    ),
    "decoder-gone": lambda d: d.update(decoder=None),
    "decoder-unknown": lambda d: d.update(decoder={"type": "Magic"}),
    "template-writes-more": lambda d: d.update(
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[gMASK]", "type_id": 0}}] * 9,
            "pair": [],
            "special_tokens": {"[gMASK]": {"id": "[gMASK]", "ids": [1152], "tokens": ["[gMASK]"]}},
        }
    ),
    "truncates": lambda d: d.update(
        truncation={"max_length": 1, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    ),
    "truncates-with-stride": lambda d: d.update(
        truncation={"max_length": 2, "strategy": "LongestFirst", "stride": 9, "direction": "Left"}
    ),
    "pads": lambda d: d.update(
        padding={
            "strategy": {"Fixed": 2**40},
            "direction": "Left",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "x",
        }
    ),
    "version-9": lambda d: d.update(version="9"),
}.items():

    def with_words(desk, change=change):
        model = desk.model(tokenizer(change))
        desk.look(desk.world.image, model=model).expect(0, 1)
        desk.generate("--prompt", "a" * 3000 + "!", model=model).expect(0, 1)

    AREA.add(f"words-{name}", with_words)


# The other files.
def settings(file, changes):
    def rewrite(raw):
        return json.dumps({key: value for key, value in {**json.loads(raw), **changes}.items() if value is not ...})

    return {file: rewrite}


IMAGES, VIDEOS, GENERATION = "preprocessor_config.json", "video_preprocessor_config.json", "generation_config.json"
for name, changes in {
    "patch-0": {"patch_size": 0},
    "patch-13": {"patch_size": 13},
    "patch-giant": {"patch_size": 2**31},
    "merge-0": {"merge_size": 0},
    "merge-3": {"merge_size": 3},
    "time-0": {"temporal_patch_size": 0},
    "mean-short": {"image_mean": [0.5]},
    "mean-text": {"image_mean": "x"},
    "mean-nan": {"image_mean": [1e999, 0, 0]},
    "std-0": {"image_std": [0, 0, 0]},
    "std-tiny": {"image_std": [1e-45, 1, 1]},
    "rescale-giant": {"rescale_factor": 1e300},
    "resample-99": {"resample": 99},
    "size-crossed": {"size": {"shortest_edge": 10**9, "longest_edge": 1}},
    "size-0": {"size": {"shortest_edge": 0, "longest_edge": 0}},
    "size-giant": {"size": {"shortest_edge": 2**62, "longest_edge": 2**63}},
    "size-list": {"size": []},
    "size-gone": {"size": ...},
    "size-smallest-10-8": {"size": {"shortest_edge": 10**8, "longest_edge": 10**9}},
    "no-resize": {"do_resize": False},
    "no-normalize": {"do_normalize": False},
    "type-other": {"image_processor_type": "CLIPImageProcessor"},
}.items():
    add(f"image-processor-{name}", settings(IMAGES, changes), codes=(0, 1))

for name, changes in {
    "fps-0": {"fps": 0},
    "fps-negative": {"fps": -1},
    "fps-giant": {"fps": 1e300},
    "duration-0": {"max_duration": 0},
    "duration-giant": {"max_duration": 2**63},
    "frames-0": {"num_frames": 0},
    "size-crossed": {"size": {"shortest_edge": 10**9, "longest_edge": 1}},
    "size-giant": {"size": {"shortest_edge": 2**62, "longest_edge": 2**63}},
    "time-0": {"temporal_patch_size": 0},
    "time-3": {"temporal_patch_size": 3},
    "std-0": {"image_std": [0, 0, 0]},
    "most-0": {"max_image_size": {"longest_edge": 0}},
}.items():
    AREA.add(
        f"video-processor-{name}",
        lambda desk, changes=changes: desk.watch(
            FIXTURES / "processor/formats/animated.gif", model=desk.model(settings(VIDEOS, changes))
        ).expect(0, 1),
    )

for name, changes in {
    "temperature-nan": {"temperature": "nan", "do_sample": True},
    "temperature-0": {"temperature": 0, "do_sample": True},
    "temperature-negative": {"temperature": -1, "do_sample": True},
    "temperature-tiny": {"temperature": 1e-300, "do_sample": True},
    "top-k-negative": {"top_k": -1, "do_sample": True},
    "top-k-giant": {"top_k": 2**63, "do_sample": True},
    "top-p-0": {"top_p": 0, "do_sample": True},
    "top-p-2": {"top_p": 2.0, "do_sample": True},
    "penalty-0": {"repetition_penalty": 0},
    "penalty-negative": {"repetition_penalty": -1.0},
    "penalty-giant": {"repetition_penalty": 1e300},
    "end-text": {"eos_token_id": "x"},
    "end-none": {"eos_token_id": []},
    "end-beyond": {"eos_token_id": [10**9]},
    "end-negative": {"eos_token_id": -1},
    "end-nested": {"eos_token_id": [[1]]},
    "end-null": {"eos_token_id": None},
    "beams": {"num_beams": 4},
    "length-negative": {"max_length": -1},
    "sampling-text": {"do_sample": "yes"},
}.items():
    AREA.add(
        f"generation-{name}",
        lambda desk, changes=changes: desk.generate(
            "--prompt", "x", model=desk.model(settings(GENERATION, changes)), tokens=8
        ).expect(0, 1),
    )
