"""Compare adapters of this program with PEFT, in both directions, on the golden checkpoint of every member of the family.

    python tests/interop/adapter.py --glm4v target/release/glm4v --golden tests/fixtures/golden

1. PEFT makes an adapter with random factors and saves it; `glm4v trace --adapter` must give the logits that PEFT gives;
2. `glm4v train` trains an adapter for a few steps; PEFT loads it (no missing, no unexpected tensor) and must give the
   logits of `glm4v trace --adapter`;
3. `glm4v merge` folds both adapters into plain weights; `glm4v trace` of the result must give the same logits again.

Needs the packages of tests/fixtures/oracle/requirements.txt.
"""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from PIL import Image
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
TOLERANCE = 5e-4
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
# Targets as PEFT's users write them, and the same for [lora]. Beside experts PEFT takes no gate_proj, up_proj or
# down_proj of other parts: it rewrites these names for transformers 5.
TWO_KEYS = {"layers.0.self_attn.q_proj": 2, "q_proj": 6}  # in the order that PEFT saves them in
CASES = {
    "glm4v": [
        dict(target_modules=["q_proj", "v_proj", "gate_up_proj", "qkv"]),
        dict(target_modules=r"model\.visual\.merger\..*_proj", use_rslora=True),
        dict(target_modules="all-linear"),
        dict(target_modules=["q_proj", "o_proj"], rank_pattern=TWO_KEYS, alpha_pattern=TWO_KEYS),
        dict(target_modules=["v_proj"], modules_to_save=["norm"]),
        dict(target_modules=["v_proj"], modules_to_save=["visual.merger"]),
    ],
    "glm4v, tied": [dict(target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True)],
    "glm4v_moe": [
        dict(target_modules=["q_proj", "o_proj"], target_parameters=EXPERTS),
        dict(target_modules=["qkv"], target_parameters=EXPERTS[:1]),
        dict(target_modules=["qkv"], target_parameters=EXPERTS[1:]),
        dict(target_modules=["k_proj"], modules_to_save=["lm_head", "norm"]),
    ],
    "glm_ocr": [
        dict(target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"]),
        dict(target_modules="all-linear", use_rslora=True),
    ],
}


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stderr}"
    return done


class Bench:
    def __init__(self, program, base, image, folder):
        self.program, self.base, self.folder = program, base, Path(folder)
        self.messages = self.folder / "messages.json"
        picture, text = {"type": "image", "path": str(image.resolve())}, {"type": "text", "text": "What do you see?"}
        self.messages.write_text(json.dumps([{"role": "user", "content": [picture, text]}]))
        processor = AutoProcessor.from_pretrained(base)
        prompt = processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}, text]}], tokenize=False, add_generation_prompt=True)
        self.batch = processor(text=[prompt], images=[Image.open(image).convert("RGB")], return_tensors="pt")

    def ours(self, model, adapter=None):
        out = self.folder / "trace.safetensors"
        run(self.program, "trace", "--backend", "cpu", "--model", model, "--messages", self.messages, "--out", out, *(["--adapter", adapter] if adapter else []))
        return load_file(out)

    def model(self):
        # The plain loop over experts: one that PEFT's wrappers see through on every platform.
        kwargs = dict(experts_implementation="eager") if "moe" in self.base.name else {}
        return AutoModelForImageTextToText.from_pretrained(self.base, dtype=torch.float32, **kwargs).eval()

    def compare(self, name, model, adapter):
        trace = self.ours(self.base, adapter)
        assert torch.equal(trace["input_ids"], self.batch["input_ids"]), "token ids differ"
        with torch.no_grad():
            expected = model(**self.batch).logits
        plain = (self.ours(self.base)["logits"] - trace["logits"]).abs().max().item()
        merged = self.folder / f"merged-{adapter.name}"
        run(self.program, "merge", "--backend", "cpu", "--model", self.base, "--adapter", adapter, "--out", merged)
        apart = (trace["logits"] - expected).abs().max().item()
        folded = (self.ours(merged)["logits"] - expected).abs().max().item()
        print(f"{name}: logits differ by {apart:.1e}, merged by {folded:.1e}; the adapter moves them by {plain:.1e}", flush=True)
        assert apart < TOLERANCE and folded < TOLERANCE and plain > 1e-2, name


def tied(base, folder):
    """The same model with its head tied to the embeddings."""
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if name != "lm_head.weight"}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def train(bench, case, index, data):
    """A few steps of `glm4v train` with the same targets."""
    target = case.get("target_modules")
    lora = [f"target_modules = {json.dumps(target)}", "r = 4", "lora_alpha = 8.0", "lora_dropout = 0.0"]
    lora += [f"use_rslora = {str(case.get('use_rslora', False)).lower()}"]
    lora += [f"{key} = {json.dumps(case[key])}" for key in ("target_parameters", "modules_to_save") if key in case]
    for key in ("rank_pattern", "alpha_pattern"):
        if key in case:
            lora.append(f"{key} = {{ {', '.join(f'{json.dumps(name)} = {size}' for name, size in case[key].items())} }}")
    config = bench.folder / "run.toml"
    run_folder = bench.folder / f"run-{index}"
    config.write_text("\n".join([
        "[model]", f'path = "{bench.base}"', "[lora]", *lora, "[data]", f'dir = "{bench.folder}"', f'train = "{data}"', "batch_size = 2",
        "[optim]", "lr = 0.02", "[schedule]", "max_steps = 6", "[run]", f'output_dir = "{run_folder}"',
    ]))
    run(bench.program, "train", config, "--backend", "cpu")
    return run_folder / "final"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glm4v", default="target/release/glm4v")
    parser.add_argument("--golden", type=Path, default=Path("tests/fixtures/golden"))
    args = parser.parse_args()
    for family, cases in CASES.items():
        for index, case in enumerate(cases):
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                base = (args.golden / "checkpoints" / family.split(",")[0]).resolve()
                base = tied(base, Path(folder) / "tied") if "tied" in family else base
                bench = Bench(args.glm4v, base, args.golden / "images/shapes_56x56.png", folder)
                data = bench.folder / "data.jsonl"
                picture = {"type": "image", "path": str((args.golden / "images/shapes_56x56.png").resolve())}
                question = {"role": "user", "content": [picture, {"type": "text", "text": "Say a word."}]}
                turns = [question, {"role": "assistant", "content": "apple"}]
                data.write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(4)))
                (bench.folder / "dataset_info.json").write_text("{}")

                torch.manual_seed(index)
                model = get_peft_model(bench.model(), LoraConfig(r=4, lora_alpha=8, **case)).eval()
                for name, parameter in model.named_parameters():
                    if "lora_B" in name:
                        torch.nn.init.normal_(parameter, std=0.1)
                adapter = bench.folder / "peft"
                model.save_pretrained(adapter)
                bench.compare(f"{family} {index}, of PEFT", model, adapter)

                adapter = train(bench, case, index, data)
                model = bench.model()
                model = PeftModel.from_pretrained(model, adapter).eval()
                state = {name for name, _ in model.named_parameters() if "lora_" in name}
                stored = load_file(adapter / "adapter_model.safetensors")
                factors = [name for name in stored if "lora_" in name]
                assert len(state) == len(factors), f"{family}: PEFT has {len(state)} factors, the file {len(factors)}"
                bench.compare(f"{family} {index}, of glm4v", model, adapter)


if __name__ == "__main__":
    main()
