"""What a binding sends of an instance: by the names of fields, or by the site's own serializer."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from django.db.models import Field, ManyToManyField, Model
from django.utils.encoding import is_protected_type

from dbchannels.exceptions import InvalidConfiguration

Serializer = Callable[[Any], Any]


def make_serializer(binding: type, model: type[Model]) -> Serializer:
    """Return what makes data of an instance, from what the binding says; raises InvalidConfiguration."""
    given = [name for name in ("fields", "exclude", "serializer") if getattr(binding, name) is not None]
    if len(given) != 1:
        raise InvalidConfiguration(
            f"{binding.__name__} gives {' and '.join(given) or 'none'} of fields, exclude and serializer: give one, so "
            "that nothing is sent which is not meant to be; fields = '__all__' sends all."
        )
    if given == ["serializer"]:
        return _own(binding)
    chosen = _chosen(binding, model, getattr(binding, given[0]), given[0])
    return lambda instance: {field.name: _value(field, instance) for field in chosen}


def sends_field(binding: type, field: ManyToManyField[Any, Any]) -> bool:
    """Whether a change of this field changes what is sent."""
    fields, exclude = getattr(binding, "fields"), getattr(binding, "exclude")  # noqa: B009
    if fields is not None:
        return fields == "__all__" or field.name in fields
    return exclude is None or field.name not in exclude


def _own(binding: type) -> Serializer:
    """Return the serializer; a plain function is not a method, unless it says ``self``."""
    own = inspect.getattr_static(binding, "serializer")
    own = own.__func__ if isinstance(own, staticmethod) else own
    if inspect.isfunction(own) and next(iter(inspect.signature(own).parameters), "") == "self":
        own = getattr(binding(), "serializer")  # noqa: B009

    def serialize(instance: Any) -> Any:
        made = own(instance)
        return getattr(made, "data", made)

    return serialize


def _chosen(binding: type, model: type[Model], names: Sequence[str], key: str) -> list[Any]:
    fields = {field.name: field for field in (*model._meta.concrete_fields, *model._meta.many_to_many)}
    if names == "__all__":
        return list(fields.values())
    if isinstance(names, str):
        raise InvalidConfiguration(
            f"{binding.__name__}.{key} is a list of names, not a text: write [{names!r}]."
        )
    for name in names:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            raise InvalidConfiguration(
                f"{binding.__name__}.{key} names {name!r}, which {model._meta.label} does not have: "
                + (f"write {near[0]!r}." if near else f"it has {', '.join(fields)}.")
            )
    if key == "exclude":
        return [field for name, field in fields.items() if name not in names]
    return [fields[name] for name in names]


def _value(field: Field[Any, Any], instance: Any) -> Any:
    """Return a field's value as JSON has it: what Django's serializers make of it, lists and dicts as they are."""
    if field.many_to_many:
        related = getattr(instance, field.name).order_by("pk")
        return list(related.values_list("pk", flat=True))
    value = field.value_from_object(instance)
    if isinstance(value, float) and not math.isfinite(value):
        return None  # which JSON has no word for
    if is_protected_type(value) or isinstance(value, (str, list, tuple, dict)):
        return value
    return field.value_to_string(instance)
