"""The project's configuration loader: named choices, checked names, and variant paths."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from kedro.config import OmegaConfigLoader
from omegaconf import DictConfig, OmegaConf

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
        self.runtime_params = dict(sorted(given, key=lambda each: isinstance(each[1], Mapping)))

    def __getitem__(self, key: str) -> dict[str, Any]:
        """Configuration by type; parameters are checked for names that nothing reads.

        Raises:
            ConfigError: if a run parameter has a name that no parameters file has,
                or the seed is not a whole number.
        """
        if key == "catalog":
            parameters = self["parameters"]
            # Anew each time: another loader of this process may have registered its own.
            _register("variant", lambda stage: variant_path(parameters, stage))
            _register("model", lambda: parameters["model"])
        loaded: dict[str, Any] = super().__getitem__(key)
        if key == "parameters":
            self._check(loaded)
            self._agree(loaded)
        return loaded

    def _check(self, parameters: Mapping[str, Any]) -> None:
        given = self.runtime_params or {}
        if given:
            runtime, self.runtime_params = self.runtime_params, {}
            try:
                valid = super().__getitem__("parameters")
            finally:
                self.runtime_params = runtime
            for name in given:
                if name not in _public(valid):
                    raise ConfigError(_unknown("parameter", name, _public(valid)))
        seed = parameters.get("seed")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ConfigError(f"seed is {seed!r}; it must be a whole number from 0")

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
        raise ConfigError(_unknown(what, name, [str(option) for option in options]))
    return name


def _unknown(what: str, name: str, valid: Iterable[str]) -> str:
    names = sorted(valid)
    close = get_close_matches(str(name), names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"unknown {what} {name!r}{hint} Valid names: {', '.join(names)}"


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
