"""Write the scenes: drawn images, pairs of images and clips, with questions whose answers follow from how they were drawn.

    pip install pillow
    python datasets/scenes/make.py

A scene is up to five shapes in cells of a 4x4 grid, 112x112 pixels: 8x8 patches of a GLM4V vision tower, 16 tokens. Of each kind
one shape at most has a color, so that a question names one shape. Three datasets:

    scenes          one image: how many, what color, and where, as a box in thousandths of the image, [[x1,y1,x2,y2]]
    scenes-pairs    two images: what changed from the first to the second
    scenes-motion   a GIF of eight frames, four a second: what moved, and in which direction

Scenes of a test split are none of the train split's. Running the script again changes nothing.
"""

import json
import random
import shutil
from pathlib import Path

from PIL import Image, ImageDraw

HERE = Path(__file__).parent
SIZE, CELLS = 112, 4
CELL = SIZE // CELLS
MARGIN = 3
SHAPES = ["circle", "square", "triangle"]
COLORS = {"red": (220, 40, 40), "green": (40, 170, 70), "blue": (50, 90, 220), "yellow": (235, 200, 40), "black": (20, 20, 20)}
NUMBERS = ["zero", "one", "two", "three", "four", "five"]
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
FRAMES, FRAME_MILLISECONDS = 8, 250
# Records of train and test.
SPLITS = {"scenes": (1600, 240), "scenes-pairs": (400, 60), "scenes-motion": (160, 40)}


class Scene:
    """Shapes as (shape, color) by the cell they are in."""

    def __init__(self, shapes):
        self.shapes = dict(shapes)

    @classmethod
    def random(cls, rng, count):
        kinds = [(shape, color) for shape in SHAPES for color in COLORS]
        cells = [(x, y) for x in range(CELLS) for y in range(CELLS)]
        return cls(zip(rng.sample(cells, count), rng.sample(kinds, count)))

    def key(self):
        return tuple(sorted(self.shapes.items()))

    def free_cells(self):
        return [(x, y) for x in range(CELLS) for y in range(CELLS) if (x, y) not in self.shapes]

    def draw(self, offsets=None):
        """The image; `offsets` moves the shapes of some cells by pixels."""
        image = Image.new("RGB", (SIZE, SIZE), (245, 245, 240))
        pen = ImageDraw.Draw(image)
        for cell, (shape, color) in sorted(self.shapes.items()):
            dx, dy = (offsets or {}).get(cell, (0, 0))
            x1, y1, x2, y2 = pixels(cell)
            box = (x1 + dx, y1 + dy, x2 + dx, y2 + dy)
            if shape == "circle":
                pen.ellipse(box, fill=COLORS[color])
            elif shape == "square":
                pen.rectangle(box, fill=COLORS[color])
            else:
                pen.polygon([((box[0] + box[2]) // 2, box[1]), (box[0], box[3]), (box[2], box[3])], fill=COLORS[color])
        return image


def pixels(cell):
    """First and last column and row of the shape in a cell."""
    x, y = cell
    return (x * CELL + MARGIN, y * CELL + MARGIN, (x + 1) * CELL - MARGIN - 1, (y + 1) * CELL - MARGIN - 1)


def box(cell):
    """The box of the shape in a cell, in thousandths of the image."""
    x1, y1, x2, y2 = pixels(cell)
    return "[[" + ",".join(str(round(1000 * edge / SIZE)) for edge in (x1, y1, x2 + 1, y2 + 1)) + "]]"


def record(media, question, answer):
    user = [*media, {"type": "text", "text": question}]
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]}


def questions(scene):
    """All questions about one scene."""
    for shape in SHAPES:
        count = sum(kind == shape for kind, _ in scene.shapes.values())
        yield f"How many {shape}s are there?", NUMBERS[count]
        if count == 1:
            color = next(color for kind, color in scene.shapes.values() if kind == shape)
            yield f"What color is the {shape}?", color
    for cell, (shape, color) in sorted(scene.shapes.items()):
        yield f"Where is the {color} {shape}?", box(cell)


def one_image(rng, name, scene):
    scene.draw().save(HERE / f"{name}.png", optimize=True)
    by_kind = {}
    for question, answer in questions(scene):
        by_kind.setdefault(question.split()[0], []).append((question, answer))
    # One kind as often as another, though there are more questions of some.
    question, answer = rng.choice(by_kind[rng.choice(sorted(by_kind))])
    return record([{"type": "image", "path": f"{name}.png"}], question, answer)


def two_images(rng, name, scene):
    shapes = dict(scene.shapes)
    cell = rng.choice(sorted(shapes))
    shape, color = shapes[cell]
    change = rng.choice(["vanished", "moved", "turned"])
    if change == "vanished":
        del shapes[cell]
        answer = f"the {color} {shape} vanished"
    elif change == "moved":
        del shapes[cell]
        shapes[rng.choice(scene.free_cells())] = (shape, color)
        answer = f"the {color} {shape} moved"
    else:
        taken = {other for kind, other in shapes.values() if kind == shape}
        other = rng.choice([name for name in COLORS if name not in taken])
        shapes[cell] = (shape, other)
        answer = f"the {color} {shape} turned {other}"
    media = []
    for part, image in (("a", scene.draw()), ("b", Scene(shapes).draw())):
        image.save(HERE / f"{name}{part}.png", optimize=True)
        media.append({"type": "image", "path": f"{name}{part}.png"})
    return record(media, "What changed?", answer)


def clip(rng, name, scene):
    moves = [(cell, word) for cell in sorted(scene.shapes) for word, (dx, dy) in DIRECTIONS.items()
             if (cell[0] + dx, cell[1] + dy) in scene.free_cells()]
    cell, word = rng.choice(moves)
    dx, dy = DIRECTIONS[word]
    shape, color = scene.shapes[cell]
    frames = [scene.draw({cell: (dx * CELL * at // (FRAMES - 1), dy * CELL * at // (FRAMES - 1))}) for at in range(FRAMES)]
    # One palette for all frames: the colors survive as they were drawn.
    frames = [frame.convert("P", palette=Image.Palette.ADAPTIVE, colors=8) for frame in frames]
    frames[0].save(HERE / f"{name}.gif", save_all=True, append_images=frames[1:], duration=FRAME_MILLISECONDS, loop=0, disposal=1)
    return record([{"type": "video", "path": f"{name}.gif"}], "What moved, and where to?", f"the {color} {shape} moved {word}")


def write(dataset, make, shapes):
    rng = random.Random(dataset)
    directory = HERE / "media" / dataset
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    train, test = SPLITS[dataset]
    scenes = {}
    while len(scenes) < train + test:
        scene = Scene.random(rng, rng.randint(*shapes))
        scenes.setdefault(scene.key(), scene)
    records = [make(rng, f"media/{dataset}/{index:04}", scene) for index, scene in enumerate(scenes.values())]
    for split, rows in (("train", records[:train]), ("test", records[train:])):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (HERE / f"{dataset}-{split}.jsonl").write_text(lines, encoding="utf-8", newline="\n")


def main():
    write("scenes", one_image, (1, 5))
    write("scenes-pairs", two_images, (2, 4))
    write("scenes-motion", clip, (1, 3))


if __name__ == "__main__":
    main()
