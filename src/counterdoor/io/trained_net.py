"""Trained nets as safetensors files that describe themselves."""

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from counterdoor.io.atomic import AtomicSave, LocalFile, ReadableErrors
from counterdoor.models import TrainedNet
from counterdoor.stamp import Stamp


class _TrainedNetFile(LocalFile[TrainedNet]):
    def load(self) -> TrainedNet:
        with safe_open(Path(self._get_load_path()), framework="pt") as file:
            header = json.loads(file.metadata()["counterdoor"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        stamp = header.pop("stamp")
        header["image_shape"] = tuple(header["image_shape"])
        return TrainedNet(
            **header, state=state, stamp=Stamp.model_validate(stamp) if stamp else None
        )

    def save(self, data: TrainedNet) -> None:
        header = {
            "architecture": dict(data.architecture),
            "image_shape": data.image_shape,
            "num_classes": data.num_classes,
            "stamp": data.stamp.model_dump(mode="json") if data.stamp else None,
        }
        state = {name: tensor.contiguous().clone() for name, tensor in data.state.items()}
        save_file(state, Path(self._get_save_path()), {"counterdoor": json.dumps(header)})


class TrainedNetDataset(AtomicSave, ReadableErrors, _TrainedNetFile):
    """A :class:`counterdoor.models.TrainedNet` as one safetensors file; holds no code.

    The tensors are the file's; architecture, number of classes and stamp stand in
    its header under ``counterdoor``.

    Example:
        .. code-block:: yaml

            defended_net:
              type: counterdoor.io.TrainedNetDataset
              filepath: data/06_train/defended_net.safetensors
              versioned: true
    """
