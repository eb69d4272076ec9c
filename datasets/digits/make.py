"""Write the digits data set: 1797 real scans as PNG files and two JSONL files of questions about them.

    pip install scikit-learn numpy pillow
    python datasets/digits/make.py

Every scan of scikit-learn's ``load_digits`` (8x8, grey levels 0..16) becomes a 56x56 grey PNG, nearest neighbour, so
that it is exactly 4x4 patches of a GLM4V vision tower. ``images/NNNN.png`` is row NNNN of ``load_digits``. The split
is the first 360 rows of one seeded permutation for testing and the rest for training; the files keep its order, so
line k of ``train.jsonl`` is always the same scan. Running the script again changes nothing.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

HERE = Path(__file__).parent
WORDS = "zero one two three four five six seven eight nine".split()
QUESTION = "What digit is this?"
HELD_OUT = 360
ENLARGE = 7


def picture(scan):
    levels = np.round(scan * 255 / 16).astype(np.uint8)  # 0..16 -> 0..255
    side = levels.shape[0] * ENLARGE
    return Image.fromarray(levels).resize((side, side), Image.Resampling.NEAREST)


def record(index, label):
    user = [{"type": "image", "path": f"images/{index:04}.png"}, {"type": "text", "text": QUESTION}]
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": WORDS[label]}]}


def main():
    digits = load_digits()
    (HERE / "images").mkdir(exist_ok=True)
    for index, scan in enumerate(digits.images):
        picture(scan).save(HERE / "images" / f"{index:04}.png", optimize=True)

    order = np.random.RandomState(0).permutation(len(digits.images))
    for name, rows in (("test", order[:HELD_OUT]), ("train", order[HELD_OUT:])):
        lines = [json.dumps(record(row, digits.target[row])) + "\n" for row in rows]
        (HERE / f"{name}.jsonl").write_text("".join(lines), newline="\n")


if __name__ == "__main__":
    main()
