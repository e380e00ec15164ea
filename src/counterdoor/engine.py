"""What trainings and predictions run on: device, precision, number of processes, data path."""

import ctypes
import functools
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field

from counterdoor.component import Config

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CLUSTER = ("MASTER_ADDR", "SLURM_NTASKS", "LSB_JOBID", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""Environment variables by which the processes of several machines find each other."""

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


class Engine(Config):
    """Where and how nets are run; the method itself does not depend on it.

    Attributes:
        accelerator: ``cpu``, ``cuda``, ``mps`` or ``auto``: a GPU if there is one.
        devices: processes on this machine, one a device.
        num_nodes: machines.
        strategy: how several processes work together, in Lightning Fabric's names;
            ``auto`` is none for one process and ``ddp_spawn`` for several.
        precision: ``auto`` is bf16 autocast where the hardware multiplies bf16, and
            fp32 elsewhere.
        compile: pass nets through ``torch.compile``.
        cuda_graph: where one GPU trains a net for the samples' labels, record the step once
            and replay it (:mod:`counterdoor.replay`); not together with ``compile`` or fp16.
        data: ``resident`` keeps all training images on the device, ``streaming`` reads
            every batch from the (memory-mapped) array in the background, ``auto`` is
            resident up to ``resident_mb``.
        resident_mb: largest set of training images that ``auto`` keeps, in MB.
    """

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = Field(default=1, ge=1, le=1024)
    num_nodes: int = Field(default=1, ge=1, le=1024)
    strategy: str = "auto"
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    compile: bool = False
    cuda_graph: bool = True
    data: Literal["auto", "resident", "streaming"] = "auto"
    resident_mb: int = Field(default=2048, ge=0, le=10**8)

    @property
    def device(self) -> torch.device:
        """The device that ``accelerator`` stands for."""
        if self.accelerator != "auto":
            return torch.device(self.accelerator)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def processes(self) -> int:
        """How many work together, on all machines."""
        return self.devices * self.num_nodes

    def alone(self) -> "Engine":
        """The same with one process."""
        return self.model_copy(update={"devices": 1, "num_nodes": 1, "strategy": "auto"})

    def resolved_precision(self) -> Precision:
        """The precision that ``auto`` stands for on this machine."""
        if self.precision != "auto":
            return self.precision
        return "bf16-mixed" if multiplies_bf16(self.device.type) else "32-true"

    def resolved_strategy(self) -> str:
        """The strategy that ``auto`` stands for with so many processes."""
        if self.strategy != "auto" or self.processes == 1:
            return self.strategy
        return "ddp_spawn"

    @property
    def replays(self) -> bool:
        """Whether ``cuda_graph`` has an effect here."""
        return (
            self.cuda_graph
            and self.device.type == "cuda"
            and self.processes == 1
            and not self.compile
            and self.resolved_precision() != "16-mixed"
        )

    def autocast(self) -> torch.autocast:
        """The context of a forward pass outside training."""
        kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        kind = kinds.get(self.resolved_precision())
        return torch.autocast(self.device.type, kind, enabled=kind is not None)

    def is_resident(self, nbytes: int) -> bool:
        """Whether training images of so many bytes are kept on the device."""
        if self.data != "auto":
            return self.data == "resident"
        free = torch.cuda.mem_get_info()[0] if self.device.type == "cuda" else float("inf")
        return nbytes <= min(self.resident_mb * 1e6, free / 2)

    def check_here(self) -> None:
        """Raise ``ValueError`` unless this machine has what is asked for; starts no process."""
        there = {
            "cpu": os.cpu_count() or 1,
            "cuda": torch.cuda.device_count(),
            "mps": int(torch.backends.mps.is_available()),
        }
        kind = self.device.type
        if not there[kind]:
            found = ", ".join(name for name, count in there.items() if count)
            raise ValueError(
                f"engine.accelerator is {self.accelerator!r}, but this machine has only {found}; "
                "choose that, or auto"
            )
        if self.devices > there[kind]:
            raise ValueError(
                f"engine.devices is {self.devices}, but this machine has {there[kind]} "
                f"{'cores' if kind == 'cpu' else 'GPUs'}; it must be at most that"
            )
        if self.num_nodes > 1 and not any(name in os.environ for name in CLUSTER):
            raise ValueError(
                f"engine.num_nodes is {self.num_nodes}, but nothing says where the other machines "
                f"are; it must be 1, or start the run on each with one of {', '.join(CLUSTER)} set"
            )
        if self.strategy != "auto" or self.precision != "auto":
            self.fabric()

    def fabric(self) -> "Fabric":
        """Lightning Fabric for these settings.

        Raises:
            ValueError: if this machine does not have them.
        """
        try:
            from lightning_fabric import Fabric
        except ModuleNotFoundError:  # the same library inside the package `lightning`
            from lightning.fabric import Fabric  # type: ignore[no-redef]
        # It tells the precision at every start; a handler of its own prints it anywhere.
        logging.getLogger(Fabric.__module__.removesuffix(".fabric")).setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # advice on other settings
            try:
                return Fabric(
                    accelerator=self.device.type,
                    devices=self.devices,
                    num_nodes=self.num_nodes,
                    strategy=self.resolved_strategy(),
                    precision=self.resolved_precision(),
                )
            except (RuntimeError, ValueError) as error:
                raise ValueError(
                    f"engine.accelerator {self.accelerator!r} with {self.devices} device(s) and "
                    f"precision {self.precision!r} cannot be used here: {error}"
                ) from error


DEFAULT = Engine()

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
LARGEST_BLOCK = 1 << 30
USUAL_BLOCK = 32 << 20  # what glibc's own adjustment ends at


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Inside the block, what tensors free on the CPU stays with the process, to be used again.

    glibc hands large blocks back to the system at once, and a training then fetches them
    anew, page by page, for every batch. Elsewhere than on glibc nothing is changed.
    """
    library = ctypes.CDLL(None)
    mallopt = getattr(library, "mallopt", None)
    trim = getattr(library, "malloc_trim", None)
    if mallopt is None or trim is None:
        yield
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)
    mallopt(M_TRIM_THRESHOLD, 2 * LARGEST_BLOCK - 1)
    try:
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, USUAL_BLOCK)
        mallopt(M_TRIM_THRESHOLD, 2 * USUAL_BLOCK)
        trim(0)


@functools.cache
def multiplies_bf16(device_type: str) -> bool:
    """Whether this machine's device has bf16 matrix products, not an emulation of them."""
    if device_type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type != "cpu":
        return False
    try:
        capabilities = torch.cpu.get_capabilities()
    except AttributeError:  # torch < 2.12
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))
