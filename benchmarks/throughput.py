"""Images per second of training: this engine against a loop in the style of research code.

The baseline decodes every image through PIL for every epoch with torchvision's transforms in
DataLoader workers, batch 64, fp32; ours augments uint8 batches on the device. Same net, same
batch size, same augmentation, in turn (A B A B …); the first pass of each is thrown away.

    python benchmarks/throughput.py [--model resnet18] [--images 512] [--rounds 3] [--json]
        [--batch-size 64] [--no-graph]

``ratio`` is the median of ours / baseline over the rounds. ``tflops`` are those of the net's
convolutions and matrix products; ``matmul_tflops`` is what a large fp32 and bf16 matrix
product (where the hardware has it) reaches here, the limit to compare with.
"""

import argparse
import json
import os
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from counterdoor.augment import Augment
from counterdoor.engine import Engine, multiplies_bf16
from counterdoor.feed import Samples
from counterdoor.models import Compact, NormalisedNet, ResNet18, build_net
from counterdoor.recipe import Recipe
from counterdoor.tracking import commit_tags, hardware
from counterdoor.training import fit

MODELS = {"resnet18": ResNet18(), "compact": Compact()}


class PILImages(Dataset):
    """Images as arrays that pass through PIL one at a time."""

    def __init__(self, images_nchw: np.ndarray, labels: np.ndarray, net: NormalisedNet) -> None:
        self.images = images_nchw.transpose(0, 2, 3, 1)
        self.labels = labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(net.mean.tolist(), net.std.tolist()),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


class Baseline:
    """The loop of research code; one call is one epoch."""

    def __init__(self, net: NormalisedNet, images: np.ndarray, labels: np.ndarray) -> None:
        self.device = Engine().device
        self.net = build_body(net).to(self.device)
        self.loader = DataLoader(
            PILImages(images, labels, net),
            batch_size=64,
            shuffle=True,
            num_workers=os.cpu_count() or 1,
            persistent_workers=True,
        )
        self.optimizer = torch.optim.SGD(
            self.net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4
        )

    def __call__(self) -> float:
        """Images per second of one epoch."""
        self.net.train()
        started, seen = time.perf_counter(), 0
        for images, labels in self.loader:
            images, labels = images.to(self.device), labels.to(self.device)
            loss = nn.functional.cross_entropy(self.net(images), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            seen += len(labels) + 0 * int(loss.item())
        return seen / (time.perf_counter() - started)


def build_body(net: NormalisedNet) -> nn.Module:
    """The same net without the normalisation, which the transforms do."""
    import copy

    return copy.deepcopy(net.body)


def ours(
    net: NormalisedNet, images: np.ndarray, labels: np.ndarray, engine: Engine, batch_size: int
) -> float:
    """Images per second of our second epoch."""
    recipe = Recipe(
        epochs=2,
        batch_size=batch_size,
        learning_rate=0.01,
        augment=Augment(crop_padding=4, flip=True),
    )
    samples = Samples(images, np.arange(len(images)), labels)
    history = fit(net, samples, recipe, seed=0, stream="benchmark", engine=engine).history
    return float(history["images_per_second"].iloc[-1])


def training_flops(net: nn.Module) -> float:
    """Floating-point operations for one image, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        net(torch.rand(2, 3, 32, 32)).sum().backward()
    return counter.get_total_flops() / 2


def matmul_tflops(kind: torch.dtype) -> float:
    """What a large square matrix product reaches on the device, in TFLOP/s."""
    device = Engine().device
    size = 8192 if device.type == "cuda" else 2048
    matrix = torch.rand(size, size, device=device, dtype=kind)
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for it
        best = max(best, 2 * size**3 / (time.perf_counter() - started) / 1e12)
    return best


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="resnet18")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64, help="of ours; the baseline has 64")
    parser.add_argument("--no-graph", action="store_true", help="ours without a CUDA graph")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (options.images, 3, 32, 32), dtype=np.uint8)
    labels = generator.integers(0, 10, options.images)
    net = build_net(MODELS[options.model], images, 10, seed=0, stream="benchmark")
    engine = Engine(cuda_graph=not options.no_graph)
    baseline = Baseline(net, images, labels)
    baseline()
    rates: dict[str, list[float]] = {"ours": [], "baseline": []}
    for _ in range(options.rounds):
        rates["ours"].append(ours(net, images, labels, engine, options.batch_size))
        rates["baseline"].append(baseline())
    ratios = [a / b for a, b in zip(rates["ours"], rates["baseline"], strict=True)]
    flops = training_flops(net)
    result = {
        "name": f"throughput of {options.model}",
        "ratio": round(median(ratios), 3),
        "values": {
            **{f"{name}_images_per_second": [round(r, 1) for r in rates[name]] for name in rates},
            "precision": engine.resolved_precision(),
            "batch_size": options.batch_size,
            "cuda_graph": engine.replays,
            "tflops": round(median(rates["ours"]) * flops / 1e12, 4),
            "matmul_tflops": {
                str(kind).removeprefix("torch."): round(matmul_tflops(kind), 4)
                for kind in (torch.float32, torch.bfloat16)
                if kind == torch.float32 or multiplies_bf16(engine.device.type)
            },
        },
        "commit": commit_tags(Path(__file__).parent).get("commit", "unknown"),
        "hardware": hardware(),
    }
    if options.json:
        print(json.dumps(result))
        return
    print(f"ours     {median(rates['ours']):10.1f} images/s ({engine.resolved_precision()})")
    print(f"baseline {median(rates['baseline']):10.1f} images/s")
    print(f"ratio    {result['ratio']:10.2f}")


if __name__ == "__main__":
    main()
