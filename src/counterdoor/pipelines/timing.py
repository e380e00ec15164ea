"""How long a node took, as one more of its outputs."""

import functools
import time
from collections.abc import Callable
from typing import Any


def timed(function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Wrap a node that returns a dict: it gains ``timing``, ``{"seconds": float}``."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> dict[str, Any]:
        started = time.perf_counter()
        outputs = function(*args, **kwargs)
        return {**outputs, "timing": {"seconds": time.perf_counter() - started}}

    return wrapper
