"""Wiring of *defend*: the stages on data of unknown origin, without attack and oracle."""

from kedro.pipeline import Node, Pipeline

from counterdoor.pipelines import detect, export, ingest, relabel, train, warmup
from counterdoor.pipelines.timing import timed
from counterdoor.pipelines.train.nodes import train_base


def create_pipeline(**_: object) -> Pipeline:
    """Ingest → warmup → detect → relabel → train → export, the images taken as they come."""
    base = Node(
        timed(train_base),
        inputs=[
            "images",
            "ledger",
            "dataset_info",
            "plan_check",
            "params:train",
            "params:model",
            "params:defence",
            "params:seed",
            "params:engine",
        ],
        outputs={"net": "base_net", "history": "base_history", "timing": "base_timing"},
        name="train_base",
        tags="train",
    )
    defended = Pipeline(
        train.create_pipeline().only_nodes("train_defended"),
        inputs={"undefended_net": "base_net", "undefended_history": "base_history"},
    )
    stages = (warmup, detect, relabel)
    defence = sum((stage.create_pipeline() for stage in stages), Pipeline([base, defended]))
    as_they_come = {"images": "clean_images", "ledger": "clean_ledger"}
    untouched = Pipeline(defence + export.create_pipeline(), inputs=as_they_come)
    return ingest.create_pipeline() + untouched
