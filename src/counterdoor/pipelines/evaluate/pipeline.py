"""Wiring of the stage *evaluate*."""

from kedro.pipeline import Node, Pipeline

from counterdoor.pipelines.evaluate import nodes
from counterdoor.pipelines.timing import timed

TIMINGS = {
    stage: f"{stage}_timing"
    for stage in (
        "ingest",
        "prepare_attack",
        "attack",
        "warmup",
        "plain",
        "features",
        "detect",
        "relabel",
        "undefended",
        "defended",
        "predict",
    )
}

FIGURES = (
    "outcome_figure",
    "samples_figure",
    "suspects_figure",
    "scores_figure",
    "curves_figure",
    "confusion_figure",
    "classes_figure",
)


def create_pipeline(**_: object) -> Pipeline:
    """Nets, ledger and oracle → predictions, metrics, figures, report."""
    return Pipeline(
        [
            Node(
                timed(nodes.predict),
                inputs=[
                    "test_images",
                    "triggered_test_images",
                    "test_ledger",
                    "defended_net",
                    "undefended_net",
                    "params:stamp",
                    "params:engine",
                ],
                outputs={"predictions": "predictions", "timing": "predict_timing"},
                name="predict",
            ),
            Node(
                nodes.measure,
                inputs=[
                    "predictions",
                    "relabeled_ledger",
                    "oracle",
                    "dataset_info",
                    "defended_net",
                    "params:attack",
                ],
                outputs="metrics",
                name="measure",
            ),
            Node(nodes.gather_seconds, inputs=TIMINGS, outputs="seconds", name="gather_seconds"),
            Node(nodes.draw_outcome, "metrics", "outcome_figure", name="draw_outcome"),
            Node(
                nodes.draw_samples,
                inputs=[
                    "test_images",
                    "triggered_test_images",
                    "test_ledger",
                    "dataset_info",
                    "defended_net",
                    "params:stamp",
                ],
                outputs="samples_figure",
                name="draw_samples",
            ),
            Node(
                nodes.draw_suspects,
                inputs=["images", "relabeled_ledger", "oracle", "dataset_info"],
                outputs="suspects_figure",
                name="draw_suspects",
            ),
            Node(
                nodes.draw_scores,
                inputs=["relabeled_ledger", "oracle"],
                outputs="scores_figure",
                name="draw_scores",
            ),
            Node(
                nodes.draw_curves,
                inputs=["warmup_history", "undefended_history", "defended_history"],
                outputs="curves_figure",
                name="draw_curves",
            ),
            Node(
                nodes.draw_confusion,
                inputs=["predictions", "dataset_info", "defended_net"],
                outputs="confusion_figure",
                name="draw_confusion",
            ),
            Node(
                nodes.draw_classes,
                inputs=["predictions", "dataset_info", "params:attack"],
                outputs="classes_figure",
                name="draw_classes",
            ),
            Node(
                nodes.write_report,
                inputs={
                    "metrics": "metrics",
                    "seconds": "seconds",
                    "check": "plan_check",
                    "ingest": "params:ingest",
                    "attack": "params:attack",
                    "detect": "params:detect",
                    "relabel": "params:relabel",
                    "model": "params:model",
                    "stamp": "params:stamp",
                    "seed": "params:seed",
                    "defence": "params:defence",
                    **{figure.removesuffix("_figure"): figure for figure in FIGURES},
                },
                outputs="report",
                name="write_report",
            ),
        ],
        tags="evaluate",
    )
