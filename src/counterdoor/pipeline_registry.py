"""The pipelines that ``kedro run --pipelines`` knows."""

from kedro.framework.project import find_pipelines
from kedro.pipeline import Pipeline

from counterdoor.pipelines import detect, relabel


def register_pipelines() -> dict[str, Pipeline]:
    """Every stage under its own name; ``__default__``, all of them; and ``ablation``.

    ``__default__`` is the experiment. ``ablation`` is the same, except that the detector
    and the labeler are given the truth, so that either can be replaced by its ideal.
    """
    stages = find_pipelines(raise_errors=True)
    told = {
        "detect": detect.create_pipeline(truth=True),
        "relabel": relabel.create_pipeline(truth=True),
    }
    return {
        **stages,
        "__default__": sum(stages.values(), Pipeline([])),
        "ablation": sum((stages | told).values(), Pipeline([])),
    }
