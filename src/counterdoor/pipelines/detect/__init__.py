"""Stage *detect*."""

from counterdoor.pipelines.detect.pipeline import create_pipeline

__all__ = ["create_pipeline"]
