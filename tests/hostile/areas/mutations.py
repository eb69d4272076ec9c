"""Damage drawn from the seed, to every kind of file that is read."""

import json

import mutate
from harness import Area
from world import FIXTURES, SMALL

AREA = Area("mutations")
FORMATS = sorted(
    path
    for path in (FIXTURES / "processor/formats").iterdir()
    if path.suffix in (".png", ".jpg", ".gif", ".bmp", ".webp", ".tiff")
)
CLIPS = [FIXTURES / "processor/formats/animated.gif", *sorted((FIXTURES / "processor/video").glob("*.png"))]


def image(desk):
    source = desk.random.choice(FORMATS)
    desk.look(desk.file(source.name, mutate.damage(desk.random, source.read_bytes()))).expect(0, 1)


def clip(desk):
    source = desk.random.choice(CLIPS)
    desk.watch(desk.file(source.name, mutate.damage(desk.random, source.read_bytes()))).expect(0, 1)


def weights(desk):
    # The header, where the structure is.
    model = desk.model({"model.safetensors": lambda raw: mutate.damage(desk.random, raw[:7000]) + raw[7000:]})
    desk.look(desk.world.image, model=model).expect(0, 1)
    out = desk.path("out")
    desk.run("convert", "--model", model, "--out", out, outs=[out]).expect(0, 1)


def json_of(file):
    def play(desk):
        model = desk.model({file: lambda raw: mutate.odd_json(desk.random, json.loads(raw))})
        desk.look(desk.world.image, model=model).expect(0, 1)

    return play


def bytes_of(file):
    def play(desk):
        desk.look(desk.world.image, model=desk.model({file: lambda raw: mutate.damage(desk.random, raw)})).expect(0, 1)

    return play


def records(desk):
    raw = "\n".join(desk.world.questions.read_text().splitlines()[:3]).encode()
    desk.evaluate(desk.file("a.jsonl", mutate.damage(desk.random, raw))).expect(0, 1)


def metrics(desk):
    run = desk.copy(desk.world.run, "run")
    path = run / "metrics.jsonl"
    path.write_bytes(mutate.damage(desk.random, path.read_bytes()))
    desk.train(
        f"model.path={SMALL}",
        "model.init=random",
        "data.batch_size=16",
        "schedule.max_steps=62",
        "run.save_steps=20",
        extra=["--resume"],
    ).expect(0, 1)


KINDS = {
    "image": (image, 40),
    "clip": (clip, 15),
    "weights": (weights, 20),
    "config": (json_of("config.json"), 25),
    "config-bytes": (bytes_of("config.json"), 10),
    "tokenizer": (json_of("tokenizer.json"), 15),
    "tokenizer-bytes": (bytes_of("tokenizer.json"), 10),
    "tokenizer-config": (json_of("tokenizer_config.json"), 8),
    "processor": (json_of("preprocessor_config.json"), 20),
    "video-processor": (json_of("video_preprocessor_config.json"), 10),
    "generation": (json_of("generation_config.json"), 10),
    "records": (records, 20),
    "metrics": (metrics, 10),
}
for kind, (play, count) in KINDS.items():
    for number in range(count):
        AREA.add(f"{kind}-{number:02}", play)
