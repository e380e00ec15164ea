"""Trainings that survive a kill: one file a training, replaced once an epoch.

The file is named after all that the training depends on, so the same training finds it
again, in whatever process, and another one does not. It holds no executable code.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

_folder: ContextVar[Path | None] = ContextVar("checkpoint folder", default=None)


@contextmanager
def checkpoints_in(folder: Path) -> Iterator[None]:
    """Inside the block, every training is saved in ``folder`` and goes on from there."""
    before = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(before)


@dataclass(frozen=True)
class Checkpoint:
    """The state of one training after its last whole epoch, if it has one.

    Attributes:
        path: the file; it is replaced in one step, so a reader sees a whole one.
    """

    path: Path

    @classmethod
    def of(cls, stream: str, digest: Callable[[], str]) -> "Checkpoint | None":
        """The checkpoint of the training with this digest, or ``None`` outside a folder."""
        folder = _folder.get()
        if folder is None:
            return None
        return cls(folder / f"{stream.replace('/', '-')}-{digest()[:32]}.safetensors")

    def save(
        self,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        order: torch.Generator,
        draws: torch.Generator,
        records: list[dict[str, float]],
    ) -> None:
        """Replace the file by the state after the last of ``records``."""
        tensors = {f"net/{name}": tensor for name, tensor in net.state_dict().items()}
        for index, state in optimizer.state_dict()["state"].items():
            if state["momentum_buffer"] is not None:
                tensors[f"momentum/{index}"] = state["momentum_buffer"]
        tensors |= {name: each.get_state() for name, each in _streams(order, draws).items()}
        if torch.cuda.is_available():
            tensors["rng/cuda"] = torch.cuda.get_rng_state()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        # Copies, since the format refuses tensors that share memory, as tied weights do.
        whole = {
            name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
        try:
            save_file(whole, partial, {"records": json.dumps(records)})
            partial.replace(self.path)
        finally:  # an interrupt may come in between
            partial.unlink(missing_ok=True)

    def restore(
        self,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        order: torch.Generator,
        draws: torch.Generator,
    ) -> list[dict[str, float]]:
        """Set everything to the saved state and return its records; none without a file.

        A damaged file is as good as none: it is left, and replaced by the next save.
        """
        try:
            with safe_open(self.path, framework="pt") as file:
                records: list[dict[str, float]] = json.loads(file.metadata()["records"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return []
        net.load_state_dict(under("net/", tensors))
        saved = optimizer.state_dict()
        momenta = under("momentum/", tensors)
        saved["state"] = {int(key): {"momentum_buffer": each} for key, each in momenta.items()}
        optimizer.load_state_dict(saved)
        for name, generator in _streams(order, draws).items():
            generator.set_state(tensors[name])
        if "rng/cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["rng/cuda"])
        return records


def _streams(order: torch.Generator, draws: torch.Generator) -> dict[str, torch.Generator]:
    return {"rng/order": order, "rng/augment": draws, "rng/torch": torch.default_generator}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose name begins with ``prefix``, under the rest of their name."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
