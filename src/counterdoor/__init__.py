"""counterdoor: train a classifier in which a planted backdoor no longer works."""

import os

__version__ = "0.1.0"

# kedro-viz and MLflow send usage data unless told not to.
os.environ.setdefault("DO_NOT_TRACK", "true")
