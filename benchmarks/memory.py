"""Memory of ingest + attack, and of streaming a growing set.

Every figure is of a process of its own. *ingest + attack*: peak resident memory while 50,000
images in Parquet are decoded, split, poisoned and hashed, above that of having imported the
library. *streaming*: largest anonymous memory (not the page cache) and seconds an image of
one epoch over memory-mapped sets of 5,000, 50,000 and 500,000 images.

    python benchmarks/memory.py [--parquet FOLDER] [--sizes 5000 50000 500000] [--json]

Without ``--parquet`` a folder of noise in JPEG is made. ``ratio`` is the anonymous memory at
the largest size over that at the second largest (bar: 1.1).
"""

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np


def make_parquet(folder: Path, n: int = 50_000) -> Path:
    """Noise as JPEG in the Hugging Face layout, ten classes."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    generator = np.random.default_rng(0)
    cells = []
    for _ in range(n):
        coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse.repeat(4, 0).repeat(4, 1)).save(buffer, "JPEG")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    table = pa.table({"img": cells, "label": (np.arange(n) % 10).tolist()})
    pq.write_table(table, folder / "train-0.parquet")
    return folder


def ingest_attack(folder: str) -> dict[str, float]:
    """Run both stages; peak resident MB after the imports and at the end."""
    from counterdoor.params import AttackParams, IngestParams
    from counterdoor.pipelines.attack.nodes import attack
    from counterdoor.pipelines.ingest.nodes import ingest

    source = {"name": "parquet", "path": folder}
    params = IngestParams.model_validate(
        {"source": source, "test_share": 0.2, "trusted_share": 0.05}
    )
    adversary = AttackParams.model_validate({"name": "badnets", "poison_ratio": 0.1})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    read = ingest(params, 0)
    n = len(read["images"]) + len(read["test_images"])
    attack(read["images"], read["ledger"], read["test_images"], read["info"], adversary, 0)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"images": n, "imported_mb": before, "above_mb": after - before}


class AnonymousPeak(threading.Thread):
    """Watches this process's anonymous resident memory."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_mb = 0.0
        self.ended = threading.Event()

    def run(self) -> None:
        """Sample every 50 ms until told to end."""
        while not self.ended.wait(0.05):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon"):
                    self.peak_mb = max(self.peak_mb, int(line.split()[1]) / 1024)


def stream(file: str) -> dict[str, float]:
    """Train one epoch from a memory-mapped file."""
    from counterdoor.engine import Engine
    from counterdoor.feed import Samples
    from counterdoor.models import DigitsCNN, build_net
    from counterdoor.recipe import Recipe
    from counterdoor.training import fit

    images = np.load(file, mmap_mode="r")
    n = len(images)
    net = build_net(DigitsCNN(width=4), images, 10, seed=0, stream="x")
    watch = AnonymousPeak()
    watch.start()
    history = fit(
        net,
        Samples(images, np.arange(n), np.arange(n) % 10),
        Recipe(epochs=1, batch_size=256, learning_rate=0.01),
        seed=0,
        stream="benchmark",
        engine=Engine(data="streaming"),
    ).history
    watch.ended.set()
    return {
        "images": n,
        "anonymous_mb": watch.peak_mb,
        "microseconds_an_image": 1e6 * float(history["seconds"].iloc[0]) / n,
    }


def in_a_process(task: str, argument: str) -> dict[str, float]:
    """One measurement in a new process."""
    command = [sys.executable, __file__, "--task", task, argument]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {name: round(value, 1) for name, value in result.items()}


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parquet", help="folder with train*.parquet; default: noise")
    parser.add_argument("--sizes", type=int, nargs="+", default=[5_000, 50_000, 500_000])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--task", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        task, argument = options.task
        tasks = {"ingest_attack": ingest_attack, "stream": stream}
        print(json.dumps(tasks[task](argument)))
        return
    from counterdoor.tracking import commit_tags, hardware

    with tempfile.TemporaryDirectory() as name:
        folder = options.parquet or str(make_parquet(Path(name)))
        stages = in_a_process("ingest_attack", folder)
        streamed = []
        for size in options.sizes:
            file = Path(name) / "images.npy"
            stored = np.lib.format.open_memmap(file, "w+", np.uint8, (size, 3, 32, 32))
            generator = np.random.default_rng(0)
            for start in range(0, size, 5_000):
                part = generator.integers(0, 256, (5_000, 3, 32, 32), dtype=np.uint8)
                stored[start : start + 5_000] = part[: size - start]
            stored.flush()
            del stored
            streamed.append(in_a_process("stream", str(file)))
    last, before = streamed[-1], streamed[-2] if len(streamed) > 1 else streamed[-1]
    result = {
        "name": "memory",
        "ratio": round(last["anonymous_mb"] / before["anonymous_mb"], 3),
        "values": {"ingest_attack": stages, "streaming": streamed},
        "commit": commit_tags(Path(__file__).parent).get("commit", "unknown"),
        "hardware": hardware(),
    }
    if options.json:
        print(json.dumps(result))
        return
    print(f"ingest + attack of {stages['images']:,.0f} images: {stages['above_mb']:.0f} MB")
    for each in streamed:
        print(
            f"streaming {each['images']:9,.0f}: {each['anonymous_mb']:6.0f} MB anonymous, "
            f"{each['microseconds_an_image']:.0f} µs an image"
        )


if __name__ == "__main__":
    main()
