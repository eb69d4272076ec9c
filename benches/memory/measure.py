"""Peak memory of whole runs of the program, beside the estimate of `glm4v info`.

    python benches/memory/measure.py --glm4v target/release/glm4v --config configs/models/digits

Initializes a model with random weights from a directory with config and tokenizer (such as configs/models/digits) and a dataset of
one image and a question of chosen length, and runs `train` for three steps, with all weights and with adapters on the text decoder,
and `generate`. Prints a table. Peak memory is the maximum resident set size of the process (ru_maxrss).
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from paired import PROGRAM, ROOT, run  # noqa: E402

LORA = ["lora.target_modules=model.language_model.*", "lora.r=16", "lora.lora_alpha=32"]


def model_folder(args, side, folder):
    """A model whose processor resizes images to `side` x `side` pixels."""
    config = folder / "config"
    shutil.copytree(args.config, config)
    preprocessor = json.loads((config / "preprocessor_config.json").read_text())
    preprocessor["size"] = {"shortest_edge": 2 * side * side, "longest_edge": 2 * side * side}
    (config / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    run([args.glm4v, "init", "--config", config, "--out", folder / "model", "--dtype", args.dtype])
    return folder / "model"


def data_file(words, answer, rows, folder):
    image = ROOT / "datasets/digits/images/0005.png"
    record = {"messages": [
        {"role": "user", "content": [{"type": "image", "path": str(image)}, {"type": "text", "text": "What digit is this? " * words}]},
        {"role": "assistant", "content": "five " * answer},
    ]}
    path = folder / "data.jsonl"
    path.write_text((json.dumps(record) + "\n") * rows)
    return path


def estimate(args, model, batch, length, answer):
    out = run([args.glm4v, "info", "--json", "--model", model, "--batch-size", batch, "--seq-len", length, "--max-new-tokens", answer,
               "--image-size", "1000x1000", "--dtype", args.dtype])
    return json.loads(out.stdout)["estimate"]


def line(name, estimated, measured):
    off = 100 * (estimated / measured - 1)
    print(f"| {name} | {estimated / 1e6:.0f} | {measured / 1e6:.0f} | {off:+.0f} % |", flush=True)


def measure(args, side, words, answer, batch):
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = model_folder(args, side, folder)
        data = data_file(words, answer, 4 * batch, folder)
        for name, extra in (("all weights", []), ("adapters", LORA)):
            settings = [f"model.path={model}", "model.init=pretrained", f"data.train={data}", "eval.data=", f"data.batch_size={batch}",
                        f"run.output_dir={folder / name}", "schedule.max_steps=3", "run.save_steps=0", *extra]
            flags = [part for setting in settings for part in ("--set", setting)]
            peak = run([args.glm4v, "train", "configs/finetune/digits-full-cpu.toml", "-q", "--dtype", args.dtype, *flags]).peak_bytes
            steps = [json.loads(step) for step in (folder / name / "metrics.jsonl").read_text().splitlines()]
            length = steps[0]["tokens"] // batch
            estimates = estimate(args, model, batch, length, answer + 1)
            key = "training" if not extra else "training_lora_rank_16"
            line(f"train, {name}, batch {batch}, {length} tokens, {side} pixels", estimates[key]["peak_bytes"], peak)
        peak = run([args.glm4v, "generate", "--model", model, "--image", ROOT / "datasets/digits/images/0005.png", "--prompt",
                    "What digit is this? " * words, "--greedy", "--max-new-tokens", answer, "-q", "--dtype", args.dtype]).peak_bytes
        estimates = estimate(args, model, 1, length, answer)
        line(f"generate, {length} tokens, {side} pixels", estimates["generation"]["peak_bytes"], peak)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glm4v", type=lambda path: Path(path).resolve(), default=PROGRAM)
    parser.add_argument("--config", type=Path, default=ROOT / "configs/models/digits")
    parser.add_argument("--dtype", default="f32")
    args = parser.parse_args()
    idle = run([args.glm4v, "info"]).peak_bytes
    print(f"at rest: {idle / 1e6:.0f} MB\n\n| run | estimated MB | measured MB | off |\n|---|---|---|---|")
    for side, words, answer, batch in ((56, 1, 1, 32), (448, 12, 8, 2), (224, 60, 60, 4)):
        measure(args, side, words, answer, batch)


if __name__ == "__main__":
    main()
