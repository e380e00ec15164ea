"""Wiring of the stage *relabel*."""

from kedro.pipeline import Node, Pipeline

from counterdoor.pipelines.relabel.nodes import relabel
from counterdoor.pipelines.timing import timed


def create_pipeline(*, truth: bool = False, **_: object) -> Pipeline:
    """Suspects → pseudo-labels, and the plan of the training; ``truth`` in an ablation only."""
    return Pipeline(
        [
            Node(
                timed(relabel),
                inputs=[
                    "images",
                    "scored_ledger",
                    "dataset_info",
                    "params:relabel",
                    "params:model",
                    "params:stamp",
                    "params:seed",
                    "params:engine",
                    "params:defence",
                    "features",
                    "params:features",
                    *(["oracle"] if truth else []),
                ],
                outputs={
                    "ledger": "relabeled_ledger",
                    "plan": "plan",
                    "timing": "relabel_timing",
                },
                name="relabel",
            )
        ],
        tags="relabel",
    )
