"""The data that a binding sends of an instance: chosen fields, or the value of the site's own serializer."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from django.db.models import Field, Model
from django.utils.encoding import is_protected_type

from dbchannels.exceptions import InvalidConfiguration

Serializer = Callable[[Any], Any]


def make_serializer(binding: type, model: type[Model]) -> Serializer:
    """Return a function that makes the data of an instance; raises InvalidConfiguration."""
    given = [name for name in ("fields", "exclude", "serializer") if getattr(binding, name) is not None]
    if len(given) != 1:
        raise InvalidConfiguration(
            f"{binding.__name__} has {' and '.join(given) or 'none'} of fields, exclude and serializer: give exactly "
            "one, so that nothing is sent by mistake; fields = '__all__' sends all fields."
        )
    if given == ["serializer"]:
        own = inspect.getattr_static(binding, "serializer")
        own = own.__func__ if isinstance(own, staticmethod) else own
        # A plain function is a method only if its first parameter is ``self``.
        if inspect.isfunction(own) and next(iter(inspect.signature(own).parameters), "") == "self":
            own = getattr(binding(), "serializer")  # noqa: B009
        return lambda instance: getattr(made := own(instance), "data", made)
    chosen = _chosen(binding, model, getattr(binding, given[0]), given[0])
    return lambda instance: {field.name: _value(field, instance) for field in chosen}


def _chosen(binding: type, model: type[Model], names: Sequence[str], key: str) -> list[Any]:
    fields = {field.name: field for field in (*model._meta.concrete_fields, *model._meta.many_to_many)}
    if names == "__all__":
        return list(fields.values())
    if isinstance(names, str):
        raise InvalidConfiguration(
            f"{binding.__name__}.{key} must be a list of names, not a str: write [{names!r}]."
        )
    for name in names:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            raise InvalidConfiguration(
                f"{binding.__name__}.{key} names {name!r}, which is no field of {model._meta.label}: "
                + (f"write {near[0]!r}." if near else f"it has {', '.join(fields)}.")
            )
    if key == "exclude":
        return [field for name, field in fields.items() if name not in names]
    return [fields[name] for name in names]


def _value(field: Field[Any, Any], instance: Any) -> Any:
    """Return a field's value for JSON, as Django's serializers make it; lists and dicts stay as they are."""
    if field.many_to_many:
        related = getattr(instance, field.name).order_by("pk")
        return list(related.values_list("pk", flat=True))
    value = field.value_from_object(instance)
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no infinity and no NaN
    if is_protected_type(value) or isinstance(value, (str, list, tuple, dict)):
        return value
    return field.value_to_string(instance)
