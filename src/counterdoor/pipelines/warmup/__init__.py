"""Stage *warmup*."""

from counterdoor.pipelines.warmup.pipeline import create_pipeline

__all__ = ["create_pipeline"]
