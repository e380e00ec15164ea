"""Stage *relabel*."""

from counterdoor.pipelines.relabel.pipeline import create_pipeline

__all__ = ["create_pipeline"]
