"""Makes the files beside it that no encoder of the `image` crate can make.

    pip install pillow==13.0.0 && python make.py

All show the picture of src/decode/fixtures.rs: 16 x 12 pixels, red = 16 x, green = 20 y, blue = 128.
"""

from pathlib import Path
from PIL import Image

HERE = Path(__file__).parent
W, H = 16, 12

picture = Image.new("RGB", (W, H))
picture.putdata([(16 * x, 20 * y, 128) for y in range(H) for x in range(W)])
best = dict(quality=100, subsampling=0)


def ink(r, g, b, k=64):
    """Cyan, magenta, yellow for black `k` that print as r, g, b: r = (255 - c)(255 - k) / 255."""
    return tuple(255 - min(255, round(v * 255 / (255 - k))) for v in (r, g, b)) + (k,)


# Colours stay below 192, so that the black of `ink` leaves room for them.
dark = Image.new("RGB", (W, H))
dark.putdata([(11 * x, 16 * y, 96) for y in range(H) for x in range(W)])
cmyk = Image.new("CMYK", (W, H))
cmyk.putdata([ink(*p) for p in dark.get_flattened_data()])
cmyk.save(HERE / "cmyk.jpg", **best)  # Pillow stores it inverted, with an Adobe segment.
bytes_ = (HERE / "cmyk.jpg").read_bytes()
at = bytes_.index(b"Adobe")
assert bytes_[at - 4 : at - 2] == b"\xff\xee" and bytes_[at + 11] == 0
# The same without the Adobe segment.
(HERE / "cmyk-no-adobe.jpg").write_bytes(bytes_[: at - 4] + bytes_[at + 12 :])

# YCCK: the inks' complements as YCbCr, complemented; stored inverted too. libjpeg cannot be told
# to write it through Pillow, so the planes go in as CMYK and the Adobe segment is changed.
c, m, y, k = cmyk.split()
invert = lambda plane: plane.point(lambda v: 255 - v)
ycc = Image.merge("RGB", (c, m, y)).convert("YCbCr").split()
ycck = Image.merge("CMYK", tuple(invert(p) for p in ycc) + (k,))
ycck.save(HERE / "ycck.jpg", **best)
bytes_ = bytearray((HERE / "ycck.jpg").read_bytes())
bytes_[bytes_.index(b"Adobe") + 11] = 2
(HERE / "ycck.jpg").write_bytes(bytes_)
opened = Image.open(HERE / "ycck.jpg").convert("RGB")
assert max(abs(a - b) for p, q in zip(opened.get_flattened_data(), dark.get_flattened_data()) for a, b in zip(p, q)) <= 4

picture.save(HERE / "progressive.jpg", progressive=True, **best)
picture.save(HERE / "restart.jpg", restart_marker_blocks=1, **best)
picture.save(HERE / "subsampled.jpg", quality=100, subsampling=2)
picture.save(HERE / "lossy.webp", quality=100, method=6)
alpha = picture.copy()
alpha.putalpha(255)
alpha.putpixel((0, 0), (200, 100, 50, 0))
alpha.save(HERE / "lossy-alpha.webp", quality=100, method=6, exact=True)
picture.save(HERE / "lzw.tif", compression="tiff_lzw")
picture.save(HERE / "deflate.tif", compression="tiff_adobe_deflate")
picture.save(HERE / "packbits.tif", compression="packbits")
picture.save(HERE / "jpeg.tif", compression="jpeg")
frames = [picture, picture.transpose(Image.Transpose.ROTATE_180)]
frames[0].save(HERE / "animated.webp", save_all=True, append_images=frames[1:], lossless=True)

# A palette in which entry 0 is transparent.
palette = Image.new("P", (W, H))
palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
palette.putdata([(x + y) % 3 for y in range(H) for x in range(W)])
palette.save(HERE / "palette.png", transparency=0)
