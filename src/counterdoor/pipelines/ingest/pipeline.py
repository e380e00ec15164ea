"""Wiring of the stage *ingest*."""

from kedro.pipeline import Node, Pipeline

from counterdoor.pipelines.ingest.nodes import ingest
from counterdoor.pipelines.timing import timed


def create_pipeline(**_: object) -> Pipeline:
    """Source → images, ledgers, rejected files, data set information."""
    return Pipeline(
        [
            Node(
                timed(ingest),
                inputs=["params:ingest", "params:seed"],
                outputs={
                    "images": "clean_images",
                    "ledger": "clean_ledger",
                    "test_images": "test_images",
                    "test_ledger": "test_ledger",
                    "files": "files",
                    "rejected": "rejected_files",
                    "info": "dataset_info",
                    "timing": "ingest_timing",
                },
                name="ingest",
            )
        ],
        tags="ingest",
    )
