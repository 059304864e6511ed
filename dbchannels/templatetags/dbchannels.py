"""``{% load dbchannels %}``: live groups, and the paths of routes, in templates."""

from __future__ import annotations

from typing import Any

from django import template

from dbchannels.consumers.live_groups import LiveGroup
from dbchannels.routing.table import reverse

register = template.Library()


@register.simple_tag(takes_context=True)
def live_group(context: template.Context, *groups: str) -> LiveGroup:
    """Show what is sent to groups: ``{% live_group "room-garden" %}``; ``as live`` keeps it, see ``live.url``."""
    return LiveGroup(context.get("request"), *groups)


@register.simple_tag
def route_path(to: str, **kwargs: Any) -> str:
    """Return what ``reverse`` does: ``{% route_path "room" room=room.slug %}``."""
    return reverse(to, kwargs)
