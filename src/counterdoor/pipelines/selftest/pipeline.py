"""Wiring of *selftest*: a canary in a copy of the data, looked for as ``defend`` looks."""

from kedro.pipeline import Node, Pipeline

from counterdoor.pipelines import detect, ingest, warmup
from counterdoor.pipelines.selftest.nodes import plant, tell


def create_pipeline(**_: object) -> Pipeline:
    """Ingest → plant a canary → warmup → detect → was it found? The data itself stays as it is.

    All nodes but those of ingest, and their data sets, are of the namespace ``canary``.
    """
    own = Pipeline(
        [
            Node(
                plant,
                inputs=[
                    "clean_images",
                    "clean_ledger",
                    "dataset_info",
                    "params:canary",
                    "params:seed",
                    "params:engine",
                ],
                outputs={"images": "images", "ledger": "ledger", "oracle": "oracle"},
                name="plant",
            ),
            Node(
                tell,
                inputs=[
                    "scored_ledger",
                    "oracle",
                    "dataset_info",
                    "params:canary",
                    "params:detect",
                    "params:verdict",
                ],
                outputs={"report": "self_test"},
                name="tell",
            ),
        ]
    )
    whole = own + warmup.create_pipeline() + detect.create_pipeline()
    return ingest.create_pipeline() + Pipeline(
        whole,
        namespace="canary",
        inputs={"clean_images", "clean_ledger", "dataset_info"},
        outputs={"self_test"},
        parameters={name for name in whole.inputs() if name.startswith("params:")},
        tags="selftest",
    )
