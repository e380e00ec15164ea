"""Trained nets as safetensors files that describe themselves."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from kedro.io import DatasetError, Version
from safetensors import safe_open
from safetensors.torch import save_file

from counterdoor.hardened import Hardened
from counterdoor.io.atomic import AtomicSave, LocalFile, ReadableErrors
from counterdoor.models import External, TrainedNet
from counterdoor.sources.decoding import Form
from counterdoor.stamp import Stamp

T = TypeVar("T")


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

    def _read(self) -> tuple[TrainedNet, dict[str, str]]:
        with safe_open(Path(self._get_load_path()), framework="pt") as file:
            whole = dict(file.metadata())
            header = json.loads(whole["counterdoor"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self._check_code(header["architecture"])
        stamp, label_map = header.pop("stamp"), header.pop("label_map", None)
        header["image_shape"] = tuple(header["image_shape"])
        net = TrainedNet(
            **header,
            state=state,
            stamp=Stamp.model_validate(stamp) if stamp else None,
            label_map=tuple(label_map) if label_map else None,
        )
        return net, whole

    def _write(self, net: TrainedNet, **more: str) -> None:
        header = {
            "architecture": dict(net.architecture),
            "image_shape": net.image_shape,
            "num_classes": net.num_classes,
            "stamp": net.stamp.model_dump(mode="json") if net.stamp else None,
            "label_map": net.label_map,
            "mirror": net.mirror,
        }
        state = {name: tensor.contiguous().clone() for name, tensor in net.state.items()}
        told = {"counterdoor": json.dumps(header), **more}
        save_file(state, Path(self._get_save_path()), told)

    def _check_code(self, architecture: Mapping[str, Any]) -> None:
        """Refuse an architecture that names code, unless it is the configured model."""
        own = External.component_name()
        if architecture["name"] != own:
            return
        model = self._model or {}
        if model.get("name") != own or External(**model) != External(**architecture):
            raise DatasetError(
                f"{self._get_load_path()} says that its net is made by the code "
                f"{architecture.get('target')!r} with the arguments "
                f"{architecture.get('arguments')}, which this configuration does not name. Code is "
                "run only if the configuration asks for it: if you trust it, give the same model "
                "there (in the catalog entry: model)"
            )


class _TrainedNetFile(_NetFile[TrainedNet]):
    def load(self) -> TrainedNet:
        return self._read()[0]

    def save(self, data: TrainedNet) -> None:
        self._write(data)


class _HardenedFile(_NetFile[Hardened]):
    def load(self) -> Hardened:
        net, header = self._read()
        more = json.loads(header["hardened"])
        form = more["form"] | {name: tuple(more["form"][name]) for name in ("size", "background")}
        names, about = tuple(more["class_names"]), more["about"]
        return Hardened(net, names, Form(**form), about, more["reject_column"])

    def save(self, data: Hardened) -> None:
        more = {
            "class_names": data.class_names,
            "form": asdict(data.form),
            "about": dict(data.about),
            "reject_column": data.reject_column,
        }
        self._write(data.net, hardened=json.dumps(more))


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
