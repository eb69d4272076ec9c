"""Random small checkpoints, prompts, adapters and training runs: this program against transformers, PEFT and torch.

    python tests/interop/differential.py --glm4v target/release/glm4v [--seed 0] [--count 12] [--only INDEX] [--keep DIR]
    python tests/interop/differential.py --glm4v target/release/glm4v --fault lr

Case INDEX of a seed is always the same. It is a checkpoint of one of the three architectures with unusual but legal sizes, and

    prompts    text, images, several turns: ids equal, logits close, each greedy token one of the reference's best
    adapter    made by PEFT with random targets, patterns and saved modules: the same logits with --adapter, and merged
    training   five steps, whole or from that adapter, with batches of text alone between images: losses and gradient norms

Is the test sharp? `--fault` puts a fault into the reference: every case that it can touch must then differ.

    lr         a learning rate 5 % too high        decay    weight decay 0.05 too high
    steps      one count of AdamW's steps for all  idle     experts without tokens stay as they are
    theta      text frequencies 0.1 % too high     pixels   one level of 255 more

Ends with a line of counts; the exit code is 1 where anything differs, or a fault goes unseen. Needs the packages of
tests/fixtures/oracle/requirements.txt.
"""

import argparse
import copy
import json
import math
import os
import random
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

import numpy
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
torch.set_num_threads(1)

FAMILIES = ["glm4v", "glm4v_moe", "glm_ocr"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
WORDS = "What is shown in this image ? A red square and 3.14 blue dots , über 图中有一只猫 Привет 🙂 def f(x): return x * 1024".split()
ENDS = ["<|user|>", "<|endoftext|>"]
LOGITS, TIE, LOSS, NORM = 1e-3, 2e-3, 3e-5, 3e-4
STEPS = 5


class Differs(Exception):
    """What of a case is not the same."""


def need(good, what):
    if not good:
        raise Differs(what)


def below(limit, found, what):
    need(found <= limit, f"{what}: {found:.1e}, more than {limit:.0e}")
    return found


# --------------------------------------------------------------------------------------------------------------- checkpoints


def parts(rng, total, count):
    """Numbers that add up; the first may not be zero."""
    cuts = sorted(rng.randint(1, total) for _ in range(count - 1))
    return [b - a for a, b in zip([0, *cuts], [*cuts, total])]


def draw_sizes(rng, family, config):
    """Unusual but legal sizes, in place of those of a golden checkpoint."""
    moe, text, vision = family == "glm4v_moe", config["text_config"], config["vision_config"]
    heads = rng.choice([1, 2, 3, 4, 6])
    width = rng.choice([8, 12, 16, 20])
    free = family != "glm4v" and rng.random() < 0.6
    partial = rng.choice([p for p in (0.25, 0.5, 0.75, 1.0) if int(width * p) % 2 == 0 and int(width * p) >= 2])
    hidden = rng.randrange(20, 120, 4) if free else heads * width
    rope = dict(rope_type="default", rope_theta=rng.choice([100.0, 10000.0, 5e5]), partial_rotary_factor=partial)
    text.update(
        hidden_size=hidden,
        intermediate_size=rng.randint(17, 120),
        num_hidden_layers=rng.randint(1, 3),
        num_attention_heads=heads,
        num_key_value_heads=rng.choice([n for n in range(1, heads + 1) if heads % n == 0]),
        rms_norm_eps=rng.choice([1e-5, 1e-6, 1e-3]),
        rope_parameters=rope | dict(mrope_section=parts(rng, int(width * partial) // 2, 3)),
    )
    text.pop("head_dim", None)
    if free or moe:
        text["head_dim"] = width
    if moe:
        groups, size = rng.choice([1, 2, 3]), rng.randint(2, 4)
        kept = rng.randint(1, groups)
        text.update(
            attention_bias=rng.random() < 0.5,
            moe_intermediate_size=rng.randint(9, 50),
            n_routed_experts=groups * size,
            n_group=groups,
            topk_group=kept,
            num_experts_per_tok=rng.randint(1, kept * size),
            n_shared_experts=rng.randint(1, 2),
            norm_topk_prob=rng.random() < 0.5,
            routed_scaling_factor=rng.choice([1.0, 1.5, 2.5]),
            first_k_dense_replace=rng.randint(0, min(1, text["num_hidden_layers"] - 1)),
        )
    of_heads = rng.choice([2, 3, 4])
    vision.update(
        depth=rng.randint(1, 2),
        num_heads=of_heads,
        hidden_size=of_heads * rng.choice([8, 12, 16]),
        spatial_merge_size=rng.choice([1, 2, 2, 3]),
        patch_size=rng.choice([8, 10, 14]),
        image_size=rng.randrange(42, 170),
        out_hidden_size=hidden,
        intermediate_size=rng.randint(11, 120),
        attention_bias=rng.random() < 0.5,
        rms_norm_eps=rng.choice([1e-5, 1e-6, 1e-3]),
        rope_parameters=dict(rope_type="axial", rope_theta=rng.choice([10000.0, 10000.0, 500.0])),
    )


def randomize(model, seed):
    """Values that matter to the output, whatever the initialization."""
    generator = torch.Generator().manual_seed(seed)
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name in sorted(name for name in named if "inv_freq" not in name):
            value = named[name]
            drawn = torch.randn(value.shape, generator=generator)
            if name.endswith("bias"):
                value.copy_(0.2 * drawn)
            elif value.ndim == 1:
                value.copy_(1 + 0.2 * drawn)
            else:
                value.copy_(drawn * 1.4 / math.sqrt(value[0].numel() if value.ndim < 3 else value.shape[-1]))


def make_checkpoint(rng, family, golden, folder):
    shutil.copytree(golden / "checkpoints" / family, folder)
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    config = json.loads((folder / "config.json").read_text())
    draw_sizes(rng, family, config)
    (folder / "config.json").write_text(json.dumps(config))
    vision = config["vision_config"]
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        if (folder / name).exists():
            settings = json.loads((folder / name).read_text())
            settings.update(patch_size=vision["patch_size"], merge_size=vision["spatial_merge_size"])
            (folder / name).write_text(json.dumps(settings))
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    randomize(model, rng.randrange(1 << 30))
    model.save_pretrained(folder, max_shard_size=rng.choice(["5GB", "200KB"]))


def load(folder):
    return AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager",
        **({"experts_implementation": "eager"} if "moe" in (folder / "config.json").read_text() else {}),
    ).eval()


# ------------------------------------------------------------------------------------------------------------- conversations


def words(rng, count):
    return " ".join(rng.choice(WORDS) for _ in range(count))


def draw_image(rng, folder):
    width, height = rng.randint(20, 150), rng.randint(20, 150)
    noise = numpy.random.RandomState(rng.randrange(1 << 31)).randint(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    path = folder / f"{rng.randrange(1 << 40)}{rng.choice(['.png', '.jpg', '.webp'])}"
    Image.fromarray(noise.astype(numpy.uint8)).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return {"type": "image", "path": str(path)}


def draw_user(rng, folder, images):
    content = [draw_image(rng, folder) for _ in range(images)] + [{"type": "text", "text": words(rng, rng.randint(1, 8))}]
    rng.shuffle(content)
    return {"role": "user", "content": content}


def draw_talks(rng, folder):
    """Conversations that end with a question."""
    answer = lambda: {"role": "assistant", "content": words(rng, rng.randint(1, 6))}
    return [
        [draw_user(rng, folder, 0)],
        [draw_user(rng, folder, 1)],
        [draw_user(rng, folder, rng.randint(2, 3))],
        [{"role": "system", "content": words(rng, 3)}, draw_user(rng, folder, 1), answer(), draw_user(rng, folder, rng.randint(0, 1))],
    ]


def encode(processor, talk, answered=False):
    """A batch of one row; with `answered`, all of the conversation and the token that ends it."""
    bare = [
        turn | {"content": [part if part["type"] == "text" else {"type": "image"} for part in turn["content"]]}
        if isinstance(turn["content"], list) else turn
        for turn in talk
    ]
    text = processor.apply_chat_template(bare, tokenize=False, add_generation_prompt=not answered)
    media = [part["path"] for turn in talk if isinstance(turn["content"], list) for part in turn["content"] if part["type"] == "image"]
    images = [Image.open(path).convert("RGB") for path in media]
    text += ENDS[1] if answered else ""
    return processor(text=[text], images=images or None, return_tensors="pt")


def label(processor, ids):
    """Answers, and the tokens that end them."""
    id_of = processor.tokenizer.convert_tokens_to_ids
    ends, labels, taught = {id_of(end) for end in ENDS}, [], False
    tokens = ids.tolist()
    for place, token in enumerate(tokens):
        begins = place >= 2 and tokens[place - 2] == id_of("<|assistant|>")  # behind the role comes a line break
        taught = taught or begins
        labels.append(token if taught else -100)
        taught = taught and token not in ends
    return torch.tensor(labels)


def collate(rows, pad):
    longest = max(row["input_ids"].shape[1] for row in rows)
    fill = lambda key, value: torch.cat([torch.nn.functional.pad(row[key], (0, longest - row[key].shape[1]), value=value) for row in rows])
    batch = {"input_ids": fill("input_ids", pad), "labels": fill("labels", -100), "attention_mask": fill("attention_mask", 0)}
    batch["mm_token_type_ids"] = fill("mm_token_type_ids", 0)
    for key in ("pixel_values", "image_grid_thw"):
        found = [row[key] for row in rows if key in row]
        if found:
            batch[key] = torch.cat(found)
    return batch


def forward(model, batch):
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner.model.rope_deltas = None
    return model(**batch, use_cache=False)


def noise(model, batch, logits):
    """How far the reference is from itself in twice the precision."""
    wide = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
    found = forward(copy.deepcopy(model).double(), wide).logits
    return (found - logits).abs().max().item()


# ------------------------------------------------------------------------------------------------------------------- faults


def fault_in_model(model, fault):
    if fault == "theta":
        model.model.language_model.rotary_emb.inv_freq *= 1.001
    return model


def fault_in_batch(batch, fault):
    if fault == "pixels" and "pixel_values" in batch:
        batch["pixel_values"] = batch["pixel_values"] + 1 / 255 / 0.27
    return batch


# -------------------------------------------------------------------------------------------------------------------- cases


class Case:
    def __init__(self, args, index, folder):
        self.args, self.folder, self.index = args, folder, index
        self.rng = random.Random(f"{args.seed} {index}")
        self.family = FAMILIES[index % 3]
        self.base = folder / "model"
        self.worst = {}
        make_checkpoint(self.rng, self.family, args.golden.resolve(), self.base)
        self.processor = AutoProcessor.from_pretrained(self.base)

    def run(self, *command):
        done = subprocess.run([str(part) for part in (self.args.glm4v, *command)], capture_output=True, text=True)
        need(done.returncode == 0, f"{command[0]}: {done.stderr.strip()[-400:]}")
        return done

    def see(self, what, found):
        self.worst[what] = max(self.worst.get(what, 0.0), found)

    def ours(self, talk, model=None, adapter=None, tokens=0):
        messages, out = self.folder / "messages.json", self.folder / "trace.safetensors"
        messages.write_text(json.dumps(talk))
        more = ["--adapter", adapter] if adapter else []
        self.run("trace", "--backend", "cpu", "--model", model or self.base, "--messages", messages, "--out", out, "--max-new-tokens", tokens, *more)
        return load_file(out)

    def prompts(self):
        model = fault_in_model(load(self.base), self.args.fault)
        for number, talk in enumerate(draw_talks(self.rng, self.folder)):
            ours = self.ours(talk, tokens=8)
            batch = encode(self.processor, talk)
            need(torch.equal(ours["input_ids"], batch["input_ids"]), f"prompt {number}: ids")
            if "pixel_values" in batch:
                batch = fault_in_batch(batch, self.args.fault)
                pixels = (ours["pixel_values"] - batch["pixel_values"]).abs().max().item()
                self.see("pixels", below(1e-5, pixels, f"prompt {number}: pixels"))
            with torch.no_grad():
                expected = forward(model, batch).logits
                found = (ours["logits"] - expected).abs().max().item()
                allowed = LOGITS if found <= LOGITS else max(LOGITS, 10 * noise(model, batch, expected))
                self.see("logits", below(allowed, found, f"prompt {number}: logits"))
                self.check_greedy(number, model, batch, ours["generated"].tolist())

    def check_greedy(self, number, model, batch, tokens):
        """Every token is one of the best of the reference, which sees the tokens before it."""
        count = batch["input_ids"].shape[1]
        tokens = tokens[0] if tokens and isinstance(tokens[0], list) else tokens
        # transformers takes no media tokens without media: what follows the first one is not compared.
        media = [self.processor.tokenizer.convert_tokens_to_ids(token) for token in ("<|image|>", "<|video|>")]
        known = next((place for place, token in enumerate(tokens) if token in media), len(tokens) - 1)
        new, found = torch.tensor([tokens[:known]], dtype=torch.long), torch.tensor(tokens[: known + 1])
        whole = dict(batch, input_ids=torch.cat([batch["input_ids"], new], 1))
        for key, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
            whole[key] = torch.cat([batch[key], torch.full_like(new, value)], 1)
        scores = forward(model, whole).logits[0, count - 1 :]
        lost = (scores.max(-1).values - scores.gather(1, found[:, None])[:, 0]).max().item()
        self.see("greedy", below(TIE, lost, f"prompt {number}: a greedy token is not the best one"))

    def draw_adapter(self):
        rng = self.rng
        attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
        case = dict(r=rng.randint(1, 6), lora_alpha=rng.choice([1, 4, 16]), use_rslora=rng.random() < 0.4)
        if self.family == "glm4v_moe":
            case.update(target_modules=rng.sample(attention, rng.randint(1, 4)), target_parameters=rng.sample(EXPERTS, rng.randint(1, 2)))
        else:
            more = ["gate_up_proj", "down_proj", "qkv", r"merger.gate_proj"]
            # One of the text decoder's at least: batches of text alone have no gradient otherwise.
            case["target_modules"] = sorted({rng.choice(attention), *rng.sample(attention + more, rng.randint(1, 4))})
        if "q_proj" in case["target_modules"] and rng.random() < 0.6:
            case["alpha_pattern"] = {"layers.0.self_attn.q_proj": 2, "q_proj": 32}
            case["rank_pattern"] = {r"language_model.*\.q_proj": rng.randint(1, 4)}
        saved = rng.choice([None, None, ["lm_head"], ["norm"], ["visual.merger"]])
        if saved == ["visual.merger"] and "merger.gate_proj" in case["target_modules"]:
            saved = None
        return LoraConfig(**case, modules_to_save=saved)

    def adapter(self):
        torch.manual_seed(self.index)
        model = get_peft_model(load(self.base), self.draw_adapter()).eval()
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "lora_B" in name:
                    value.normal_(std=0.1)
                elif value.requires_grad and "lora_" not in name:
                    value.mul_(1.1)
        model.save_pretrained(self.folder / "peft")
        fault_in_model(model.get_base_model(), self.args.fault)
        talk = [draw_user(self.rng, self.folder, 1)]
        with torch.no_grad():
            expected = forward(model, fault_in_batch(encode(self.processor, talk), self.args.fault)).logits
        merged = self.folder / "merged"
        self.run("merge", "--backend", "cpu", "--model", self.base, "--adapter", self.folder / "peft", "--out", merged)
        for what, ours in (("adapter", self.ours(talk, adapter=self.folder / "peft")), ("merged", self.ours(talk, model=merged))):
            self.see("logits", below(LOGITS, (ours["logits"] - expected).abs().max().item(), f"{what}: logits"))

    def training(self):
        rng, order = self.rng, []
        talks = [[draw_user(rng, self.folder, images), {"role": "assistant", "content": words(rng, rng.randint(2, 6))}] for images in (0, 0, 1, 0, 2, 1)]
        for _ in range(STEPS):
            order.append([0, 3] if len(order) in (0, 2) else rng.sample(range(6), 2))  # text alone between images
        optim = dict(lr=rng.choice([1e-3, 3e-3]), betas=[rng.choice([0.9, 0.8]), rng.choice([0.999, 0.95])], weight_decay=rng.choice([0.0, 0.1]))
        clip = rng.choice([0.0, 1.0])
        whole = rng.random() < 0.5
        found = self.train(talks, order, optim, clip, whole)
        expected = self.reference(talks, order, optim, clip, whole)
        (loss, norm), own = apart(found, expected), []
        if loss > LOSS or norm > NORM:
            # A run may magnify rounding errors: how far apart is the reference from itself, moved by one?
            own = [apart(self.reference(talks, order, optim, clip, whole, nudge=seed), expected) for seed in (1, 2, 3)]
        where = f"training {'whole' if whole else 'the adapter'}"
        self.see("loss", below(max([LOSS, *(10 * loss for loss, _ in own)]), loss, f"{where}: loss"))
        self.see("norm", below(max([NORM, *(10 * norm for _, norm in own)]), norm, f"{where}: gradient norm"))

    def train(self, talks, order, optim, clip, whole):
        data, batches, out = self.folder / "data.jsonl", self.folder / "order.json", self.folder / "run"
        data.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
        batches.write_text(json.dumps(order))
        config = self.folder / "run.toml"
        config.write_text("\n".join([
            "[model]", f'path = "{self.base}"', *([] if whole else ["[lora]", f'adapter_path = "{self.folder / "peft"}"']),
            "[data]", f'dir = "{self.folder}"', f'train = "{data}"', "batch_size = 2", f'batch_order = "{batches}"',
            "[optim]", f"lr = {optim['lr']}", f"betas = {optim['betas']}", "eps = 1e-8", f"weight_decay = {optim['weight_decay']}", f"max_grad_norm = {clip}",
            "[schedule]", 'type = "constant"', f"max_steps = {STEPS}", "warmup_steps = 0", "[run]", f'output_dir = "{out}"', "save_steps = 0",
        ]))
        self.run("train", config, "--backend", "cpu", "-q")
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return [(line["loss"], line["grad_norm"]) for line in lines if "grad_norm" in line]

    def reference(self, talks, order, optim, clip, whole, nudge=0):
        model = load(self.base)
        if nudge:
            generator = torch.Generator().manual_seed(nudge)
            with torch.no_grad():
                for value in model.parameters():
                    value.mul_(1 + 1e-7 * torch.randn(value.shape, generator=generator))
        if not whole:
            model = PeftModel.from_pretrained(model, self.folder / "peft", is_trainable=True)
        fault_in_model(model if whole else model.get_base_model(), self.args.fault)
        learning = {name: value for name, value in model.named_parameters() if value.requires_grad}
        fault = self.args.fault
        settings = dict(lr=optim["lr"] * (1.05 if fault == "lr" else 1), weight_decay=optim["weight_decay"] + (0.05 if fault == "decay" else 0))
        adamw = torch.optim.AdamW(learning.values(), betas=tuple(optim["betas"]), eps=1e-8, **settings)
        pad = self.processor.tokenizer.convert_tokens_to_ids(ENDS[1])
        rows = []
        for talk in talks:
            row = fault_in_batch(encode(self.processor, talk, answered=True), fault)
            rows.append({**row, "labels": label(self.processor, row["input_ids"][0])[None]})
        model.train()
        out = []
        for step, batch in enumerate(order):
            adamw.zero_grad()
            loss = forward(model, collate([rows[index] for index in batch], pad)).loss
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(learning.values(), clip or 1e30)
            kept = idle(learning) if fault == "idle" else []
            if fault == "steps":
                for value in learning.values():
                    if "step" in adamw.state[value]:
                        adamw.state[value]["step"] = torch.tensor(float(step))
                    elif value.grad is not None:
                        zero = torch.zeros_like(value)
                        adamw.state[value].update(step=torch.tensor(float(step)), exp_avg=zero, exp_avg_sq=zero.clone())
            adamw.step()
            with torch.no_grad():
                for value, mask, before in kept:
                    value[mask] = before[mask]
            out.append((loss.item(), norm.item()))
        return out


def apart(found, expected):
    """The largest relative differences of losses and gradient norms over the steps."""
    need(len(found) == len(expected), f"training: {len(found)} steps, not {len(expected)}")
    losses = (abs(a - b) / max(1.0, b) for (a, _), (b, _) in zip(found, expected))
    norms = (abs(a - b) / b for (_, a), (_, b) in zip(found, expected))
    return max(losses), max(norms)


def idle(learning):
    """Experts of which no token had any, and their values."""
    stacks = [(name, value) for name, value in learning.items() if ".experts." in name and value.ndim == 3 and value.grad is not None]
    masks = [(value, (value.grad == 0).flatten(1).all(1)) for _, value in stacks]
    return [(value, mask, value.detach().clone()) for value, mask in masks if mask.any()]


PARTS = ["prompts", "adapter", "training"]
TOUCHES = {"lr": ["training"], "decay": ["training"], "steps": ["training"], "idle": ["training"], "theta": PARTS[:2], "pixels": PARTS[:2]}


def play(args, index):
    """The differences of a case, and the largest numbers seen."""
    keep = Path(args.keep) if args.keep else None
    with tempfile.TemporaryDirectory() as made:
        folder = (keep or Path(made)) / f"case-{index}"
        folder.mkdir(parents=True)
        case, differs = Case(args, index, folder), []
        for part in PARTS:
            try:
                getattr(case, part)()
            except Differs as what:
                differs.append(f"{part}: {what}")
        return case, differs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glm4v", default="target/release/glm4v")
    parser.add_argument("--golden", type=Path, default=Path("tests/fixtures/golden"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--only", type=int)
    parser.add_argument("--keep", help="a folder in which the files of every case stay")
    parser.add_argument("--fault", choices=sorted(TOUCHES))
    args = parser.parse_args()
    different, seen, worst = 0, 0, {}
    indices = range(args.count) if args.only is None else [args.only]
    for index in indices:
        case, differs = play(args, index)
        different += bool(differs)
        seen += any(line.split(":")[0] in TOUCHES.get(args.fault, []) for line in differs)
        for what, found in case.worst.items():
            worst[what] = max(worst.get(what, 0.0), found)
        print(f"case {index} {case.family}: {'; '.join(differs) or 'same'}", flush=True)
    largest = ", ".join(f"{what} {found:.1e}" for what, found in sorted(worst.items()))
    if args.fault:
        print(f"fault {args.fault}: seen in {seen} of {len(indices)} cases")
        raise SystemExit(seen == 0)
    print(f"{len(indices)} cases of seed {args.seed}, {different} different; largest differences: {largest}")
    raise SystemExit(different > 0)


if __name__ == "__main__":
    main()
