"""The project's configuration loader: named choices, checked names, and variant paths."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

from kedro.config import OmegaConfigLoader
from omegaconf import DictConfig, OmegaConf
from pydantic import Field, ValidationError

from counterdoor.comparison import by_path
from counterdoor.component import Config
from counterdoor.refusal import one_line, shown, unknown

# What each stage adds to the path of its artifacts, and the parameters it reads;
# a stage's path holds those of all stages before it as well. The features, made in warmup,
# have a path of their own, so that all detectors and labelers share them.
STAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ingest": (("source_name",), ("seed", "ingest")),
    "attack": (("attack_name", "poison_ratio", "label_mapping"), ("attack", "engine")),
    "features": (("model_name", "features_name"), ("model", "features")),
    "warmup": ((), ("warmup", "defence")),
    "detect": (("detector_name",), ("detect",)),
    "relabel": (("labeler_name",), ("relabel", "stamp")),
    "train": (("defence_name",), ("train",)),
    "evaluate": ((), ()),
    "export": ((), ("export", "verdict")),
    "selftest": ((), ("canary",)),
}


# Each named choice, and where the component that it chose stands in the parameters.
CHOICES: dict[str, tuple[str, ...]] = {
    "source_name": ("ingest", "source", "name"),
    "attack_name": ("attack", "name"),
    "poison_ratio": ("attack", "poison_ratio"),
    "label_mapping": ("attack", "labels", "name"),
    "model_name": ("model", "name"),
    "detector_name": ("detect", "detector", "name"),
    "features_name": ("features", "name"),
    "labeler_name": ("relabel", "labeler", "name"),
    "defence_name": ("defence", "name"),
}


PLACES = ("path", "trusted_path", "pattern", "patch_image")
"""The last name of every parameter that is a path."""


Choice = Annotated[str, Field(min_length=0)]
"""A name; those that there are not are refused with those that there are."""


class Named(Config):
    """The parameters that are one value each: the seed, and what is chosen by name.

    Attributes:
        source_name: where the images come from.
        attack_name: the adversary.
        poison_ratio: share of the images that is poisoned, in [0, 1).
        label_mapping: what poisoned images are to be taken for.
        model_name: the net.
        detector_name: who is suspected.
        features_name: how features are had without labels.
        labeler_name: what becomes of the suspects.
        defence_name: how the net that is deployed is made.
        seed: of everything that is drawn at random.
    """

    source_name: Choice
    attack_name: Choice
    poison_ratio: float = Field(ge=0, lt=1)
    label_mapping: Choice
    model_name: Choice
    detector_name: Choice
    features_name: Choice
    labeler_name: Choice
    defence_name: Choice
    seed: Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]


class ConfigError(ValueError):
    """A parameter that cannot be used: which, why, and what would be right."""


def variant_path(parameters: Mapping[str, Any], stage: str) -> str:
    """The folder of a stage's artifacts: readable choices, then seed and digest.

    For example ``digits/badnets-0.1-all_to_one/digits_cnn-simclr/lga/vd/nab/s0-3f9a1c0b``. The
    digest is that of every parameter of this stage and the stages before it, so a changed
    parameter is another folder.

    Args:
        parameters: all parameters of the run, resolved.
        stage: a key of :data:`STAGES`.

    Raises:
        ConfigError: if there is no such stage.
    """
    if stage not in STAGES:
        raise ConfigError(f"there is no stage {stage!r}; the stages are {', '.join(STAGES)}")
    folders: list[str] = []
    read: dict[str, Any] = {}
    for name, (choices, keys) in STAGES.items():
        if choices:
            folders.append("-".join(_safe(parameters[choice]) for choice in choices))
        read |= {key: parameters[key] for key in keys}
        if name == stage:
            break
    text = json.dumps(read, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return "/".join([*folders, f"s{_safe(parameters['seed'])}-{digest}"])


class VariantConfigLoader(OmegaConfigLoader):
    """OmegaConf configuration with three resolvers of our own.

    ``${known:what,name,options}`` gives ``name`` back if ``options`` has it, and
    else raises an error that lists the options. ``${variant:stage}``, in the
    catalog, is :func:`variant_path` of the run's parameters, and ``${model:}`` the
    configuration of its model.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _register("known", known)
        super().__init__(*args, **kwargs)
        # What lies in a component is merged into the one that its name has chosen by then.
        given = (self.runtime_params or {}).items()
        self.runtime_params = _literal(
            dict(sorted(given, key=lambda each: isinstance(each[1], Mapping)))
        )

    def __getitem__(self, key: str) -> dict[str, Any]:
        """Configuration by type; parameters are checked for names that nothing reads.

        Raises:
            ConfigError: if a run parameter has a name that no parameters file has, is a
                value where a mapping is needed or the other way round, or the seed or a
                chosen name is none.
        """
        if key == "parameters" and self.runtime_params:
            self._check_given(self.runtime_params)
        if key == "catalog":
            parameters = self["parameters"]
            # Anew each time: another loader of this process may have registered its own.
            _register("variant", lambda stage: variant_path(parameters, stage))
            _register("model", lambda: parameters["model"])
        loaded: dict[str, Any] = super().__getitem__(key)
        if key == "parameters":
            _check_named(loaded)
            self._agree(loaded)
        return loaded

    def _check_given(self, given: dict[str, Any]) -> None:
        """Before they are merged, so that a wrong shape is told as one, not as a failed merge."""
        self.runtime_params = {}
        try:
            valid = super().__getitem__("parameters")
        finally:
            self.runtime_params = given
        for name, value in given.items():
            if name not in _public(valid):
                raise ConfigError(unknown("parameter", name, name, _public(valid)))
            if isinstance(valid[name], Mapping) and not isinstance(value, Mapping):
                raise ConfigError(
                    f"{name} is {shown(value)}; it must be a mapping of parameters, such as "
                    f"{name}.{next(iter(valid[name]))}"
                )
        for path, value in by_path(given).items():
            if value == "???":
                raise ConfigError(f"{path} is '???', which is no value: OmegaConf would ignore it")
        _check_named(valid | given)

    def _agree(self, parameters: dict[str, Any]) -> None:
        """Let each name say what was chosen, also where that was set in its own place."""
        for name, place in CHOICES.items():
            chosen: Any = parameters
            for key in place:
                chosen = chosen.get(key) if isinstance(chosen, Mapping) else None
            if chosen is None or chosen == parameters.get(name):
                continue
            if parameters.get(name) != self["globals"].get(name):
                raise ConfigError(
                    f"{name} is {parameters.get(name)!r}, but {'.'.join(place)} is {chosen!r}: set "
                    f"one of the two, {name} by --params or in an environment's globals.yml"
                )
            parameters[name] = chosen


def _register(name: str, resolver: Callable[..., Any]) -> None:
    # OmegaConf 2.4 renamed the function and warns of the old name.
    register = getattr(OmegaConf, "register_resolver", OmegaConf.register_new_resolver)
    register(name, resolver, replace=True)


def known(what: str, name: str, options: DictConfig) -> str:
    """Resolver: ``name``, if it is a key of ``options``.

    Raises:
        ConfigError: listing the valid names.
    """
    if name not in options:
        raise ConfigError(unknown(what, name, name, [str(option) for option in options]))
    return name


def _check_named(parameters: Mapping[str, Any]) -> None:
    given = {name: parameters[name] for name in Named.model_fields if name in parameters}
    try:
        Named.model_validate(given)
    except ValidationError as error:
        raise ConfigError(one_line(error, Named, given)) from None


def _literal(given: Any, key: str = "") -> Any:
    """Paths of run parameters as they are: in them ``${`` begins no interpolation."""
    if isinstance(given, Mapping):
        return {name: _literal(value, name) for name, value in given.items()}
    if isinstance(given, str) and key in PLACES:
        return re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", given)
    return given


def _public(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.startswith("_")]


def _safe(value: Any) -> str:
    text = str(value)
    if (
        not text
        or not all(char.isalnum() or char in "._-" for char in text)
        or text.strip(".") == ""
    ):
        raise ConfigError(f"{text!r} cannot be part of a path; use letters, digits, '.', '_', '-'")
    return text
