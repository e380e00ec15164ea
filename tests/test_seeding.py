"""Random streams: named, independent of each other and of global state."""

import hashlib

import numpy as np
import pytest
import torch

from counterdoor.seeding import derive_seed, numpy_generator, seeded_torch, torch_generator

STREAMS = ["attack/rows", "warmup/order", "warmup/augment", "train/order", "", "a/b/c"]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**40])
@pytest.mark.parametrize("stream", STREAMS)
def test_seed_is_the_upper_63_bits_of_the_hash(seed, stream):
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).hexdigest()
    assert derive_seed(seed, stream) == int(digest[:16], 16) // 2
    assert 0 <= derive_seed(seed, stream) < 2**63


def test_seeds_and_streams_all_differ():
    seeds = [derive_seed(seed, stream) for seed in range(50) for stream in STREAMS]
    assert len(set(seeds)) == len(seeds)


def test_a_seed_of_numpy_is_the_same_seed():
    assert derive_seed(np.int64(3), "x") == derive_seed(3, "x")


def test_value_is_pinned_across_versions():
    assert (
        derive_seed(0, "attack/rows")
        == int(hashlib.sha256(b"0/attack/rows").hexdigest()[:16], 16) // 2
    )


def test_torch_generator_repeats_and_depends_on_both_arguments():
    def draw(seed, stream):
        return torch.rand(20, generator=torch_generator(seed, stream))

    assert torch.equal(draw(1, "a"), draw(1, "a"))
    assert not torch.equal(draw(1, "a"), draw(2, "a"))
    assert not torch.equal(draw(1, "a"), draw(1, "b"))
    assert torch_generator(1, "a").device.type == "cpu"


def test_numpy_generator_repeats_and_depends_on_both_arguments():
    def draw(seed, stream):
        return numpy_generator(seed, stream).random(20)

    np.testing.assert_array_equal(draw(1, "a"), draw(1, "a"))
    assert not np.array_equal(draw(1, "a"), draw(2, "a"))
    assert not np.array_equal(draw(1, "a"), draw(1, "b"))


def test_generators_leave_global_state_alone():
    torch_before = torch.get_rng_state()
    numpy_before = np.random.get_state()[1].copy()  # noqa: NPY002
    torch.rand(5, generator=torch_generator(1, "a"))
    numpy_generator(1, "a").random(5)
    assert torch.equal(torch.get_rng_state(), torch_before)
    numpy_after = np.random.get_state()[1]  # noqa: NPY002
    np.testing.assert_array_equal(numpy_after, numpy_before)


def test_seeded_torch_seeds_inside_and_restores_outside():
    before = torch.get_rng_state()
    with seeded_torch(4, "init"):
        first = torch.rand(10)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    with seeded_torch(4, "init"):
        assert torch.equal(torch.rand(10), first)
    with seeded_torch(4, "other"):
        assert not torch.equal(torch.rand(10), first)


def choose_among(weights):
    torch.rand(3)
    if not len(weights):
        raise ValueError("at least one")


def test_seeded_torch_restores_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="at least one"), seeded_torch(4, "init"):
        choose_among(torch.rand(0))
    assert torch.equal(torch.get_rng_state(), before)
