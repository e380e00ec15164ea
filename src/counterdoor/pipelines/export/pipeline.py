"""Wiring of the stage *export*."""

from kedro.pipeline import Node, Pipeline

from counterdoor.pipelines.export.nodes import (
    ask_the_net,
    check_export,
    harden,
    judge,
    list_suspects,
    write_card,
    write_onnx,
)


def create_pipeline(**_: object) -> Pipeline:
    """The defended net → what is shipped: one file, ONNX, a model card."""
    return Pipeline(
        [
            Node(
                harden,
                inputs=[
                    "defended_net",
                    "dataset_info",
                    "test_images",
                    "test_ledger",
                    "params:ingest",
                    "params:model",
                    "params:detect",
                    "params:relabel",
                    "params:train",
                    "params:defence",
                    "params:export",
                    "params:seed",
                ],
                outputs="hardened",
                name="harden",
            ),
            Node(
                judge,
                inputs=[
                    "images",
                    "scored_ledger",
                    "dataset_info",
                    "params:detect",
                    "params:verdict",
                    "files",
                ],
                outputs={"verdict": "verdict"},
                name="judge",
            ),
            Node(
                list_suspects,
                inputs=["images", "relabeled_ledger", "files", "dataset_info"],
                outputs={"suspects": "suspects", "cleaned": "cleaned", "page": "suspects_page"},
                name="list_suspects",
            ),
            Node(
                ask_the_net,
                inputs=["images", "relabeled_ledger", "hardened", "params:seed"],
                outputs={"effect": "stamp_effect"},
                name="ask_the_net",
            ),
            Node(write_card, inputs="hardened", outputs="model_card", name="write_card"),
            Node(write_onnx, inputs="hardened", outputs="hardened_onnx", name="write_onnx"),
        ],
        tags="export",
    )


def create_check(**_: object) -> Pipeline:
    """The images and the plan → whether a net for them can be shipped, before any training."""
    return Pipeline(
        [
            Node(
                check_export,
                inputs=[
                    "images",
                    "dataset_info",
                    "plan_check",
                    "params:model",
                    "params:train",
                    "params:defence",
                    "params:stamp",
                    "params:export",
                ],
                outputs={"report": "export_check"},
                name="check_export",
            )
        ],
        tags="warmup",
    )
