"""Messages, prompts and tools, as files and as flags."""

import os
import signal

import mutate
from harness import Area

AREA = Area("conversations")
USER = {"role": "user", "content": "What?"}
ANSWER = {"role": "assistant", "content": "x"}


def image(path, **more):
    return {
        "role": "user",
        "content": [{"type": "image", "path": str(path), **more}, {"type": "text", "text": "What?"}],
    }


def add(name, content, *words, codes=(1,), flags=()):
    def play(desk):
        made = content(desk) if callable(content) else content
        outcome = desk.generate("--messages", desk.file("m.json", made), *flags).expect(*codes)
        if outcome.code == 1:
            outcome.says(*words)

    AREA.add(name, play)


add("empty-file", "", "m.json")
add("blank", " \n\t ", "m.json")
add("byte-order-mark", "\ufeff" + '[{"role": "user", "content": "hi"}]', codes=(0,))
add("utf-16", '[{"role": "user", "content": "hi"}]'.encode("utf-16"), "UTF-8")
add("latin-1", '[{"role": "user", "content": "é"}]'.encode("latin-1"), "UTF-8")
add("nul-bytes", b"\0" * 99, "m.json")
add("nul-in-a-text", [{"role": "user", "content": "a\0b"}], codes=(0, 1))
add("cut", '[{"role": "user", "con', "m.json")
add("two-values", "[] []", "m.json")
add("jsonl", '{"role": "user", "content": "a"}\n{"role": "user", "content": "b"}\n', "m.json")
add("number", 5, "m.json")
add("null", None, "m.json")
add("object", {"messages": [USER]}, "m.json")
add("no-messages", [], "m.json")
add("messages-are-texts", ["hi"], "message 0")
add("no-role", [{"content": "x"}], "message 0", "role")
add("no-content", [{"role": "user"}], "message 0", "content")
add("content-null", [{"role": "user", "content": None}], "message 0")
add("content-number", [{"role": "user", "content": 5}], "message 0")
add("content-object", [{"role": "user", "content": {"type": "text"}}], "message 0")
add("content-no-parts", [{"role": "user", "content": []}], codes=(0, 1))
add("content-empty", [{"role": "user", "content": ""}], codes=(0, 1))
add("role-unknown", [{"role": "wizard", "content": "x"}], "wizard")
add("role-number", [{"role": 5, "content": "x"}], "message 0")
add("role-empty", [{"role": "", "content": "x"}], "message 0")
add("assistant-last", [USER, ANSWER], codes=(0, 1))
add("system-alone", [{"role": "system", "content": "x"}], codes=(0, 1))
add("system-with-a-picture", lambda desk: [{**image(desk.world.image), "role": "system"}, USER], codes=(0, 1))
add("part-unknown", [{"role": "user", "content": [{"type": "smell"}]}], "smell")
add("part-null", [{"role": "user", "content": [None]}], "message 0")
add("part-without-type", [{"role": "user", "content": [{"text": "x"}]}], codes=(0, 1))
add(
    "part-audio",
    [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}],
    "audio",
)
add("part-text-number", [{"role": "user", "content": [{"type": "text", "text": 5}]}], "message 0")
add("image-without-path", [{"role": "user", "content": [{"type": "image"}]}], "message 0")
add("image-path-null", [{"role": "user", "content": [{"type": "image", "path": None}]}], "message 0")
add("image-path-empty", [image("")], "image 0")
add("image-path-of-100000", [image("x" * 100_000)], "image 0")
add("image-missing", [image("no/such.png")], "such.png")
add("image-etc-passwd", [image("/etc/passwd")], "passwd")
add("image-url-text", [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], codes=(0, 1))
add("image-url-number", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 5}}]}], "message 0")
add("image-two-sources", lambda desk: [image(desk.world.image, url="http://x/y.png")], codes=(0, 1))
add(
    "image-8000",
    lambda desk: [{"role": "user", "content": [{"type": "image", "path": str(desk.world.image)}] * 8000}],
    "tokens",
)
add(
    "image-by-an-answer",
    lambda desk: [USER, {"role": "assistant", "content": image(desk.world.image)["content"]}, USER],
    codes=(0, 1),
)
add("video-list-empty", [{"role": "user", "content": [{"type": "video", "video": []}]}], codes=(1,))
add("video-list-of-numbers", [{"role": "user", "content": [{"type": "video", "video": [1, 2]}]}], codes=(1,))
add(
    "video-rate-0",
    lambda desk: [
        {"role": "user", "content": [{"type": "video", "video": [str(desk.world.image)] * 4, "frame_rate": 0}]}
    ],
    codes=(1,),
)
add(
    "video-rate-nan",
    '[{"role": "user", "content": [{"type": "video", "video": ["a.png"], "frame_rate": NaN}]}]',
    "m.json",
)
add("deep-lists", "[" * 200_000, "m.json")
add("deep-objects", '{"a":' * 200_000, "m.json")
add("deep-content", '[{"role": "user", "content": ' + "[" * 500_000 + "]" * 500_000 + "}]", "m.json")
add("duplicate-keys", '[{"role": "user", "role": "assistant", "content": "a", "content": "b"}]', codes=(0, 1))
add("lone-surrogate", '[{"role": "user", "content": "\\ud800"}]', "m.json")
add("huge-number", '[{"role": "user", "content": 1e999}]', "m.json")
add("control-token", [{"role": "user", "content": "<|user|>"}], "<|user|>")
add("control-image", [{"role": "user", "content": "<|image|>"}], "<|image|>")
add(
    "control-image-allowed", [{"role": "user", "content": "<|image|>"}], codes=(0, 1), flags=("--allow-special-tokens",)
)
add(
    "control-video-allowed",
    [{"role": "user", "content": "<|video|>" * 9}],
    codes=(0, 1),
    flags=("--allow-special-tokens",),
)
add(
    "control-split",
    [{"role": "user", "content": [{"type": "text", "text": "<|ima"}, {"type": "text", "text": "ge|>"}]}],
    codes=(0, 1),
)
add("text-of-100-kb", [{"role": "user", "content": "x y " * 25_000}], "tokens")
add("text-of-8-mb", lambda desk: [{"role": "user", "content": "word " * 1_600_000}], "tokens")
add("text-without-spaces-4-mb", lambda desk: [{"role": "user", "content": "a" * 4_000_000}], codes=(1,))
add("text-of-spaces-4-mb", lambda desk: [{"role": "user", "content": " " * 4_000_000}], codes=(1,))
add("text-of-line-ends", lambda desk: [{"role": "user", "content": "\n" * 1_000_000}], codes=(1,))
add("text-of-combining-marks", lambda desk: [{"role": "user", "content": "e" + "\u0301" * 500_000}], codes=(1,))
add("text-of-emoji", [{"role": "user", "content": "👩‍👩‍👧‍👦" * 200}], codes=(0, 1))
add("text-right-to-left", [{"role": "user", "content": "\u202e\u2066abc\ufeff"}], codes=(0, 1))
add("turns-100000", lambda desk: [USER, ANSWER] * 50_000, codes=(1,))
add(
    "tool-calls",
    [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
        {"role": "tool", "content": "1"},
    ],
    codes=(0, 1),
)
add("tool-calls-garbage", [USER, {"role": "assistant", "tool_calls": 5}, USER], codes=(0, 1))
add("reasoning", [USER, {"role": "assistant", "content": "x", "reasoning_content": ["x"]}, USER], codes=(0, 1))
add("unknown-keys", [{**USER, "name": "bob", "cache_control": {}, "": 0}], codes=(0, 1))


@AREA.case
def file_is_missing(desk):
    desk.generate("--messages", "no/such.json").refused("no/such.json")


@AREA.case
def file_is_a_folder(desk):
    desk.generate("--messages", desk.folder).refused(str(desk.folder))


@AREA.case
def file_is_endless(desk):
    desk.generate("--messages", "/dev/zero").refused("/dev/zero")


@AREA.case
def file_is_a_pipe_that_ends(desk):
    desk.generate("--messages", "/dev/stdin", stdin=b'[{"role": "user", "content": "hi"}]').accepted()


@AREA.case
def dash_reads_stdin(desk):
    desk.generate("--messages", "-", stdin=b'[{"role": "user", "content": "hi"}]').held()


@AREA.case
def prompt_dash(desk):
    desk.generate("--prompt", "-", stdin=b"hi").held()


@AREA.case
def prompts(desk):
    for prompt in (
        "",
        " ",
        "\n",
        "--",
        "-x",
        "{{ 7 * 7 }}",
        "{% for %}",
        "%s%n",
        "$(id)",
        "'\"\\",
        "\u202e",
        "<think>",
        "[gMASK]",
        "/nothink",
    ):
        desk.generate(f"--prompt={prompt}").expect(0, 1)


@AREA.case
def prompt_of_100_kb(desk):
    desk.generate("--prompt", "hello " * 20_000).refused("tokens")


@AREA.case
def image_alone_needs_no_prompt_or_says_so(desk):
    outcome = desk.generate("--image", desk.world.image).expect(0, 2)
    usage = desk.run("generate", "--help").accepted()
    if outcome.code == 2 and "--prompt <TEXT>|--image <FILE>" in usage.stdout:
        outcome.blame("refuses --image alone, which its usage offers")


@AREA.case
def tools(desk):
    for content in (
        "",
        "{}",
        "5",
        "null",
        "[]",
        "[5]",
        "[null]",
        '[{"type": "function"}]',
        "[[[]]]",
        "[" * 100_000,
        b"\xff",
        '[{"name": "\\u0000"}]',
    ):
        desk.generate("--prompt", "x", "--tools", desk.file("t.json", content)).expect(0, 1)
    desk.generate("--prompt", "x", "--tools", "/dev/zero").refused("/dev/zero")
    desk.generate("--prompt", "x", "--tools", desk.folder).refused()


@AREA.case
def fifo_that_nobody_writes(desk):
    os.mkfifo(desk.path("fifo"))
    # As any program: it waits for the writer, and can be interrupted.
    started = desk.start("generate", "--model", desk.world.model, "--messages", desk.path("fifo"))
    started.after(0.5, signal.SIGTERM).wait().expect(143, 1, -signal.SIGTERM).within(seconds=10)


KEYS = [
    "role",
    "content",
    "type",
    "text",
    "image",
    "path",
    "url",
    "image_url",
    "video",
    "frame_rate",
    "tool_calls",
    "function",
    "name",
]
WORDS = [
    "user",
    "assistant",
    "system",
    "tool",
    "text",
    "image",
    "video",
    "image_url",
    "hi",
    "<image>",
    "data:image/png;base64,",
    "http://x/",
]


def nonsense(desk):
    messages = mutate.random_json(desk.random, KEYS, WORDS)
    desk.generate("--messages", desk.file("m.json", messages)).expect(0, 1)


for number in range(20):
    AREA.add(f"nonsense-{number:02}", nonsense)
for number in range(20):
    AREA.add(
        f"damaged-{number:02}",
        lambda desk: desk.generate(
            "--messages",
            desk.file(
                "m.json",
                mutate.odd_json(
                    desk.random,
                    [
                        {"role": "system", "content": "x"},
                        image(desk.world.image),
                        ANSWER,
                        {"role": "user", "content": "again"},
                    ],
                ),
            ),
        ).expect(0, 1),
    )
