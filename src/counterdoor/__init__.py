"""counterdoor: train a classifier in which a planted backdoor no longer works."""

import os

__version__ = "0.1.0"


def _no_tracking(wish: str | None) -> str:
    """The value of ``DO_NOT_TRACK`` that says to everybody what the user's says; yes if unset.

    kedro-telemetry and kedro-viz take any text for yes, MLflow the word ``true`` alone.
    """
    denied = ("0", "false", "no", "off", "n", "f")
    wish = (wish or "").strip()
    return wish if wish.lower() in denied else "true"


os.environ["DO_NOT_TRACK"] = _no_tracking(os.environ.get("DO_NOT_TRACK"))
