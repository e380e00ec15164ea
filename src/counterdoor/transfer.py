"""Small tensors on their way to the device."""

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, without waiting for what the device is doing.

    A copy from ordinary memory to a GPU waits for all work that was queued before it, so that
    the GPU stands idle until the next kernels have been asked for; one from pinned memory
    takes its place in the queue.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
