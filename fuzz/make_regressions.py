"""Makes the inputs in `regressions` whose names begin with `taken-` or `refused-`: what a program meets that
takes images, headers, requests and files from anyone. Python alone; the same files each time.

    python3 fuzz/make_regressions.py

A name without those beginnings is a crash that a fuzz target found; it lies beside them and is not made here.
"""

import base64
import json
import struct
import zlib
from pathlib import Path

HERE = Path(__file__).parent
FIXTURES = HERE.parent / "tests" / "data" / "decode"


def write(target, name, content):
    folder = HERE / "regressions" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


# Images.


def png_chunk(kind, content):
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def png(width, height, rows, before=b""):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + before
        + png_chunk(b"IDAT", zlib.compress(rows, 9))
        + png_chunk(b"IEND", b"")
    )


def flat_png(width, height, level):
    return png(width, height, (b"\0" + bytes([level]) * 3 * width) * height)


def lzw_of_zeros(n_codes):
    """The LZW stream of a run of zeros that `n_codes` codes after the clear code stand for; each is one longer
    than the one before. The least code size is 2."""
    bits, n_bits, out, width, known = 0, 0, bytearray(), 3, 6
    for code in [4] + [0] + [6 + i for i in range(n_codes - 1)] + [5]:
        bits |= code << n_bits
        n_bits += width
        while n_bits >= 8:
            out.append(bits & 255)
            bits, n_bits = bits >> 8, n_bits - 8
        if code not in (4, 0):
            known += 1
            if known == 1 << width and width < 12:
                width += 1
    return bytes(out) + bytes([bits & 255])


def gif(width, height, stream):
    blocks = [stream[i : i + 255] for i in range(0, len(stream), 255)]
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", width, height, 0x80, 0, 0)
        + b"\0\0\0\xff\xff\xff"
        + b","
        + struct.pack("<HHHHB", 0, 0, width, height, 0)
        + b"\x02"
        + b"".join(bytes([len(block)]) + block for block in blocks)
        + b"\0;"
    )


def tiff(body, entries):
    """`body` at byte 8, then a directory of `entries`: tag, type (1 BYTE, 3 SHORT, 4 LONG) and a number."""
    directory = struct.pack("<H", len(entries))
    for tag, kind, number in entries:
        directory += struct.pack("<HHII", tag, kind, 1, number)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + directory + b"\0" * 4


def images():
    jpeg = (FIXTURES / "restart.jpg").read_bytes()
    progressive = (FIXTURES / "progressive.jpg").read_bytes()
    write("image", "taken-jpeg", jpeg)
    write("image", "refused-jpeg-truncated", jpeg[: len(jpeg) * 2 // 3])
    write("image", "refused-jpeg-progressive-truncated", progressive[: len(progressive) // 2])
    frame = jpeg.index(b"\xff\xc0")
    write("image", "refused-jpeg-huge", jpeg[: frame + 5] + b"\xff" * 4 + jpeg[frame + 9 :])
    write("image", "refused-jpeg-marker-alone", b"\xff\xd8\xff\xe0")
    write("image", "jpeg-segment-beyond-its-end", jpeg[:2] + b"\xff\xe1\xff\xffExif\0\0" + jpeg[2:])

    # Who takes a restart marker for a segment passes over the frame that another decoder takes for the first.
    hidden = b"\xff\xd0\0\x0c\xff\xc0\0\x08\x08\0\x64\0\x64\x03"
    write("image", "refused-jpeg-two-frames", jpeg[:2] + hidden + jpeg[2:])
    # Scans that one decoder takes for a comment are scans to another.
    inks = (FIXTURES / "cmyk.jpg").read_bytes()
    comment = b"\xff\xfe" + struct.pack(">H", 2 + 2 * 1001) + b"\xff\xda" * 1001
    write("image", "refused-jpeg-scans", inks[:2] + comment + inks[2:])

    write("image", "taken-png", flat_png(16, 12, 77))
    write("image", "taken-png-of-a-megapixel", flat_png(1024, 1024, 0))
    write("image", "refused-png-huge", png(100_000, 100_000, b"\0" * 64))
    write("image", "refused-png-largest", png(0x7FFFFFFF, 0x7FFFFFFF, b""))
    write("image", "refused-png-of-no-pixels", png(0, 0, b""))
    write("image", "refused-png-truncated", flat_png(64, 64, 9)[:60])
    write("image", "png-more-rows-than-it-says", png(16, 16, b"\0" * 4_000_000))
    text = b"a\0\0" + zlib.compress(b"\0" * 4_000_000, 9)
    write("image", "png-text-bomb", png(16, 12, b"\0" * 49 * 12, png_chunk(b"zTXt", text)))
    profile = b"a\0\0" + zlib.compress(b"\0" * 4_000_000, 9)
    write("image", "png-profile-bomb", png(16, 12, b"\0" * 49 * 12, png_chunk(b"iCCP", profile)))

    # 1,400 codes are 1,400 * 1,401 / 2 pixels.
    megapixel = gif(1401, 700, lzw_of_zeros(1400))
    write("image", "taken-gif-of-a-megapixel", megapixel)
    write("image", "refused-gif-truncated", megapixel[: len(megapixel) // 2])
    write("image", "gif-ends-early", gif(1401, 700, lzw_of_zeros(700)))
    write("image", "refused-gif-bomb", gif(65535, 65535, lzw_of_zeros(2000)))

    bmp = b"BM" + struct.pack("<IHHI", 58, 0, 0, 54)
    sides = struct.pack("<Iii", 40, 0x7FFFFFFF, -0x80000000)
    write("image", "refused-bmp-huge", bmp + sides + struct.pack("<HHIIiiII", 1, 24, 0, 0, 0, 0, 0, 0) + b"\0" * 4)
    # A directory that is its own next one, and one of 65,535 entries that are not there.
    write("image", "refused-tiff-loop", b"II*\0\x08\0\0\0" + b"\0\0" + b"\x08\0\0\0")
    write("image", "refused-tiff-entries", b"II*\0\x08\0\0\0" + b"\xff\xff" + b"\0" * 64)
    grey = [(256, 3, 16), (257, 3, 16), (258, 3, 8), (259, 3, 1), (262, 3, 1), (277, 3, 1)]
    strip = [(273, 4, 8), (278, 3, 16), (279, 4, 256)]
    level = b"\x4d" * 256
    write("image", "taken-tiff", tiff(level, grey + strip))
    write("image", "refused-tiff-jpeg-by-a-byte", tiff(level, grey + [(259, 1, 7)] + strip))
    tile = [(322, 4, 1_000_000_000), (323, 3, 16), (324, 4, 8), (325, 4, 256)]
    write("image", "refused-tiff-wide-tile", tiff(level, grey + tile))
    write("image", "refused-tiff-samples", tiff(level, grey[:-1] + [(256, 4, 50_000), (277, 3, 65_535)] + strip))
    write("image", "refused-pnm-huge", b"P6\n4294967295 4294967295\n65535\n" + b"\0" * 32)
    write("image", "refused-pnm-long-number", b"P5\n" + b"9" * 4000 + b" 1\n255\n\0")
    vp8x = b"VP8X" + struct.pack("<I", 10) + b"\0" * 4 + b"\xff" * 6
    riff = b"RIFF" + struct.pack("<I", 0xFFFFFFFF) + b"WEBP"
    write("image", "refused-webp-huge", riff + vp8x)
    small = b"VP8X" + struct.pack("<I", 10) + b"\0" * 4 + b"\x0f\0\0" * 2
    frame = b"VP8 " + struct.pack("<I", 10) + b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", 16383, 16383)
    behind = b"RIFF" + struct.pack("<I", 4 + len(small)) + b"WEBP" + small + frame
    write("image", "refused-webp-behind-its-end", behind)
    frames = b""
    for _ in range(300):
        frames = b"ANMF" + struct.pack("<I", 16 + len(frames)) + b"\0" * 16 + frames
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + b"\x02" + b"\0" * 9 + frames
    write("image", "refused-webp-frames-within-frames", b"RIFF" + struct.pack("<I", len(body)) + body)
    write("image", "refused-empty", b"")
    write("image", "refused-text", "<svg xmlns='http://www.w3.org/2000/svg'/>")


# Headers.


def headers():
    picture = flat_png(16, 12, 77)
    long = b"x" * 3000
    for name, lines in {
        "taken-no-headers": [],
        "taken-content-type": [b"content-type:image/png", b"label:cat"],
        "taken-content-type-in-other-case": [b"Content-Type: IMAGE/PNG ; q=1"],
        "taken-content-type-without-value": [b"content-type"],
        "taken-content-type-empty": [b"content-type:"],
        "taken-content-type-no-text": [b"content-type:\xff\xfe"],
        "taken-name-no-text": [b"\xff\xfe:x", b"label:dog"],
        "taken-name-empty": [b":x", b":", b"label:dog"],
        "taken-name-with-zero": [b"label\0y:cat", b"\0:x"],
        "taken-first-of-a-name-counts": [b"content-type:image/png", b"CONTENT-TYPE:text/plain"],
        "taken-cloud-events": [b"ce_specversion:1.0", b"ce_id:1", b"ce_type:image", b"ce_source:/a"],
        "taken-long": [long + b":" + long],
        "taken-many": [b"a:b"] * 500,
        "refused-content-type": [b"content-type:text/plain"],
        "refused-content-type-a-list": [b"content-type:text/plain, image/png"],
        "refused-name-with-zero": [b"content-type\0image/png:application/json"],
    }.items():
        write("headers", name, b"".join(line + b"\n" for line in lines) + b"\n" + picture)
    write("headers", "refused-empty", b"content-type:text/plain\n\n")


# Requests.


def requests():
    picture = flat_png(16, 12, 77)
    text = base64.b64encode(picture).decode()
    uri = "data:image/png;base64," + text

    def as_json(name, body):
        write("http", name, "application/json\n" + (body if isinstance(body, str) else json.dumps(body)))

    as_json("taken-json", {"model": "latest", "input": [text, uri], "encoding_format": "base64"})
    as_json("taken-json-alone", {"input": text, "user": "me"})
    as_json("refused-json-not-base64", {"input": ["iVBORw0KGgo=", "?"]})
    as_json("refused-json-uri-of-text", {"input": "data:text/plain;base64," + text})
    as_json("refused-json-uri-alone", {"input": "data:"})
    as_json("refused-json-no-input", {"model": "latest"})
    as_json("refused-json-no-images", {"input": []})
    as_json("refused-json-too-many", {"input": [""] * 300})
    as_json("refused-json-wrong-kind", {"input": [{"a": [1, None]}, 3]})
    as_json("refused-json-model", {"input": text, "model": {"a": "\u0000"}})
    as_json("refused-json-dimensions", {"input": text, "dimensions": 1e300})
    as_json("refused-json-dimensions-none", {"input": text, "dimensions": 0})
    as_json("refused-json-deep", '{"input": ' + "[" * 2000 + "]" * 2000 + "}")
    as_json("json-deep-and-ignored", '{"input": "' + text + '", "a": ' + "[" * 2000 + "]" * 2000 + "}")
    as_json("refused-json-deep-and-open", '{"a":' * 1000)
    as_json("refused-json-a-surrogate-alone", '{"input": "\\ud800"}')
    write("http", "refused-json-no-text", b'application/json\n{"input": "\xff"}')
    write("http", "taken-raw", b"image/png\n" + picture)
    write("http", "taken-raw-of-any-kind", b"application/octet-stream\n" + picture)
    write("http", "refused-raw-empty", b"image/png\n")
    write("http", "refused-raw-truncated", b"image/png\n" + picture[:40])
    write("http", "refused-no-content-type", b"\n" + picture)
    write("http", "refused-content-type-no-text", b"\xff\xfe\n" + picture)

    part = b'--line\r\ncontent-disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    file = part % (b"image", b'; filename="a.png"', picture)
    form = b"multipart/form-data; boundary=line\n"
    write("http", "taken-multipart", form + file + part % (b"dimensions", b"", b"2") + file + b"--line--\r\n")
    write("http", "refused-multipart-option", form + part % (b"dimensions", b"", b"\xff") + file + b"--line--\r\n")
    write("http", "refused-multipart-open", form + file[:-20])
    write("http", "refused-multipart-empty", form + b"--line--\r\n")
    write("http", "refused-multipart-no-boundary", b"multipart/form-data\n" + file + b"--line--\r\n")
    write("http", "refused-multipart-empty-images", form + part % (b"a", b"", b"") * 100 + b"--line--\r\n")


# Configurations.


def configurations():
    for name, text in {
        "taken-empty": "",
        "taken-a-few-keys": "[batch]\nimages = 8\n[server]\nlisten = '0.0.0.0:1'\n",
        "taken-another-kind": "objective.kind = 'moco'\nobjective.head.hidden = 64\n",
        "refused-no-toml": "[batch\nimages",
        "refused-key-unknown": "[batch]\nimage = 8\n",
        "refused-key-empty": '"" = 1\n',
        "refused-key-with-dots": '"batch.images" = 8\n',
        "refused-key-no-latin": '"b\u00e4tch\u0000".images = 8\n'.replace("\u0000", "\\u0000"),
        "refused-key-twice": "[batch]\nimages = 8\nimages = 8\n",
        "refused-key-very-long": "a" * 4000 + " = 1\n",
        "refused-kind-unknown": "objective.kind = 'nothing'\n",
        "refused-kind-of-another-kind": "objective.kind = [1]\n",
        "refused-table-for-number": "[batch.images]\na = 1\n",
        "refused-number-for-table": "batch = 3\n",
        "refused-number-negative": "batch.images = -1\n",
        "refused-number-too-large": "batch.images = 9223372036854775807\n",
        "refused-number-beyond-64-bits": "batch.images = 92233720368547758080\n",
        "refused-number-nan": "gate.min_spread = nan\n",
        "refused-number-infinite": "gate.min_spread = inf\n",
        "refused-duration-negative": "checkpoint.every = '-1s'\n",
        "refused-duration-too-long": "checkpoint.every = '99999999999999999999years'\n",
        "refused-deep": "a = " + "[" * 2000 + "]" * 2000 + "\n",
        "refused-deep-keys": ".".join(["a"] * 1500) + " = 1\n",
        "refused-date": "batch.images = 1979-05-27T07:32:00Z\n",
    }.items():
        write("config", name, text)


# Checkpoints.

MANIFEST = {
    "format": 2,
    "learner_id": "tests",
    "architecture": "slim-resnet",
    "side_px": 32,
    "step": 1,
    "trained": "1s 500ms",
    "restarted_at": 1,
    "counts": {"learned": 64, "refused": 3, "skipped": 1},
    "offsets": [{"topic": "images", "partition": 0, "next": 7, "done_ahead": [9, 12]}],
    "replay": [
        {
            "topic": "images",
            "partition": 0,
            "offset": 3,
            "segment": 0,
            "position": 0,
            "len_bytes": 64,
            "is_pending": False,
        }
    ],
    "replay_offered": 1,
    "last_version": None,
    "stable_version": "abc",
    "gate": {"ranks": [1.5]},
    "rollbacks": {"count": 1, "until_step": 500},
    "changes": 2,
}
# What no field can be.
WRONG = {True: -1.5, False: {"a": []}}


# Of a format whose manifest lies in the header.
OLD_MANIFEST = MANIFEST | {"format": 1}


def safetensors(manifest=OLD_MANIFEST, **changes):
    header = {"__metadata__": {"selfstream.checkpoint": json.dumps(manifest)}}
    header["w"] = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + struct.pack("<2f", 1, -1)


def checkpoints():
    whole = safetensors()
    write("checkpoint", "taken-file", whole)
    write("checkpoint", "refused-file-without-a-manifest", safetensors(MANIFEST))
    write("checkpoint", "refused-file-empty", b"")
    write("checkpoint", "refused-file-truncated", whole[:-1])
    write("checkpoint", "refused-file-header-truncated", whole[:100])
    write("checkpoint", "refused-file-longer", whole + b"\0")
    write("checkpoint", "refused-file-header-length", struct.pack("<Q", 2**64 - 1) + whole[8:])
    write("checkpoint", "refused-file-of-another-kind", safetensors(dtype="F16", shape=[4]))
    write("checkpoint", "refused-file-of-no-kind", safetensors(dtype="F33"))
    write("checkpoint", "refused-file-shape", safetensors(shape=[3]))
    write("checkpoint", "refused-file-shape-huge", safetensors(shape=[2**32, 2**32]))
    write("checkpoint", "refused-file-range", safetensors(data_offsets=[0, 2**60]))
    write("checkpoint", "refused-file-range-backwards", safetensors(data_offsets=[8, 0]))

    def manifest(name, value):
        write("checkpoint", name + ".json", value if isinstance(value, str) else json.dumps(value))

    manifest("taken-manifest", MANIFEST)
    manifest("taken-manifest-old", OLD_MANIFEST)
    for field, value in MANIFEST.items():
        wrong = WRONG[isinstance(value, (dict, list))]
        manifest(f"refused-{field}", MANIFEST | {field: wrong})
    for field in MANIFEST["replay"][0]:
        entry = MANIFEST["replay"][0] | {field: {}}
        manifest(f"refused-replay-{field}", MANIFEST | {"replay": [entry]})
    for field in ["topic", "partition", "next"]:
        offset = MANIFEST["offsets"][0] | {field: {}}
        manifest(f"refused-offsets-{field}", MANIFEST | {"offsets": [offset]})
    for name, place in {
        "position-beyond": {"position": 1},
        "position-last": {"position": 2**64 - 1, "len_bytes": 2},
        "position-half": {"position": 2**63, "len_bytes": 2**32 - 1},
        "segment-missing": {"segment": 2**64 - 1},
    }.items():
        entry = MANIFEST["replay"][0] | place
        manifest(f"refused-replay-{name}", MANIFEST | {"replay": [entry]})
    manifest("refused-format-of-64-bits", MANIFEST | {"format": 2**32 + 1})
    manifest("refused-format-next", MANIFEST | {"format": 3})
    manifest("refused-trained-too-long", MANIFEST | {"trained": "99999999999999999999years"})
    manifest("refused-deep", '{"format": 2, "gate": ' + "[" * 2000 + "]" * 2000 + "}")
    manifest("refused-truncated", json.dumps(MANIFEST)[:-40])
    twice = MANIFEST["offsets"] + [MANIFEST["offsets"][0] | {"next": 2**63 - 1}]
    manifest("taken-partition-twice", MANIFEST | {"offsets": twice})
    manifest("taken-image-many-times", MANIFEST | {"replay": MANIFEST["replay"] * 40})


for make in [images, headers, requests, configurations, checkpoints]:
    make()
