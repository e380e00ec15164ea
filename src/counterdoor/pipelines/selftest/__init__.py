"""Stage *selftest*."""

from counterdoor.pipelines.selftest.pipeline import create_pipeline

__all__ = ["create_pipeline"]
