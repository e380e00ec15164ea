"""Stage *evaluate*."""

from counterdoor.pipelines.evaluate.pipeline import create_pipeline

__all__ = ["create_pipeline"]
