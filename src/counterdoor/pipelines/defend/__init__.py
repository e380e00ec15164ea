"""The pipeline *defend*."""

from counterdoor.pipelines.defend.pipeline import create_pipeline

__all__ = ["create_pipeline"]
