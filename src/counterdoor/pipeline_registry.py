"""The pipelines that ``kedro run --pipelines`` knows."""

from kedro.framework.project import find_pipelines
from kedro.pipeline import Pipeline


def register_pipelines() -> dict[str, Pipeline]:
    """Every stage under its own name; ``__default__``, the experiment; and ``ablation``.

    ``__default__`` is all stages but ``export``; ``ablation`` is the same, but shows the truth
    to detector and labeler.
    """
    pipelines = find_pipelines(raise_errors=True)
    apart = ("ablation", "export")
    stages = [pipeline for name, pipeline in pipelines.items() if name not in apart]
    return pipelines | {"__default__": sum(stages, Pipeline([]))}
