"""Wiring of the stage *export*."""

from kedro.pipeline import Node, Pipeline

from counterdoor.pipelines.export.nodes import (
    harden,
    judge,
    list_suspects,
    show_suspects,
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
                    "relabeled_ledger",
                    "dataset_info",
                    "hardened",
                    "params:detect",
                    "params:verdict",
                    "params:seed",
                ],
                outputs={"verdict": "verdict"},
                name="judge",
            ),
            Node(
                list_suspects,
                inputs=["relabeled_ledger", "files", "dataset_info"],
                outputs={"suspects": "suspects", "cleaned": "cleaned"},
                name="list_suspects",
            ),
            Node(
                show_suspects,
                inputs=["images", "relabeled_ledger", "suspects", "dataset_info"],
                outputs="suspects_page",
                name="show_suspects",
            ),
            Node(write_card, inputs="hardened", outputs="model_card", name="write_card"),
            Node(write_onnx, inputs="hardened", outputs="hardened_onnx", name="write_onnx"),
        ],
        tags="export",
    )
