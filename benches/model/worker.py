"""One workload of transformers in this process, measured as `glm4v bench` measures its own; `compare.py` starts it.

Prints a JSON object: seconds and CPU seconds of every round, peak memory of process and device, versions.
"""

import argparse
import json
import re
import time
from pathlib import Path

import torch
import transformers


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--weights", action="store_true", help="load them from the directory instead of random ones")
    parser.add_argument("--workload", required=True)
    parser.add_argument("--shape", type=json.loads, required=True, help="the shape that glm4v bench --json reports")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="f32")
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--decode-tokens", type=int, default=32)
    return parser.parse_args()


DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def directory(path):
    return path if path.is_dir() else path.parent


def make_config(path):
    file = path / "config.json" if path.is_dir() else path
    values = json.loads(file.read_text())
    return transformers.AutoConfig.for_model(values.pop("model_type"), **values)


def make_model(args):
    dtype = DTYPES[args.dtype]
    if args.weights or args.workload == "load":
        kwargs = {"dtype": dtype, "attn_implementation": args.attention, "device_map": args.device}
        return transformers.AutoModelForImageTextToText.from_pretrained(directory(args.config), **kwargs).eval()
    with torch.device(args.device):
        model = transformers.AutoModelForImageTextToText.from_config(
            make_config(args.config), attn_implementation=args.attention, dtype=dtype)
    return model.eval()


class Peak:
    """Largest memory use since it was made, of the process and of the device."""

    def __init__(self, device):
        self.device = device
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pass
        if device != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def read(self):
        status = Path("/proc/self/status").read_text()
        process = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024
        return process, None if self.device == "cpu" else torch.cuda.max_memory_reserved()


def measure(work, args, rounds):
    """Runs `work`; the device is waited for after every round."""
    sync = torch.cuda.synchronize if args.device != "cpu" else lambda: None
    peak, seconds, cpu_seconds = Peak(args.device), [], []
    for number in range(args.warmup + rounds):
        sync()
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        sync()
        if number >= args.warmup:
            seconds.append(time.perf_counter() - wall)
            cpu_seconds.append(time.process_time() - cpu)
    process, device = peak.read()
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "process_bytes": process, "device_bytes": device}


def inputs(model, shape, device):
    """The tokens and pixels of `InputShape::batch`: text, an image in its middle."""
    config, rows = model.config, shape["batch_size"]
    text = torch.randint(0, min(config.text_config.vocab_size, config.image_token_id) - 8, (rows, shape.get("text_tokens", 2)))
    half = text.shape[1] // 2
    image = torch.full((rows, shape.get("image_tokens", 0)), config.image_token_id)
    ids = torch.cat([text[:, :half], image, text[:, half:]], 1)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": (ids == config.image_token_id).int()}
    if grid := shape.get("image_grid_thw"):
        vision = config.vision_config
        values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        patches = grid[0] * grid[1] * grid[2]
        batch["pixel_values"] = torch.rand(rows * patches, values) * 4 - 2
        batch["image_grid_thw"] = torch.tensor([grid] * rows)
    return {name: tensor.to(device) for name, tensor in batch.items()}


@torch.no_grad()
def vision(model, args):
    batch = inputs(model, args.shape, args.device)
    pixels = batch["pixel_values"].to(model.dtype)
    return measure(lambda: model.get_image_features(pixels, batch["image_grid_thw"]), args, args.rounds)


class Captured(Exception):
    """Ends a forward pass where the text decoder would begin."""


def decoder_inputs(model, batch):
    """What the text decoder is given, with the image's embeddings in place."""
    caught = {}

    def catch(_module, _args, kwargs):
        caught.update(kwargs)
        raise Captured

    hook = model.model.language_model.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        model(**batch, use_cache=True, logits_to_keep=1)
    except Captured:
        pass
    hook.remove()
    return {name: value for name, value in caught.items() if name != "past_key_values"}


@torch.no_grad()
def prefill(model, args):
    given = decoder_inputs(model, inputs(model, args.shape, args.device))

    def work():
        hidden = model.model.language_model(**given).last_hidden_state
        model.lm_head(hidden[:, -1]).float().cpu()

    return measure(work, args, args.rounds)


@torch.no_grad()
def decode(model, args):
    shape = {"batch_size": args.shape["batch_size"], "text_tokens": args.shape["depth"]}
    batch = inputs(model, shape, args.device)
    del batch["mm_token_type_ids"]
    output = model(**batch, use_cache=True, logits_to_keep=1)
    state = {"token": output.logits[:, -1:].argmax(-1), "length": shape["text_tokens"]}
    cache = output.past_key_values

    def work():
        position = torch.full((3, shape["batch_size"], 1), state["length"], device=args.device)
        step = model(input_ids=state["token"], position_ids=position, past_key_values=cache, use_cache=True)
        state["token"] = step.logits[:, -1:].argmax(-1)
        state["token"].cpu()
        state["length"] += 1

    return measure(work, args, args.decode_tokens)


PARTS = {
    "vision": lambda name: ".visual." in name and "merger" not in name and "downsample" not in name,
    "merger": lambda name: ".visual." in name and ("merger" in name or "downsample" in name),
    "text": lambda name: ".visual." not in name,
    "embeddings": lambda name: "embed_tokens" in name,
    "head": lambda name: "lm_head" in name,
}


def prepare_training(model, shape):
    """Adapters, or frozen parts, as `glm4v bench` has them."""
    if shape["method"] == "lora":
        import peft

        experts = hasattr(model.config.text_config, "n_routed_experts")
        part = "self_attn" if experts else "(self_attn|mlp)"
        targets = rf"model\.language_model\.layers\.\d+\.{part}\.[a-z_]+_proj"
        return peft.get_peft_model(model, peft.LoraConfig(r=shape["rank"], lora_alpha=32, target_modules=targets))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(PARTS[part](name) for part in shape["frozen"]))
    return model


def train(model, args):
    batch = inputs(model, args.shape, args.device)
    labels = batch["input_ids"].clone()
    labels[:, : -args.shape["labels"]] = -100
    model = prepare_training(model, args.shape).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, weight_decay=0.01)

    def work():
        loss = model(**batch, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return measure(work, args, args.rounds)


def load(_model, args):
    return measure(lambda: make_model(args), args, args.rounds)


WORKLOADS = {"vision": vision, "prefill": prefill, "decode": decode, "train": train, "load": load}


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = None if args.workload == "load" else make_model(args)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    device = torch.cuda.get_device_name() if args.device != "cpu" else None
    print(json.dumps(WORKLOADS[args.workload](model, args) | {"versions": versions, "device": device}))


if __name__ == "__main__":
    main()
