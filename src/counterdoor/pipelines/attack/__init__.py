"""Stage *attack*."""

from counterdoor.pipelines.attack.pipeline import create_pipeline

__all__ = ["create_pipeline"]
