"""Have transformers load what `glm4v convert` and `glm4v init` write, and the other way round, for the whole family.

    python tests/interop/family.py --glm4v target/release/glm4v --golden tests/fixtures/golden

For the golden checkpoint of every member:

1. `glm4v convert` writes it in several types and sizes of files; transformers loads each strictly (no missing, no
   unexpected tensor), and its logits are those of the original, rounded the same way, to the bit;
2. transformers saves the original in small files; `glm4v convert` of that holds the original's tensors to the bit;
3. `glm4v init` makes fresh weights of the same shapes; transformers loads them strictly.

Needs the packages of tests/fixtures/oracle/requirements.txt.
"""

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
CORRECTION = "e_score_correction_bias"  # f32 whatever the type of the others
CASES = [(None, "5GB"), (None, "300KB"), ("f32", "1MB"), ("bf16", "300KB"), ("f16", "5GB")]
TYPES = {None: torch.float32, "f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stderr}"


def load(folder):
    """The model in f32; strictly."""
    model, report = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    return model.eval()


def tensors(folder):
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def check(program, original, image, folder):
    processor = AutoProcessor.from_pretrained(original)
    text = {"type": "text", "text": "What do you see?"}
    prompt = processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}, text]}], tokenize=False, add_generation_prompt=True)
    batch = processor(text=[prompt], images=[Image.open(image).convert("RGB")], return_tensors="pt")
    stored = tensors(original)

    for dtype, size in CASES:
        out = folder / f"{dtype}-{size}"
        run(program, "convert", "--model", original, "--out", out, "--shard-size", size, *(["--dtype", dtype] if dtype else []))
        expected = load(original)
        for name, values in [*expected.named_parameters(), *expected.named_buffers()]:
            if name in stored and CORRECTION not in name or ".experts." in name:
                values.data = values.data.to(TYPES[dtype]).float()
        for name, tensor in tensors(out).items():
            wanted = torch.float32 if CORRECTION in name else TYPES[dtype]
            assert tensor.dtype == wanted and torch.equal(tensor, stored[name].to(wanted)), name
        assert torch.equal(logits(load(out), batch), logits(expected, batch)), f"{out.name}: logits differ"
        print(f"{original.name}: {dtype or 'keep'} in {len(list(out.glob('*.safetensors')))} files: logits equal")

    saved, back = folder / "saved", folder / "back"
    load(original).save_pretrained(saved, max_shard_size="300KB")
    run(program, "convert", "--model", saved, "--out", back)
    found = tensors(back)
    assert found.keys() == stored.keys(), found.keys() ^ stored.keys()
    assert all(torch.equal(found[name], stored[name]) for name in stored)
    print(f"{original.name}: saved by transformers in {len(list(saved.glob('*.safetensors')))} files: tensors equal")

    fresh = folder / "fresh"
    run(program, "init", "--config", original, "--out", fresh, "--dtype", "bf16", "--shard-size", "300KB")
    shapes = {name: tensor.shape for name, tensor in tensors(fresh).items()}
    assert shapes == {name: tensor.shape for name, tensor in stored.items()}
    assert logits(load(fresh), batch).isfinite().all()
    print(f"{original.name}: fresh weights load")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glm4v", default="target/release/glm4v")
    parser.add_argument("--golden", type=Path, default="tests/fixtures/golden")
    parser.add_argument("--image", type=Path, default="datasets/digits/images/0005.png")
    args = parser.parse_args()

    found = [path.parent for path in sorted(args.golden.glob("checkpoints/*/model.safetensors"))]
    assert found, f"{args.golden}: no checkpoints"
    for original in found:
        with tempfile.TemporaryDirectory() as folder:
            check(args.glm4v, original, args.image, Path(folder))


if __name__ == "__main__":
    main()
