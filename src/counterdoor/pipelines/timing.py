"""How long a node took, as one more of its outputs."""

import functools
import time
from collections.abc import Callable
from typing import Any

from counterdoor.checkpoint import seconds_taken_over


def timed(function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Wrap a node that returns a dict: it gains ``timing``, ``{"seconds": float}``.

    A training whose result another run had made counts with the seconds that it took there.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> dict[str, Any]:
        started = time.perf_counter()
        with seconds_taken_over() as elsewhere:
            outputs = function(*args, **kwargs)
        seconds = time.perf_counter() - started + sum(elsewhere)
        return {**outputs, "timing": {"seconds": seconds}}

    return wrapper
