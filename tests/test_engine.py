"""Engines: what `auto` means, what is refused."""

import platform
import resource
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from counterdoor import engine as module
from counterdoor.engine import CLUSTER, Engine, freed_memory_kept, multiplies_bf16


def test_auto_is_a_gpu_if_there_is_one():
    assert Engine(accelerator="cpu").device == torch.device("cpu")
    assert Engine().device.type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(("has", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_is_bf16_where_the_hardware_has_it(has, precision, monkeypatch):
    monkeypatch.setattr(module, "multiplies_bf16", lambda device: has)
    assert Engine(accelerator="cpu").resolved_precision() == precision
    assert Engine(accelerator="cpu", precision="32-true").resolved_precision() == "32-true"


@pytest.mark.parametrize(
    ("capabilities", "has"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True, "avx512_bf16": False}, True),
        ({}, False),
    ],
)
def test_processors_by_what_they_say_of_themselves(capabilities, has, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert multiplies_bf16.__wrapped__("cpu") is has


def test_other_devices_have_no_bf16():
    assert multiplies_bf16.__wrapped__("mps") is False


@pytest.mark.parametrize(("precision", "kind"), [("32-true", None), ("bf16-mixed", torch.bfloat16)])
def test_autocast_is_that_of_the_precision(precision, kind):
    matrix = torch.ones(4, 4)
    with Engine(accelerator="cpu", precision=precision).autocast():
        assert (matrix @ matrix).dtype == (kind or torch.float32)


@pytest.mark.parametrize(
    ("settings", "nbytes", "resident"),
    [
        ({}, 10_000_000, True),
        ({}, 3_000_000_000, False),
        ({"resident_mb": 1}, 1_000_000, True),
        ({"resident_mb": 1}, 1_000_001, False),
        ({"data": "streaming"}, 1, False),
        ({"data": "resident"}, 10**12, True),
    ],
)
def test_small_sets_are_resident(settings, nbytes, resident):
    assert Engine(accelerator="cpu", **settings).is_resident(nbytes) is resident


def test_fabric_is_as_configured():
    fabric = Engine(accelerator="cpu", precision="bf16-mixed").fabric()
    assert fabric.world_size == 1
    assert fabric.device == torch.device("cpu")
    assert fabric._precision.precision == "bf16-mixed"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "settings", [{"accelerator": "cuda"}, {"accelerator": "cpu", "strategy": "no_such"}], ids=str
)
def test_what_is_not_here_is_refused_in_words(settings):
    with pytest.raises(ValueError, match=r"engine\.accelerator"):
        Engine(**settings).fabric()


def test_what_this_machine_lacks_is_told_without_a_process(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    for name in CLUSTER:
        monkeypatch.delenv(name, raising=False)
    cpu = Engine(accelerator="cpu")
    cpu.model_copy(update={"devices": 3}).check_here()
    for settings, told in (
        ({"accelerator": "mps"}, r"accelerator is 'mps', but this machine has only cpu; choose"),
        ({"accelerator": "cuda"}, r"accelerator is 'cuda', but this machine has only cpu; choose"),
        ({"devices": 4}, r"devices is 4, but this machine has 3 cores; it must be at most that"),
        ({"num_nodes": 2}, r"num_nodes is 2, but nothing says where the other machines are"),
        ({"strategy": "no_such"}, r"engine\.accelerator 'cpu' with 1 device"),
    ):
        with pytest.raises(ValueError, match=told):
            cpu.model_copy(update=settings).check_here()
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    cpu.model_copy(update={"num_nodes": 2}).check_here()


@pytest.mark.parametrize(
    "settings", [{"devices": 0}, {"precision": "8"}, {"data": "disk"}, {"gpus": 1}], ids=str
)
def test_refused_settings(settings):
    with pytest.raises(ValidationError, match=next(iter(settings))):
        Engine(**settings)


def resident_mb():
    """Memory of this process that is really there, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone is told to")
def test_freed_memory_is_kept_inside_the_block_and_given_back_after_it():
    before = resident_mb()
    with freed_memory_kept():
        torch.ones(100_000_000)
        assert resident_mb() > before + 350
    assert resident_mb() < before + 50


def test_memory_is_left_alone_where_nothing_can_be_said_of_it(monkeypatch):
    monkeypatch.setattr(module.ctypes, "CDLL", lambda name: object())
    with freed_memory_kept():
        assert torch.ones(3).sum() == 3
