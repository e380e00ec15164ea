"""Trainings that survive a kill, and trainings that are not made twice.

A training has one file, replaced once an epoch, and another one with its result. Each is named
after all that the training depends on, so the same training finds it again, in whatever
process, and another one does not. It holds no executable code.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

_folder: ContextVar[Path | None] = ContextVar("checkpoint folder", default=None)
_results: ContextVar[Path | None] = ContextVar("folder of shared results", default=None)
_taken_over: ContextVar[list[float] | None] = ContextVar("seconds taken over", default=None)


def checkpoints_in(folder: Path) -> AbstractContextManager[Any]:
    """Inside the block, every training is saved in ``folder`` and goes on from there."""
    return _being(_folder, folder)


def results_shared_in(folder: Path) -> AbstractContextManager[Any]:
    """Inside the block, a training whose result is in ``folder`` is not made again."""
    return _being(_results, folder)


def seconds_taken_over() -> AbstractContextManager[list[float]]:
    """Gives a list, to which each training that the block did not make itself adds its seconds."""
    return _being(_taken_over, [])


@contextmanager
def _being(variable: ContextVar[Any], value: Any) -> Iterator[Any]:
    before = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(before)


@dataclass(frozen=True)
class SharedResult:
    """The result of one training, for all processes that share a folder.

    Attributes:
        path: the file; whoever has it first writes it in one step.
    """

    path: Path

    @classmethod
    def of(cls, stream: str, digest: Callable[[], str]) -> "SharedResult | None":
        """That of the training with this digest, or ``None`` where nothing is shared.

        A defended net is its run's alone.
        """
        folder = _results.get()
        if folder is None or stream.startswith("defended"):
            return None
        return cls(_named(folder, stream, digest))

    def read(self) -> tuple[dict[str, Tensor], list[dict[str, float]]] | None:
        """The net's tensors and a record an epoch, if another one has made the training."""
        found = _read(self.path)
        told = _taken_over.get()
        if found is not None and told is not None:
            told.append(sum(record["seconds"] for record in found[1]))
        return found

    def save(self, state: Mapping[str, Tensor], records: list[dict[str, float]]) -> None:
        """Write the file."""
        _replace(self.path, state, records)


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
        return None if folder is None else cls(_named(folder, stream, digest))

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
        _replace(self.path, tensors, records)

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
        found = _read(self.path)
        if found is None:
            return []
        tensors, records = found
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


def _named(folder: Path, stream: str, digest: Callable[[], str]) -> Path:
    return folder / f"{stream.replace('/', '-')}-{digest()[:32]}.safetensors"


def _read(path: Path) -> tuple[dict[str, Tensor], list[dict[str, float]]] | None:
    """What :func:`_replace` has written; a damaged file is as good as none."""
    try:
        with safe_open(path, framework="pt") as file:
            records: list[dict[str, float]] = json.loads(file.metadata()["records"])
            return {name: file.get_tensor(name) for name in file.keys()}, records  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def _replace(path: Path, tensors: Mapping[str, Tensor], records: list[dict[str, float]]) -> None:
    """Write a file whole or not at all; another process may be writing it too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    # Copies, since the format refuses tensors that share memory, as tied weights do.
    whole = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    try:
        save_file(whole, partial, {"records": json.dumps(records)})
        partial.replace(path)
    finally:  # an interrupt may come in between
        partial.unlink(missing_ok=True)


def _streams(order: torch.Generator, draws: torch.Generator) -> dict[str, torch.Generator]:
    return {"rng/order": order, "rng/augment": draws, "rng/torch": torch.default_generator}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose name begins with ``prefix``, under the rest of their name."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
