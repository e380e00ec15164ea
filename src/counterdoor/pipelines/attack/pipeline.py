"""Wiring of the stage *attack*."""

from kedro.pipeline import Node, Pipeline

from counterdoor.pipelines.attack.nodes import attack, prepare_attack
from counterdoor.pipelines.timing import timed


def create_pipeline(**_: object) -> Pipeline:
    """Clean images → poisoned images, the defender's ledger, the oracle, triggered test set."""
    return Pipeline(
        [
            Node(
                timed(prepare_attack),
                inputs=[
                    "clean_images",
                    "clean_ledger",
                    "dataset_info",
                    "params:attack",
                    "params:seed",
                    "params:engine",
                    "cached_attack_preparation",
                ],
                outputs={"preparation": "attack_preparation", "timing": "prepare_attack_timing"},
                name="prepare_attack",
            ),
            Node(
                timed(attack),
                inputs=[
                    "clean_images",
                    "clean_ledger",
                    "test_images",
                    "dataset_info",
                    "params:attack",
                    "params:seed",
                    "attack_preparation",
                ],
                outputs={
                    "images": "images",
                    "ledger": "ledger",
                    "oracle": "oracle",
                    "triggered_test_images": "triggered_test_images",
                    "timing": "attack_timing",
                },
                name="attack",
            ),
        ],
        tags="attack",
    )
