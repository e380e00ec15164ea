"""Wiring of *defend*: the stages on data of unknown origin, without attack and oracle."""

from typing import Any

from kedro.pipeline import Pipeline

from counterdoor.pipelines import detect, export, ingest, relabel, train, warmup
from counterdoor.pipelines.export.pipeline import create_check


def create_pipeline(**_: object) -> Pipeline:
    """Ingest → warmup → detect → relabel → train → export, the images taken as they come.

    That the net can be exported is found out before the first training.
    """
    stages = (warmup, detect, relabel, train, export)
    options: dict[str, Any] = {"twin": False, "passed": "export_check"}
    defence = sum((stage.create_pipeline(**options) for stage in stages), create_check())
    as_they_come = {"images": "clean_images", "ledger": "clean_ledger"}
    return ingest.create_pipeline() + Pipeline(defence, inputs=as_they_come)
