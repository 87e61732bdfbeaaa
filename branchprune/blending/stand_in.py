"""A blended model that looks like the user's own, for trainers that ask for more than outputs."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

from branchprune.blending.blended import Blended
from branchprune.errors import PruneError

Kind = type[nn.Module]


def stand_in(blended: Blended, method: str = "forward") -> nn.Module:
    """Return a module of the model's own class that computes what a blended model does.

    Trainers of other libraries read attributes of the model that they train, call its methods, such
    as a loss, and ask for its class. Here these are those of `blended.model`, while parameters and
    buffers are those of `blended`, and the method that runs the layers is the blended forward.

    ```python
    model = bp.stand_in(blended, "predict")  # model.loss(batch) calls self.predict(images)
    foreign_trainer(model).train()
    small = bp.collapse(model.blended)
    ```

    Args:
        blended: The blended model; it is the module `blended` of what is returned.
        method: The method of the model's class in which its layers run. It takes the arguments of
            the plan's example, and others that are None or False. Whatever else the class does has
            to go through it: what runs layers by itself would run those of the wide path.

    Returns:
        A module of a subclass of the model's class, which can be copied and pickled. What is set on
        it is set on it alone, not on `blended.model`.

    Raises:
        PruneError: The class has no such method, or only a part of the model was planned.
    """
    kind, inside = type(blended.model), blended.plan.structure.inside
    if not callable(getattr(kind, method, None)):
        raise PruneError(f"method (={method!r}) is no method of {kind.__name__}")
    if inside:
        raise PruneError(
            f"only {inside} of {kind.__name__} was planned: a stand-in is for a model that was "
            "planned as a whole, without inside"
        )
    model = _new(kind, method)
    nn.Module.__init__(model)
    model.blended = blended
    return model.train(blended.training)


def _new(kind: Any, method: str) -> nn.Module:
    """Return an empty stand-in, which a copy or a pickle fills."""
    made: Kind = _class(kind, method)
    return made.__new__(made)


@cache
def _class(kind: Any, method: str) -> Any:
    """Return the class of the stand-ins for models of a class."""

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute the blended output."""
        on = {name: value for name, value in kwargs.items() if _is_on(value)}
        return self.blended(*filter(_is_on, args), **on)

    def reduce(self: nn.Module, protocol: object) -> tuple[object, ...]:
        return _new, (kind, method), self.__getstate__()

    def read(self: nn.Module, name: str) -> Any:
        try:
            return kind.__getattr__(self, name)
        except AttributeError:
            blended = self.__dict__.get("_modules", {}).get("blended")
            if not hasattr(getattr(blended, "model", None), name):
                raise
            return getattr(blended.model, name)

    members = {method: run, "__reduce_ex__": reduce, "__getattr__": read}
    return type(f"Blended{kind.__name__}", (kind,), members | {"__module__": kind.__module__})


def _is_on(argument: object) -> bool:
    return argument is not None and argument is not False
