"""Compare this program with transformers on a model folder, in both directions.

    python tests/interop/check.py --glm4v target/release/glm4v --model runs/digits/final \\
        --image datasets/digits/images/0005.png --prompt "What digit is this?"

1. transformers loads the folder as it is (strictly: no missing and no unexpected tensor) and gives its logits;
2. `glm4v trace` gives its own for the same messages: ids and positions must be equal, logits close;
3. greedy tokens of both must be equal;
4. transformers saves the model, and `glm4v trace` on that folder must give the same again.

Needs the packages of tests/fixtures/oracle/requirements.txt.
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor


def trace(program, model, messages, folder, tokens):
    out = Path(folder) / "trace.safetensors"
    command = [program, "trace", "--model", model, "--messages", messages, "--out", out, "--backend", "cpu", "--max-new-tokens", tokens]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    return load_file(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glm4v", default="target/release/glm4v")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--tolerance", type=float, default=5e-4)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        messages = Path(folder) / "messages.json"
        content = [{"type": "image", "path": str(args.image.resolve())}, {"type": "text", "text": args.prompt}]
        messages.write_text(json.dumps([{"role": "user", "content": content}]))

        processor = AutoProcessor.from_pretrained(args.model)
        model, report = AutoModelForImageTextToText.from_pretrained(args.model, dtype=torch.float32, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"], report
        model.eval()
        text = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": args.prompt}]}],
            tokenize=False, add_generation_prompt=True,
        )
        batch = processor(text=[text], images=[Image.open(args.image).convert("RGB")], return_tensors="pt")
        with torch.no_grad():
            logits = model(**batch).logits
            model.model.rope_deltas = None
            answer = model.generate(**batch, do_sample=False, max_new_tokens=args.tokens)[0, batch["input_ids"].shape[1]:]

        saved = Path(folder) / "saved"
        model.save_pretrained(saved)
        processor.save_pretrained(saved)
        # Since 5.0 transformers writes the image settings into processor_config.json; this program reads both.
        for name, place in (("as it is", args.model), ("saved by transformers", saved)):
            ours = trace(args.glm4v, place, messages, folder, args.tokens)
            assert torch.equal(ours["input_ids"], batch["input_ids"]), "token ids differ"
            difference = (ours["logits"] - logits).abs().max().item()
            same = ours["generated"].tolist() == answer.tolist()
            print(f"{name}: logits differ by {difference:.1e}, greedy tokens {'equal' if same else 'DIFFER'}: {processor.tokenizer.decode(answer)!r}")
            assert difference < args.tolerance and same


if __name__ == "__main__":
    main()
