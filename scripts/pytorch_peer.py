"""PyTorch's side of bench-vs-pytorch, and the loop that runs both sides round about.

Both do the same work: `train` is forward, backward and an SGD step with momentum of the encoder on
random images of 32 px, in f32 or (`--precision`) in bf16 with f32 sums; `embed` is the forward pass in
evaluation mode; `views` makes two views of an image of that side by SimCLR's augmentation,
`decode-views` decodes a JPEG of 500 x 375 for them. PyTorch runs in each of its modes that applies
(memory layout, autocast for bf16, traced and frozen for embedding, torch.compile), and its fastest median
counts; views are torchvision's, of uint8 tensors. Both sides are pinned to the same cores.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import subprocess
import tempfile
import time

import torch
from torchvision.io import decode_jpeg, encode_jpeg
from torchvision.transforms import v2

from pytorch_models import SIDE_PX, build

ENCODERS = ["slim-resnet", "resnet18", "vit-tiny-patch4"]
TRAINING = [("train", encoder, 128) for encoder in ENCODERS]
EMBEDDING = [("embed", encoder, n_images) for encoder in ENCODERS for n_images in (1, 64)]
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def autocast(precision):
    """Where matrix products and convolutions are computed in bf16, if that is the precision."""
    bf16 = torch.autocast("cpu", dtype=torch.bfloat16)
    return bf16 if precision == "bf16" else contextlib.nullcontext()


def training(encoder, n_images, layout, precision="f32", is_compiled=False):
    encoder = build(encoder).to(memory_format=layout)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4)
    images = torch.randn(n_images, 3, SIDE_PX, SIDE_PX).contiguous(memory_format=layout)
    with torch.no_grad(), autocast(precision):
        pull = torch.randn_like(encoder(images))
    forward = torch.compile(encoder, dynamic=False) if is_compiled else encoder

    def work():
        optimizer.zero_grad()
        with autocast(precision):
            features = forward(images)
        features.backward(pull)
        optimizer.step()
    return work


def embedding(encoder, n_images, layout, how):
    encoder = build(encoder).to(memory_format=layout).eval()
    images = torch.randn(n_images, 3, SIDE_PX, SIDE_PX).contiguous(memory_format=layout)
    if how == "frozen":  # folds the norms into the convolutions, as we do
        with torch.no_grad():
            encoder = torch.jit.optimize_for_inference(torch.jit.trace(encoder, images))
    elif how == "compiled":
        encoder = torch.compile(encoder, dynamic=False)

    def work():
        with torch.inference_mode():
            encoder(images)
    return work


def peers(work, encoder, n_images, precision):
    """PyTorch's modes for one kind of work, by name, each yet to be made."""
    if work == "train":
        bf16 = ", autocast" * (precision == "bf16")
        return {f"{name}{', compiled' * compiled}{bf16}": (training, encoder, n_images, layout, precision, compiled)
                for name, layout in LAYOUTS.items() for compiled in (False, True)}
    return {f"{name}{', ' * bool(how)}{how}": (embedding, encoder, n_images, layout, how)
            for name, layout in LAYOUTS.items() for how in ("", "frozen", "compiled")}


def made(modes, lacks):
    """The works of `modes` that run; what does not is said once, and noted in `lacks`."""
    works = {}
    torch.compiler.reset()  # all encoders of a class count against one limit of compilations
    for name, (make, *arguments) in modes.items():
        is_compiled = "compiled" in name
        if is_compiled and "torch.compile" in lacks:
            continue
        try:
            works[name] = make(*arguments)
            if is_compiled:  # compiles, outside the rounds
                works[name]()
        except Exception as error:  # whatever the compiler's tool chain raises
            if not is_compiled:
                raise
            works.pop(name, None)
            lacks["torch.compile"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            print(f"torch.compile cannot be used: {lacks['torch.compile']}", flush=True)
    return works


VIEW_PAIRS = 20
# Side of the views; height and width of the JPEG.
VIEWS = [("views", 32, (32, 32)), ("decode-views", 224, (375, 500))]


def photo(height, width):
    """Smooth waves under a little noise, about as hard to compress as a photo."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [(at / period).sin() * 90 + 128 for at, period in ((x, 23), (y, 31), (x + y, 47))]
    pixels = torch.stack(waves) + torch.randint(0, 16, (3, height, width))
    return encode_jpeg(pixels.clamp(0, 255).to(torch.uint8), quality=85)


def making_views(jpeg, side_px, is_decoded_anew):
    blur = [v2.RandomApply([v2.GaussianBlur(side_px // 20 * 2 + 1, (0.1, 2.0))], 0.5)]
    transform = v2.Compose([
        v2.RandomResizedCrop(side_px, scale=(0.2, 1.0), antialias=True),
        v2.RandomHorizontalFlip(), v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
        v2.RandomGrayscale(0.2), *(blur if side_px >= 64 else []),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
    decoded = decode_jpeg(jpeg)

    def work():
        for _ in range(VIEW_PAIRS):
            pixels = decode_jpeg(jpeg) if is_decoded_anew else decoded
            transform(pixels), transform(pixels)
    return work


def status_kib(name):
    with open("/proc/self/status", encoding="utf-8") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name))


def memory_kib(encoder, n_images):
    """The peak of three training steps over what the process holds with the encoder loaded."""
    loaded = build(encoder)
    held = status_kib("VmRSS")
    with open("/proc/self/clear_refs", "w", encoding="utf-8") as peak:
        peak.write("5")
    step = training(encoder, n_images, torch.channels_last)
    for _ in range(3):
        step()
    del loaded
    return status_kib("VmHWM") - held


def compare_memory(command, encoder, n_images):
    """Each side in a process of its own; the row of the table."""
    ours = subprocess.run(command, input=f"memory {encoder} {n_images}\n", text=True,
                          capture_output=True, check=True, env=our_environment())
    # An allocator that is tuned to keep memory would count against PyTorch here.
    tuned = {name: os.environ.pop(name) for name in ("LD_PRELOAD", "MALLOC_CONF") if name in os.environ}
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        peer = pool.apply(memory_kib, (encoder, n_images)) / 1024
    os.environ.update(tuned)
    mine = float(ours.stdout) / 1024
    return {"work": f"memory of train {encoder}, {n_images} images", "threads": 1, "ours": mine,
            "peer": peer, "unit": "MiB", "ratio": peer / mine, "mode": "channels_last"}


class Ours:
    """Our executable on some cores, which does a line of work at a time."""

    def __init__(self, command, cores):
        everywhere = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, env=our_environment())
        os.sched_setaffinity(0, everywhere)

    def round(self, line):
        """Milliseconds, or None if this work is not available."""
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        return None if answer.startswith("not available") else float(answer)

    def end(self):
        self.process.stdin.close()
        if self.process.wait() != 0:
            raise SystemExit("our side failed")


def our_environment():
    """Without the allocator that is tuned for PyTorch: we bring our own."""
    return {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "MALLOC_CONF")}


def pin(cores):
    """Keeps every thread of this process on `cores`."""
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread), cores)


def milliseconds(work):
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


def compare(ours, line, works, rounds, calls=1):
    """Rounds of our `line` and of all `works` in turn, after one that warms up; the medians. A round is the
    median of some `calls` in a row: what takes a few milliseconds would else find the threads of its side
    asleep, or those of the side before still spinning on their cores."""
    times = {"ours": [], **{name: [] for name in works}}
    for _ in range(rounds + 1):
        times["ours"].append(statistics.median(ours.round(line) for _ in range(calls)))
        for name, work in works.items():
            times[name].append(statistics.median(milliseconds(work) for _ in range(calls)))
    medians = {name: statistics.median(all_[1:]) for name, all_ in times.items()}
    mode = min(works, key=medians.get)
    mine, peer = medians["ours"], medians[mode]
    return {"ours": mine, "peer": peer, "unit": "ms", "ratio": peer / mine, "mode": mode,
            "rounds": rounds, "modes": {name: medians[name] for name in works}}


def encoder_rows(ours, arguments, lacks):
    """Rows of training and embedding: `ours` by the number of its cores."""
    few = 3 if arguments.quick else 7
    precisions = ["f32", "bf16"] if arguments.precision == "both" else [arguments.precision]
    works = [(*work, precision) for precision in precisions for work in TRAINING if "train" in arguments.only]
    works += [(*work, "f32") for work in EMBEDDING if "f32" in precisions and "embed" in arguments.only]
    for work, encoder, n_images, precision in works:
        if encoder not in arguments.encoder:
            continue
        for threads in ours:
            torch.set_num_threads(threads)
            name = f"{work} {encoder}{' bf16' * (precision == 'bf16')}, {n_images} images"
            line = f"{work} {encoder} {n_images} {threads}{' bf16' * (precision == 'bf16')}"
            if ours[threads].round(line) is None:
                print(f"{name}: not available on our side", flush=True)
                break
            pin(cores_of(threads))
            modes = made(peers(work, encoder, n_images, precision), lacks)
            rounds = few * (1 if work == "train" else 3)
            calls = 7 if (work, n_images) == ("embed", 1) else 1
            measured = compare(ours[threads], line, modes, rounds, calls)
            yield {"work": name, "threads": threads, **measured}


def view_rows(ours, arguments):
    torch.set_num_threads(1)
    pin(cores_of(1))
    for work, side_px, size in VIEWS:
        with tempfile.NamedTemporaryFile(suffix=".jpg") as file:
            jpeg = photo(*size)
            file.write(bytes(jpeg.tolist()))
            file.flush()
            works = {"torchvision": making_views(jpeg, side_px, work != "views")}
            rounds = 9 if arguments.quick else 21
            measured = compare(ours, f"{work} {file.name} {side_px} 1", works, rounds)
            yield {"work": f"{VIEW_PAIRS} x {work}, {side_px} px", "threads": 1, **measured}


def rows(arguments, lacks):
    """The rows of the table, as they are measured."""
    command = [arguments.ours, *filter(None, [arguments.instructions])]
    ours = {threads: Ours(command, cores_of(threads)) for threads in THREADS}
    only = arguments.only
    if "train" in only or "embed" in only:
        yield from encoder_rows(ours, arguments, lacks)
    if "views" in only:
        yield from view_rows(ours[1], arguments)
    for one in ours.values():
        one.end()
    if "memory" in only:
        pin(CORES)
        for _, encoder, n_images in TRAINING:
            if encoder in arguments.encoder:
                yield compare_memory(command, encoder, n_images)


CORES = sorted(os.sched_getaffinity(0))
THREADS = [threads for threads in (1, 2) if threads <= len(CORES)]


def cores_of(threads):
    return CORES[:threads]


def processor():
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))


def arguments_of_the_command():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ours", help="our executable")
    parser.add_argument("--json", metavar="FILE", help="write the rows too")
    parser.add_argument("--instructions", metavar="NAME",
                        help="ours: portable, avx2, avx512 or avx512bf16 instead of the best there are")
    parser.add_argument("--quick", action="store_true",
                        help="3 rounds of training instead of 7, and no torch.compile")
    parser.add_argument("--precision", choices=["f32", "bf16", "both"], default="f32",
                        help="of training; bf16 runs beside PyTorch's autocast")
    parser.add_argument("--only", nargs="+", choices=["train", "embed", "views", "memory"],
                        default=["train", "embed", "views", "memory"], help="which rows")
    parser.add_argument("--encoder", nargs="+", choices=[*ENCODERS], default=[*ENCODERS],
                        help="of which encoders")
    return parser.parse_args()


def main():
    arguments = arguments_of_the_command()
    lacks = {"torch.compile": "--quick"} if arguments.quick else {}
    capability = torch.backends.cpu.get_cpu_capability()
    allocator = os.path.basename(os.environ.get("LD_PRELOAD", "")) or "the system's malloc"
    compiled = "without torch.compile (--quick)" if arguments.quick else "torch.compile among its modes"
    print(f"{processor()}, {capability}; PyTorch {torch.__version__}, {allocator}, {compiled}; "
          f"medians in ms (memory in MiB); ours on {arguments.instructions or 'the best instructions'}\n")
    print("| work | threads | ours | PyTorch | ratio | its fastest mode |")
    print("|---|---|---|---|---|---|")
    table = []
    for row in rows(arguments, lacks):
        table.append(row)
        print(f"| {row['work']} | {row['threads']} | {row['ours']:.4g} | {row['peer']:.4g} | "
              f"{row['ratio']:.2f} | {row['mode']} |", flush=True)
        if arguments.json:  # as they come, so that a run that is cut short leaves what it has
            with open(arguments.json, "w", encoding="utf-8") as out:
                json.dump(table, out, indent=1)


if __name__ == "__main__":
    main()
