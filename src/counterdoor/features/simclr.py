"""SimCLR: two views of an image are to be alike, and unlike those of all others."""

from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from counterdoor.activations import Depth, representations
from counterdoor.augment import Augment
from counterdoor.component import Component, Config
from counterdoor.engine import DEFAULT, Engine
from counterdoor.features.learnt import EARLIER, KEY
from counterdoor.features.views import Views
from counterdoor.feed import Samples
from counterdoor.models import NormalisedNet, build_net
from counterdoor.recipe import CrossEntropy, Recipe
from counterdoor.seeding import seeded_torch
from counterdoor.training import fit

REMEDY = "choose another model, or a detector and a labeler that need no features"


class Contrast(Config):
    """The objective of SimCLR, in the form in which ``fit`` takes one.

    Attributes:
        temperature: what the cosine similarities are divided by.
        views: how an image may be seen.
    """

    temperature: float = Field(default=0.5, ge=1e-3, le=1000)
    views: Views = Views()

    def inputs(self, images_nchw: Tensor, generator: torch.Generator) -> Tensor:
        """Two views of every image: shape (2N, C, H, W), row i and row N + i of image i."""
        return torch.cat([self.views(images_nchw, generator) for _ in range(2)])

    def targets(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits whose cross-entropy is NT-Xent, and the row of each row's other view.

        Source: Chen et al. (2020), equation 1.

        Args:
            outputs: the net's, shape (2N, D).

        Returns:
            Logits (2N, 2N): the cosine similarities over the temperature, each row's with
            itself left out as minus infinity; and int64, shape (2N,).
        """
        unit = F.normalize(outputs, dim=1)
        logits = unit @ unit.T / self.temperature
        logits = logits.masked_fill(
            torch.eye(len(logits), dtype=torch.bool, device=logits.device), float("-inf")
        )
        rows = torch.arange(len(logits), device=logits.device)
        return logits, rows.roll(len(rows) // 2)


class SimCLR(Component):
    """SimCLR (Chen et al., ICML 2020) on the run's own net, its last layer replaced.

    Attributes:
        contrast: views and temperature.
        projection: dimension in which views are compared, behind two linear layers that
            are thrown away afterwards.
        layers: what of the trained net is kept: "last", what its head would get; or besides that
            what earlier layers give, "all" of them or the "late" half. In few epochs the earlier
            ones learn more of the classes than the last one, and tell more of triggers, too.
        recipe: the training; its augmentation, loss transform and label smoothing have no
            meaning here and keep their defaults.
    """

    again: ClassVar[None] = None  # the net is not kept, so there are none of other images

    name: Literal["simclr"] = "simclr"
    contrast: Contrast = Contrast()
    projection: int = Field(default=128, ge=2, le=2**16)
    layers: Depth = "last"
    recipe: Recipe = Recipe(epochs=1000, batch_size=512, learning_rate=0.4)

    @model_validator(mode="after")
    def _views_alone(self) -> "SimCLR":
        recipe = self.recipe
        if (recipe.augment, recipe.loss, recipe.label_smoothing) != (Augment(), CrossEntropy(), 0):
            raise ValueError(
                "features.recipe sets augment, loss or label_smoothing, which SimCLR does not use: "
                "leave them out, and set features.contrast.views instead"
            )
        return self

    def check(self, model: Component, images_nchw: np.ndarray) -> None:
        """Raise ``ValueError`` before any training unless the model's body fits.

        It has to have a head to take off, and to take views of the size asked for.
        """
        two = np.resize(images_nchw[:2], (2, *images_nchw.shape[1:]))
        net, head, width = self._untrained(model, two, seed=0)
        net.set_submodule(head, nn.Identity())
        with torch.no_grad(), seeded_torch(0, "check/net"):
            shape = tuple(net.eval()(torch.from_numpy(two).float() / 255.0).shape)
        if shape != (2, width):
            raise ValueError(
                f"model {model.name!r} gives {shape} for two images without its last linear layer, "
                f"not (2, {width}): that is not its head, so there are no features before it; "
                f"{REMEDY}"
            )
        size = self.contrast.views.size
        if size is None:
            return
        views = self.contrast.inputs(torch.from_numpy(two), torch.Generator().manual_seed(0))
        try:
            with torch.no_grad(), seeded_torch(0, "check/net"):
                net(views / 255.0)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"model {model.name!r} takes images of {two.shape[-2]} x {two.shape[-1]}, but no "
                f"views of size {size} ({error}); leave features.contrast.views.size out, or "
                "choose a model that takes any size"
            ) from error

    def __call__(
        self, images_nchw: np.ndarray, *, model: Component, seed: int, engine: Engine = DEFAULT
    ) -> dict[str, np.ndarray]:
        """Features of every image, from ``layers`` of the trained net in eval mode.

        The training takes one process, whatever the engine has.

        Args:
            images_nchw: uint8, shape (N, C, H, W), in [0, 255]; no label is looked at.
            model: the model component of the run.
            seed: the run's seed.
            engine: what to run on.

        Returns:
            ``features``, what the head would get: float32, shape (N, D). Besides that, unless
            ``layers`` is "last", ``earlier``: float32, shape (N, E), means over places of what the
            earlier layers give, each layer's to length 1.

        Raises:
            ValueError: if the model has no linear layer as its head, or the training
                diverges.
        """
        from sklearn.preprocessing import normalize

        n = len(images_nchw)
        net, head, width = self._untrained(model, images_nchw, seed)
        with seeded_torch(seed, "features/projection"):
            layers = nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self.projection)
            end = nn.Linear(width, 1)  # of which the inputs count
        net.set_submodule(head, nn.Sequential(*layers))
        samples = Samples(images_nchw, np.arange(n), np.zeros(n, dtype=np.int64))
        fitted = fit(
            *(net, samples, self.recipe),
            seed=seed,
            stream="features",
            objective=self.contrast,
            engine=engine.alone(),
        )
        net.load_state_dict(fitted.state)
        net.set_submodule(head, end)
        *others, last = representations(net, images_nchw, self.layers, engine)
        kept = {KEY: last}
        if others:
            kept[EARLIER] = np.hstack([normalize(part) for part in others])
        return kept

    def _untrained(
        self, model: Component, images_nchw: np.ndarray, seed: int
    ) -> tuple[NormalisedNet, str, int]:
        """The net as it begins, the name of its head, and how many numbers that gets.

        The head is the last linear layer that gives as many numbers as the net is asked for.
        """
        outputs, stream = self.projection, "features/init"
        net = build_net(model, images_nchw, outputs, seed=seed, stream=stream)
        other = build_net(model, images_nchw[:2], outputs + 1, seed=seed, stream=stream)
        layers, others = (
            {name: each for name, each in one.named_modules() if isinstance(each, nn.Linear)}
            for one in (net, other)
        )
        for name, layer in reversed(layers.items()):
            if (layer.out_features, others[name].out_features) == (outputs, outputs + 1):
                return net, name, layer.in_features
        raise ValueError(
            f"model {model.name!r} has no linear layer as its head, so there are no features "
            f"before it; {REMEDY}"
        )
