"""Eight-bit checkpoints in their three forms, made from the golden ones, against what torch makes of the same codes and scales.

    python tests/interop/fp8.py --glm4v target/release/glm4v --golden tests/fixtures/golden

1. `glm4v trace` of the eight-bit folder must give the very logits of a folder that holds the products in f32;
2. `glm4v convert` must write them as bf16, bit for bit, with a config that no longer speaks of quantization.

Needs the packages of tests/fixtures/oracle/requirements.txt.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

BLOCK = 32
CONFIGS = {
    "tensor": {"quant_method": "compressed-tensors", "format": "float-quantized"},
    "channel": {"quant_method": "compressed-tensors", "format": "float-quantized"},
    "block": {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]},
}


def scales(weight, form):
    """Scales as a checkpoint stores them, and one for each value."""
    if form == "tensor":
        scale = weight.abs().max() / 448
        return scale.reshape(1), scale
    if form == "channel":
        scale = weight.abs().amax(1, keepdim=True) / 448
        return scale, scale
    rows, columns = weight.shape
    down, across = -(-rows // BLOCK), -(-columns // BLOCK)
    padded = torch.zeros(down * BLOCK, across * BLOCK)
    padded[:rows, :columns] = weight
    scale = padded.view(down, BLOCK, across, BLOCK).abs().amax((1, 3)) / 448
    return scale, scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:rows, :columns]


def make(base, folder, form):
    """Two copies of a checkpoint: with codes and scales, and with their products."""
    packed, plain = {}, {}
    for name, tensor in load_file(base / "model.safetensors").items():
        if tensor.ndim != 2 or any(part in name for part in ("embed", "lm_head", ".gate.")):
            packed[name] = plain[name] = tensor
            continue
        stored, each = scales(tensor.float(), form)
        packed[name] = (tensor.float() / each).to(torch.float8_e4m3fn)
        packed[f"{name}_scale_inv" if form == "block" else f"{name}_scale"] = stored
        plain[name] = packed[name].float() * each
    for kind, tensors in (("packed", packed), ("plain", plain)):
        shutil.copytree(base, folder / kind)
        save_file(tensors, folder / kind / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    (folder / "packed/config.json").write_text(json.dumps(config | {"quantization_config": CONFIGS[form]}))
    return packed, plain


def logits(glm4v, model, messages):
    out = model.parent / "trace.safetensors"
    subprocess.run([glm4v, "trace", "--model", model, "--messages", messages, "--out", out, "--dtype", "f32"], check=True)
    traced = load_file(out)
    return traced[next(name for name in traced if "logits" in name)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--glm4v", type=Path, required=True)
    parser.add_argument("--golden", type=Path, required=True)
    args = parser.parse_args()
    image = args.golden.resolve() / "images/shapes_56x56.png"
    parts = [{"type": "image", "path": str(image)}, {"type": "text", "text": "What do you see?"}]
    for family in ("glm4v", "glm4v_moe", "glm_ocr"):
        for form in CONFIGS:
            with tempfile.TemporaryDirectory() as folder:
                folder = Path(folder)
                messages = folder / "messages.json"
                messages.write_text(json.dumps([{"role": "user", "content": parts}]))
                packed, plain = make(args.golden / "checkpoints" / family, folder, form)
                assert torch.equal(*(logits(args.glm4v, folder / kind, messages) for kind in ("packed", "plain"))), (family, form)
                subprocess.run([args.glm4v, "convert", "--quiet", "--model", folder / "packed", "--out", folder / "out"], check=True)
                written = load_file(folder / "out/model.safetensors")
                assert written.keys() == plain.keys(), (family, form)
                for name, tensor in plain.items():
                    expected = tensor.bfloat16() if packed[name].dtype == torch.float8_e4m3fn else tensor
                    assert torch.equal(written[name], expected), (family, form, name)
                assert "quantization_config" not in json.loads((folder / "out/config.json").read_text())
                print(f"{family}, a scale for each {form}: the same logits, the same bf16 weights")


main()
