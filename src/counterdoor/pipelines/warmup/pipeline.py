"""Wiring of the stage *warmup*."""

from kedro.pipeline import Node, Pipeline

from counterdoor.pipelines.timing import timed
from counterdoor.pipelines.warmup.nodes import check_plan, learn_features, train_plain, warm_up


def create_pipeline(passed: str = "plan_check", **_: object) -> Pipeline:
    """Untrusted images → the nets and features that a detector or labeler looks at.

    Args:
        passed: the report that the trainings wait for.
    """
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
                    "params:features",
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
                    passed,
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
                    passed,
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
            Node(
                timed(learn_features),
                inputs=[
                    "images",
                    passed,
                    "params:features",
                    "params:model",
                    "params:detect",
                    "params:relabel",
                    "params:seed",
                    "params:engine",
                    "cached_features",
                    "params:defence",
                ],
                outputs={"features": "features", "timing": "features_timing"},
                name="learn_features",
            ),
        ],
        tags="warmup",
    )
