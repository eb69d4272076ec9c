"""Pictures that lie about themselves, grow, end early, or are no files at all."""

import base64
import contextlib
import os
import socket
import struct
import threading
import zlib

import forge
from harness import Area
from world import FIXTURES

AREA = Area("images")
FORMATS = FIXTURES / "processor/formats"
GOLDEN = FIXTURES / "golden/images"


def add_file(name, content, *words, file="image.png", codes=(1,)):
    """A file that is shown to `generate`; its name is in the error unless other words are given."""

    def play(desk):
        made = content() if callable(content) else content
        outcome = desk.look(desk.file(file, made)).expect(*codes)
        if outcome.code == 1:
            outcome.says(*(words or (file,)))

    AREA.add(name, play)


# Every format, cut off.
for source in [
    "rgb.jpg",
    "progressive.jpg",
    "cmyk.jpg",
    "lossy.webp",
    "alpha.webp",
    "lzw.tiff",
    "cmyk.tiff",
    "rgb.bmp",
    "palette.bmp",
    "animated.gif",
    "rgb_16bit.png",
    "palette_alpha.png",
]:
    for share in (0.02, 0.3, 0.9):
        raw = (FORMATS / source).read_bytes()
        add_file(f"cut-{source}-{share}", raw[: int(len(raw) * share)], file=source, codes=(0, 1))

# PNG.
add_file("png-empty", b"")
add_file("png-signature-only", forge.PNG)
add_file("png-no-pixels", forge.png(pixels=b""))
add_file("png-width-0", forge.png(width=0, pixels=zlib.compress(b"\0")))
add_file("png-width-2-31", forge.png(width=2**31 - 1, height=1, pixels=zlib.compress(b"\0")))
add_file("png-all-ones", forge.png(width=2**32 - 1, height=2**32 - 1, pixels=zlib.compress(b"\0")))
add_file("png-depth-3", forge.png(depth=3, pixels=zlib.compress(bytes(99))))
add_file("png-color-5", forge.PNG + forge.png_header(8, 8, 8, 5) + forge.chunk(b"IDAT", zlib.compress(bytes(99))))
add_file("png-wrong-checksum", forge.PNG + forge.chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0), crc=1))
add_file(
    "png-chunk-longer-than-file", forge.PNG + forge.png_header(8, 8) + forge.chunk(b"IDAT", b"x", length=2**31 - 1)
)
add_file("png-garbage-pixels", forge.png(pixels=b"no zlib stream"))
add_file("png-too-few-pixels", forge.png(64, 64, pixels=zlib.compress(bytes(64))))
add_file("png-too-many-pixels", lambda: forge.png(8, 8, pixels=forge.deflated_zeros(600)), codes=(0, 1))
add_file("png-palette-missing", forge.png(color=3))
add_file("png-palette-of-300", forge.png(color=3, before=forge.chunk(b"PLTE", bytes(900))))
add_file(
    "png-palette-index-beyond",
    forge.png(8, 8, color=3, before=forge.chunk(b"PLTE", bytes(3)), pixels=zlib.compress((b"\0" + b"\xff" * 8) * 8)),
    codes=(0, 1),
)
add_file("png-transparency-too-long", forge.png(before=forge.chunk(b"tRNS", bytes(999))), codes=(0, 1))
add_file("png-interlace-7", forge.png(interlace=7))
add_file("png-two-headers", forge.png(before=forge.png_header(4, 4)), codes=(0, 1))
add_file("png-bomb-16384", lambda: forge.png(16384, 16384, depth=1, color=0), codes=(0, 1))
add_file("png-bomb-8192-16-bit", lambda: forge.png(8192, 8192, depth=16, color=2), "tokens", codes=(0, 1))
add_file("png-bomb-30000", lambda: forge.png(30000, 30000, depth=1, color=0), "30000")
add_file(
    "png-profile-bombs-many",
    lambda: forge.png(before=forge.chunk(b"iCCP", b"p\0\0" + forge.deflated_zeros(64)) * 60),
    codes=(0, 1),
)
add_file(
    "png-text-bombs",
    lambda: forge.png(before=forge.chunk(b"zTXt", b"k\0\0" + forge.deflated_zeros(400)) * 8),
    codes=(0, 1),
)
add_file(
    "png-international-text-bomb",
    lambda: forge.png(before=forge.chunk(b"iTXt", b"k\0\1\0\0\0" + forge.deflated_zeros(1200))),
    codes=(0, 1),
)
add_file("png-200000-empty-chunks", lambda: forge.png(before=forge.chunk(b"tEXt", b"") * 200_000), codes=(0, 1))
add_file("png-200000-pixel-chunks", lambda: forge.png(after=forge.chunk(b"IDAT", b"") * 200_000), codes=(0, 1))
add_file("png-exif-garbage", forge.png(before=forge.chunk(b"eXIf", b"II*\0\xff\xff\xff\xff")), codes=(0, 1))
add_file(
    "png-exif-loop",
    forge.png(before=forge.chunk(b"eXIf", forge.tiff([(0x8769, 4, 1, 8)] * 9, next_directory=8))),
    codes=(0, 1),
)
add_file("png-one-pixel", forge.png(1, 1), codes=(0, 1))
add_file("png-thin", forge.png(1, 10000), "aspect ratio")
add_file("png-flat", forge.png(10000, 1), "aspect ratio")
add_file("png-199-to-1", forge.png(16384, 83), codes=(0, 1))

# JPEG.
JPEG = (FORMATS / "rgb.jpg").read_bytes()
SIZE_AT = JPEG.index(b"\xff\xc0") + 5


def jpeg_with(changes):
    raw = bytearray(JPEG)
    for place, value in changes.items():
        raw[place : place + len(value)] = value
    return bytes(raw)


add_file("jpeg-size-0", jpeg_with({SIZE_AT: bytes(4)}), file="a.jpg")
add_file("jpeg-size-65535", jpeg_with({SIZE_AT: b"\xff" * 4}), file="a.jpg")
add_file("jpeg-size-16384", jpeg_with({SIZE_AT: b"\x40\0\x40\0"}), file="a.jpg", codes=(0, 1))
add_file("jpeg-precision-12", jpeg_with({SIZE_AT - 1: b"\x0c"}), file="a.jpg")
add_file("jpeg-sampling-15", jpeg_with({SIZE_AT + 6: b"\xff"}), file="a.jpg")
add_file("jpeg-sampling-0", jpeg_with({SIZE_AT + 6: b"\0"}), file="a.jpg")
add_file("jpeg-arithmetic", jpeg_with({SIZE_AT - 4: b"\xc9"}), file="a.jpg", codes=(0, 1))
add_file("jpeg-lossless", jpeg_with({SIZE_AT - 4: b"\xc3"}), file="a.jpg", codes=(0, 1))
add_file("jpeg-start-only", b"\xff\xd8", file="a.jpg")
add_file("jpeg-million-fill-bytes", lambda: b"\xff\xd8" + b"\xff" * 1_000_000 + JPEG[2:], file="a.jpg", codes=(0, 1))
add_file("jpeg-restart-each-block", JPEG[:2] + forge.jpeg_segment(0xDD, b"\0\1") + JPEG[2:], file="a.jpg", codes=(0, 1))
add_file(
    "jpeg-profile-chunks-lie",
    JPEG[:2] + forge.jpeg_segment(0xE2, b"ICC_PROFILE\0\xff\xff" + bytes(9)) * 300 + JPEG[2:],
    file="a.jpg",
    codes=(0, 1),
)
add_file(
    "jpeg-comments-60-mb",
    lambda: JPEG[:2] + forge.jpeg_segment(0xFE, bytes(60000)) * 1000 + JPEG[2:],
    file="a.jpg",
    codes=(0, 1),
)
add_file(
    "jpeg-exif-loop",
    JPEG[:2]
    + forge.jpeg_segment(0xE1, b"Exif\0\0" + forge.tiff([(0x112, 3, 2**31, 8)] * 50, next_directory=8))
    + JPEG[2:],
    file="a.jpg",
    codes=(0, 1),
)
add_file("jpeg-2000-scans", lambda: forge.progressive_jpeg(4096, 4096, 2000), file="a.jpg", codes=(0, 1))
add_file("jpeg-95-scans-16384", lambda: forge.progressive_jpeg(16384, 16000, 95), file="a.jpg", codes=(0, 1))

# GIF, BMP, TIFF, WebP as still pictures.
add_file("gif-screen-65535", forge.gif_header(65535, 65535) + forge.gif_frame(8, 8) + b";", file="a.gif")
add_file(
    "gif-frame-outside",
    forge.gif_header(8, 8) + forge.gif_frame(8, 8, left=60000, top=60000) + b";",
    file="a.gif",
    codes=(0, 1),
)
add_file(
    "gif-frame-larger-than-screen",
    forge.gif_header(8, 8) + forge.gif_frame(9000, 9000) + b";",
    file="a.gif",
    codes=(0, 1),
)
add_file("gif-without-frames", forge.gif_header(8, 8) + b";", file="a.gif")
add_file("gif-frame-0x0", forge.gif_header(8, 8) + forge.gif_frame(0, 0) + b";", file="a.gif", codes=(0, 1))
add_file(
    "gif-lzw-garbage",
    forge.gif_header(8, 8) + forge.gif_frame(8, 8, data=b"\x02\xff" + b"\xaa" * 255 + b"\0") + b";",
    file="a.gif",
    codes=(0, 1),
)
add_file(
    "gif-lzw-width-255",
    forge.gif_header(8, 8) + forge.gif_frame(8, 8, data=b"\xff\x01\0\0") + b";",
    file="a.gif",
    codes=(0, 1),
)
add_file(
    "gif-comment-20-mb",
    lambda: (
        forge.gif_header(8, 8) + b"\x21\xfe" + (b"\xff" + bytes(255)) * 80000 + b"\0" + forge.gif_frame(8, 8) + b";"
    ),
    file="a.gif",
    codes=(0, 1),
)
add_file("bmp-bomb", forge.bmp(20000, 20000, size=1024), "20000x20000", file="a.bmp")
add_file("bmp-height-minimal", forge.bmp(8, -(2**31), size=1024), file="a.bmp")
add_file("bmp-width-negative", forge.bmp(-8, 8, size=1024), file="a.bmp")
add_file("bmp-bits-0", forge.bmp(8, 8, bits=0, size=1024), file="a.bmp", codes=(0, 1))
add_file("bmp-bits-7", forge.bmp(8, 8, bits=7, size=1024), file="a.bmp")
add_file("bmp-offset-beyond", forge.bmp(8, 8, offset=2**31), file="a.bmp")
add_file("bmp-colors-2-31", forge.bmp(8, 8, bits=8, colors=2**31), file="a.bmp", codes=(0, 1))
add_file(
    "bmp-run-lengths-lie",
    forge.bmp(
        8, 8, bits=8, compression=1, colors=2, offset=62, body=bytes(8) + b"\xff\x01" * 999 + b"\0\2\xff\xff\0\1"
    ),
    file="a.bmp",
    codes=(0, 1),
)
add_file("bmp-compression-99", forge.bmp(8, 8, compression=99), file="a.bmp")
add_file(
    "bmp-run-lengths-of-a-giant",
    forge.bmp(16384, 16384, bits=8, compression=1, colors=2, offset=62, body=bytes(8) + b"\0\1"),
    file="a.bmp",
    codes=(0, 1),
)
TIFF_8 = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
add_file(
    "tiff-directory-loop",
    forge.tiff([*TIFF_8, (273, 4, 1, 8), (279, 4, 1, 64)], bytes(64), next_directory=8),
    file="a.tiff",
    codes=(0, 1),
)
add_file("tiff-strip-beyond", forge.tiff([*TIFF_8, (273, 4, 1, 2**31), (279, 4, 1, 64)]), file="a.tiff")
add_file(
    "tiff-strip-of-2-32",
    forge.tiff([*TIFF_8, (273, 4, 1, 100), (279, 4, 1, 2**32 - 1)], bytes(64)),
    file="a.tiff",
    codes=(0, 1),
)
add_file(
    "tiff-million-strips",
    forge.tiff([*TIFF_8, (273, 4, 10**6, 8), (278, 4, 1, 1), (279, 4, 10**6, 8)], bytes(64)),
    file="a.tiff",
)
add_file("tiff-count-2-32", forge.tiff([*TIFF_8, (273, 4, 2**32 - 1, 8), (279, 4, 2**32 - 1, 8)]), file="a.tiff")
add_file(
    "tiff-tile-0",
    forge.tiff([*TIFF_8, (322, 4, 1, 0), (323, 4, 1, 0), (324, 4, 1, 8), (325, 4, 1, 64)], bytes(64)),
    file="a.tiff",
)
add_file(
    "tiff-rows-a-strip-0",
    forge.tiff([*TIFF_8, (273, 4, 1, 100), (278, 4, 1, 0), (279, 4, 1, 64)], bytes(64)),
    file="a.tiff",
    codes=(0, 1),
)
add_file(
    "tiff-20000x20000",
    forge.tiff([(256, 4, 1, 20000), (257, 4, 1, 20000), *TIFF_8[2:], (273, 4, 1, 100), (279, 4, 1, 64)], bytes(64)),
    file="a.tiff",
)
add_file(
    "tiff-samples-60000",
    forge.tiff([*TIFF_8[:5], (277, 3, 1, 60000), (273, 4, 1, 100), (279, 4, 1, 64)], bytes(64)),
    file="a.tiff",
)
add_file("tiff-big", forge.tiff(TIFF_8, big=True), file="a.tiff")
add_file(
    "tiff-deflate-bomb",
    lambda: forge.tiff(
        [
            (256, 4, 1, 16384),
            (257, 4, 1, 16384),
            (258, 3, 1, 8),
            (259, 3, 1, 8),
            (262, 3, 1, 1),
            (277, 3, 1, 1),
            (273, 4, 1, 134),
            (279, 4, 1, 2**20),
        ],
        (bomb := forge.deflated_zeros(256)) + bytes(2**20 - len(bomb)),
    ),
    file="a.tiff",
    codes=(0, 1),
)


def webp(*chunks):
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def canvas(width, height, flags=0x02):
    return b"VP8X", struct.pack("<I", flags) + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]


LOSSY = (FORMATS / "lossy.webp").read_bytes()
add_file("webp-canvas-16-million", webp(canvas(2**24, 2**24), (b"ANIM", bytes(6))), file="a.webp")
add_file(
    "webp-animation-of-nothing", webp(canvas(8, 8), (b"ANIM", bytes(6)), *[(b"ANMF", bytes(16))] * 1000), file="a.webp"
)
add_file("webp-size-lies", LOSSY[:4] + b"\xff\xff\xff\xff" + LOSSY[8:], file="a.webp", codes=(0, 1))
add_file("webp-size-0", LOSSY[:4] + bytes(4) + LOSSY[8:], file="a.webp", codes=(0, 1))
add_file("webp-lossless-garbage", webp((b"VP8L", b"\x2f\xff\xff\xff\xff" + bytes(99))), file="a.webp")

# What is no picture that is known.
for name, content in {
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><image href='file:///etc/passwd'/></svg>",
    "html": b"<html>404 Not Found</html>",
    "avif": b"\0\0\0\x1cftypavif" + bytes(99),
    "heic": b"\0\0\0\x18ftypheic" + bytes(99),
    "pdf": b"%PDF-1.7\n%%EOF",
    "ico": b"\0\0\1\0\1\0" + b"\x10\x10" + bytes(99),
    "exr": b"\x76\x2f\x31\x01" + bytes(99),
    "psd": b"8BPS\0\1" + bytes(99),
    "npy": b"\x93NUMPY\1\0" + bytes(99),
    "zip": b"PK\3\4" + bytes(99),
    "elf": b"\x7fELF" + bytes(99),
    "git-lfs-pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "wav": forge.wav(),
}.items():
    add_file(f"no-picture-{name}", content, file=f"image.{name}")


@AREA.case
def png_profile_bomb_of_a_gigabyte(desk):
    bomb = forge.chunk(b"iCCP", b"p\0\0" + forge.deflated_zeros(1000))
    desk.look(desk.file("image.png", forge.png(before=bomb))).held("image.png").within(megabytes=500)


@AREA.case
def wrong_extension(desk):
    desk.look(desk.file("a.jpg", desk.world.image.read_bytes())).accepted()


# Paths.
for name, path in {
    "empty": "",
    "dot": ".",
    "dev-zero": "/dev/zero",
    "dev-full": "/dev/full",
    "dev-stdin": "/dev/stdin",
    "dev-random": "/dev/urandom",
    "proc-memory": "/proc/self/mem",
    "proc-maps": "/proc/self/maps",
    "missing": "no/such.png",
    "long": "x" * 5000,
    "deep": "a/" * 2000 + "x.png",
    "newline": "a\nb.png",
    "bytes": b"\xff\xfe.png",
    "home": "~/x.png",
    "dash": "-",
    "ftp": "ftp://localhost/x.png",
    "file-url": "file:///no/such.png",
    "http-off": "http://127.0.0.1:9/x.png",
    "no-scheme": "://x",
    "nul-escape": "file:///%00",
    "unc": "\\\\server\\share\\x.png",
    "flag-like": "--help",
}.items():
    # What the command line itself cannot take may be wrong usage.
    codes = (1, 2) if path in ("", "--help", "-", b"\xff\xfe.png") else (1,)
    AREA.add(f"path-{name}", lambda desk, path=path, codes=codes: desk.look(path).expect(*codes))


@AREA.case
def path_empty_says_so(desk):
    desk.look("").avoids("./")


@AREA.case
def path_fifo(desk):
    os.mkfifo(desk.path("fifo.png"))
    desk.look(desk.path("fifo.png")).refused("fifo.png")


@AREA.case
def path_link_loop(desk):
    desk.path("a.png").symlink_to("b.png")
    desk.path("b.png").symlink_to("a.png")
    desk.look(desk.path("a.png")).refused("a.png")


@AREA.case
def path_dangling_link(desk):
    desk.path("a.png").symlink_to("gone.png")
    desk.look(desk.path("a.png")).refused("a.png")


@AREA.case
def path_socket(desk):
    # The path of a socket has room for about a hundred bytes, so it is bound from within its folder.
    here = os.getcwd()
    os.chdir(desk.folder)
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("s.png")
            desk.look(desk.path("s.png")).refused("s.png")
    finally:
        os.chdir(here)


@AREA.case
def path_not_permitted(desk):
    image = desk.file("a.png", desk.world.image.read_bytes())
    image.chmod(0)
    desk.look(image, unprivileged=True).refused("a.png", "ermission denied")


@AREA.case
def path_sparse_100_gb(desk):
    image = desk.file("a.png", desk.world.image.read_bytes())
    os.truncate(image, 100 << 30)
    desk.look(image).held("a.png")


# Pictures in the text of a URL.
PNG_TEXT = base64.b64encode(forge.png()).decode()
for name, url, codes in [
    ("whole", f"data:image/png;base64,{PNG_TEXT}", (0,)),
    ("no-data", "data:", (1,)),
    ("no-base64", "data:image/png,abc", (1,)),
    ("bad-letters", "data:image/png;base64,@@@@", (1,)),
    ("empty", "data:image/png;base64,", (1,)),
    ("cut", f"data:image/png;base64,{PNG_TEXT[:41]}", (1,)),
    ("html", "data:text/html;base64,PGI+", (1,)),
    ("long-type", f"data:{'x' * 9999};base64,{PNG_TEXT}", (0, 1)),
    ("upper", f"DATA:IMAGE/PNG;BASE64,{PNG_TEXT}", (0, 1)),
]:
    AREA.add(f"data-url-{name}", lambda desk, url=url, codes=codes: desk.look(url).expect(*codes))


@AREA.case
def data_url_of_80_mb(desk):
    url = "data:image/png;base64," + base64.b64encode(bytes(60 << 20)).decode()
    messages = desk.file("m.json", [{"role": "user", "content": [{"type": "image", "url": url}]}])
    desk.generate("--messages", messages).refused("image 0")


# Limits on pixels.
for name, flags, codes in [
    ("crossed", ["--min-pixels", 99999, "--max-pixels", 10], (1, 2)),
    ("zero", ["--max-pixels", 0], (1, 2)),
    ("negative", ["--max-pixels", "-5"], (2,)),
    ("not-a-number", ["--min-pixels", "nan"], (2,)),
    ("fewest-beyond", ["--min-pixels", 2**63], (1, 2)),
    ("fewest-2-64", ["--min-pixels", 2**64], (2,)),
    ("most-2-63", ["--max-pixels", 2**63], (0, 1)),
    ("fewest-10-12", ["--min-pixels", 10**12, "--max-pixels", 10**13], (1, 2)),
    ("fewest-50-million", ["--min-pixels", 5 * 10**7, "--max-pixels", 10**8], (0, 1)),
]:
    AREA.add(
        f"pixels-{name}", lambda desk, flags=flags, codes=codes: desk.look(desk.world.image, *flags).expect(*codes)
    )


@AREA.case
def pixels_unlimited_for_a_large_picture(desk):
    desk.look(desk.file("a.png", forge.png(9000, 9000)), "--max-pixels", 10**12).held()


@AREA.case
def hundred_pictures(desk):
    desk.generate("--prompt", "What?", *(word for _ in range(100) for word in ("--image", desk.world.image))).accepted()


@AREA.case
def five_thousand_pictures(desk):
    # More tokens than the model has positions.
    desk.generate("--prompt", "What?", *(word for _ in range(5000) for word in ("--image", desk.world.image))).refused()


@AREA.case
def animation_as_a_picture(desk):
    # Only its first frame is seen, so that is said.
    outcome = desk.look(FORMATS / "animated.gif").accepted()
    if "frame" not in outcome.stderr and "--video" not in outcome.stderr:
        outcome.blame("shows the first frame of an animation without a word")


# Servers.
@contextlib.contextmanager
def server(answer):
    """A server on this machine that gives every connection to `answer`; yields its URL."""
    listening = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def serve():
        while not stop.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    def talk(connection):
        with connection, contextlib.suppress(OSError):
            connection.settimeout(70)
            connection.recv(65536)
            answer(connection, stop)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        stop.set()
        listening.close()


def head(status="200 OK", **headers):
    lines = [f"HTTP/1.1 {status}", *(f"{key.replace('_', '-')}: {value}" for key, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def add_server(name, answer, codes=(1,), flags=("--allow-http",), **how):
    def play(desk):
        with server(answer) as url:
            desk.look(f"{url}/x.png", *flags, **how).expect(*codes)

    AREA.add(f"server-{name}", play)


def endless(connection, stop):
    connection.sendall(head())
    while not stop.is_set():
        connection.sendall(bytes(1 << 20))


def slow(connection, stop):
    connection.sendall(head(Content_Length=1000))
    while not stop.wait(1):
        connection.sendall(b"x")


def endless_headers(connection, stop):
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while not stop.is_set():
        connection.sendall(b"X-Header: " + b"x" * 60000 + b"\r\n")


def whole(connection, stop):
    raw = forge.png()
    connection.sendall(head(Content_Length=len(raw)) + raw)


add_server("whole", whole, codes=(0,))
add_server("not-allowed", whole, flags=())
add_server("404", lambda c, _: c.sendall(head("404 Not Found", Content_Length=0)))
add_server("500-with-a-picture", lambda c, _: c.sendall(head("500 Oh No", Content_Length=67) + forge.png()))
add_server("empty", lambda c, _: c.sendall(head(Content_Length=0)))
add_server("closes", lambda c, _: None)
add_server("no-http", lambda c, _: c.sendall(b"220 smtp ready\r\n"))
add_server("cut-body", lambda c, _: c.sendall(head(Content_Length=99999) + forge.png()))
add_server("length-2-63", lambda c, _: c.sendall(head(Content_Length=2**63) + forge.png()))
add_server("length-negative", lambda c, _: c.sendall(head(Content_Length=-1) + forge.png()))
add_server("redirects-to-itself", lambda c, _: c.sendall(head("302 Found", Location="/x.png", Content_Length=0)))
add_server(
    "redirects-to-a-file", lambda c, _: c.sendall(head("302 Found", Location="file:///etc/hostname", Content_Length=0))
)
add_server("redirects-nowhere", lambda c, _: c.sendall(head("302 Found", Content_Length=0)))
add_server("endless-body", endless)
add_server("endless-headers", endless_headers)
# The program gives a server a minute, by design; it must not give it more.
add_server("drips", slow, seconds=75)
add_server("bad-chunks", lambda c, _: c.sendall(head(Transfer_Encoding="chunked") + b"fffffffffffffffff\r\nx"))
add_server(
    "compressed-bomb",
    lambda c, _: c.sendall(head(Content_Encoding="gzip", Connection="close") + zlib.compress(bytes(9 << 20), wbits=31)),
)


@AREA.case
def server_refuses_connections(desk):
    desk.look("http://127.0.0.1:9/x.png", "--allow-http").refused()


@AREA.case
def server_without_a_name(desk):
    for url in ("http://", "http:///x.png", "https://[::1", "http://a b/", "http://x:99999/"):
        desk.look(url, "--allow-http").refused()
