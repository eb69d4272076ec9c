"""Files made by hand, so that each of their fields can lie."""

import json
import struct
import zlib

PNG = b"\x89PNG\r\n\x1a\n"


def chunk(kind, data, crc=None, length=None):
    """A PNG chunk; checksum and length may be wrong."""
    check = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data) if length is None else length) + kind + data + struct.pack(">I", check)


def png_header(width, height, depth=8, color=2, interlace=0):
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace))


def png(width=8, height=8, depth=8, color=2, interlace=0, before=b"", pixels=None, after=b""):
    """A PNG of one color; `before` and `after` are chunks beside the pixels."""
    if pixels is None:
        channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
        row = b"\0" + bytes((width * channels * depth + 7) // 8)
        pixels = deflate_rows(row, height)
    body = chunk(b"IDAT", pixels) if pixels else b""
    return PNG + png_header(width, height, depth, color, interlace) + before + body + after + chunk(b"IEND", b"")


def deflate_rows(row, height):
    """The same row many times, without holding all of them."""
    packer = zlib.compressobj(9)
    packed = [packer.compress(row) for _ in range(height)]
    return b"".join(packed) + packer.flush()


def deflated_zeros(megabytes):
    """A zlib stream that grows to many megabytes."""
    return deflate_rows(bytes(1 << 20), megabytes)


def apng(frames, width=8, height=8, announced=None, delay=(1, 10)):
    """An animated PNG; `announced` frames are promised."""
    row = zlib.compress((b"\0" + bytes(width * 3)) * height)
    parts = [PNG, png_header(width, height), chunk(b"acTL", struct.pack(">II", announced or frames, 0))]
    number = 0
    for frame in range(frames):
        control = struct.pack(">IIIIIHHBB", number, width, height, 0, 0, *delay, 0, 0)
        parts.append(chunk(b"fcTL", control))
        number += 1
        if frame == 0:
            parts.append(chunk(b"IDAT", row))
        else:
            parts.append(chunk(b"fdAT", struct.pack(">I", number) + row))
            number += 1
    return b"".join(parts) + chunk(b"IEND", b"")


def bmp(width, height, bits=24, size=None, compression=0, offset=54, colors=0, body=None):
    """A BMP with an honest or a lying header."""
    if body is None:
        body = bytes(((abs(width) * bits + 31) // 32 * 4) * abs(height) if size is None else max(0, size - 54))
    header = struct.pack(
        "<2sIHHIIiiHHIIiiII",
        b"BM",
        54 + len(body),
        0,
        0,
        offset,
        40,
        width,
        height,
        1,
        bits,
        compression,
        0,
        0,
        0,
        colors,
        0,
    )
    return header + body


def gif_header(width, height):
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"


def gif_frame(width, height, left=0, top=0, delay=10, data=None):
    """A frame of one color: clear codes keep the code width at three bits."""
    control = b"\x21\xf9\x04\x04" + struct.pack("<H", delay) + b"\0\0"
    image = b"\x2c" + struct.pack("<HHHHB", left, top, width, height, 0)
    return control + image + (lzw_zeros(width * height) if data is None else data)


def lzw_zeros(count):
    """`count` zeros, in codes that grow as any encoder's do: each code is one zero longer than the last."""
    bits, filled, out = 0, 0, bytearray()

    def put(code, width):
        nonlocal bits, filled
        bits |= code << filled
        filled += width
        while filled >= 8:
            out.append(bits & 255)
            bits >>= 8
            filled -= 8

    width, fresh, run = 3, 6, 1
    put(4, width)
    left = count
    while left > 0:
        length = min(run, left)
        put(0 if length == 1 else 4 + length, width)
        left -= length
        if run > 1 or left < count - 1:
            fresh += 1
        run += 1
        if fresh > (1 << width) and width < 12:
            width += 1
        if fresh >= 4094:
            put(4, width)
            width, fresh, run = 3, 6, 1
    put(5, width)
    if filled:
        out.append(bits & 255)
    blocks = b"".join(bytes([len(out[i : i + 255])]) + bytes(out[i : i + 255]) for i in range(0, len(out), 255))
    return b"\x02" + blocks + b"\0"


def gif(width, height, frames, **how):
    loop = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"
    return gif_header(width, height) + loop + gif_frame(width, height, **how) * frames + b"\x3b"


def jpeg_segment(marker, data):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


def progressive_jpeg(width, height, scans):
    """A gray JPEG of empty scans: each is some bytes to write and a walk over all blocks to read."""
    quantization = jpeg_segment(0xDB, b"\0" + b"\1" * 64)
    frame = jpeg_segment(0xC2, struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0")
    # One code each, of one bit: "no difference", and "this and the next 16383 blocks are empty".
    tables = jpeg_segment(0xC4, b"\0" + b"\1" + bytes(15) + b"\0") + jpeg_segment(
        0xC4, b"\x10" + b"\1" + bytes(15) + b"\xe0"
    )
    first = jpeg_segment(0xDA, b"\1\1\0\0\0\0")
    empty = jpeg_segment(0xDA, b"\1\1\0\1\x3f\0")
    blocks = ((width + 7) // 8) * ((height + 7) // 8)
    runs = bytes(2 * (blocks // 16384 + 1))
    return (
        b"\xff\xd8"
        + quantization
        + frame
        + tables
        + first
        + bytes(blocks // 8 + 1)
        + (empty + runs) * scans
        + b"\xff\xd9"
    )


def tiff(entries, body=b"", next_directory=0, big=False):
    """A little-endian TIFF with one directory of `(tag, type, count, value)`."""
    directory = struct.pack("<H", len(entries))
    for tag, kind, count, value in entries:
        directory += struct.pack("<HHII", tag, kind, count, value)
    directory += struct.pack("<I", next_directory)
    magic = b"II\x2b\0" if big else b"II\x2a\0"
    return magic + struct.pack("<I", 8) + directory + body


def safetensors(tensors, metadata=None, header=None, length=None):
    """Tensors `{name: (dtype, shape, bytes)}`; the header's text or its length may be given instead."""
    described, data = {}, b""
    if metadata:
        described["__metadata__"] = metadata
    for name, (dtype, shape, raw) in tensors.items():
        described[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(described).encode() if header is None else header
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def read_safetensors(raw):
    """The reverse: `{name: (dtype, shape, bytes)}`."""
    size = struct.unpack("<Q", raw[:8])[0]
    described = json.loads(raw[8 : 8 + size])
    described.pop("__metadata__", None)
    data = raw[8 + size :]
    return {name: (t["dtype"], t["shape"], data[slice(*t["data_offsets"])]) for name, t in described.items()}


def with_header(change):
    """A function that rewrites the header of a safetensors file, and leaves its data."""

    def rewrite(raw):
        size = struct.unpack("<Q", raw[:8])[0]
        header = json.loads(raw[8 : 8 + size])
        text = json.dumps(change(header) or header).encode()
        return struct.pack("<Q", len(text)) + text + raw[8 + size :]

    return rewrite


def wav(seconds=1, rate=8000):
    data = bytes(rate * seconds)
    return (
        struct.pack(
            "<4sI4s4sIHHIIHH4sI",
            b"RIFF",
            36 + len(data),
            b"WAVE",
            b"fmt ",
            16,
            1,
            1,
            rate,
            rate,
            1,
            8,
            b"data",
            len(data),
        )
        + data
    )


def parquet():
    return b"PAR1" + bytes(64) + struct.pack("<I", 16) + b"PAR1"
