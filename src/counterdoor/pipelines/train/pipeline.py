"""Wiring of the stage *train*."""

from kedro.pipeline import Node, Pipeline

from counterdoor.pipelines.timing import timed
from counterdoor.pipelines.train.nodes import train_defended, train_undefended


def create_pipeline(**_: object) -> Pipeline:
    """The ledger as it came → the undefended twin; that, ledger and plan → the defended net."""
    return Pipeline(
        [
            Node(
                timed(train_undefended),
                inputs=[
                    "images",
                    "ledger",
                    "dataset_info",
                    "plan_check",
                    "params:train",
                    "params:model",
                    "params:seed",
                    "params:engine",
                ],
                outputs={
                    "net": "undefended_net",
                    "history": "undefended_history",
                    "timing": "undefended_timing",
                },
                name="train_undefended",
            ),
            Node(
                timed(train_defended),
                inputs=[
                    "images",
                    "relabeled_ledger",
                    "plan",
                    "dataset_info",
                    "undefended_net",
                    "undefended_history",
                    "params:train",
                    "params:model",
                    "params:stamp",
                    "params:defence",
                    "params:seed",
                    "params:engine",
                ],
                outputs={
                    "net": "defended_net",
                    "history": "defended_history",
                    "timing": "defended_timing",
                },
                name="train_defended",
            ),
        ],
        tags="train",
    )
