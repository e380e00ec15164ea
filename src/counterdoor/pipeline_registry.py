"""The pipelines that ``kedro run --pipelines`` knows."""

from kedro.framework.project import find_pipelines
from kedro.pipeline import Pipeline


def register_pipelines() -> dict[str, Pipeline]:
    """Every stage under its own name, ``__default__``, ``ablation``, ``defend`` and ``selftest``.

    ``__default__``, the experiment, is all stages but ``export``; ``ablation`` is the same, but
    shows the truth to detector and labeler; ``defend`` is for data of unknown origin, without
    attack and evaluation; ``selftest`` looks for a backdoor of our own in a copy of it.
    """
    pipelines = find_pipelines(raise_errors=True)
    apart = ("ablation", "defend", "export", "selftest")
    stages = [pipeline for name, pipeline in pipelines.items() if name not in apart]
    return pipelines | {"__default__": sum(stages, Pipeline([]))}
