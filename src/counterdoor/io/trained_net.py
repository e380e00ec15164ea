"""Trained nets as safetensors files that describe themselves."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kedro.io import DatasetError, Version
from safetensors import safe_open
from safetensors.torch import save_file

from counterdoor.io.atomic import AtomicSave, LocalFile, ReadableErrors
from counterdoor.models import External, TrainedNet
from counterdoor.stamp import Stamp


class _TrainedNetFile(LocalFile[TrainedNet]):
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

    def load(self) -> TrainedNet:
        with safe_open(Path(self._get_load_path()), framework="pt") as file:
            header = json.loads(file.metadata()["counterdoor"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self._check_code(header["architecture"])
        stamp, label_map = header.pop("stamp"), header.pop("label_map", None)
        header["image_shape"] = tuple(header["image_shape"])
        return TrainedNet(
            **header,
            state=state,
            stamp=Stamp.model_validate(stamp) if stamp else None,
            label_map=tuple(label_map) if label_map else None,
        )

    def save(self, data: TrainedNet) -> None:
        header = {
            "architecture": dict(data.architecture),
            "image_shape": data.image_shape,
            "num_classes": data.num_classes,
            "stamp": data.stamp.model_dump(mode="json") if data.stamp else None,
            "label_map": data.label_map,
        }
        state = {name: tensor.contiguous().clone() for name, tensor in data.state.items()}
        save_file(state, Path(self._get_save_path()), {"counterdoor": json.dumps(header)})

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
