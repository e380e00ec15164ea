"""Wiring of the stage *warmup*."""

from kedro.pipeline import Node, Pipeline

from counterdoor.pipelines.timing import timed
from counterdoor.pipelines.warmup.nodes import check_plan, train_plain, warm_up


def create_pipeline(**_: object) -> Pipeline:
    """Untrusted images → the briefly trained nets that a detector looks at."""
    return Pipeline(
        [
            Node(
                check_plan,
                inputs=[
                    "images",
                    "ledger",
                    "dataset_info",
                    "params:detect",
                    "params:relabel",
                    "params:train",
                    "params:stamp",
                    "params:model",
                    "params:warmup",
                    "params:defence",
                ],
                outputs={"report": "plan_check"},
                name="check_plan",
            ),
            Node(
                timed(warm_up),
                inputs=[
                    "images",
                    "ledger",
                    "dataset_info",
                    "plan_check",
                    "params:warmup",
                    "params:model",
                    "params:seed",
                    "params:engine",
                    "params:defence",
                ],
                outputs={
                    "net": "warmup_net",
                    "history": "warmup_history",
                    "timing": "warmup_timing",
                },
                name="warm_up",
            ),
            Node(
                timed(train_plain),
                inputs=[
                    "images",
                    "ledger",
                    "dataset_info",
                    "plan_check",
                    "params:warmup",
                    "params:model",
                    "params:seed",
                    "params:engine",
                    "params:defence",
                ],
                outputs={
                    "net": "plain_net",
                    "history": "plain_history",
                    "timing": "plain_timing",
                },
                name="train_plain",
            ),
        ],
        tags="warmup",
    )
