"""Trained nets as safetensors files that describe themselves; what a file says is checked."""

import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from kedro.io import DatasetError, Version
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from counterdoor.component import Config
from counterdoor.hardened import Hardened
from counterdoor.io.atomic import AtomicSave, LocalFile, ReadableErrors
from counterdoor.io.safetensors_header import (
    Entry,
    checked,
    read_header,
    shown,
    strict_json,
    told,
)
from counterdoor.models import External, Model, TrainedNet
from counterdoor.sources.base import Level, Pixels
from counterdoor.sources.decoding import Form
from counterdoor.stamp import Stamp

T = TypeVar("T")

DTYPES = {torch.float32: "F32", torch.int64: "I64"}
"""What the states of our own architectures are made of, as safetensors calls it."""
TEXTS = {"counterdoor", "hardened"}
"""The texts that a header may hold."""

MAX_NUMBERS = 2**29
"""Weights of a net, 2 GiB; the largest of our own architectures has a quarter of it."""

Channels = Annotated[int, Field(ge=1, le=1024)]
Index = Annotated[int, Field(ge=0)]


class NetHeader(Config):
    """What a file says of its net; the fields are those of :class:`TrainedNet`."""

    model_config = ConfigDict(strict=True)

    architecture: Model
    image_shape: tuple[Channels, Pixels, Pixels]
    num_classes: int = Field(ge=1)
    stamp: Stamp | None
    label_map: tuple[Index, ...] | None = None
    mirror: bool = False

    def check(self) -> None:
        """Raise ``ValueError`` unless stamp and label map belong to such images and classes."""
        if self.label_map is not None and (
            len(self.label_map) != self.num_classes
            or len(set(self.label_map)) != self.num_classes
            or max(self.label_map) >= self.num_classes
        ):
            raise ValueError(
                f"its label_map {shown(str(self.label_map))} does not give each of its "
                f"{self.num_classes} classes a logit of its own"
            )
        if self.stamp is not None:
            self.stamp.check_fits(*self.image_shape[1:])
            self.stamp.levels(torch.zeros(self.image_shape[0]))


def _name(name: object) -> str:
    # No str of pydantic's: names of files need not be Unicode, and classes are named after them.
    if not isinstance(name, str) or not name:
        raise ValueError("a class needs a name")
    return name


class FormHeader(Config):
    """What a file says of the form of images; the fields are those of :class:`Form`."""

    model_config = ConfigDict(strict=True)

    size: Annotated[tuple[Pixels, Pixels], Field(strict=False)]
    mode: Literal["L", "RGB"]
    resize: Literal["crop", "squash"]
    background: Annotated[tuple[Level, Level, Level], Field(strict=False)]


class About(Config):
    """What a file says of where its net comes from."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    data: dict[str, Any] = Field(default={})
    configuration: dict[str, Any] = Field(default={})
    figures: dict[str, float] = Field(default={})


class HardenedHeader(Config):
    """What a file says of all that belongs to a :class:`Hardened` beside its net."""

    model_config = ConfigDict(strict=True)

    class_names: Annotated[tuple[Annotated[Any, AfterValidator(_name)], ...], Field(strict=False)]
    form: FormHeader
    about: About
    reject_column: bool

    def check(self, net: TrainedNet) -> None:
        """Raise ``ValueError`` unless names and form are those of the net's logits and images."""
        names, form = self.class_names, Form(**self.form.model_dump())
        if len(names) != net.num_classes:
            raise ValueError(f"it has {len(names)} class names for {net.num_classes} classes")
        if len(set(names)) < len(names):
            twice = Counter(names).most_common(1)[0][0]
            raise ValueError(f"two of its classes have the name {shown(twice)!r}")
        if (form.channels, *(form.size or ())) != net.image_shape:
            raise ValueError(
                f"its form gives images of shape {(form.channels, *(form.size or ()))}, but its "
                f"net takes {net.image_shape} (channels, height, width)"
            )


_HARDENED: TypeAdapter[HardenedHeader] = TypeAdapter(HardenedHeader)


class _NetFile(LocalFile[T]):
    """A file with a net in it, and more in its header."""

    def __init__(
        self,
        *,
        filepath: str,
        model: Mapping[str, Any] | None = None,
        version: Version | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(filepath=filepath, version=version, metadata=metadata)
        self._model = model

    def load(self) -> T:
        path = Path(self._get_load_path())
        try:
            return self._read(path)
        except DatasetError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            if self._version is not None:  # one of a run's own, for which there is other advice
                if isinstance(error, FileNotFoundError):
                    raise
                raise ValueError(reason) from error
            if isinstance(error, FileNotFoundError):
                reason = "there is no such file"
            raise DatasetError(
                f"{path} cannot be used as a net: {reason}. Take a file as `kedro run` or "
                "`kedro run --pipelines export` has written it"
            ) from error

    @abstractmethod
    def _read(self, path: Path) -> T: ...

    def _described(self, path: Path) -> tuple[TrainedNet, dict[str, str]]:
        """The net without its weights, and the header's texts.

        Nothing is built, run or read into memory for it but the header.
        """
        entries, texts = read_header(path)
        if "counterdoor" not in texts:
            raise ValueError("it does not describe a net of counterdoor")
        if unknown := sorted(texts.keys() - TEXTS):
            raise ValueError(f"it holds {shown(unknown[0])!r}, which is not known here")
        strict_json(texts["counterdoor"], "its description")
        try:
            header = NetHeader.model_validate_json(texts["counterdoor"], strict=True)
        except ValidationError as error:
            raise ValueError(told(error, "its description")) from None
        header.check()
        net = TrainedNet(
            architecture=header.architecture.model_dump(mode="json"),
            image_shape=header.image_shape,
            num_classes=header.num_classes,
            state={},
            stamp=header.stamp,
            label_map=header.label_map,
            mirror=header.mirror,
        )
        if isinstance(header.architecture, External):
            self._check_code(header.architecture)
        else:
            _check_entries(net, entries)
        return net, texts

    def _weighted(self, path: Path, net: TrainedNet) -> TrainedNet:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        _check_values(state, net.image_shape[0])
        return replace(net, state=state)

    def _write(self, net: TrainedNet, **more: str) -> None:
        header = NetHeader(
            architecture=TypeAdapter(Model).validate_python(dict(net.architecture)),
            image_shape=net.image_shape,
            num_classes=net.num_classes,
            stamp=net.stamp,
            label_map=net.label_map,
            mirror=net.mirror,
        )
        header.check()
        state = {name: tensor.contiguous().clone() for name, tensor in net.state.items()}
        texts = {"counterdoor": json.dumps(header.model_dump(mode="json")), **more}
        save_file(state, Path(self._get_save_path()), texts)

    def _check_code(self, architecture: External) -> None:
        """Refuse code that is not the configured model."""
        model = self._model or {}
        if model.get("name") != External.component_name() or External(**model) != architecture:
            raise DatasetError(
                f"{self._get_load_path()} says that its net is made by the code "
                f"{architecture.target!r} with the arguments "
                f"{shown(str(architecture.arguments))}, which this configuration does not name. "
                "Code is run only if the configuration asks for it: if you trust it, give the same "
                "model there (in the catalog entry: model)"
            )


def _check_entries(net: TrainedNet, entries: Mapping[str, Entry]) -> None:
    """Refuse a file whose tensors are not those of the net that it describes.

    Args:
        net: without state; an architecture of our own.
        entries: the tensors that the file holds.

    Raises:
        ValueError: naming the first that differs.
    """
    # Every width of an architecture is the length of a tensor, which bounds what is built below.
    held = sum(prod(entry.shape) for entry in entries.values())
    if held > MAX_NUMBERS:
        raise ValueError(f"it holds {held} numbers, more than {MAX_NUMBERS}")
    sizes = {f"architecture.{name}": value for name, value in net.architecture.items()}
    for name, value in {"num_classes": net.num_classes, **sizes}.items():
        for size in value if isinstance(value, list) else [value]:
            if isinstance(size, int) and not isinstance(size, bool) and not 0 < size <= held:
                raise ValueError(f"its {name} is {size}, but it holds {held} numbers in all")
    wanted = net.blueprint()
    if missing := sorted(wanted.keys() - entries.keys()):
        raise ValueError(f"its net lacks the weights {missing[0]}")
    if unknown := sorted(entries.keys() - wanted.keys()):
        raise ValueError(f"it holds {shown(unknown[0])!r}, which its net does not have")
    for name, tensor in wanted.items():
        there = (entries[name].dtype, entries[name].shape)
        if there != (DTYPES[tensor.dtype], tuple(tensor.shape)):
            raise ValueError(
                f"its {name} is {shown(f'{there[0]} {there[1]}')}, but its net takes "
                f"{DTYPES[tensor.dtype]} {tuple(tensor.shape)}"
            )


def _check_values(state: Mapping[str, Tensor], channels: int) -> None:
    """Raise ``ValueError`` unless every number is one that a net can compute with."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"its {shown(name)} has values that are not finite")
        if name.endswith("running_var") and (tensor < 0).any():
            raise ValueError(f"its {shown(name)} has negative variances")
    for name in ("mean", "std"):
        if name not in state or state[name].shape != (channels,):
            raise ValueError(f"its {name} is not one number for each of {channels} channels")
    if not ((state["mean"] >= 0) & (state["mean"] <= 1)).all():
        raise ValueError("its mean is no level between 0 and 1")
    if not (state["std"] > 0).all():
        raise ValueError("its std is not positive")


class _TrainedNetFile(_NetFile[TrainedNet]):
    def save(self, data: TrainedNet) -> None:
        self._write(data)

    def _read(self, path: Path) -> TrainedNet:
        return self._weighted(path, self._described(path)[0])


class _HardenedFile(_NetFile[Hardened]):
    def save(self, data: Hardened) -> None:
        more = HardenedHeader(
            class_names=data.class_names,
            form=FormHeader(**asdict(data.form)),
            about=About(**data.about),
            reject_column=data.reject_column,
        )
        more.check(data.net)
        self._write(
            data.net, hardened=json.dumps(more.model_dump(exclude_unset=True), allow_nan=False)
        )

    def _read(self, path: Path) -> Hardened:
        net, texts = self._described(path)
        if "hardened" not in texts:
            raise ValueError("its net has not been exported, it lacks the names of its classes")
        raw = strict_json(texts["hardened"], "its description")
        more: HardenedHeader = checked(_HARDENED, raw, "its description")
        more.check(net)
        form = Form(**more.form.model_dump())
        return Hardened(
            self._weighted(path, net), more.class_names, form, raw["about"], more.reject_column
        )


class TrainedNetDataset(AtomicSave, ReadableErrors, _TrainedNetFile):
    """A :class:`counterdoor.models.TrainedNet` as one safetensors file; holds no code.

    The tensors are the file's; architecture, number of classes, stamp and label
    map stand in its header under ``counterdoor``.

    An ``external`` architecture names code to import and to call. A file may come from
    anywhere, a configuration is the user's own: such a net is loaded only if it is the
    very model, arguments included, that ``model`` gives, in the project's catalog the
    model of the run.

    Example:
        .. code-block:: yaml

            defended_net:
              type: counterdoor.io.TrainedNetDataset
              filepath: data/06_train/defended_net.safetensors
              model: ${model:}
              versioned: true
    """


class HardenedDataset(AtomicSave, ReadableErrors, _HardenedFile):
    """A :class:`counterdoor.hardened.Hardened` as one safetensors file; holds no code.

    As :class:`TrainedNetDataset`; class names, the form of images and where the net comes
    from stand in the header under ``hardened``.

    Example:
        .. code-block:: yaml

            hardened:
              type: counterdoor.io.HardenedDataset
              filepath: data/06_models/hardened.safetensors
              model: ${model:}
              versioned: true
    """
