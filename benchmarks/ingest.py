"""Ingest of a folder of images: this decoder against torchvision's ``ImageFolder``.

The folder is made here: real digits with noise on them, in colour, 64 to 512 pixels wide and
high, as JPEG, PNG and WebP in turn. Both bring every image to the same size, resized and cropped
in the middle; the baseline in a ``DataLoader`` with a worker a core, as uint8 tensors in batches
of 64, ours into one array. They run in turn (A B A B …); the first pass of each, in which files
get into the page cache, is thrown away.

    python benchmarks/ingest.py [--images 2000] [--size 64] [--formats jpg,png,webp] [--json]

``ratio`` is the median of ours / baseline, in images per second, over the rounds; the project's
bar is 0.8. ``ours_cpu_seconds`` and ``baseline_cpu_seconds`` are those of all processes and
threads, which other work on the machine disturbs less.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from counterdoor.sources import Digits, ImageFolder
from counterdoor.tracking import commit_tags, hardware


def make_images(folder: Path, n: int, formats: list[str]) -> None:
    """Digits in colour, with noise, of mixed sizes and formats; a folder a class."""
    digits = Digits()()
    generator = np.random.default_rng(0)
    for number, row in enumerate(generator.integers(0, len(digits.labels), n)):
        width, height = generator.integers(64, 513, 2).tolist()
        image = Image.fromarray(digits.images_nchw[row, 0]).convert("RGB").resize((width, height))
        noise = generator.normal(0, 12, (height, width, 3))
        pixels = (np.asarray(image) + noise).clip(0, 255).astype(np.uint8)
        place = folder / str(digits.labels[row])
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number:06}.{formats[number % len(formats)]}")


def ours(folder: Path, size: int) -> int:
    """Read all images into one array; how many there are."""
    return len(ImageFolder(path=str(folder), image_size=size, on_corrupt="fail")().labels)


def baseline(folder: Path, size: int) -> int:
    """Read all images in batches; how many there are."""
    steps = [transforms.Resize(size), transforms.CenterCrop(size), transforms.PILToTensor()]
    images = datasets.ImageFolder(folder, transforms.Compose(steps))
    loader = DataLoader(images, batch_size=64, num_workers=os.cpu_count() or 1)
    return len(torch.cat([batch for batch, _ in loader]))


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def measure(read: Callable[[Path, int], int], folder: Path, size: int) -> tuple[float, float]:
    """Images per second, and seconds of processor time."""
    started, used = time.perf_counter(), cpu_seconds()
    n = read(folder, size)
    return n / (time.perf_counter() - started), cpu_seconds() - used


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=64, help="height and width after resizing")
    parser.add_argument("--formats", default="jpg,png,webp")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    ways = {"ours": ours, "baseline": baseline}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    used: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder, options.images, options.formats.split(","))
        for number in range(options.rounds + 1):
            for way, read in ways.items():
                rate, seconds = measure(read, folder, options.size)
                if number:
                    rates[way].append(rate)
                    used[way].append(seconds)
    ratios = [a / b for a, b in zip(rates["ours"], rates["baseline"], strict=True)]
    result = {
        "name": f"ingest of {options.formats} at {options.size} pixels",
        "ratio": round(median(ratios), 3),
        "values": {
            **{f"{way}_images_per_second": [round(rate, 1) for rate in rates[way]] for way in ways},
            **{f"{way}_cpu_seconds": [round(each, 2) for each in used[way]] for way in ways},
        },
        "commit": commit_tags(Path(__file__).parent).get("commit", "unknown"),
        "hardware": hardware(),
    }
    if options.json:
        print(json.dumps(result))
        return
    for way in ways:
        print(f"{way:10} {median(rates[way]):8.1f} images/s {median(used[way]):6.2f} s of CPU")
    print(f"ratio      {result['ratio']:8.2f}")


if __name__ == "__main__":
    main()
