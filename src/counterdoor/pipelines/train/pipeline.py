"""Wiring of the stage *train*."""

from kedro.pipeline import Node, Pipeline

from counterdoor.pipelines.timing import timed
from counterdoor.pipelines.train.nodes import train_base, train_defended, train_undefended


def create_pipeline(*, twin: bool = True, passed: str = "plan_check", **_: object) -> Pipeline:
    """The ledger as it came → the undefended twin; that, ledger and plan → the defended net.

    Without ``twin``, the first net is trained for a defence that starts from it only; it waits for
    the report ``passed``.
    """
    first, name = (train_undefended, "undefended") if twin else (train_base, "base")
    return Pipeline(
        [
            Node(
                timed(first),
                inputs=[
                    "images",
                    "ledger",
                    "dataset_info",
                    passed,
                    "params:train",
                    "params:model",
                    *(() if twin else ("params:defence",)),
                    "params:seed",
                    "params:engine",
                ],
                outputs={
                    "net": f"{name}_net",
                    "history": f"{name}_history",
                    "timing": f"{name}_timing",
                },
                name=f"train_{name}",
            ),
            Node(
                timed(train_defended),
                inputs=[
                    "images",
                    "relabeled_ledger",
                    "plan",
                    "dataset_info",
                    f"{name}_net",
                    f"{name}_history",
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
