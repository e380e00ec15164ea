"""What the layers of any net give for each sample, and how a logit depends on it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from counterdoor.engine import DEFAULT, Engine
from counterdoor.training import predict_logits

Depth = Literal["last", "late", "all"]
"""Whose representations: the last layer's inputs, the later half of the layers', or all."""

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""What counts as a layer: these exist under a name of their own in every net."""


def layer_names(net: nn.Module, images_nchw: np.ndarray, engine: Engine = DEFAULT) -> list[str]:
    """Names of the linear and convolution layers in the order in which the net calls them.

    Args:
        net: from float images in [0, 1] to logits.
        images_nchw: uint8, shape (N, C, H, W), in [0, 255]; the first one is shown to it.
        engine: what to run on.

    Raises:
        ValueError: if it calls none.
    """
    names: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: names.append(name)

    layers = {name: each for name, each in net.named_modules() if isinstance(each, LAYERS)}
    with _hooks(each.register_forward_hook(note(name)) for name, each in layers.items()):
        predict_logits(net, images_nchw[:1], engine=engine)
    if not names:
        raise ValueError(
            "the net calls no nn.Linear and no convolution module, so that this detector has "
            "nothing to look at; build the net of such modules, or choose another detector"
        )
    return list(dict.fromkeys(reversed(names)))[::-1]  # one called twice stands where it was last


def representations(
    net: nn.Module,
    images_nchw: np.ndarray,
    depth: Depth = "last",
    engine: Engine = DEFAULT,
    batch_size: int = 500,
) -> list[np.ndarray]:
    """What goes into the net's last layer, and before that what its other layers give.

    Args:
        net: from float images in [0, 1] to logits; looked at in eval mode.
        images_nchw: uint8, shape (N, C, H, W), in [0, 255].
        depth: "last" for the former alone, "all" for both, "late" for the later half of
            them (the larger one if their number is odd).
        engine: what to run on.
        batch_size: images at a time.

    Returns:
        In the order of the calls, the last layer's inputs last; each float32, shape
        (N, units), means over places where a layer sees several.

    Raises:
        ValueError: if the net has no layer.
    """
    *others, last = layer_names(net, images_nchw, engine)
    first = {"last": len(others), "late": (len(others) + 1) // 2, "all": 0}[depth]
    looked_at = [net.get_submodule(name) for name in others[first:]]
    head = net.get_submodule(last)
    kept: dict[nn.Module, list[Tensor]] = {module: [] for module in (*looked_at, head)}

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | None = None) -> None:
        values = inputs[0] if output is None else output
        kept[module].append(_pooled(module, values.float()).cpu())

    with _hooks(
        [
            *(module.register_forward_hook(keep) for module in looked_at),
            head.register_forward_pre_hook(keep),
        ]
    ):
        predict_logits(net, images_nchw, batch_size=batch_size, engine=engine)
    return [torch.cat(parts).numpy() for parts in kept.values()]


def activation_gradients(
    net: nn.Module,
    images_nchw: np.ndarray,
    labels: np.ndarray,
    layers: Sequence[str],
    engine: Engine = DEFAULT,
    batch_size: int = 250,
) -> list[np.ndarray]:
    """Gradient of each sample's labelled logit with respect to what layers give, in eval mode.

    Args:
        net: from float images in [0, 1] to logits.
        images_nchw: uint8, shape (N, C, H, W), in [0, 255].
        labels: int64, shape (N,), whose logit it is.
        layers: names of layers.
        engine: what to run on.
        batch_size: images at a time.

    Returns:
        For each layer float32, shape (N, units): the mean over places of a convolution.
    """
    where, was_training = engine.device, net.training
    net = net.to(where).eval()
    modules = [net.get_submodule(name) for name in layers]
    outputs: dict[nn.Module, Tensor] = {}
    parts: list[list[Tensor]] = [[] for _ in layers]

    def keep(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        outputs[module] = output if output.requires_grad else output.detach().requires_grad_()
        return outputs[module].clone()  # what comes next may work in place

    with _hooks(module.register_forward_hook(keep) for module in modules), torch.enable_grad():
        for start in range(0, len(images_nchw), batch_size):
            rows = slice(start, start + batch_size)
            images = torch.from_numpy(np.array(images_nchw[rows])).to(where).float().div_(255.0)
            wanted = torch.from_numpy(np.array(labels[rows])).to(where)
            with engine.autocast():
                logits = net(images).float()
            total = logits.gather(1, wanted[:, None]).sum()
            slopes = torch.autograd.grad(
                total, [outputs[module] for module in modules], materialize_grads=True
            )
            for kept, module, slope in zip(parts, modules, slopes, strict=True):
                kept.append(_pooled(module, slope.float()).cpu())
    net.train(was_training)
    return [torch.cat(kept).numpy() for kept in parts]


def _pooled(layer: nn.Module, values: Tensor) -> Tensor:
    """Mean over places, shape (N, units): a linear layer has units last, a convolution second."""
    values = values.detach()
    if isinstance(layer, nn.Linear):
        return values.flatten(1, -2).mean(1) if values.dim() > 2 else values
    return values.flatten(2).mean(2)


@contextmanager
def _hooks(handles: Iterator[Any] | Sequence[Any]) -> Iterator[None]:
    registered = list(handles)
    try:
        yield
    finally:
        for handle in registered:
            handle.remove()
