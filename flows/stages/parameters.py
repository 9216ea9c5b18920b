"""The parameters of flows in words: for `--help`, for error messages, and for docs/parameters.md."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

BOUNDS = (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"), ("min_length", "length ≥"))
_INNER = re.compile(r"[\[(]|^constrained-|^tagged-")
"""Parts of an error's place that name a validator or a type, not a setting."""
NAMES = {"str": "text", "bool": "true, false", "float": "number", "Path": "path"}


def nested(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation names, in order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for each in get_args(annotation) for model in nested(each)]


def type_text(annotation: Any) -> str:
    """A type as a reader of YAML would say it; a nested model by its name."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(inner[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        shown = ["null" if each is types.NoneType else type_text(each) for each in inner]
        return ", ".join(shown) if all(get_origin(each) is Literal for each in inner) else " or ".join(shown)
    if origin is dict:
        return f"map of {type_text(inner[0])} to {type_text(inner[1])}"
    if origin is tuple:
        return f"list of {type_text(inner[0])}"
    return NAMES.get(annotation.__name__, str(annotation.__name__))


def bounds_text(field: FieldInfo) -> str:
    """A field's bounds, such as `, ≥ 0, ≤ 1`; empty if it has none."""
    found = [f"{sign} {getattr(each, name)}" for name, sign in BOUNDS for each in field.metadata if hasattr(each, name)]
    return ", " + ", ".join(found) if found else ""


def default_text(value: Any) -> str:
    """A default; of a nested object only what differs from that object's own defaults."""
    if isinstance(value, BaseModel):
        own = type(value).model_fields
        changed = {name: held for name, held in value if held != own[name].get_default(call_default_factory=True)}
        return ", ".join(f"{name} {default_text(held)}" for name, held in changed.items()) or "its defaults"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value is None or value == ():
        return "none"
    return f"`{value}`"


def about(model: type[BaseModel] | None = None) -> str:
    """A model's own docstring on one line."""
    return " ".join((vars(model).get("__doc__") or "").split()) if model else ""


def leaves(model: type[BaseModel], given: Any, place: str) -> Iterator[tuple[str, FieldInfo, Any]]:
    """Every setting below a model that can be given by itself: its path, its field, and its value or default.

    `given`: the values of a preset, as plain data; what it leaves out has its default.
    """
    for name, field in model.model_fields.items():
        path, inner = f"{place}.{name}", nested(field.annotation)
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        values = dict(given) if isinstance(given, BaseModel | Mapping) else {}
        held = values.get(name, default)
        if len(inner) == 1 and get_origin(field.annotation) is not tuple and (held is not None or field.is_required()):
            yield from leaves(inner[0], held if held is not None else {}, path)
        else:
            yield path, field, held


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like a mistyped one, if any is."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)), None)


def problems(error: ValidationError, model: type[BaseModel], place: str = "config") -> list[str]:
    """What is wrong with each parameter, by its path, with the nearest name for an unknown one; no value is shown."""
    found = []
    errors = error.errors(include_input=False)
    for each in errors:
        below = any(other["loc"][: len(each["loc"])] == each["loc"] != other["loc"] for other in errors)
        if each["type"] == "too_short" and below:  # its items are wrong, which is said of them
            continue
        where, message = each["loc"], each["msg"].removeprefix("Value error, ")
        if each["type"] == "extra_forbidden":
            fields = _fields_at(model, where[:-1])
            near = nearest(str(where[-1]), fields)
            hint = f"did you mean {near!r}?" if near else f"expected one of {', '.join(fields)}"
            message = f"there is no such setting; {hint}"
        named = (str(part) for part in where if not _INNER.search(str(part)))
        found.append(f"{'.'.join([place, *named])}: {message}")
    return list(dict.fromkeys(found))


def _fields_at(model: type[BaseModel], where: tuple[int | str, ...]) -> list[str]:
    """The fields that the object at a place can have; numbers and the tags of unions in `where` are passed over."""
    models = [model]
    for name in where:
        fields = [each.model_fields[str(name)] for each in models if name in each.model_fields]
        inner = [found for field in fields for found in nested(field.annotation)]
        models = inner or models
    return list(dict.fromkeys(name for each in models for name in each.model_fields))
