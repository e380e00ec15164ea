"""Muon: convolutions step along orthogonalised momentum, all else by SGD."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that Jordan chose: not exact, but singular values near 1 after few steps."""

STEPS = 3
"""Newton-Schulz steps, as in airbench."""


def orthogonalised(matrix: Tensor) -> Tensor:
    """The matrix with its singular values brought near to 1 (about 0.5 to 1.3).

    Args:
        matrix: float, shape (m, n); its singular vectors stay.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024).
    """
    a, b, c = COEFFICIENTS
    tall = matrix.size(0) > matrix.size(1)
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(STEPS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    orthogonal: Tensor = x.T if tall else x
    return orthogonal


class Muon(torch.optim.Optimizer):
    """One optimiser with two rules, so that it is scheduled and saved as one.

    Before its step every filter bank is scaled to a Frobenius norm of sqrt(outputs), in place of
    weight decay, as airbench does: batch norm behind it makes the scale meaningless.

    Source: as :func:`orthogonalised`, and airbench94_muon (Jordan, 2024).

    Args:
        convolutions: weights of four dimensions, each followed by batch norm.
        others: all other parameters.
        learning_rate: of Muon.
        momentum: of Muon, in Nesterov's form.
        sgd_options: ``lr``, ``momentum``, ``weight_decay`` and ``nesterov`` of SGD.
        dtype: of the matrix products.
    """

    def __init__(
        self,
        convolutions: Iterable[Tensor],
        others: Iterable[Tensor],
        *,
        learning_rate: float,
        momentum: float,
        sgd_options: dict[str, Any],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        groups = [
            {"params": list(convolutions), "lr": learning_rate, "momentum": momentum},
            {"params": list(others), **sgd_options},
        ]
        super().__init__([group for group in groups if group["params"]], {})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both rules; gives back what ``closure`` does, which is called before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moved = [each for each in group["params"] if each.grad is not None]
            if "weight_decay" in group:
                self._sgd(moved, group)
            else:
                for weight in moved:
                    self._muon(weight, group)
        return loss

    def _muon(self, weight: Tensor, group: dict[str, Any]) -> None:
        gradient = weight.grad
        assert gradient is not None
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        direction = gradient.add(buffer, alpha=group["momentum"]).flatten(1).to(self._dtype)
        step = orthogonalised(direction).reshape(weight.shape).to(weight.dtype)
        weight.mul_(len(weight) ** 0.5 / weight.norm()).sub_(step, alpha=group["lr"])

    def _sgd(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        buffers = [self.state[each].get("momentum_buffer") for each in weights]
        sgd(
            weights,
            [each.grad for each in weights if each.grad is not None],
            buffers,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=group["nesterov"],
            maximize=False,
        )
        for weight, buffer in zip(weights, buffers, strict=True):
            self.state[weight]["momentum_buffer"] = buffer
