"""Stage *train*."""

from counterdoor.pipelines.train.pipeline import create_pipeline

__all__ = ["create_pipeline"]
