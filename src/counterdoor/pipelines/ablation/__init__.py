"""The experiment with the truth shown to detector and labeler."""

from counterdoor.pipelines.ablation.pipeline import create_pipeline

__all__ = ["create_pipeline"]
