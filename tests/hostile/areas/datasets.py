"""Data sets that say other things than they seem to, in forms that people really have."""

import csv
import gzip
import io
import json
import os

import forge
import mutate
from harness import Area

AREA = Area("datasets")
USER = {"role": "user", "content": "What?"}
ANSWER = {"role": "assistant", "content": "x"}
GOOD = {"messages": [USER, ANSWER]}


def shown(desk, **more):
    return {
        "messages": [{"role": "user", "content": "<image>What?"}, ANSWER],
        "images": [str(desk.world.image)],
        **more,
    }


def add(name, content, *words, codes=(1,), file="data.jsonl", flags=(), **limits):
    """Records that `eval` reads; a list of objects is written as lines."""

    def play(desk):
        made = content(desk) if callable(content) else content
        lines = isinstance(made, list) and file.endswith("jsonl")
        path = desk.lines(file, made) if lines else desk.file(file, made)
        outcome = desk.evaluate(path, *flags).expect(*codes).within(**limits)
        if outcome.code == 1:
            outcome.says(*(words or (file,)))

    AREA.add(name, play)


# What is not text in lines.
add("empty", b"")
add("blank-lines", b"\n\n \n")
add("byte-order-mark", "\ufeff" + json.dumps(GOOD), codes=(0,))
add("windows-lines", json.dumps(GOOD) + "\r\n\r\n", codes=(0,))
add("utf-16", json.dumps(GOOD).encode("utf-16"))
add("nul-bytes", bytes(4096))
add("binary", bytes(range(256)) * 16)
add("last-line-cut", json.dumps(GOOD) + "\n" + json.dumps(GOOD)[:30], "line 2")
add("list-cut", "[" + json.dumps(GOOD), file="data.json", codes=(1,))
add("list-without-comma", "[" + json.dumps(GOOD) + json.dumps(GOOD) + "]", file="data.json")
add("list-with-tail", "[" + json.dumps(GOOD) + "]]", file="data.json")
add("list-empty", "[]", file="data.json")
add("list-of-lists", "[[[]]]", file="data.json")
add("list-deep", "[" * 300_000, file="data.json")
add("object-deep", '{"messages":' * 300_000, file="data.json")
add("one-object", json.dumps(GOOD, indent=1), file="data.json", codes=(0, 1))
add("numbers", [1, 2], "line 1")
add("nulls", [None], "line 1")
add("line-of-70-mb", lambda desk: '{"messages": "' + "x" * (70 << 20) + '"}')
add("line-of-spaces", lambda desk: " " * (70 << 20))
add("300000-lines-of-nothing", b"{}\n" * 300_000, "line 1")
add("html", b"<!DOCTYPE html>", "line 1")
add("git-lfs-pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", codes=(1,))
add("yaml", b"- messages:\n  - role: user\n", codes=(1,))

# Formats that people have; the error says what the file is.
UNKNOWN = "no dataset"


def add_format(name, file, content, *words):
    def play(desk):
        path = desk.file(file, content(desk) if callable(content) else content)
        desk.evaluate(path).refused(file, *words).avoids(UNKNOWN)

    AREA.add(f"format-{name}", play)


def table():
    text = io.StringIO()
    csv.writer(text).writerows([["question", "answer"], ["What?", "x"]])
    return text.getvalue()


add_format("parquet", "a.parquet", forge.parquet())
add_format("csv", "a.csv", table())
add_format("tsv", "a.tsv", table().replace(",", "\t"))
add_format("jsonl-gz", "a.jsonl.gz", gzip.compress(json.dumps(GOOD).encode()))
add_format("gz-called-jsonl", "a.jsonl", gzip.compress(json.dumps(GOOD).encode()))
add_format("parquet-called-jsonl", "a.jsonl", forge.parquet())
add_format("zip", "a.zip", b"PK\3\4" + bytes(99))
add_format("tar", "a.tar", bytes(1024))
add_format("arrow", "a.arrow", b"ARROW1\0\0")
add_format("xlsx", "a.xlsx", b"PK\3\4" + bytes(99))
add_format("txt", "a.txt", b"plain text")
add_format("yaml", "a.yaml", b"a: 1")
add_format("safetensors", "a.safetensors", forge.safetensors({}))


@AREA.case
def format_folder(desk):
    desk.lines("folder/a.jsonl", [GOOD])
    desk.evaluate(desk.path("folder")).held("folder").avoids(UNKNOWN)


@AREA.case
def format_folder_empty(desk):
    desk.path("folder").mkdir()
    desk.evaluate(desk.path("folder")).refused("folder").avoids(UNKNOWN)


@AREA.case
def format_fifo(desk):
    os.mkfifo(desk.path("data.jsonl"))
    desk.evaluate(desk.path("data.jsonl")).refused("data.jsonl").avoids(UNKNOWN)


@AREA.case
def format_link_loop(desk):
    desk.path("data.jsonl").symlink_to("data.jsonl")
    desk.evaluate(desk.path("data.jsonl")).refused("data.jsonl").avoids(UNKNOWN)


@AREA.case
def format_devices(desk):
    for device in ("/dev/zero", "/dev/null", "/dev/full", "/proc/self/mem", "/"):
        desk.evaluate(device).refused(device)


@AREA.case
def format_device_called_jsonl(desk):
    desk.path("data.jsonl").symlink_to("/dev/zero")
    desk.evaluate(desk.path("data.jsonl")).refused("data.jsonl")


@AREA.case
def format_not_permitted(desk):
    desk.lines("data.jsonl", [GOOD]).chmod(0)
    desk.evaluate(desk.path("data.jsonl"), unprivileged=True).refused("data.jsonl", "ermission denied")


@AREA.case
def format_missing(desk):
    for name in (
        "gone.jsonl",
        "no/such/gone.json",
        "digits",
        "digits:tst",
        "digit:test",
        ":",
        "",
        "a:b:c",
        "\n",
        "http://x/y.jsonl",
        "~/x.jsonl",
    ):
        desk.evaluate(name).expect(1, 2)


@AREA.case
def format_sparse_50_gb(desk):
    os.truncate(desk.file("data.jsonl", b""), 50 << 30)
    desk.evaluate(desk.path("data.jsonl")).refused("data.jsonl")


# Records of other tools: read, or named for what they are.
def add_foreign(name, record, *words):
    def play(desk):
        # Advice to name a column cannot help where there is no such column.
        outcome = desk.evaluate(desk.lines("data.jsonl", [record(desk) if callable(record) else record]))
        outcome.held("data.jsonl", "line 1", *words)

    AREA.add(f"foreign-{name}", play)


add_foreign("alpaca", {"instruction": "a", "input": "", "output": "b"}, "lpaca")
add_foreign("query-response", {"query": "a", "response": "b"})
add_foreign("prompt-completion", {"prompt": "a", "completion": "b"})
add_foreign(
    "preference",
    {
        "conversations": [{"from": "human", "value": "a"}],
        "chosen": {"from": "gpt", "value": "b"},
        "rejected": {"from": "gpt", "value": "c"},
    },
)
add_foreign("text", {"text": "a"})
add_foreign("image-text", {"image": "a.png", "text": "b"})
add_foreign(
    "llava",
    lambda desk: {
        "image": str(desk.world.image),
        "conversations": [{"from": "human", "value": "<image>\na"}, {"from": "gpt", "value": "b"}],
    },
    "columns.images",
)


@AREA.case
def advice_to_name_a_column_is_not_given_for_alpaca(desk):
    data = desk.lines("data.jsonl", [{"instruction": "a", "input": "", "output": "b"}])
    desk.evaluate(data).held().avoids("columns.messages names the key")


# Fields that carry meaning: obeyed, or refused; never passed over.
def add_meaningful(name, record, *words):
    AREA.add(
        f"meaning-{name}",
        lambda desk: desk.evaluate(desk.lines("data.jsonl", [record(desk) if callable(record) else record])).refused(
            "data.jsonl", "line 1", *words
        ),
    )


add_meaningful("image-that-no-text-shows", lambda desk: {**GOOD, "images": [str(desk.world.image)]}, "image")
add_meaningful("image-key-that-no-text-shows", lambda desk: {**GOOD, "image": str(desk.world.image)}, "image")
add_meaningful(
    "image-in-a-turn", lambda desk: {"messages": [{**USER, "image": str(desk.world.image)}, ANSWER]}, "image"
)
add_meaningful(
    "images-in-a-turn", lambda desk: {"messages": [{**USER, "images": [str(desk.world.image)]}, ANSWER]}, "images"
)
add_meaningful(
    "audios", {"messages": [{"role": "user", "content": "<audio>What?"}, ANSWER], "audios": ["a.wav"]}, "audio"
)
add_meaningful("audio-in-a-text", {"messages": [{"role": "user", "content": "<audio>What?"}, ANSWER]}, "<audio>")
add_meaningful("audios-alone", {**GOOD, "audios": ["a.wav"]}, "audio")
add_meaningful("train-in-words", {"messages": [USER, {**ANSWER, "train": "no"}]}, "train")
add_meaningful("weight-below-0", {"messages": [USER, {**ANSWER, "weight": -0.5}]}, "weight")
add_meaningful("weight-in-words", {"messages": [USER, {**ANSWER, "weight": "zero"}]}, "weight")
add_meaningful("loss-in-words", {"messages": [USER, {**ANSWER, "loss": "no"}]}, "loss")
add_meaningful("all-masked", {"messages": [USER, {**ANSWER, "weight": 0}]})
add_meaningful("all-masked-by-train", {"messages": [USER, {**ANSWER, "train": False}]})


def masked_as(key, value):
    """Two answers, one of them excluded: as much is learned as where "loss" excludes it."""

    def play(desk):
        def told(mark):
            turns = [USER, {"role": "assistant", "content": "a long answer", **mark}, USER, ANSWER]
            return [{"messages": turns}] * 3

        wanted = desk.evaluate(desk.lines("loss.jsonl", told({"loss": False})), "--json").accepted()
        marked = desk.evaluate(desk.lines("mark.jsonl", told({key: value})), "--json").expect(0, 1)
        if marked.code == 0 and loss_of(marked) != loss_of(wanted):
            losses = f"loss {loss_of(marked)}, where it is obeyed {loss_of(wanted)}"
            marked.blame(f'"{key}": {json.dumps(value)} is passed over: {losses}')

    return play


def loss_of(outcome):
    totals = [json.loads(line) for line in outcome.stdout.splitlines()]
    return next((line["loss"] for line in reversed(totals) if "loss" in line), None)


AREA.add("meaning-weight-0", masked_as("weight", 0))
AREA.add("meaning-weight-0.0", masked_as("weight", 0.0))
AREA.add("meaning-train-false", masked_as("train", False))

# Records that are wrong.
for name, record, words in [
    ("no-turns", {"messages": []}, ()),
    ("turns-null", {"messages": None}, ()),
    ("turns-object", {"messages": {}}, ()),
    ("two-conversations", {"messages": [USER, ANSWER], "conversations": []}, ()),
    ("no-answer", {"messages": [USER]}, ()),
    ("answer-empty", {"messages": [USER, {"role": "assistant", "content": ""}]}, ("empty",)),
    ("answer-null", {"messages": [USER, {"role": "assistant", "content": None}]}, ()),
    ("user-last", {"messages": [USER, ANSWER, USER]}, ()),
    ("role-unknown", {"messages": [{"role": "wizard", "content": "x"}, ANSWER]}, ("wizard",)),
    ("content-number", {"messages": [{"role": "user", "content": 1}, ANSWER]}, ()),
    ("images-number", {"messages": [USER, ANSWER], "images": 5}, ("images",)),
    ("images-of-numbers", {"messages": [{"role": "user", "content": "<image>"}, ANSWER], "images": [5]}, ("images",)),
    (
        "images-too-few",
        {"messages": [{"role": "user", "content": "<image><image>"}, ANSWER], "images": ["a.png"]},
        ("<image>",),
    ),
    (
        "images-missing",
        {"messages": [{"role": "user", "content": "<image>"}, ANSWER], "images": ["no/such.png"]},
        ("such.png",),
    ),
    (
        "images-url",
        {"messages": [{"role": "user", "content": "<image>"}, ANSWER], "images": ["http://127.0.0.1:9/a.png"]},
        ("http",),
    ),
    (
        "images-etc",
        {"messages": [{"role": "user", "content": "<image>"}, ANSWER], "images": ["/etc/passwd"]},
        ("passwd",),
    ),
    (
        "images-climb",
        {"messages": [{"role": "user", "content": "<image>"}, ANSWER], "images": ["../" * 99 + "etc/passwd"]},
        ("passwd",),
    ),
    (
        "videos-missing",
        {"messages": [{"role": "user", "content": "<video>"}, ANSWER], "videos": ["no/such.mp4"]},
        ("such.mp4",),
    ),
    ("videos-empty-list", {"messages": [{"role": "user", "content": "<video>"}, ANSWER], "videos": [[]]}, ()),
    ("control-token", {"messages": [{"role": "user", "content": "<|assistant|>"}, ANSWER]}, ("<|assistant|>",)),
    (
        "control-token-in-the-answer",
        {"messages": [USER, {"role": "assistant", "content": "x<|endoftext|>"}]},
        ("<|endoftext|>",),
    ),
    ("tools-garbage", {"messages": [USER, ANSWER], "tools": "{"}, ("tools",)),
    ("tools-number", {"messages": [USER, ANSWER], "tools": 5}, ("tools",)),
    (
        "function-call-garbage",
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "function_call", "value": "{"},
                {"from": "observation", "value": "1"},
                {"from": "gpt", "value": "b"},
            ]
        },
        (),
    ),
    ("system-number", {"messages": [USER, ANSWER], "system": 5}, ("system",)),
]:
    add(f"record-{name}", [GOOD, record], "line 2", *words)


@AREA.case
def advice_to_allow_http_is_not_given(desk):
    record = {"messages": [{"role": "user", "content": "<image>"}, ANSWER], "images": ["http://127.0.0.1:9/a.png"]}
    desk.evaluate(desk.lines("a.jsonl", [record])).refused("http://127.0.0.1:9/a.png").avoids("--allow-http")
    desk.train(f"data.train={desk.folder}/a.jsonl", "data.batch_size=1").refused().avoids("--allow-http")


@AREA.case
def answers_in_odd_letters(desk):
    texts = [
        "\0",
        "\u202e",
        " ",
        "\n",
        "\ufeff",
        "e" + "\u0301" * 999,
        "👩‍👩‍👧",
        "\ud800",
        "<think>",
        "</think>",
        "</think>x",
        "\t x",
    ]
    for text in texts:
        data = desk.lines("a.jsonl", [{"messages": [USER, {"role": "assistant", "content": text}]}])
        desk.evaluate(data).expect(0, 1)


# Sizes: refused before the work is done, with little memory.
add(
    "answer-of-12000-letters",
    [{"messages": [USER, {"role": "assistant", "content": "abc " * 3000}]}],
    codes=(1,),
    seconds=20,
)
add(
    "answer-of-100000-words",
    lambda desk: [{"messages": [USER, {"role": "assistant", "content": "x y " * 50_000}]}],
    codes=(1,),
    seconds=30,
)
add(
    "prompt-of-8000-tokens",
    [{"messages": [{"role": "user", "content": "abc " * 2700}, ANSWER]}],
    codes=(1,),
    seconds=20,
)
add(
    "prompt-of-20-mb",
    lambda desk: [{"messages": [{"role": "user", "content": "word " * 4_000_000}, ANSWER]}],
    codes=(1,),
)
add(
    "images-10000",
    lambda desk: [
        {
            "messages": [{"role": "user", "content": "<image>" * 10_000}, ANSWER],
            "images": [str(desk.world.image)] * 10_000,
        }
    ],
    codes=(1,),
)
add("turns-20000", lambda desk: [{"messages": [USER, ANSWER] * 10_000}], codes=(1,))
add("batch-size-10-6", lambda desk: [shown(desk)] * 40, codes=(0,), flags=("--batch-size", 10**6))
add("batch-size-0", [GOOD], codes=(1, 2), flags=("--batch-size", 0))
add("batch-size-2-64", [GOOD], codes=(1, 2), flags=("--batch-size", 2**64))
add(
    "50000-records",
    lambda desk: json.dumps(GOOD) + "\n" + ("\n" + json.dumps({"messages": [USER, {"role": "robot"}]})) * 50_000,
    "line 3",
)


@AREA.case
def most_tokens(desk):
    data = desk.lines("a.jsonl", [GOOD])
    for most in (0, 1, 10**9, 2**63, 2**64, "-1", "x"):
        desk.run("eval", "--model", desk.world.model, "--data", data, f"--max-new-tokens={most}").expect(0, 1, 2)


@AREA.case
def long_answer_is_dropped_from_an_evaluation(desk):
    # Every record of a batch may be too long.
    data = desk.lines("long.jsonl", [{"messages": [USER, {"role": "assistant", "content": "x y " * 50_000}]}])
    desk.train(f"eval.data={data}", "data.on_long=drop").held("long.jsonl")
    mixed = desk.lines("mixed.jsonl", [GOOD, {"messages": [USER, {"role": "assistant", "content": "x y " * 50_000}]}])
    desk.train(f"eval.data={mixed}", "data.on_long=drop", "eval.batch_size=1", run="mixed").held("mixed.jsonl")


@AREA.case
def bad_records_are_found_before_the_first_step(desk):
    bad = {"messages": [{"role": "user", "content": "<image>"}, ANSWER], "images": ["/no/such.png"]}
    data = desk.lines("bad.jsonl", [GOOD] * 7 + [bad] + [GOOD] * 40)
    desk.train(f"data.train={data}", "schedule.max_steps=3", "data.batch_size=1").refused(
        "bad.jsonl: line 8", "such.png"
    ).avoids("step 1/")
    desk.train(f"eval.data={data}", run="evaluated").refused("bad.jsonl: line 8", "such.png").avoids("step 1/")


@AREA.case
def bad_records_are_skipped_if_asked(desk):
    bad = [
        {"messages": [{"role": "user", "content": "<image>"}, ANSWER], "images": ["/no/such.png"]},
        {"messages": [USER]},
        5,
        {},
    ]
    data = desk.lines("bad.jsonl", [GOOD] * 8 + bad + [GOOD] * 8)
    desk.train(f"data.train={data}", "data.on_bad=skip").accepted().says("4")
    desk.train(f"data.train={data}", "data.on_bad=stop", run="stop").refused("bad.jsonl: line 9")
    all_bad = desk.lines("all-bad.jsonl", bad)
    desk.train(f"data.train={all_bad}", "data.on_bad=skip", run="none").refused("all-bad.jsonl")
    for wrong in ("Skip", "", "5", "true", "[]", "ignore"):
        desk.train(f"data.train={data}", f"data.on_bad={wrong}", run="wrong").refused("on_bad")


@AREA.case
def bad_pixels_are_skipped_if_asked(desk):
    broken = desk.file("broken.png", b"not a picture")
    record = {"messages": [{"role": "user", "content": "<image>"}, ANSWER], "images": [str(broken)]}
    data = desk.lines("bad.jsonl", [GOOD] * 8 + [record] + [GOOD] * 8)
    desk.train(f"data.train={data}", "data.on_bad=skip", "schedule.max_steps=4").held("broken.png")


# dataset_info.json.
def add_registry(name, entries, *words, codes=(1,), data="mine", fill=None):
    def play(desk):
        desk.lines("d/a.jsonl", [GOOD])
        desk.file("d/dataset_info.json", entries)
        if fill:
            fill(desk)
        outcome = desk.evaluate(data, "--data-dir", desk.folder / "d").expect(*codes)
        if outcome.code == 1:
            outcome.says(*words)

    AREA.add(f"registry-{name}", play)


add_registry("whole", {"mine": {"file_name": "a.jsonl"}}, codes=(0,))
add_registry("empty", "", "dataset_info.json")
add_registry("list", [], "dataset_info.json")
add_registry("cut", '{"mine": {', "dataset_info.json")
add_registry("binary", b"\xff\xfe\0", "dataset_info.json")
add_registry("deep", '{"mine":' * 200_000, "dataset_info.json")
add_registry("entry-null", {"mine": None}, "mine")
add_registry("entry-list", {"mine": []}, "mine")
add_registry("entry-empty", {"mine": {}}, "mine")
add_registry("file-missing", {"mine": {"file_name": "gone.jsonl"}}, "gone.jsonl")
add_registry("file-number", {"mine": {"file_name": 5}}, "file_name")
add_registry("file-null", {"mine": {"file_name": None}}, "mine")
add_registry("file-empty", {"mine": {"file_name": ""}}, codes=(0, 1))
add_registry("file-climbs", {"mine": {"file_name": "../" * 40 + "etc/passwd"}}, "passwd")
add_registry("file-device", {"mine": {"file_name": "/dev/zero"}}, "/dev/zero")
add_registry("file-list", {"mine": {"file_name": ["a.jsonl"]}}, "file_name")
add_registry(
    "folder-with-loop",
    {"mine": {"file_name": "sub"}},
    codes=(0, 1),
    fill=lambda desk: (
        desk.lines("d/sub/a.jsonl", [GOOD]),
        desk.path("d/sub/b.jsonl").symlink_to("b.jsonl"),
        desk.path("d/sub/again").symlink_to(".."),
    ),
)
add_registry("hub", {"mine": {"hf_hub_url": "a/b"}}, "mine")
add_registry("script", {"mine": {"script_url": "a"}}, "mine")
add_registry("preference", {"mine": {"file_name": "a.jsonl", "ranking": True}}, "mine")
add_registry("alpaca", {"mine": {"file_name": "a.jsonl", "formatting": "alpaca"}}, "mine")
add_registry("formatting-unknown", {"mine": {"file_name": "a.jsonl", "formatting": "x"}}, "mine")
add_registry("formatting-number", {"mine": {"file_name": "a.jsonl", "formatting": 5}}, "mine")
add_registry("columns-list", {"mine": {"file_name": "a.jsonl", "columns": []}}, "columns")
add_registry("columns-unknown", {"mine": {"file_name": "a.jsonl", "columns": {"messsages": "x"}}}, "messsages")
add_registry("columns-elsewhere", {"mine": {"file_name": "a.jsonl", "columns": {"messages": "turns"}}}, "turns")
add_registry(
    "columns-same",
    {"mine": {"file_name": "a.jsonl", "columns": {"messages": "messages", "images": "messages"}}},
    codes=(0, 1),
)
add_registry(
    "tags-same",
    {
        "mine": {
            "file_name": "a.jsonl",
            "formatting": "sharegpt",
            "columns": {"messages": "messages"},
            "tags": {"role_tag": "content", "content_tag": "content"},
        }
    },
    codes=(1,),
)
add_registry("tags-of-null", {"mine": {"file_name": "a.jsonl", "tags": {"role_tag": None}}}, codes=(0, 1))
add_registry("key-unknown", {"mine": {"file_name": "a.jsonl", "num_sample": 5}}, "num_sample")
add_registry("samples", {"mine": {"file_name": "a.jsonl", "num_samples": 1}}, "num_samples")
add_registry("splits-cross", {"mine": {"splits": {"a": "a.jsonl", "b": "a.jsonl"}}}, "mine")
add_registry("splits-empty", {"mine": {"splits": {}}}, codes=(1,))
add_registry("splits-list", {"mine": {"splits": ["a"]}}, "splits")
add_registry("name-with-colon", {"a:b": {"file_name": "a.jsonl"}}, codes=(0,), data="a:b")
add_registry("name-empty", {"": {"file_name": "a.jsonl"}}, codes=(0, 1), data="")
add_registry("duplicate", '{"mine": {"file_name": "gone.jsonl"}, "mine": {"file_name": "a.jsonl"}}', codes=(0, 1))


@AREA.case
def registry_is_something_else(desk):
    for make in (
        lambda path: path.mkdir(),
        os.mkfifo,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to(path.name),
    ):
        folder = desk.path(f"d{len(desk.outcomes)}")
        folder.mkdir()
        make(folder / "dataset_info.json")
        desk.evaluate("mine", "--data-dir", folder).refused("dataset_info.json")


@AREA.case
def media_folder(desk):
    data = desk.lines(
        "a.jsonl", [{"messages": [{"role": "user", "content": "<image>"}, ANSWER], "images": ["1081.png"]}]
    )
    desk.evaluate(data, "--media-dir", desk.world.image.parent).accepted()
    for folder in ("no/such", "/dev/null", "", desk.world.image):
        desk.evaluate(data, "--media-dir", folder).expect(1, 2)


KEYS = [
    "messages",
    "conversations",
    "role",
    "from",
    "content",
    "value",
    "images",
    "videos",
    "system",
    "tools",
    "type",
    "text",
    "path",
    "loss",
    "weight",
]
WORDS = ["user", "assistant", "human", "gpt", "system", "<image>", "<video>", "hi", "text", "image", "function_call"]


def nonsense(desk):
    records = [mutate.random_json(desk.random, KEYS, WORDS, depth=5) for _ in range(3)]
    desk.evaluate(desk.lines("a.jsonl", records)).expect(0, 1)


def odd(desk):
    record = {
        "system": "s",
        "messages": [
            {"role": "user", "content": "<image>q"},
            {"role": "assistant", "content": "a", "loss": True},
            USER,
            ANSWER,
        ],
        "images": [str(desk.world.image)],
        "tools": [],
    }
    desk.evaluate(desk.file("a.jsonl", mutate.odd_json(desk.random, record))).expect(0, 1)


def odd_registry(desk):
    entry = {
        "mine": {
            "file_name": "a.jsonl",
            "formatting": "sharegpt",
            "split": "train",
            "columns": {"messages": "messages", "images": "images", "system": "system"},
            "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
        }
    }
    desk.lines("d/a.jsonl", [GOOD])
    desk.file("d/dataset_info.json", mutate.odd_json(desk.random, entry))
    desk.evaluate("mine", "--data-dir", desk.folder / "d").expect(0, 1)


for number in range(15):
    AREA.add(f"nonsense-{number:02}", nonsense)
    AREA.add(f"odd-{number:02}", odd)
    AREA.add(f"odd-registry-{number:02}", odd_registry)
