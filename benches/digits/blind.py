"""The control: the held-out questions with the mean scan in place of each scan. A model that looks can only guess.

    python benches/digits/blind.py /tmp/blind
    glm4v eval --model runs/digits/final --data /tmp/blind/test.jsonl

Needs numpy and pillow.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

DIGITS = Path(__file__).resolve().parents[2] / "datasets/digits"


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    scans = [np.asarray(Image.open(path).convert("L"), dtype=float) for path in sorted((DIGITS / "images").glob("*.png"))]
    Image.fromarray(np.round(np.mean(scans, axis=0)).astype(np.uint8)).save(out / "mean.png")
    records = [json.loads(line) for line in (DIGITS / "test.jsonl").read_text().splitlines()]
    for record in records:
        for part in record["messages"][0]["content"]:
            if part["type"] == "image":
                part["path"] = "mean.png"
    (out / "test.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    print(f"{len(records)} records in {out}")


if __name__ == "__main__":
    main()
