"""What is shipped: images of any size in, logits out; resizing, normalisation, stamp inside."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from counterdoor.models import StampedNet, TrainedNet
from counterdoor.names import markdown
from counterdoor.sources.decoding import Form

MAX_PIXELS = 2**22
"""Pixels that are put through a net at a time: 256 images of 128x128."""


class Resize(nn.Module):
    """Bicubic antialiased resampling, as the decoder of the training images does it.

    Two matrix products, so it can be exported with free height and width. An image of the
    final size comes out unchanged; others are within a level of the decoder's, but for the few
    pixels that overshoot and are clipped between the two passes, whose order Pillow chooses.

    Source: Keys, "Cubic convolution interpolation for digital image processing" (1981), with
    a = -0.5; widened by the scale where images shrink, as in Pillow.
    """

    def __init__(self, size: tuple[int, int], resize: str) -> None:
        super().__init__()
        self.rows, self.columns = size
        self.crop = resize == "crop"

    def forward(self, images_nchw: Tensor) -> Tensor:
        """Images (N, C, rows, columns), whole levels, for float ones (N, C, H, W), in [0, 255]."""
        down, across = (
            torch.arange(images_nchw.shape[axis], dtype=torch.float32, device=images_nchw.device)
            for axis in (2, 3)
        )
        height, width = down[-1] + 1.0, across[-1] + 1.0
        scales = [height / self.rows, width / self.columns]
        if self.crop:
            scales = [torch.minimum(*scales)] * 2
        vertical = _weights(down, height, scales[0], self.rows)
        horizontal = _weights(across, width, scales[1], self.columns)
        wide = torch.round(torch.clamp(images_nchw @ horizontal.T, 0.0, 255.0))
        return torch.round(torch.clamp(vertical @ wide, 0.0, 255.0))


def _weights(positions: Tensor, extent: Tensor, scale: Tensor, size: int) -> Tensor:
    """Of each pixel (a column) in each resampled one (a row); every row sums to 1."""
    start = (extent - scale * size) / 2.0
    centres = start + (torch.arange(size, device=positions.device) + 0.5) * scale
    away = (positions + 0.5 - centres[:, None]).abs() / torch.clamp(scale, min=1.0)
    near = (1.5 * away - 2.5) * away * away + 1.0
    far = ((-0.5 * away + 2.5) * away - 4.0) * away + 2.0
    zero = torch.zeros_like(away)
    weights = torch.where(away < 1.0, near, torch.where(away < 2.0, far, zero))
    return weights / weights.sum(dim=1, keepdim=True)


class HardenedNet(nn.Module):
    """A deployable net with the resizing in front, and a test of every image.

    An image whose class is another one without the stamp is *rejected*: the stamp has
    switched something off. A net without stamp rejects nothing.

    Source: NAB, section 4.4 (test data filtering).
    """

    def __init__(self, net: StampedNet, resize: Resize) -> None:
        super().__init__()
        self.net = net
        self.resize = resize

    def forward(self, images_nchw: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, K), and whether each image is rejected, bool (N,).

        Args:
            images_nchw: any dtype, shape (N, C, H, W), in [0, 255], H and W free.
        """
        images = self.resize(images_nchw.to(torch.float32))
        logits: Tensor = self.net(images)
        if self.net.stamp is None:
            return logits, torch.zeros_like(logits[:, 0], dtype=torch.bool)
        plain = self.net.logits(images, None)
        return logits, plain.argmax(dim=1) != logits.argmax(dim=1)


SCALED = (
    "the images have no level above 1: they must be levels 0 to 255, not scaled to [0, 1] or "
    "normalised; both are done inside"
)
NO_LEVELS = (
    "the images hold values that are no levels: they must be whole numbers from 0 to 255, not "
    "scaled or normalised; both are done inside"
)


class LevelsOnly(nn.Module):
    """A net that refuses images which are not levels 0 to 255, whatever their dtype.

    Who serves a net cannot know what it gets: JSON has one kind of numbers, and an image in
    [0, 1], as other nets take it, would be a black one with a class of its own. The checks
    are part of the graph that is exported.

    Args:
        net: from images (N, C, H, W), levels in [0, 255], to logits.
        dark: whether levels above 1 are rare among its images; then whole images of 0 and 1
            are taken for levels.
    """

    def __init__(self, net: nn.Module, dark: bool) -> None:
        super().__init__()
        self.net = net
        self.dark = dark

    def forward(self, images_nchw: Tensor) -> Tensor:
        """What the net gives.

        Raises:
            RuntimeError: :data:`NO_LEVELS` or :data:`SCALED`.
        """
        levels = images_nchw * 1.0  # unlike a cast, it is exported without the example's dtype
        good = (levels == torch.round(levels)) & (levels >= 0) & (levels <= 255)
        torch._assert_async(good.all(), NO_LEVELS)
        if not self.dark:
            torch._assert_async((levels > 1).any() | (levels == 0).all(), SCALED)
        return cast(Tensor, self.net(levels))


def levels_only(net: nn.Module, trained: TrainedNet) -> LevelsOnly:
    """``net`` for images such as those that ``trained`` was trained on, and no others."""
    return LevelsOnly(net, dark=float(trained.state["mean"].max()) * 255 <= 1).eval()


class LogitsNet(nn.Module):
    """The logits of a :class:`HardenedNet` alone, or with the reject flag as a last column."""

    def __init__(self, net: HardenedNet, reject: bool) -> None:
        super().__init__()
        self.net = net
        self.reject = reject

    def forward(self, images_nchw: Tensor) -> Tensor:
        """Logits (N, K), or (N, K + 1) with 1 for a rejected image and 0 for others."""
        logits, rejected = cast(tuple[Tensor, Tensor], self.net(images_nchw))
        return torch.cat([logits, rejected[:, None].to(logits.dtype)], 1) if self.reject else logits


@dataclass(frozen=True)
class Hardened:
    """A trained net with all that somebody needs who has nothing else.

    Attributes:
        net: the net.
        class_names: one name a logit.
        form: what the training images were brought to.
        about: where it comes from: ``data``, ``configuration`` and ``figures``, plain values.
        reject_column: whether :meth:`served` gives the reject flag beside the logits.
    """

    net: TrainedNet
    class_names: tuple[str, ...]
    form: Form
    about: Mapping[str, Any] = field(default_factory=dict)
    reject_column: bool = False

    def deployable(self) -> HardenedNet:
        """The net for images of any size, in eval mode."""
        resize = Resize((self.net.image_shape[1], self.net.image_shape[2]), self.form.resize)
        return HardenedNet(self.net.deployable(), resize).eval()

    def served(self) -> LevelsOnly:
        """As :meth:`deployable`, with one output, as MLflow wants it, and for levels only."""
        return levels_only(LogitsNet(self.deployable(), self.reject_column), self.net)

    def predict(self, images_nchw: np.ndarray, chunk: int = 256) -> tuple[np.ndarray, np.ndarray]:
        """Logits, float32 (N, K), and reject flags, bool (N,).

        Args:
            images_nchw: uint8, shape (N, C, H, W), in [0, 255].
            chunk: images at a time; fewer if they are large.

        Raises:
            ValueError: if these are no such images, the net does not take images of the size that
                it says, or gives other logits than it says.
        """
        channels = self.net.image_shape[0]
        if len(images_nchw) and (
            images_nchw.dtype != np.uint8 or images_nchw.shape[1:2] != (channels,)
        ):
            raise ValueError(
                f"the images are {images_nchw.dtype} of shape {images_nchw.shape}; they must be "
                f"uint8, levels 0 to 255, of shape (N, {channels}, height, width)"
            )
        chunk = max(1, min(chunk, MAX_PIXELS // max(1, prod(images_nchw.shape[2:]))))
        net, logits, rejected = self.deployable(), [], []
        with torch.inference_mode():
            for start in range(0, len(images_nchw), chunk):
                part = torch.from_numpy(np.array(images_nchw[start : start + chunk]))
                try:
                    told, flags = net(part)
                except RuntimeError as error:
                    raise ValueError(
                        f"its net does not take images of shape {self.net.image_shape} (channels, "
                        f"height, width): {str(error).partition(chr(10))[0]}"
                    ) from error
                if told.shape != (len(part), self.net.num_classes):
                    raise ValueError(
                        f"its net gives logits of shape {tuple(told.shape)} for {len(part)} images "
                        f"and {self.net.num_classes} classes"
                    )
                logits.append(told.numpy())
                rejected.append(flags.numpy())
        if not logits:
            return np.empty((0, self.net.num_classes), np.float32), np.empty(0, bool)
        return np.concatenate(logits), np.concatenate(rejected)


_FREE = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
"""Of exported images: their number, height and width."""


def to_onnx(hardened: Hardened) -> bytes:
    """The net as ONNX: input ``images`` uint8 (N, C, H, W), outputs ``logits`` and ``reject``.

    N, H and W are free.

    Raises:
        ValueError: if the net cannot be exported, which somebody else's code may not be.
    """
    import contextlib
    import io
    import warnings

    channels, height, width = hardened.net.image_shape
    example = torch.zeros((2, channels, height + 1, width + 2), dtype=torch.uint8)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                hardened.deployable(),
                (example,),
                input_names=["images"],
                output_names=["logits", "reject"],
                dynamic_shapes=(_FREE,),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # whatever torch.export makes of somebody else's code
        raise _unwritable(hardened, "ONNX", error) from error
    assert program is not None
    return cast(bytes, program.model_proto.SerializeToString())


def try_exports(hardened: Hardened) -> int:
    """Write the net in memory in each form that it is shipped in; gives the bytes of all.

    Raises:
        ValueError: naming the form that this net cannot be written in.
    """
    import io
    import warnings

    from safetensors.torch import save

    channels, height, width = hardened.net.image_shape
    example = torch.zeros((2, channels, height + 1, width + 2), dtype=torch.uint8)
    written = io.BytesIO()
    tensors = {name: each.contiguous().clone() for name, each in hardened.net.state.items()}
    try:
        size = len(save(tensors))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                hardened.served(), (example,), dynamic_shapes=(_FREE,), strict=False
            )
            torch.export.save(program, written)
    except Exception as error:  # whatever torch.export makes of somebody else's code
        raise _unwritable(hardened, "an MLflow model", error) from error
    return size + written.tell() + len(to_onnx(hardened))


def _unwritable(hardened: Hardened, form: str, error: Exception) -> ValueError:
    name = hardened.net.architecture["name"]
    reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return ValueError(f"model {name!r} cannot be written as {form}: {reason}")


def model_card(hardened: Hardened) -> str:
    """What the net is, what it was measured at and what it cannot promise, as Markdown."""
    net, about = hardened.net, hardened.about
    channels, height, width = net.image_shape
    data, figures = about.get("data", {}), about.get("figures", {})
    stamp = "none" if net.stamp is None else ", ".join(f"{k} {v}" for k, v in net.stamp)
    size = f"{width}x{height} pixels, {channels} channel{'s' if channels > 1 else ''}"
    how = {"crop": "keeps the aspect ratio and cuts off both sides", "squash": "squeezes"}
    names = ", ".join(map(markdown, hardened.class_names))
    rows = [
        ("net", markdown(net.architecture["name"])),
        ("classes", f"{len(hardened.class_names)}: {names}"),
        ("images", f"{size}; other sizes are brought to it, which {how[hardened.form.resize]}"),
        ("input", "levels 0 to 255, (N, channels, height, width); scaled and normalised inside"),
        ("stamp", f"{stamp}; put on every image inside"),
        *(
            (markdown(name.replace("_", " ")), markdown(_told(value)))
            for name, value in data.items()
            if value != []
        ),
        *((name.replace("_", " "), f"{value:.1%}") for name, value in figures.items()),
    ]
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("counterdoor"),
        undefined=StrictUndefined,
        autoescape=False,
        keep_trailing_newline=True,
    )
    configuration = json.dumps(about.get("configuration", {}), indent=2)
    card = environment.get_template("model_card.md.j2")
    return card.render(rows=rows, configuration=configuration)


def _told(value: object) -> str:
    """Notes one after the other, other values as they are."""
    notes = isinstance(value, list) and all(isinstance(each, str) for each in value)
    return "; ".join(value) if notes else str(value)  # type: ignore[arg-type]
