"""Kedro's settings of the project."""

import warnings

from counterdoor.config import VariantConfigLoader
from counterdoor.hooks import KNOWN, CheckpointHooks, PathHooks, PreflightHooks, ProgressHooks
from counterdoor.origins import OriginHooks
from counterdoor.tracking import TrackingHooks

# Kedro still calls a function by a name that OmegaConf 2.4 gave up.
warnings.filterwarnings("ignore", message=r"register_new_resolver\(\) is deprecated")

# Of those that want to be first the last is: damage is told before what it seems to mean.
HOOKS = (
    OriginHooks(),
    PreflightHooks(),
    TrackingHooks(),
    ProgressHooks(),
    PathHooks(),
    CheckpointHooks(),
    KNOWN,
)
CONFIG_LOADER_CLASS = VariantConfigLoader
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "merge_strategy": {"parameters": "soft", "globals": "soft"},
}
