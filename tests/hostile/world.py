"""What every case may use: the binary, small models, a run, an adapter, data."""

import os
import shutil
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / "configs/models"
SMALL = CONFIGS / "digits"
DIGITS = REPOSITORY / "datasets/digits"
FIXTURES = REPOSITORY / "tests/fixtures"

# Words of a model that is small in all else: writing it takes a while.
MANY_WORDS = 400_000


class World:
    """Prepared once, read by all cases, changed by none."""

    def __init__(self, binary, scratch, patience=1.0):
        self.patience = patience
        self.scratch = scratch
        self.base = scratch / "base"
        self.base.mkdir(parents=True)
        # A user without rights must reach it too.
        self.binary = self.base / "glm4v"
        shutil.copy(binary, self.binary)
        self.binary.chmod(0o755)
        self.home = self.base / "home"
        self.home.mkdir()
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(self.home), "LANG": "C.UTF-8"}
        self.image = DIGITS / "images/1081.png"
        self.images = sorted((DIGITS / "images").glob("*.png"))
        self.config = self.base / "run.toml"
        self.data = self.base / "train.jsonl"
        self.questions = self.base / "eval.jsonl"
        self.fresh, self.run = self.base / "fresh", self.base / "run"
        self.model = self.run / "final"
        self.adapter = self.base / "lora/final"
        self.wide_config = self.base / "wide-config"

    def prepare(self):
        self.write_data()
        self.glm4v("init", "--config", SMALL, "--out", self.fresh)
        self.train(
            "model.path",
            SMALL,
            "model.init=random",
            "optim.lr=2e-3",
            "schedule.max_steps=60",
            "run.save_steps=20",
            "run.save_total_limit=9",
            f"run.output_dir={self.run}",
        )
        self.train(
            "model.path",
            self.model,
            "lora.target_modules=all-linear",
            "lora.r=4",
            "schedule.max_steps=2",
            f"run.output_dir={self.base / 'lora'}",
        )
        shutil.copytree(SMALL, self.wide_config)
        config = self.wide_config / "config.json"
        config.write_text(config.read_text().replace('"vocab_size": 1200', f'"vocab_size": {MANY_WORDS}'))

    def write_data(self):
        """Copies of the first digits, with absolute paths, so that data may lie anywhere."""
        for source, target, count in (("train", self.data, 160), ("test", self.questions, 12)):
            lines = (DIGITS / f"{source}.jsonl").read_text().splitlines()[:count]
            target.write_text("".join(line.replace('"images/', f'"{DIGITS}/images/') + "\n" for line in lines))
        self.config.write_text("[optim]\nlr = 1e-3\n")

    def train(self, key, folder, *settings):
        given = [f"{key}={folder}", f"data.train={self.data}", "data.batch_size=16", *settings]
        self.glm4v("train", self.config, *(part for setting in given for part in ("--set", setting)))

    def glm4v(self, *args):
        command = [str(self.binary), "--quiet", *map(str, args)]
        done = subprocess.run(command, env=self.environment, cwd=self.base, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"the preparation fails: {' '.join(command)}\n{done.stderr}")
