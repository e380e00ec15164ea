"""External: a net of somebody else's, named by where Python finds it."""

import importlib
import inspect
import json
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator
from torch import nn
from torch.nn.parameter import is_lazy

from counterdoor.component import Component


class External(Component):
    """Any importable ``torch.nn.Module``, or function that returns one, by its dotted path.

    It gets images (N, C, H, W) normalised to mean 0 and deviation 1 in every channel, and
    returns logits (N, num_classes), in training and in eval mode.

    Naming code here runs it: importing ``target`` and calling it can do whatever Python
    can. Take over a configuration with such a model as you would take over a program. A
    saved net does not bring it in: see :class:`counterdoor.io.TrainedNetDataset`.

    Attributes:
        target: ``package.module.Name``; the module has to be importable, for example
            from the project's ``src`` or a folder on ``PYTHONPATH``.
        arguments: what it is called with, plain values by name.
        channels_argument: name of the argument that receives the number of the
            images' channels; ``None`` if it takes none.
        classes_argument: likewise for the number of classes.
    """

    name: Literal["external"] = "external"
    target: str = Field(pattern=r"^[^\W\d]\w*(\.[^\W\d]\w*)+$", description="package.module.Name")
    arguments: dict[str, JsonValue] = Field(default={})
    channels_argument: str | None = None
    classes_argument: str | None = "num_classes"

    def __hash__(self) -> int:
        """Of its JSON: a dict of arguments has none of its own."""
        return hash(self.model_dump_json())

    @field_validator("arguments")
    @classmethod
    def _finite(cls, arguments: dict[str, JsonValue]) -> dict[str, JsonValue]:
        try:
            json.dumps(arguments, allow_nan=False)
        except ValueError as error:
            raise ValueError("NaN and infinity are no arguments; take them out") from error
        return arguments

    @model_validator(mode="after")
    def _each_argument_once(self) -> "External":
        given = [self.channels_argument, self.classes_argument, *self.arguments]
        twice = sorted({name for name in given if name is not None and given.count(name) > 1})
        if twice:
            raise ValueError(
                f"argument {twice[0]!r} is given twice: name it either in arguments, or as "
                "channels_argument or classes_argument"
            )
        return self

    def __call__(self, channels: int, num_classes: int) -> nn.Module:
        """An untrained net, made by the target.

        Raises:
            ValueError: if there is no such module or name in it, it does not take the
                arguments, it fails, or what it returns is not a whole ``nn.Module``.
        """
        counts = {self.channels_argument: channels, self.classes_argument: num_classes}
        arguments: dict[str, Any] = dict(self.arguments)
        arguments |= {name: count for name, count in counts.items() if name is not None}
        make = self._imported()
        self._check_arguments(make, arguments)
        try:
            net = make(**arguments)
        except Exception as error:
            raise ValueError(
                f"model.target {self.target!r} failed with the arguments {arguments}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(net, nn.Module):
            raise ValueError(
                f"model.target {self.target!r} gives a {type(net).__name__}; name a class or a "
                "function that gives a torch.nn.Module"
            )
        if any(is_lazy(tensor) for tensor in [*net.parameters(), *net.buffers()]):
            raise ValueError(
                f"model.target {self.target!r} has lazy layers, whose sizes are not known before "
                "the first image; give the sizes"
            )
        return net

    def _imported(self) -> Callable[..., Any]:
        module_name, _, name = self.target.rpartition(".")
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            raise ValueError(
                f"model.target {self.target!r}: the module {module_name!r} cannot be imported "
                f"({type(error).__name__}: {error}); install it, or put its folder on PYTHONPATH"
            ) from error
        if not hasattr(module, name):
            close = get_close_matches(name, dir(module), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "; is it spelt right?"
            raise ValueError(
                f"model.target {self.target!r}: the module {module_name!r} has no {name!r}{hint}"
            )
        found: object = getattr(module, name)
        if not callable(found) or (inspect.isclass(found) and not issubclass(found, nn.Module)):
            raise ValueError(
                f"model.target {self.target!r} ({found!r}) makes no net; name a subclass of "
                "torch.nn.Module or a function that gives one"
            )
        return found

    def _check_arguments(self, make: Callable[..., Any], arguments: dict[str, Any]) -> None:
        try:
            signature = inspect.signature(make)
        except ValueError:  # some compiled functions have none
            return
        try:
            signature.bind(**arguments)
        except TypeError as error:
            raise ValueError(
                f"model.target {self.target!r} does not take the arguments "
                f"{', '.join(arguments) or '(none)'}: {error}. It takes {signature}; set "
                "model.arguments, model.channels_argument and model.classes_argument"
            ) from error
