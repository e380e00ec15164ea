"""Wiring of the stage *detect*."""

from kedro.pipeline import Node, Pipeline

from counterdoor.pipelines.detect.nodes import detect
from counterdoor.pipelines.timing import timed


def create_pipeline(*, truth: bool = False, **_: object) -> Pipeline:
    """Briefly trained nets → a score for all, and suspects; ``truth`` in an ablation only."""
    return Pipeline(
        [
            Node(
                timed(detect),
                inputs=[
                    "images",
                    "ledger",
                    "dataset_info",
                    "warmup_net",
                    "plain_net",
                    "params:detect",
                    "params:seed",
                    "params:engine",
                    "params:defence",
                    "features",
                    *(["oracle"] if truth else []),
                ],
                outputs={"ledger": "scored_ledger", "timing": "detect_timing"},
                name="detect",
            )
        ],
        tags="detect",
    )
