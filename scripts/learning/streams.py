"""The streams of the protocols, as tars whose order is the order of arrival.

A tar's members are `NUMBER/CLASS/NAME`: the number keeps the order plain, the last folder is the label.
"""

import io
import random
import tarfile
from collections import defaultdict
from pathlib import Path

from PIL import Image, ImageFilter

PROTOCOLS = {
    "A": "CIFAR-10, 20,000 images shuffled, each arriving once, evenly over the time",
    "B": "the same images, five pairs of classes one after another",
    "C": "PACS: photos, paintings, cartoons, sketches, one domain after another",
    "C shuffled": "the same images shuffled",
    "D": "A camera: each image of A as a burst of five slightly moved crops, 100,000 arrivals",
    "E": "A with every fifth image blank, noise or heavily blurred",
}
HELD_OUT = 10  # every so many images, by name, are held out for choosing


class Images:
    """The labelled images of a tar, by name, in its order."""

    def __init__(self, path):
        with tarfile.open(path) as tar:
            self.bytes = {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}

    def names(self):
        return list(self.bytes)


def label(name):
    return name.split("/")[-2]


def split(names, told_on):
    """Names to stream, and names to tell or None where those are the test images."""
    if told_on == "test":
        return names, None
    # By the number in the name, so that every class gives a share.
    by_class = defaultdict(list)
    for name in sorted(names):
        by_class[label(name)].append(name)
    held_out = {name for of_class in by_class.values() for name in of_class[::HELD_OUT]}
    return [n for n in names if n not in held_out], [n for n in names if n in held_out]


def write(path, members):
    """Writes `(name, bytes)` in their order."""
    with tarfile.open(path, "w") as tar:
        for number, (name, data) in enumerate(members):
            info = tarfile.TarInfo(f"{number:06}/{label(name)}/{Path(name).name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def jpeg(image):
    out = io.BytesIO()
    image.save(out, "JPEG", quality=92)
    return out.getvalue()


def burst(data, rng, n=5, margin_px=4):
    """`n` crops of one image whose corner walks a pixel at a time."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    side = image.width - margin_px
    x, y = rng.randint(0, margin_px), rng.randint(0, margin_px)
    for _ in range(n):
        yield jpeg(image.crop((x, y, x + side, y + side)))
        x = min(max(x + rng.choice([-1, 0, 1]), 0), margin_px)
        y = min(max(y + rng.choice([-1, 0, 1]), 0), margin_px)


def dirty(data, rng):
    """A blank image, noise, or the image beyond recognition."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    kind = rng.randrange(3)
    if kind == 0:
        return jpeg(Image.new("RGB", image.size, tuple(rng.randrange(256) for _ in range(3))))
    if kind == 1:
        return jpeg(Image.frombytes("RGB", image.size, rng.randbytes(3 * image.width * image.height)))
    return jpeg(image.filter(ImageFilter.GaussianBlur(image.width / 6)))


def members(protocol, images, names, seed):
    """`(name, bytes)` of a protocol's stream."""
    rng = random.Random(seed)
    names = list(names)
    if protocol in ("A", "C shuffled", "D", "E"):
        rng.shuffle(names)
    if protocol == "B":
        classes = sorted({label(name) for name in names})
        rng.shuffle(classes)
        rank = {name: place // 2 for place, name in enumerate(classes)}
        rng.shuffle(names)
        names.sort(key=lambda name: rank[label(name)])
    for name in names:
        data = images.bytes[name]
        if protocol == "D":
            yield from ((name, crop) for crop in burst(data, rng))
        elif protocol == "E" and rng.random() < 0.2:
            yield name, dirty(data, rng)
        else:
            yield name, data


def pairs_of_classes(names, seed):
    """The pairs of classes of protocol B, in their order."""
    rng = random.Random(seed)
    classes = sorted({label(name) for name in names})
    rng.shuffle(classes)
    return [classes[place:place + 2] for place in range(0, len(classes), 2)]
