"""The pipelines that ``kedro run --pipelines`` knows."""

from kedro.framework.project import find_pipelines
from kedro.pipeline import Pipeline


def register_pipelines() -> dict[str, Pipeline]:
    """Every stage under its own name; ``__default__``, all of them; and ``ablation``.

    ``__default__`` is the experiment; ``ablation`` is the same, but shows the truth to
    detector and labeler.
    """
    pipelines = find_pipelines(raise_errors=True)
    stages = [pipeline for name, pipeline in pipelines.items() if name != "ablation"]
    return pipelines | {"__default__": sum(stages, Pipeline([]))}
