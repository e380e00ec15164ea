"""The images of a folder change between two runs: is anything used that older ones made?

What is learnt or prepared once is made from the images of a folder and kept; the folder is changed;
the stage that made it is run again. It has to give what it gives where nothing is kept, and to make
nothing where the content is the same. Then a later stage is run on the newest artifacts, between
which the folder was read again: whatever is older has to be refused, and nothing written.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
import yaml
from PIL import Image
from pydantic import BaseModel

ROOT = Path(__file__).resolve().parents[2]
CLASSES, EACH, SIZE = ("ant", "bee", "cow"), 12, 14
VERSION = "2026-01-01T00.00.00.000Z"
SMALL_NET = {
    "model": {"name": "digits_cnn", "width": 1, "hidden": 4},
    "recipe": {"epochs": 1, "batch_size": 16, "learning_rate": 0.01},
}
ATTACKS = {
    "trojannn": {"net": SMALL_NET, "steps": 2, "size": 3},
    "dynamic": {"net": SMALL_NET, "width": 4, "mask_epochs": 1},
    "cl": {"net": SMALL_NET, "steps": 2},
}
FEATURES = {
    "simclr": {"projection": 4, "recipe": {"epochs": 1, "batch_size": 12}},
    "patches": {},
}
CHOICES = {
    "attack_name": "none",
    "detector_name": "lga",
    "source_name": "image_folder",
    "seed": 0,
    "ingest": {"test_share": 0.25, "trusted_share": 0.25},
    "model": {"width": 1, "hidden": 4},
    "warmup": {"recipe": {"epochs": 1}},
}

Change = Callable[[Path], None]
Tensors = Mapping[str, torch.Tensor]


# --- a folder, and what may happen to it ---------------------------------------------------


def picture(value: int) -> Image.Image:
    """Noise that depends on the number alone."""
    pixels = np.random.default_rng(value).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
    return Image.fromarray(pixels)


def fill(folder: Path, first: int = 0) -> None:
    """Write all pictures; others for another ``first``, under the same names."""
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(EACH):
            picture(first + 100 * label + number).save(folder / name / f"{number:02}.png")


def every(folder: Path) -> list[Path]:
    """All pictures, in the order in which they are read."""
    return sorted(folder.rglob("*.png"))


def one_pixel(folder: Path, *, kept_time: bool = False) -> None:
    """Change the last pixel of each picture by one level; perhaps hide when."""
    for file in every(folder):
        before = file.stat()
        pixels = np.array(Image.open(file))
        pixels[-1, -1] ^= 1
        Image.fromarray(pixels).save(file)
        if kept_time:
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def remove(folder: Path, n: int) -> None:
    """Remove some pictures of each class, as one does with suspects."""
    for name in CLASSES:
        for file in every(folder / name)[:n]:
            file.unlink()


def add(folder: Path, n: int) -> None:
    """Add some pictures to each class."""
    for label, name in enumerate(CLASSES):
        for number in range(n):
            picture(5000 + 100 * label + number).save(folder / name / f"x{number:02}.png")


def swap(one: Path, other: Path) -> None:
    """Exchange two names."""
    beside = one.with_name("beside")
    one.rename(beside)
    other.rename(one)
    beside.rename(other)


def swapped_labels(folder: Path) -> None:
    """All pictures of one class under another's name, and the other way round."""
    swap(folder / CLASSES[0], folder / CLASSES[1])


def other_order(folder: Path) -> None:
    """The same pictures of the same classes, in another order."""
    for name in CLASSES:
        files = every(folder / name)
        for one, other in zip(files[: EACH // 2], reversed(files), strict=False):
            swap(one, other)


def gone_and_back(folder: Path) -> None:
    """Everything deleted and written again, the same."""
    shutil.rmtree(folder)
    fill(folder)


def touched(folder: Path) -> None:
    """Other time stamps alone."""
    for file in every(folder):
        os.utime(file, (1, 1))


def more_classes(folder: Path) -> None:
    """One class more."""
    (folder / "dog").mkdir()
    for number in range(EACH):
        picture(7000 + number).save(folder / "dog" / f"{number:02}.png")


CHANGES: dict[str, Change] = {
    "all replaced": partial(fill, first=1000),
    "one pixel": one_pixel,
    "one pixel, old time stamps": partial(one_pixel, kept_time=True),
    "one removed": partial(remove, n=1),
    "many removed": partial(remove, n=6),
    "one added": partial(add, n=1),
    "labels swapped": swapped_labels,
    "another order": other_order,
    "a class added": more_classes,
    "nothing": lambda _: None,
    "touched": touched,
    "deleted and back": gone_and_back,
}


def read(folder: Path) -> dict[str, Any]:
    """What the stage *ingest* gives."""
    from counterdoor.params import IngestParams
    from counterdoor.pipelines.ingest.nodes import ingest

    source = {"name": "image_folder", "path": str(folder), "image_mode": "L", "image_size": SIZE}
    return ingest(IngestParams.model_validate({**CHOICES["ingest"], "source": source}), seed=0)


def same_content(one: Mapping[str, Any], other: Mapping[str, Any], *names: str) -> bool:
    """Whether two readings agree, by comparison and not by hash."""

    def array(made: Mapping[str, Any], name: str) -> np.ndarray:
        return made[name]["label"].to_numpy() if "ledger" in name else made[name]

    return all(np.array_equal(array(one, name), array(other, name)) for name in names)


# --- what is made once ---------------------------------------------------------------------


def features(name: str, read: Mapping[str, Any], cached: Tensors | None) -> Tensors:
    """Learnt, or handed on."""
    from counterdoor.params import DetectParams, FeaturesParams, ModelParams, RelabelParams
    from counterdoor.pipelines.warmup.nodes import learn_features

    made: Tensors = learn_features(
        read["images"],
        {},
        FeaturesParams.model_validate({"name": name, **FEATURES[name]}),
        ModelParams.model_validate({"name": "digits_cnn", "width": 1, "hidden": 4}),
        DetectParams.model_validate({"detector": {"name": "ln"}, "suspect_ratio": 0.1}),
        RelabelParams.model_validate({"labeler": {"name": "drop"}, "trusted_stamps": 0}),
        seed=0,
        cached=cached,
    )["features"]
    return made


def preparation(name: str, read: Mapping[str, Any], cached: Tensors | None) -> Tensors:
    """Made, or handed on."""
    from counterdoor.params import AttackParams
    from counterdoor.pipelines.attack.nodes import prepare_attack

    params = AttackParams.model_validate({"name": name, "poison_ratio": 0.5, **ATTACKS[name]})
    made: Tensors = prepare_attack(
        read["images"], read["ledger"], read["info"], params, 0, cached=dict(cached or {}) or None
    )["preparation"]
    return made


def reused(
    make: Callable[[Mapping[str, Any], Tensors | None], Tensors],
    depends: tuple[str, ...],
    change: Change,
    work: Path,
) -> str | None:
    """Make, keep, change, make again; what was wrong."""
    from kedro.io import Version

    from counterdoor.io import CachedTensorsDataset, TensorsDataset

    folder = work / "folder"
    fill(folder)
    before = read(folder)
    place = {"filepath": str(work / "kept.safetensors"), "version": Version(None, VERSION)}
    TensorsDataset(**place).save(dict(make(before, None)))
    change(folder)
    after = read(folder)
    kept = CachedTensorsDataset(**place).load()
    assert kept is not None
    marked = {**kept, "seen": torch.ones(1)}  # comes back if it is handed on
    given, fresh = dict(make(after, marked)), make(after, None)
    handed_on = given.pop("seen", None) is not None
    same = same_content(before, after, *depends)
    if handed_on != same:
        return "made again of the same content" if same else "what older content made is used"
    if not same_tensors(given, fresh):
        return "not what is made where nothing is kept"
    return None


def same_tensors(one: Tensors, other: Tensors) -> bool:
    """Whether names and bits agree."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class KilledError(Exception):
    """Stands for a kill."""


def killed(change: Change, work: Path, *, shared: bool = False) -> str | None:
    """A training killed after its first epoch, or one whose result is shared; what was wrong."""
    import logging

    from counterdoor.checkpoint import checkpoints_in, results_shared_in
    from counterdoor.models import DigitsCNN, build_net
    from counterdoor.recipe import Recipe
    from counterdoor.relabeling import ledger_samples
    from counterdoor.training import Fit, fit

    def train(read: Mapping[str, Any], *, stop: bool = False) -> tuple[Fit | None, int]:
        """The training, and how many epochs it took now."""
        images, classes = read["images"], len(read["info"]["class_names"])
        net = build_net(DigitsCNN(width=1, hidden=4), images, classes, seed=0, stream="train/init")
        samples = ledger_samples(images, read["ledger"])
        seen = Epochs(stop)
        logger = logging.getLogger("counterdoor.training")
        logger.addHandler(seen)
        try:
            return fit(net, samples, Recipe(epochs=2), seed=0, stream="train"), seen.count
        except KilledError:
            return None, seen.count
        finally:
            logger.removeHandler(seen)

    class Epochs(logging.Handler):
        """Counts epochs, and stops after the first if asked to."""

        def __init__(self, stop: bool) -> None:
            super().__init__(logging.INFO)
            self.stop, self.count = stop, 0

        def emit(self, record: logging.LogRecord) -> None:
            self.count += hasattr(record, "metrics")
            if self.stop:
                raise KilledError

    logging.getLogger("counterdoor.training").setLevel(logging.INFO)
    folder = work / "folder"
    fill(folder)
    before = read(folder)
    with results_shared_in(work / "kept") if shared else checkpoints_in(work / "kept"):
        train(before, stop=not shared)
        change(folder)
        after = read(folder)
        again, epochs = train(after)
        kept = len(list((work / "kept").iterdir()))
    whole, _ = train(after)
    same = same_content(before, after, "images", "ledger")
    if kept != (1 if same else 2):
        return f"{kept} trainings are known"
    if not shared and epochs != (1 if same else 2):
        return f"{epochs} epochs were trained on {'the same' if same else 'other'} content"
    if again is None or whole is None or not same_tensors(again.state, whole.state):
        return "not the net of an undisturbed training"
    return None


# --- stages one by one ---------------------------------------------------------------------


@cache
def parameters_of(folder: Path) -> Any:
    """The project's parameters, for the pictures of a folder and small nets."""
    from counterdoor.config import VariantConfigLoader
    from counterdoor.settings import CONFIG_LOADER_ARGS

    source = {"path": str(folder), "image_size": SIZE, "image_mode": "L"}
    given = {**CHOICES, "ingest": {**CHOICES["ingest"], "source": source}}
    conf = str(ROOT / "conf")
    return VariantConfigLoader(conf, runtime_params=given, **CONFIG_LOADER_ARGS)["parameters"]


def catalog_of(work: Path, version: str) -> Any:
    """The project's catalog, its artifacts below ``work``, and its parameters as nodes get them."""
    from kedro.io import DataCatalog

    from counterdoor.pipelines import defend

    entries = yaml.safe_load((ROOT / "conf" / "base" / "catalog.yml").read_text("utf-8"))
    config = {name: dict(each) for name, each in entries.items() if not name.startswith("_")}
    for each in config.values():
        each.pop("model", None)
        each["filepath"] = str(work / "data" / Path(each["filepath"]).name)
    catalog = DataCatalog.from_config(config, save_version=version)
    values = parameters_of(work / "folder")
    for node in defend.create_pipeline().nodes:
        hints = get_type_hints(node.func)
        for argument, name in zip(hints, node.inputs, strict=False):
            key = name.removeprefix("params:")
            if key != name and name not in catalog:
                kind = hints[argument]
                typed = isinstance(kind, type) and issubclass(kind, BaseModel)
                catalog[name] = kind.model_validate(values[key]) if typed else values[key]
    return catalog


def run(work: Path, number: int, *tags: str, missing: bool = False) -> None:
    """Stages of ``defend``, with the check of origins, as a run with that number."""
    from kedro.framework.hooks.manager import _create_hook_manager
    from kedro.runner import SequentialRunner

    from counterdoor.origins import OriginHooks
    from counterdoor.pipelines import defend

    whole = defend.create_pipeline()
    pipeline = whole.filter(tags=tags)
    catalog = catalog_of(work, f"2026-01-01T00.00.{number:02}.000Z")
    manager = _create_hook_manager()
    manager.register(OriginHooks())
    manager.hook.before_pipeline_run(run_params={}, pipeline=pipeline, catalog=catalog)
    SequentialRunner().run(pipeline, catalog, manager, only_missing_outputs=missing)


WAYS: dict[str, tuple[tuple[str, ...], dict[str, bool]]] = {
    "detect alone": (("detect",), {}),
    "detect and relabel": (("detect", "relabel"), {}),
    "ingest and detect": (("ingest", "detect"), {}),
    "missing outputs": (("ingest", "warmup", "detect"), {"missing": True}),
}


def mixed(way: str, change: Change, work: Path) -> str | None:
    """Stages run one by one, the folder changed between them; what was wrong."""
    from kedro.io import DatasetError

    def made() -> set[Path]:
        return {file for file in (work / "data").rglob("*") if file.is_file()}

    folder = work / "folder"
    fill(folder)
    before = read(folder)
    run(work, 1, "ingest")
    run(work, 2, "warmup")
    change(folder)
    after = read(folder)
    same = same_content(before, after, "images", "ledger", "test_images", "test_ledger")
    tags, how = WAYS[way]
    if "ingest" not in tags or how:
        run(work, 3, "ingest")
    there = made()
    try:
        run(work, 4, *tags, **how)
    except DatasetError as error:
        words = str(error)
        if same:
            return f"refused on the same content: {words}"
        if "mix two data sets" not in words or "warmup" not in words or "\n" in words:
            return f"refused in other words: {words}"
        later = {file.name for file in made() - there} & {"scored_ledger.parquet", "plan.parquet"}
        return f"refused, but wrote {', '.join(later)}" if later else None
    return None if same else "what two data sets made was used together"


# --- all of it -----------------------------------------------------------------------------


def attempts(work: Path, least: int) -> Iterator[tuple[str, str | None]]:
    """Each thing that is kept, with each change."""
    tried: dict[str, Callable[[Change, Path], str | None]] = {}
    for name in FEATURES:
        tried[f"features {name}"] = partial(reused, partial(features, name), ("images",))
    for name in ATTACKS:
        tried[f"attack {name}"] = partial(reused, partial(preparation, name), ("images", "ledger"))
    tried["killed training"] = killed
    tried["shared result"] = partial(killed, shared=True)
    for way in WAYS:
        tried[way] = partial(mixed, way)
    count = 0
    for what, attempt in tried.items():
        for how, change in CHANGES.items():
            place = work / str(count)
            place.mkdir(parents=True)
            try:
                wrong = attempt(change, place)
            except Exception as error:
                wrong = f"{type(error).__name__}: {error}"
            shutil.rmtree(place)
            count += 1
            yield f"{what}, {how}", wrong
    if count < least:
        yield "number of attempts", f"{count} were made, {least} asked for"
