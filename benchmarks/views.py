"""What it brings to predict with more than one view of an image, on a validation split.

For every seed an undefended net is trained with the recipe of ``conf/cifar10`` on ``--images``
training images of CIFAR-10 in Parquet, and asked about the last 10,000 training images, which
it has not seen: with one view, with the mirror image as well, and with both shifted by a pixel
towards two corners besides. Test images are never read.

    python benchmarks/views.py --parquet FOLDER --records FILE [--crop 4] [--seeds 0]

``--records`` gets a JSON line a seed; what stands in it is not made again.
"""

import argparse
from pathlib import Path

import numpy as np
from attack_strength import Records
from overhead import resolved_parameters

from counterdoor import params as p
from counterdoor.engine import Engine
from counterdoor.feed import Samples
from counterdoor.metrics import clean_accuracy
from counterdoor.models import build_net
from counterdoor.seeding import numpy_generator
from counterdoor.sources import Parquet
from counterdoor.tracking import commit_tags, hardware
from counterdoor.training import fit, predict_logits

HELD_OUT = 10_000
SHIFTS = ((-1, -1), (1, 1))


def shifted(images_nchw: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Images moved by so many pixels, the edge mirrored."""
    padded = np.pad(images_nchw, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    height, width = images_nchw.shape[-2:]
    return padded[..., 1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]


def case(options: argparse.Namespace, seed: int) -> dict[str, float]:
    """CA on the validation images, by views."""
    parameters = resolved_parameters("cifar10")
    read = Parquet(path=options.parquet)()
    images, labels = read.images_nchw, read.labels
    rows = numpy_generator(seed, "views").permutation(len(labels) - HELD_OUT)[: options.images]
    recipe = p.TrainParams.model_validate(parameters["train"]).recipe
    augment = recipe.augment.model_copy(update={"crop_padding": options.crop})
    recipe = recipe.model_copy(update={"augment": augment})
    model = p.ModelParams.model_validate(parameters["model"]).root
    engine = Engine.model_validate(parameters["engine"])
    net = build_net(model, images[rows], len(read.class_names), seed=seed, stream="train/init")
    samples = Samples(images, rows, labels[rows])
    net.load_state_dict(
        fit(net, samples, recipe, seed=seed, stream="undefended", engine=engine).state
    )
    tests, true = images[-HELD_OUT:], labels[-HELD_OUT:]
    one = predict_logits(net, tests, engine=engine)
    mirror = predict_logits(net, tests, mirror=True, engine=engine)
    moved = [
        predict_logits(net, shifted(tests, *shift), mirror=True, engine=engine) for shift in SHIFTS
    ]
    logits = {"one": one, "mirror": mirror, "shifts": 2 * mirror + moved[0] + moved[1]}
    return {name: clean_accuracy(each.argmax(1).numpy(), true) for name, each in logits.items()}


def main() -> None:
    """Measure what is not measured yet, and print all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parquet", required=True, help="folder with CIFAR-10 in Parquet")
    parser.add_argument("--records", type=Path, required=True, help="JSON lines, added to")
    parser.add_argument("--images", type=int, default=20_000, help="training images")
    parser.add_argument("--crop", type=int, default=2, help="pixels of padding of the crop")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    records = Records(options.records)
    about = {"hardware": hardware(), "commit": commit_tags(Path(__file__).parent).get("commit")}
    for seed in options.seeds:
        settings = {"images": options.images, "crop": options.crop, "seed": seed}
        if records.find(settings) is None:
            records.add({**settings, **case(options, seed), **about})
    for record in records.all:
        told = ", ".join(f"{name} {record[name]:.2%}" for name in ("one", "mirror", "shifts"))
        print(f"{record['images']} images, crop {record['crop']}, seed {record['seed']}: {told}")


if __name__ == "__main__":
    main()
