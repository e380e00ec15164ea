"""Dynamic, the input-aware attack: every image gets a trigger of its own, made by a generator."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from counterdoor.attacks.attacker_net import AttackerNet, needed
from counterdoor.attacks.base import NOTHING, AttackBase
from counterdoor.attacks.pixels import by_chunks
from counterdoor.attacks.trigger_generator import (
    TriggerGenerator,
    density_loss,
    diversity_loss,
    with_trigger,
)
from counterdoor.augment import Augment
from counterdoor.checkpoint import under
from counterdoor.component import Rate
from counterdoor.engine import DEFAULT, Engine
from counterdoor.epochs import Descent, Epochs, Step
from counterdoor.feed import Samples
from counterdoor.models import NormalisedNet, build_net
from counterdoor.seeding import seeded_torch, torch_generator

SHARPNESS = 10.0
"""Of the mask generator: a mask is to be nearly 0 or 1 everywhere."""

ROWS = 32
"""Images that the trained generators see at a time, always so many: sums are then taken in one
order, and an image's trigger is, to the bit, its own whichever others are beside it."""

BETAS = (0.5, 0.9)
"""Of the generators' Adam, as in the authors' code."""


class Dynamic(AttackBase):
    """Input-aware trigger: a pattern seen through a mask, both generated from the image itself.

    Source: Nguyen & Tran, "Input-Aware Dynamic Backdoor Attack" (NeurIPS 2020). Cross
    triggers, made from another image and kept with the true label, teach that only an
    image's own trigger counts. In the paper the attacker controls the training: the net
    that was trained together with the generators is the one that is handed out. This is
    the data-level form: that net is thrown away, the frozen generators poison the training
    set, covers carry the cross triggers, and the victim trains on it as usual. The victim moves
    and mirrors images that carry their triggers already, so the attacker's net sees them so, too.

    Attributes:
        net: the classifier that the generators are trained with; epochs, batches and
            augmentation of its recipe are those of the pattern generator as well.
        victim: how the attacker expects images to be augmented once they are poisoned.
        width: channels of the generators' first layer, a multiple of 4.
        mask_epochs: epochs of the mask generator, which is trained first and then frozen;
            25 in the authors' code.
        learning_rate: of both generators' Adam.
        mask_density: level up to which a mask's pixel costs nothing, in (0, 1).
        lambda_norm: weight of the masks' density loss.
        lambda_div: weight of the diversity loss, of masks and of patterns.
        p_attack: share of each batch with its own trigger and the target label.
        p_cross: share of each batch with another image's trigger and its own label.
    """

    all_to_all: ClassVar[bool] = False
    capability: ClassVar[str] = (
        "changes training images and their labels and trains nets on the clean data; the paper's "
        "attacker also controls the training"
    )

    name: Literal["dynamic"] = "dynamic"
    cover_ratio: float = Field(default=0.1, ge=0, lt=1)
    net: AttackerNet = AttackerNet(recipe=AttackerNet().recipe.model_copy(update={"epochs": 24}))
    victim: Augment = Augment(crop_padding=2, crop_fill="reflect", flip=True)
    width: int = Field(default=16, ge=4, le=1024, multiple_of=4)
    mask_epochs: int = Field(default=25, ge=1)
    learning_rate: Rate = 2e-3
    mask_density: float = Field(default=0.032, gt=0, lt=1)
    lambda_norm: float = Field(default=100.0, ge=0)
    lambda_div: float = Field(default=1.0, ge=0)
    p_attack: float = Field(default=0.1, gt=0, lt=0.5)
    p_cross: float = Field(default=0.1, gt=0, lt=0.5)

    def prepare(
        self,
        images_nchw: np.ndarray,
        labels: np.ndarray,
        num_classes: int,
        *,
        seed: int,
        engine: Engine = DEFAULT,
    ) -> dict[str, Tensor]:
        """Train the generators, in fp32 and one process; see :meth:`AttackBase.prepare`.

        Returns:
            ``mask/<name>`` and ``pattern/<name>``, the generators' tensors.

        Raises:
            ValueError: if the training diverges.
        """
        samples = Samples(images_nchw, np.arange(len(images_nchw)), labels)
        net = build_net(self.net.model, images_nchw, num_classes, seed=seed, stream="attack/init")
        mask, pattern = self._generators(images_nchw.shape[1], seed)
        for module in (net, mask, pattern):
            module.to(engine.device)
            module.to(memory_format=torch.channels_last)
        recipe = self.net.recipe
        training = Epochs(samples, recipe, seed, engine)
        with seeded_torch(seed, "attack/net", engine.device):  # dropout draws from it
            training("attack/mask", self.mask_epochs, self._mask_step(mask, net.std))
            mask.requires_grad_(False)
            views = torch_generator(seed, "attack/views")
            training("attack/pattern", recipe.epochs, self._pattern_step(pattern, mask, net, views))
        return {
            f"{name}/{key}": tensor.detach().cpu().contiguous()
            for name, generator in (("mask", mask), ("pattern", pattern))
            for key, tensor in generator.state_dict().items()
        }

    def __call__(
        self, images_nchw: np.ndarray, prepared: Mapping[str, Tensor] = NOTHING
    ) -> np.ndarray:
        """Give every image its own trigger; see :meth:`AttackBase.__call__`.

        Raises:
            ValueError: if the generators are missing, or made for other channels.
        """
        return self._triggered(images_nchw, images_nchw, prepared)

    def cover_images(
        self,
        images_nchw: np.ndarray,
        generator: np.random.Generator,
        prepared: Mapping[str, Tensor] = NOTHING,
    ) -> np.ndarray:
        """Give every image the trigger of another one of them, drawn at random.

        See :meth:`AttackBase.cover_images`. An image that is alone gets that of its mirror
        image.
        """
        order = generator.permutation(len(images_nchw))
        donors = np.empty_like(images_nchw)
        donors[order] = images_nchw[np.roll(order, 1)]
        if len(images_nchw) == 1:
            donors = images_nchw[..., ::-1]
        return self._triggered(images_nchw, donors, prepared)

    def _triggered(
        self, images_nchw: np.ndarray, donors_nchw: np.ndarray, prepared: Mapping[str, Tensor]
    ) -> np.ndarray:
        """Each image with the trigger that is generated from its donor."""
        channels = needed(prepared, "mask/encoder.0.weight").shape[1]
        if images_nchw.shape[1] != channels:
            raise ValueError(
                f"the generators were made for {channels} channels, but the images have "
                f"{images_nchw.shape[1]}; prepare the attack on images like these"
            )
        mask, pattern = self._generators(channels, seed=0)
        for generator, name in ((mask, "mask/"), (pattern, "pattern/")):
            generator.load_state_dict(under(name, prepared))
            generator.to(memory_format=torch.channels_last)

        def change(images: np.ndarray, donors: np.ndarray) -> np.ndarray:
            missing = (0, -len(images) % ROWS), (0, 0), (0, 0), (0, 0)
            batches = -1, ROWS, *images.shape[1:]
            x, other = (
                torch.from_numpy(np.pad(each, missing) / np.float32(255)).reshape(batches)
                for each in (images, donors)
            )
            with torch.inference_mode():
                parts = [
                    with_trigger(a, mask(b), pattern(b)) for a, b in zip(x, other, strict=True)
                ]
            return 255.0 * torch.cat(parts)[: len(images)].numpy()

        return by_chunks(change, images_nchw, donors_nchw)

    def _generators(self, channels: int, seed: int) -> tuple[TriggerGenerator, TriggerGenerator]:
        """The mask's and the pattern's generator, untrained."""
        with seeded_torch(seed, "attack/generators"):
            mask = TriggerGenerator(channels, 1, self.width, SHARPNESS)
            return mask, TriggerGenerator(channels, channels, self.width)

    def _mask_step(self, mask: TriggerGenerator, std: Tensor) -> Step:
        """Sparse masks that differ: lambda_norm * density loss + lambda_div * diversity loss.

        Images count as far apart as they are for a net, in standard deviations of the data, as in
        the authors' code. Of their levels in [0, 1] masks would have less than half as many pixels.
        """
        adam = torch.optim.Adam(mask.parameters(), self.learning_rate, BETAS)

        def step(images: Tensor, _labels: Tensor, _epoch: float) -> dict[str, Tensor]:
            maps = mask(images)
            density = density_loss(maps, self.mask_density)
            diversity = diversity_loss(images / std[:, None, None], maps)
            loss = self.lambda_norm * density + self.lambda_div * diversity
            adam.zero_grad()
            torch.autograd.backward(loss)
            adam.step()
            return {"loss": loss.detach(), "mask_level": maps.detach().mean()}

        return step

    def _pattern_step(
        self,
        pattern: TriggerGenerator,
        mask: TriggerGenerator,
        net: NormalisedNet,
        views: torch.Generator,
    ) -> Step:
        """Cross-entropy on attacked, cross and clean images + lambda_div * diversity loss."""
        smoothing = self.net.recipe.label_smoothing
        descend = Descent(net, self.net.recipe)
        adam = torch.optim.Adam(pattern.parameters(), self.learning_rate, BETAS)

        def step(images: Tensor, labels: Tensor, epoch: float) -> dict[str, Tensor]:
            attacked, donors = self._donors(images)
            changed = len(donors)
            patterns = pattern(donors)
            triggered = with_trigger(images[:changed], mask(donors), patterns)
            wanted = labels.clone()
            wanted[:attacked] = self.labels.single_target or 0
            logits = net(self.victim(torch.cat([triggered, images[changed:]]), views))
            entropy = F.cross_entropy(logits, wanted, label_smoothing=smoothing)
            loss = entropy + self.lambda_div * diversity_loss(donors, patterns)
            adam.zero_grad()
            descend(loss, epoch)
            adam.step()
            right = (logits.detach().argmax(1) == wanted).float()
            return {
                "loss": entropy.detach(),
                "accuracy": right[attacked:].mean(),
                "attack_success": right[:attacked].mean(),
            }

        return step

    def _donors(self, images: Tensor) -> tuple[int, Tensor]:
        """How many images of a batch are attacked, and the donors of these and the crossed.

        The first images are attacked and are their own donors; the next are crossed, each
        with the trigger of the image after it.
        """
        n = len(images)
        attacked, crossed = (max(1, round(share * n)) for share in (self.p_attack, self.p_cross))
        others = images.roll(-1, 0)[attacked : attacked + crossed]
        return attacked, torch.cat([images[:attacked], others])
