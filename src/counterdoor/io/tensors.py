"""Named tensors as safetensors files."""

from pathlib import Path
from typing import Any

from kedro.io import DatasetError
from safetensors.torch import load_file, save_file
from torch import Tensor

from counterdoor.io.atomic import AtomicSave, LocalFile, ReadableErrors
from counterdoor.io.safetensors_header import read_header


class _TensorsFile(LocalFile[dict[str, Tensor]]):
    def load(self) -> dict[str, Tensor]:
        path = Path(self._get_load_path())
        read_header(path)
        tensors: dict[str, Tensor] = load_file(path)
        return tensors

    def save(self, data: dict[str, Tensor]) -> None:
        for name, tensor in data.items():
            if not isinstance(tensor, Tensor):
                raise DatasetError(f"{name!r} is a {type(tensor).__name__}, not a tensor")
        tensors = {
            name: tensor.detach().cpu().contiguous().clone() for name, tensor in data.items()
        }
        save_file(tensors, Path(self._get_save_path()))


class TensorsDataset(AtomicSave, ReadableErrors, _TensorsFile):
    """Tensors by name, none or more, as one safetensors file; holds no code.

    Example:
        .. code-block:: yaml

            attack_preparation:
              type: counterdoor.io.TensorsDataset
              filepath: data/02_intermediate/attack_preparation.safetensors
              versioned: true

        >>> TensorsDataset(filepath="x.safetensors").save({"pattern": torch.zeros(3, 8, 8)})
    """


class CachedTensorsDataset(TensorsDataset):
    """The newest version of a :class:`TensorsDataset` at the same path; ``None`` if there is none.

    For a node that need not make again what an earlier run made. It cannot be saved to.
    """

    def load(self) -> dict[str, Tensor] | None:  # type: ignore[override]
        """Load the newest version.

        Raises:
            DatasetError: if there is one that cannot be read.
        """
        return super().load() if self.exists() else None

    def save(self, data: Any) -> None:  # noqa: ARG002
        """Refused: the data set that is cached is the one to save to.

        Raises:
            DatasetError: always.
        """
        raise DatasetError(f"{self._filepath} is read here only; save to the data set it caches")
