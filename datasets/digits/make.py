"""Write the digits dataset: 1797 real scans as PNG files and JSONL files of questions about them, in two languages.

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
# Of each language: the end of its files' names, the question, the answers.
LANGUAGES = [
    ("", "What digit is this?", "zero one two three four five six seven eight nine"),
    ("-german", "Welche Ziffer ist das?", "null eins zwei drei vier fünf sechs sieben acht neun"),
]
HELD_OUT = 360
ENLARGE = 7


def picture(scan):
    levels = np.round(scan * 255 / 16).astype(np.uint8)  # 0..16 -> 0..255
    side = levels.shape[0] * ENLARGE
    return Image.fromarray(levels).resize((side, side), Image.Resampling.NEAREST)


def record(index, question, answer):
    user = [{"type": "image", "path": f"images/{index:04}.png"}, {"type": "text", "text": question}]
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]}


def main():
    digits = load_digits()
    (HERE / "images").mkdir(exist_ok=True)
    for index, scan in enumerate(digits.images):
        picture(scan).save(HERE / "images" / f"{index:04}.png", optimize=True)

    order = np.random.RandomState(0).permutation(len(digits.images))
    for split, rows in (("test", order[:HELD_OUT]), ("train", order[HELD_OUT:])):
        for language, question, words in LANGUAGES:
            answers = words.split()
            records = [record(row, question, answers[digits.target[row]]) for row in rows]
            lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in records]
            (HERE / f"{split}{language}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
