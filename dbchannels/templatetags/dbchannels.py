"""``{% load dbchannels %}``: the paths of routes in templates."""

from __future__ import annotations

from typing import Any

from django import template

from dbchannels.routing.table import reverse

register = template.Library()


@register.simple_tag
def route_path(to: str, **kwargs: Any) -> str:
    """Return what ``reverse`` does: ``{% route_path "room" room=room.slug %}``."""
    return reverse(to, kwargs)
