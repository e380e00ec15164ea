"""The typed parameters of each stage, one model a parameters file."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError, model_validator

from counterdoor.attacks import Attack
from counterdoor.component import Config, Copies, Place
from counterdoor.defences import NAB, Defence
from counterdoor.detectors import Detector, SuspectRatio
from counterdoor.engine import Engine
from counterdoor.features import Features, SimCLR
from counterdoor.labelers import Labeler
from counterdoor.models import Model
from counterdoor.recipe import Recipe
from counterdoor.refusal import one_line
from counterdoor.sources import Source
from counterdoor.stamp import Stamp
from counterdoor.verdict import Judge


class IngestParams(Config):
    """What is read, and how it is split.

    Attributes:
        source: where the images come from.
        test_share: share of each class held out for testing, in (0, 1), where
            the source has no test set of its own.
        trusted_share: share of each class of the training set that the defender
            has verified, in [0, 1).
        trusted_path: where images lie that the defender has verified, in the source's
            format; they join the training set and are the only trusted ones, so
            ``trusted_share`` is not looked at. ``None`` if there are none.
    """

    source: Source
    test_share: float = Field(gt=0, lt=1)
    trusted_share: float = Field(ge=0, lt=1)
    trusted_path: Place | None = None

    @model_validator(mode="after")
    def _has_a_path(self) -> Self:
        if self.trusted_path is not None and "path" not in type(self.source).model_fields:
            raise ValueError(
                f"trusted_path is {self.trusted_path!r}, but source {self.source.name!r} reads no "
                "path; take it out, or choose a source that does (image_folder, parquet)"
            )
        return self


class AttackParams(RootModel[Attack]):
    """The adversary; ``root`` is the attack."""

    model_config = ConfigDict(frozen=True)


class ModelParams(RootModel[Model]):
    """The net of every training; ``root`` is the model component."""

    model_config = ConfigDict(frozen=True)


class DefenceParams(RootModel[Defence]):
    """How the net that is deployed is made; ``root`` is the defence."""

    model_config = ConfigDict(frozen=True)


USUAL_DEFENCE = DefenceParams(NAB())


class FeaturesParams(RootModel[Features]):
    """How features are had without labels; ``root`` is the method."""

    model_config = ConfigDict(frozen=True)


USUAL_FEATURES = FeaturesParams(SimCLR())


class WarmupParams(Config):
    """How the nets that the detector looks at are trained.

    Attributes:
        recipe: the warm-up; its loss transform makes it LGA. ``None`` for a detector that
            does not look at it: nothing is trained.
        plain_recipe: the same of the net trained as usual.
    """

    recipe: Recipe | None
    plain_recipe: Recipe | None = None


class DetectParams(Config):
    """Who is suspected.

    Attributes:
        detector: gives every sample a score.
        suspect_ratio: how many of the untrusted samples are suspected: a share in (0, 1),
            or a rule, or the name of one.
    """

    detector: Detector
    suspect_ratio: SuspectRatio


class RelabelParams(Config):
    """What becomes of the suspects.

    Attributes:
        labeler: gives suspects a pseudo-label.
        trusted_stamps: how many stamped copies of each trusted sample, with its own
            label, join the training; 0 in the paper's setting.
        agreed_stamps: share of every class's untrusted, unsuspected samples with a
            pseudo-label equal to their label, of which a stamped copy joins the
            training; in [0, 1]; 0 in the paper's setting.
        calm_stamps: share of every class's untrusted, unsuspected samples, the least
            suspicious ones, of which a stamped copy joins the training with the label
            it came with; in [0, 1]; 0 in the paper's setting. Needs no trusted images.
        stamp_repeats: how often a stamped suspect occurs in the training; 1 in the
            paper's setting.
        balanced_stamps: whether stamped copies of agreed samples join the classes that are rarer
            among the stamped samples than among all that agree; not in the paper.
    """

    labeler: Labeler
    trusted_stamps: Copies
    agreed_stamps: float = Field(default=0.0, ge=0, le=1)
    calm_stamps: float = Field(default=0.0, ge=0, le=1)
    stamp_repeats: int = Field(default=1, ge=1, le=1000)
    balanced_stamps: bool = False


class TrainParams(Config):
    """How the defended net and its undefended twin are trained.

    Attributes:
        recipe: the full training, the same for both.
        mirror: whether both predict with the mean over an image and its mirror image; for
            data whose mirror images are of the same class, and a recipe that flips.
    """

    recipe: Recipe
    mirror: bool = False

    @model_validator(mode="after")
    def _knows_mirror_images(self) -> Self:
        if self.mirror and not self.recipe.augment.flip:
            raise ValueError(
                "mirror asks for predictions on mirror images, which a training without "
                "recipe.augment.flip never shows; set flip, or take mirror out"
            )
        return self


class ExportParams(Config):
    """How the deployed net is written.

    Attributes:
        reject: whether the MLflow model gives a last column beside the logits, 1 for an image
            whose class is another one without the stamp, and 0 else. The ONNX model always
            has it as an output of its own.
    """

    reject: bool = False


STAGES: Mapping[str, type[BaseModel]] = {
    "ingest": IngestParams,
    "attack": AttackParams,
    "model": ModelParams,
    "features": FeaturesParams,
    "warmup": WarmupParams,
    "defence": DefenceParams,
    "detect": DetectParams,
    "relabel": RelabelParams,
    "stamp": Stamp,
    "train": TrainParams,
    "engine": Engine,
    "export": ExportParams,
    "verdict": Judge,
    "canary": AttackParams,
}
"""The model of every group of parameters, by its name in the configuration."""

ALSO = {
    "ingest.source.path": "source_path",
    "ingest.trusted_path": "trusted_path",
    "attack.poison_ratio": "poison_ratio",
}
"""Short names of some parameters."""


def check(parameters: Mapping[str, Any]) -> None:
    """Raise ``ValueError``, in one line, unless the parameters of every stage are valid.

    Whatever stages are run: what is wrong in the others was meant for a run, too.
    """
    for name, model in STAGES.items():
        if name in parameters:
            try:
                model.model_validate(parameters[name])
            except ValidationError as error:
                told = one_line(error, model, parameters[name], name, ALSO)
                raise ValueError(told) from None
