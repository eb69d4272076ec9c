"""Damage drawn from a seed: to bytes, to JSON, to words."""

import json

NUMBERS = [
    0,
    -1,
    1,
    2,
    3,
    7,
    255,
    65536,
    2**31,
    2**31 - 1,
    2**32,
    2**53,
    2**63,
    2**64,
    -(2**63),
    10**30,
    0.5,
    1e-300,
    1e300,
]
ODDITIES = [None, True, False, "", "x", "../../..", "\0", [], {}, [[]], [None], {"": ""}, "9" * 400, *NUMBERS]


def damage(random, raw):
    """One to four random changes of bytes."""
    raw = bytearray(raw)
    for _ in range(random.randint(1, 4)):
        random.choice((flip, cut, repeat, blank, scramble))(random, raw)
    return bytes(raw)


def flip(random, raw):
    for _ in range(random.choice((1, 2, 8, 64))):
        if raw:
            raw[random.randrange(len(raw))] ^= 1 << random.randrange(8)


def span(random, raw):
    start = random.randrange(len(raw) + 1)
    return start, min(len(raw), start + random.choice((1, 4, 16, 256)))


def cut(random, raw):
    start, end = span(random, raw)
    del raw[start : (end if random.random() < 0.7 else len(raw))]


def repeat(random, raw):
    start, end = span(random, raw)
    raw[start:start] = raw[start:end] * random.choice((1, 2, 50))


def blank(random, raw):
    start, end = span(random, raw)
    raw[start:end] = random.choice((b"\0", b"\xff", b" ")) * (end - start)


def scramble(random, raw):
    start, end = span(random, raw)
    raw[start:end] = random.randbytes(end - start)


def places(value, path=()):
    """Every place in a JSON value, as a path of keys."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def replaced(value, path, new):
    """A copy with one place replaced; `...` removes it."""
    if not path:
        return new
    value = value.copy()
    if len(path) == 1 and new is ...:
        del value[path[0]]
    else:
        value[path[0]] = replaced(value[path[0]], path[1:], new)
    return value


def odd_json(random, value):
    """One to three places replaced, removed, or given what another place holds."""
    for _ in range(random.randint(1, 3)):
        all_places = list(places(value))[1:]
        if not all_places:
            break
        place = random.choice(all_places)
        value = replaced(value, place, random.choice([..., *ODDITIES]))
    return json.dumps(value)


def random_json(random, keys, words, depth=4):
    """A structure that nobody wrote, of keys and words that mean something."""
    kind = random.random()
    if depth == 0 or kind < 0.35:
        return random.choice([*words, *ODDITIES])
    inner = [random_json(random, keys, words, depth - 1) for _ in range(random.randint(0, 4))]
    if kind < 0.65:
        return inner
    return {random.choice(keys): value for value in inner}


def odd_text(random, text, words):
    """Words put in, lines swapped, doubled or lost."""
    for _ in range(random.randint(1, 4)):
        lines = text.split("\n")
        at = random.randrange(len(lines))
        move = random.randrange(5)
        if move == 0:
            lines.insert(at, random.choice(words))
        elif move == 1:
            del lines[at]
        elif move == 2:
            lines.insert(at, lines[at])
        elif move == 3:
            other = random.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        else:
            cut_at = random.randint(0, len(lines[at]))
            lines[at] = lines[at][:cut_at] + random.choice(words) + lines[at][cut_at:]
        text = "\n".join(lines)
    return text
