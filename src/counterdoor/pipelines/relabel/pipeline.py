"""Wiring of the stage *relabel*."""

from kedro.pipeline import Node, Pipeline

from counterdoor.pipelines.relabel.nodes import relabel
from counterdoor.pipelines.timing import timed


def create_pipeline(**_: object) -> Pipeline:
    """Suspects → pseudo-labels, and the plan of the defended training."""
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
