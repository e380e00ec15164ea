"""Evaluated runs read back from MLflow, as tables."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pandas as pd

from counterdoor.store import StoreError, connect
from counterdoor.tracking import CHOICES

RESULTS = (
    "ca",
    "ca_unstamped",
    "asr",
    "ba",
    "der",
    "detection_precision",
    "pseudo_label_accuracy",
    "undefended_ca",
    "undefended_asr",
    "undefended_ba",
    "ca_drop",
    "ca_drop_worst_class",
    "seconds",
)
"""The metrics that ``kedro results`` shows."""


@dataclass(frozen=True)
class Results:
    """Evaluated runs, newest first.

    Attributes:
        table: one row a run: id, start, the choices, and :data:`RESULTS`.
        names: the runs' names.
        artifacts: the runs' artifact folders, or URIs where they are elsewhere.
        variants: what runs that differ by the seed alone have in common.
        parameters: all logged parameters, a row a run, as text.
        tags: all tags, a row a run, as text.
        metrics: all metrics, a row a run.
    """

    table: pd.DataFrame
    names: list[str]
    artifacts: list[str]
    variants: list[str]
    parameters: pd.DataFrame
    tags: pd.DataFrame
    metrics: pd.DataFrame

    @classmethod
    def read(cls, project_path: Path, *, where: str = "", limit: int | None = None) -> "Results":
        """Read them from MLflow.

        Args:
            project_path: the project's root.
            where: a further filter in MLflow's language.
            limit: only the newest so many.

        Raises:
            ValueError: if MLflow does not understand the filter.
            StoreError: if the store of runs cannot be used.
        """
        mlflow = connect(project_path, writes=False)
        query = "attributes.status = 'FINISHED'" + (f" and {where}" if where else "")
        try:
            runs: pd.DataFrame = mlflow.search_runs(filter_string=query, output_format="pandas")
        except mlflow.MlflowException as error:
            if not where:
                raise StoreError(f"the runs cannot be read ({error}): try again") from error
            raise ValueError(f"MLflow does not understand --filter {where!r}: {error}") from error
        columns = {
            "run_id": "run_id",
            "start_time": "started",
            **{f"params.{choice}": choice.removesuffix("_name") for choice in CHOICES},
            **{f"metrics.{metric}": metric for metric in RESULTS},
        }
        evaluated = runs[runs["metrics.ca"].notna()] if "metrics.ca" in runs else runs.iloc[:0]
        evaluated = evaluated.head(limit) if limit else evaluated
        table = evaluated.reindex(columns=list(columns)).rename(columns=columns)
        for number in ("poison_ratio", "seed"):
            table[number] = pd.to_numeric(table[number])
        table["started"] = pd.to_datetime(table["started"]).dt.strftime("%Y-%m-%d %H:%M:%S")

        def tag(name: str) -> list[str]:
            return [str(value) for value in evaluated.get(name, pd.Series(dtype=str))]

        def under(prefix: str) -> pd.DataFrame:
            chosen = evaluated.loc[:, [str(name).startswith(prefix) for name in evaluated.columns]]
            return chosen.rename(columns=lambda name: name.removeprefix(prefix)).reset_index(
                drop=True
            )

        return cls(
            table=table.reset_index(drop=True),
            names=tag("tags.mlflow.runName"),
            artifacts=[_local(uri) for uri in tag("artifact_uri")],
            variants=tag("tags.variant"),
            parameters=under("params."),
            tags=under("tags."),
            metrics=under("metrics."),
        )

    def summary(self) -> pd.DataFrame:
        """One row a variant: n seeds, and each metric as ``mean ± std`` over the seeds.

        Of several runs of one variant and seed, the newest counts. The deviation is
        the sample's (n - 1); with one seed there is none. Rates are in percent.
        ``differs_in`` names the parameters, besides the choices, that tell apart
        variants of the same choices.
        """
        choices = [choice.removesuffix("_name") for choice in CHOICES if choice != "seed"]
        newest = self.table.assign(variant=self.variants).drop_duplicates(["variant", "seed"])
        parameters = self.parameters.loc[newest.index].drop(columns="seed", errors="ignore")
        same_choices = [newest[choice] for choice in choices]
        counts = parameters.fillna("").groupby(same_choices, dropna=False).nunique()
        differing = [name for name in parameters if counts[name].max() > 1]
        rows = []
        for _, group in newest.groupby("variant", sort=False):
            row: dict[str, Any] = {choice: group[choice].iloc[0] for choice in choices}
            first = parameters.loc[group.index[0]]
            row["differs_in"] = ", ".join(f"{name}={first[name]}" for name in differing)
            row["n"] = len(group)
            row |= {metric: spread(group[metric], metric) for metric in RESULTS}
            rows.append(row)
        return pd.DataFrame(rows, columns=[*choices, "differs_in", "n", *RESULTS])


def _local(uri: str) -> str:
    parts = urlsplit(uri)
    return unquote(parts.path) if parts.scheme == "file" else uri


def spread(values: pd.Series, metric: str) -> str:
    """Mean ± sample deviation of one metric, rates in percent; with one value the mean alone."""
    scale, digits, unit = (1.0, 0, "") if metric == "seconds" else (100.0, 1, "%")
    mean, deviation = scale * values.mean(), scale * values.std(ddof=1)
    if math.isnan(mean):
        return "n/a"
    spread = "" if math.isnan(deviation) else f" ± {deviation:.{digits}f}"
    return f"{mean:.{digits}f}{spread}{unit}"
