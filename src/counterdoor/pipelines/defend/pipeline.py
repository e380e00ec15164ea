"""Wiring of *defend*: the stages on data of unknown origin, without attack and oracle."""

from kedro.pipeline import Pipeline

from counterdoor.pipelines import detect, export, ingest, relabel, train, warmup


def create_pipeline(**_: object) -> Pipeline:
    """Ingest → warmup → detect → relabel → train → export, the images taken as they come."""
    stages = (warmup, detect, relabel, train, export)
    defence = sum((stage.create_pipeline(twin=False) for stage in stages), Pipeline([]))
    as_they_come = {"images": "clean_images", "ledger": "clean_ledger"}
    return ingest.create_pipeline() + Pipeline(defence, inputs=as_they_come)
