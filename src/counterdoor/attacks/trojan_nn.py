"""TrojanNN: a patch made to excite one neuron of a net."""

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from counterdoor.attacks.attacker_net import AttackerNet, needed
from counterdoor.attacks.base import NOTHING, AttackBase
from counterdoor.component import Gap, Side
from counterdoor.engine import DEFAULT, Engine
from counterdoor.seeding import torch_generator


def head_of(net: nn.Module) -> nn.Linear:
    """The last linear layer: its inputs are the neurons to choose from.

    Raises:
        ValueError: if the net has none.
    """
    layers = [module for module in net.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(
            "the attacker's net has no linear layer to pick a neuron before; choose another "
            "attack.net.model"
        )
    return layers[-1]


def strongest_neuron(weight: Tensor, target_class: int) -> int:
    """The neuron that speaks most for the target: largest w[target] - mean of the other rows.

    Args:
        weight: of the last linear layer, shape (K, D).
        target_class: in 0..K-1.
    """
    others = (weight.sum(0) - weight[target_class]) / (len(weight) - 1)
    return int((weight[target_class] - others).argmax())


def neuron_activation(net: nn.Module, images_nchw: Tensor, neuron: int) -> Tensor:
    """Activation of one input of the last linear layer, shape (N,), with its gradient."""
    caught: list[Tensor] = []
    hook = head_of(net).register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    try:
        net(images_nchw)
    finally:
        hook.remove()
    return caught[0][:, neuron]


def optimise_patch(
    activation: Callable[[Tensor], Tensor],
    images_nchw: Tensor,
    patch: Tensor,
    place: tuple[slice, slice],
    *,
    step: float,
    steps: int,
) -> Tensor:
    """Gradient ascent of the mean activation on the patch's pixels alone.

    patch <- clip(patch + step * sign(grad of the mean activation), 0, 1).

    Args:
        activation: from images in [0, 1], shape (N, C, H, W), to shape (N,).
        images_nchw: the images behind the patch, float, in [0, 1]; not changed.
        patch: where to start, float, shape (C, height, width), in [0, 1].
        place: rows and columns of the images that the patch covers.
        step: length of a step, in (0, 1].
        steps: number of steps.

    Returns:
        The patch, float, in [0, 1].
    """
    rows, columns = place
    for _ in range(steps):
        leaf = patch.detach().requires_grad_()
        patched = images_nchw.clone()
        patched[:, :, rows, columns] = leaf
        (slope,) = torch.autograd.grad(activation(patched).mean(), leaf)
        patch = (patch + step * slope.sign()).clamp(0.0, 1.0)
    return patch


class TrojanNN(AttackBase):
    """A square patch whose pixels were optimised to excite the neuron that favours the target.

    Source: Liu et al., "Trojaning Attack on Neural Networks" (NDSS 2018), section 4. There
    the attacker has a trained net but no training data: a neuron with strong connections is
    chosen, the trigger is optimised alone on an empty image, training images are
    reverse-engineered, and the net itself is retrained and handed out. Here the attacker
    only poisons data: the neuron is the input of the last layer that speaks most for the
    target, the patch is optimised on top of clean images, and no net is handed out; the
    victim's own training plants the backdoor.

    Attributes:
        net: the net whose neuron is excited.
        size: side of the patch; the paper's covers 7 % of the image.
        bottom: rows left free below the patch.
        right: columns left free to its right.
        step: length of a step of the patch's gradient ascent, in levels of 0..255.
        steps: number of steps.
        images: how many clean images the patch is optimised on.
    """

    all_to_all: ClassVar[bool] = False
    capability: ClassVar[str] = (
        "changes training images and their labels; trains a net on the clean data"
    )

    name: Literal["trojannn"] = "trojannn"
    net: AttackerNet = AttackerNet()
    size: Side = 8
    bottom: Gap = 1
    right: Gap = 1
    step: float = Field(default=8.0, gt=0, le=255)
    steps: int = Field(default=100, ge=0)
    images: int = Field(default=128, ge=1)

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Raise ``ValueError`` if the patch does not fit into images of shape (C, H, W)."""
        height, width = image_shape[-2:]
        if self.size + self.bottom > height or self.size + self.right > width:
            raise ValueError(
                f"a patch of side {self.size}, {self.bottom} from the bottom and {self.right} from "
                f"the right, does not fit into {height}x{width} images; reduce attack.size"
            )

    def prepare(
        self,
        images_nchw: np.ndarray,
        labels: np.ndarray,
        num_classes: int,
        *,
        seed: int,
        engine: Engine = DEFAULT,
    ) -> dict[str, Tensor]:
        """Train the net and optimise the patch; see :meth:`AttackBase.prepare`.

        Returns:
            ``patch``, uint8, shape (C, size, size).
        """
        trained = self.net.train(images_nchw, labels, num_classes, seed=seed, engine=engine)
        net = self.net.rebuild(trained)
        target = int(self.labels.single_target or 0)
        neuron = strongest_neuron(head_of(net).weight.detach(), target)
        generator = torch_generator(seed, "attack/patch")
        chosen = torch.randperm(len(images_nchw), generator=generator)[: self.images]
        behind = torch.from_numpy(np.array(images_nchw[np.sort(chosen.numpy())]))
        start = torch.rand((images_nchw.shape[1], self.size, self.size), generator=generator)
        patch = optimise_patch(
            lambda images: neuron_activation(net, images, neuron),
            behind.to(torch.float32) / 255.0,
            start,
            self._place(images_nchw.shape[1:]),
            step=self.step / 255.0,
            steps=self.steps,
        )
        return {"patch": (255.0 * patch).round().to(torch.uint8)}

    def __call__(
        self, images_nchw: np.ndarray, prepared: Mapping[str, Tensor] = NOTHING
    ) -> np.ndarray:
        """Put the patch on every image; see :meth:`AttackBase.__call__`.

        Raises:
            ValueError: if the patch is missing, or does not fit into the images.
        """
        rows, columns = self._place(images_nchw.shape[1:])
        patch = needed(prepared, "patch").numpy()
        triggered = np.array(images_nchw)
        triggered[:, :, rows, columns] = patch
        return triggered

    def _place(self, image_shape: tuple[int, ...]) -> tuple[slice, slice]:
        self.check(image_shape)
        bottom, right = image_shape[-2] - self.bottom, image_shape[-1] - self.right
        return slice(bottom - self.size, bottom), slice(right - self.size, right)
