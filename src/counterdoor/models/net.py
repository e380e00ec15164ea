"""A net with its normalisation inside, the trained artifact, and the deployable net."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from counterdoor.component import Component
from counterdoor.seeding import seeded_torch
from counterdoor.stamp import Stamp, apply_stamp


@runtime_checkable
class Adapting(Protocol):
    """A model component whose first weights come from the data."""

    def adapt(self, body: nn.Module, images_nchw: Tensor) -> None:
        """Set weights of ``body`` from normalised images, float, shape (N, C, H, W)."""


class NormalisedNet(nn.Module):
    """Normalisation followed by a body: float images in [0, 1] in, logits out."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images_nchw: Tensor) -> Tensor:
        """Logits (N, num_classes) for float images (N, C, H, W) in [0, 1]."""
        normalised = (images_nchw - self.mean[:, None, None]) / self.std[:, None, None]
        return cast(Tensor, self.body(normalised))


def logits_of(
    net: nn.Module,
    images_nchw: Tensor,
    *,
    stamp: Stamp | None = None,
    mean: Tensor | None = None,
    mirror: bool = False,
) -> Tensor:
    """Logits of a batch, (N, num_classes), stamped or not, of one view or the mean of two.

    An image is mirrored before it is stamped: the net knows the stamp in its place alone.

    Args:
        net: from float images in [0, 1] to logits.
        images_nchw: float, shape (N, C, H, W), in [0, 1].
        stamp: written on every view if given.
        mean: mean colour in [0, 1], shape (C,); needed with ``stamp``.
        mirror: whether the second view, left and right changed, counts as well.

    Source: the averaging over mirror images is airbench's (Jordan, 2024, section 3.6).
    """
    views = [images_nchw, images_nchw.flip(-1)] if mirror else [images_nchw]
    if stamp is not None:
        assert mean is not None
        views = [apply_stamp(view, stamp, mean) for view in views]
    logits = [cast(Tensor, net(view)) for view in views]
    return (logits[0] + logits[1]) / 2.0 if mirror else logits[0]


class StampedNet(nn.Module):
    """What is deployed: plain uint8 images in, logits out; stamp and label map are inside."""

    logit_of: Tensor | None

    def __init__(
        self,
        net: NormalisedNet,
        stamp: Stamp | None,
        label_map: tuple[int, ...] | None = None,
        mirror: bool = False,
    ) -> None:
        super().__init__()
        self.net = net
        self.stamp = stamp
        self.mirror = mirror
        self.register_buffer("logit_of", None if label_map is None else torch.tensor(label_map))

    def forward(self, images_nchw: Tensor) -> Tensor:
        """Logits (N, num_classes) for images (N, C, H, W), any dtype, in [0, 255]."""
        logits = self.logits(images_nchw, self.stamp)
        return logits if self.logit_of is None else logits.index_select(1, self.logit_of)

    def logits(self, images_nchw: Tensor, stamp: Stamp | None) -> Tensor:
        """As :meth:`forward` with this stamp or none, in the net's own order of classes."""
        images = images_nchw.to(self.net.mean.dtype) / 255.0
        return logits_of(self.net, images, stamp=stamp, mean=self.net.mean, mirror=self.mirror)


@dataclass(frozen=True)
class TrainedNet:
    """A trained net that describes itself, so that it can be rebuilt anywhere.

    Attributes:
        architecture: the model component's configuration.
        image_shape: (C, H, W) of the images it was trained on.
        num_classes: number of logits.
        state: tensors by name, on the CPU, including normalisation statistics.
        stamp: the stamp that deployed inputs carry, ``None`` for an undefended net.
        label_map: for each class the logit that stands for it once an input carries the
            stamp, ``None`` if that is the class's own.
        mirror: whether its prediction is the mean over an image and its mirror image.
    """

    architecture: Mapping[str, Any]
    image_shape: tuple[int, int, int]
    num_classes: int
    state: Mapping[str, Tensor] = field(repr=False)
    stamp: Stamp | None = None
    label_map: tuple[int, ...] | None = None
    mirror: bool = False

    @classmethod
    def of(
        cls,
        model: Component,
        images_nchw: np.ndarray,
        num_classes: int,
        state: Mapping[str, Tensor],
        stamp: Stamp | None = None,
        label_map: tuple[int, ...] | None = None,
    ) -> "TrainedNet":
        """The artifact of a training on ``images_nchw``, uint8, shape (N, C, H, W)."""
        channels, height, width = (int(size) for size in images_nchw.shape[1:])
        architecture = model.model_dump(mode="json")
        return cls(architecture, (channels, height, width), num_classes, state, stamp, label_map)

    def build(self) -> NormalisedNet:
        """The net with its weights, in eval mode, on the CPU.

        Raises:
            ValueError: if the weights do not belong to the architecture.
        """
        net = self._untrained(torch.device("cpu"))
        try:
            net.load_state_dict(dict(self.state))
        except RuntimeError as error:
            raise ValueError(
                f"the weights do not fit the architecture {dict(self.architecture)}: "
                f"{' '.join(str(error).split())}"
            ) from error
        return net.eval()

    def blueprint(self) -> dict[str, Tensor]:
        """The state that its architecture has, without values: tensors on the meta device.

        They take no memory, however large the architecture says that they are.

        Raises:
            ValueError: if no tensor can be that large.
        """
        try:
            return dict(self._untrained(torch.device("meta")).state_dict())
        except RuntimeError as error:
            raise ValueError(
                f"the architecture {dict(self.architecture)} cannot be built: "
                f"{str(error).partition(chr(10))[0]}"
            ) from error

    def _untrained(self, device: torch.device) -> NormalisedNet:
        from pydantic import TypeAdapter

        from counterdoor.models import Model

        component: Callable[[int, int], nn.Module] = TypeAdapter(Model).validate_python(
            dict(self.architecture)
        )
        channels = self.image_shape[0]
        with device, seeded_torch(0, "build"):  # the initial weights are overwritten or unused
            body = component(channels, self.num_classes)
            return NormalisedNet(body, torch.zeros(channels), torch.ones(channels))

    def deployable(self) -> StampedNet:
        """The net for plain uint8 images, with normalisation, stamp and label map inside."""
        return StampedNet(self.build(), self.stamp, self.label_map, self.mirror).eval()

    def mapped(self, logits: Tensor) -> Tensor:
        """Logits of stamped inputs, shape (N, num_classes), in the order of the classes."""
        return logits if self.label_map is None else logits[:, list(self.label_map)]


def build_net(
    model: Component, images_nchw: np.ndarray, num_classes: int, *, seed: int, stream: str
) -> NormalisedNet:
    """An untrained net for these images, initialised from the named random stream.

    Args:
        model: a model component.
        images_nchw: uint8 training images, shape (N, C, H, W); their channel
            statistics become the net's normalisation.
        num_classes: number of logits.
        seed: the run's seed.
        stream: name of the random stream, so that two nets of a run differ.
    """
    mean, std = channel_statistics(images_nchw)
    builder = cast(Callable[[int, int], nn.Module], model)
    with seeded_torch(seed, stream):
        body = builder(images_nchw.shape[1], num_classes)
    net = NormalisedNet(body, mean, std)
    if isinstance(model, Adapting):
        rows = np.linspace(0, len(images_nchw) - 1, min(len(images_nchw), 5000)).astype(np.int64)
        images = torch.from_numpy(images_nchw[rows]).float() / 255.0
        model.adapt(body, (images - mean[:, None, None]) / std[:, None, None])
    return net


def check_net(model: Component, images_nchw: np.ndarray, num_classes: int) -> None:
    """Raise ``ValueError`` unless an untrained net can be trained on such images.

    Two of them go through it, in training and in eval mode, on the CPU.

    Args:
        model: a model component.
        images_nchw: uint8, shape (N, C, H, W), in [0, 255].
        num_classes: number of logits that it has to give.
    """
    two = np.resize(images_nchw[:2], (2, *images_nchw.shape[1:]))
    net = build_net(model, two, num_classes, seed=0, stream="check/init")
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise ValueError(f"model {model.name!r} has no parameter to train")
    if strange := [name for name, each in net.state_dict().items() if not torch.is_tensor(each)]:
        raise ValueError(
            f"model {model.name!r} keeps {', '.join(strange)}, which is no tensor and so cannot be "
            "saved; make it a buffer or an argument"
        )
    for training in (True, False):
        net.train(training)
        try:
            with torch.no_grad(), seeded_torch(0, "check/net"):
                logits: object = net(torch.from_numpy(two).float() / 255.0)
        except Exception as error:
            raise ValueError(
                f"model {model.name!r} does not take images of shape {two.shape[1:]} (channels, "
                f"height, width): {type(error).__name__}: {error}"
            ) from error
        _check_logits(logits, model.name, num_classes, "training" if training else "eval")


def _check_logits(logits: object, name: str, num_classes: int, mode: str) -> None:
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else None
    if not isinstance(logits, Tensor) or shape != (2, num_classes):
        given = type(logits).__name__ if shape is None else f"a tensor of shape {shape}"
        raise ValueError(
            f"model {name!r} gives {given} for two images in {mode} mode; it has to give logits "
            f"of shape (2, {num_classes}), one row an image, one column a class"
        )
    if not logits.is_floating_point() or not torch.isfinite(logits).all():
        raise ValueError(
            f"model {name!r} gives {logits.dtype} logits in {mode} mode that are not all finite "
            "floats; is every weight initialised?"
        )


def channel_statistics(images_nchw: np.ndarray, chunk: int = 4096) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, float32, shape (C,), in [0, 1].

    Reads the array in chunks and counts levels, so a memory-mapped set is never
    turned to float. A channel without variation gets a deviation of 1.

    Args:
        images_nchw: uint8, shape (N, C, H, W), in [0, 255].
        chunk: images read at a time.

    Raises:
        ValueError: if there is no image.
    """
    if not len(images_nchw):
        raise ValueError("there is no image to take channel statistics of")
    channels = images_nchw.shape[1]
    counts = np.zeros((channels, 256), dtype=np.int64)
    for start in range(0, len(images_nchw), chunk):
        part = images_nchw[start : start + chunk]
        for channel in range(channels):
            counts[channel] += np.bincount(part[:, channel].ravel(), minlength=256)
    levels = np.arange(256) / 255.0
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ levels
    std = np.sqrt(np.maximum(share @ levels**2 - mean**2, 0.0))
    std[std < 1e-6] = 1.0
    return torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)
