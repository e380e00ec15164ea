"""No run mixes two data sets: each version of an artifact is known by the data it was made from.

All artifacts of a run have the run's version. A run that reads the images says with that version,
in ``dataset_info``, which ones they were. One that begins later notes it in a file beside that,
``made_from/<version>.json``.
"""

import importlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.io import AbstractVersionedDataset, DataCatalog, DatasetError
from kedro.io.core import VersionNotFoundError
from kedro.pipeline import Pipeline

from counterdoor.config import STAGES
from counterdoor.io import CachedTensorsDataset

INFO, HASH = "dataset_info", "content_hash"
"""The artifact that says which data a run has read, and under which name."""


@dataclass(frozen=True)
class Origin:
    """What an artifact was made from.

    Attributes:
        version: of the artifact.
        hashed: hash of the data, or ``None`` if that is not known.
    """

    version: str
    hashed: str | None


class OriginHooks:
    """Refuse a run that would mix what was made from two data sets."""

    def __init__(self) -> None:
        self._begin(None)

    def _begin(self, catalog: DataCatalog | None) -> None:
        self._catalog = catalog
        self._met: dict[str, Origin] = {}
        self._reads = self._noted = False

    @hook_impl(tryfirst=True)  # so that a refused run leaves no trace in tracking
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Look at the origins of all that the run needs from disk.

        Raises:
            DatasetError: naming what was made from other data than the newest, and what to run.
        """
        self._begin(catalog if INFO in catalog else None)
        self._reads = INFO in pipeline.all_outputs()
        if self._catalog is not None:
            self._met = origins_of(pipeline.inputs(), catalog)
            ensure_one_origin(self._met)

    @hook_impl
    def before_dataset_loaded(self, dataset_name: str) -> None:
        """The same for what the run has not said that it needs, as with missing outputs alone."""
        if self._catalog is not None and dataset_name not in self._met:
            self._met |= origins_of([dataset_name], self._catalog)
            ensure_one_origin(self._met)

    @hook_impl
    def before_dataset_saved(self, dataset_name: str) -> None:
        """Note what all that this run makes is made from, if it has not read that itself."""
        if self._catalog is None or self._reads or self._noted:
            return
        known = {each.hashed for each in self._met.values() if each.hashed is not None}
        version = getattr(getattr(self._catalog[dataset_name], "_version", None), "save", None)
        if known and version is not None:
            note(version, known.pop(), self._catalog)
            self._noted = True

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """Compare the data that were read with what the run needs from disk beside them."""
        if self._catalog is not None and dataset_name == INFO and self._reads:
            dataset: Any = self._catalog[INFO]
            self._met[INFO] = Origin(str(dataset.resolve_save_version()), data.get(HASH))
            ensure_one_origin(self._met)


def origins_of(names: Iterable[str], catalog: DataCatalog) -> dict[str, Origin]:
    """Of those of the artifacts that are versioned and there; what is cached is not counted.

    A node that is given what is cached looks itself whether it is of the same data.
    """
    found = {}
    for name in sorted(names):
        if name.startswith("params:") or name == "parameters":
            continue
        dataset = catalog[name]
        if isinstance(dataset, CachedTensorsDataset):
            continue
        if isinstance(dataset, AbstractVersionedDataset) and dataset._version is not None:
            with suppress(VersionNotFoundError):
                version = Path(dataset._get_load_path()).parent.name
                found[name] = Origin(version, _hash_of(version, catalog))
    return found


def note(version: str, hashed: str, catalog: DataCatalog) -> None:
    """Write down from which data everything of a version is made; others read all or nothing.

    Raises:
        DatasetError: if another run of the same version has noted other data.
    """
    file = _note_of(version, catalog)
    if _hash_of(version, catalog) not in (None, hashed):
        raise DatasetError(f"another run has begun at {version}, with other data: run this again")
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps({HASH: hashed}), encoding="utf-8")
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def ensure_one_origin(origins: Mapping[str, Origin]) -> None:
    """Raise ``DatasetError`` unless all are known to be made from one data set."""
    found = set(origins.values())
    hashes = {each.hashed for each in found}
    if None not in hashes and len(hashes) < 2:
        return
    known = [each for each in found if each.hashed is not None]
    newest = max(known, key=lambda each: each.version).hashed if known else None
    groups: dict[Origin, list[str]] = {}
    for name, each in origins.items():
        groups.setdefault(each, []).append(name)
    ordered = sorted(groups, key=lambda each: (each.hashed == newest, each.version))
    told = "; ".join(_words(each, groups[each]) for each in ordered)
    stale = {name for name, each in origins.items() if each.hashed is None or each.hashed != newest}
    raise DatasetError(
        f"this run would mix two data sets: {told}. Run again first {_stages_of(stale)}, with the "
        "same parameters (a plain `kedro run` runs all), or choose versions made from the same "
        "data by --load-versions"
    )


def _words(origin: Origin, names: Iterable[str]) -> str:
    what = f"{', '.join(names)} (version {origin.version})"
    if origin.hashed is None:
        return f"{what} from data that are not known, since its run did not end reading them"
    return f"{what} from the data {origin.hashed[:12]}"


def _stages_of(names: Iterable[str]) -> str:
    """The stages that make these artifacts, in order, in words."""
    bare, found = set(names), []
    for stage in STAGES:
        if stage == "features":  # made in warmup
            continue
        module = importlib.import_module(f"counterdoor.pipelines.{stage}")
        for twin in (False, True):
            made = module.create_pipeline(twin=twin).all_outputs()
            if bare & made and stage not in found:
                found.append(stage)
            bare -= made
    return f"the stage{'s' if len(found) > 1 else ''} {', '.join(found)}"


def _hash_of(version: str, catalog: DataCatalog) -> str | None:
    """Hash of the data of everything that has this version, if it is known."""
    info = _info(catalog)
    for file in (info / version / info.name, _note_of(version, catalog)):
        with suppress(OSError, ValueError, KeyError, TypeError):
            return str(json.loads(file.read_text(encoding="utf-8"))[HASH])
    return None


def _note_of(version: str, catalog: DataCatalog) -> Path:
    return _info(catalog).parent / "made_from" / f"{version}.json"


def _info(catalog: DataCatalog) -> Path:
    dataset: Any = catalog[INFO]
    return Path(dataset._filepath)
