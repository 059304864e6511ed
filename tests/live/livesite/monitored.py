"""The views of a site whose handler Sentry's SDK has patched, as in production."""

import json
import os

import sentry_sdk
from django.dispatch import receiver
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path, reverse

from dbchannels import Channel, ResponseLater
from dbchannels.signals import consumer_started
from livesite.models import Entry

REPORTS = []


def keep(event, hint):
    REPORTS.append(json.loads(json.dumps(event, default=str)))


sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", before_send=keep, default_integrations=True)
sentry_sdk.set_tag("site", "live")


@receiver(consumer_started)
def tag(**_):
    """What one consumer notes must be in no report on another message."""
    sentry_sdk.set_tag("visitor", "bob")
    sentry_sdk.add_breadcrumb(message="bob was here")


def tagged(request):
    """What one visitor's request notes must be in no other's report."""
    sentry_sdk.set_tag("visitor", "anna")
    sentry_sdk.add_breadcrumb(message="anna was here")
    return HttpResponse("tagged")


def boom(request):
    Entry.objects.create(text="rolled back", pid=os.getpid())
    raise ValueError("as asked for")


def later(request):
    """Write, and leave the answer to a message that is sent with it."""
    Entry.objects.create(text="kept", pid=os.getpid())
    Channel(request.reply_channel.name).send({"status": 200, "content": b"later"})
    raise ResponseLater


def reports(request):
    """What would have been sent to Sentry."""
    found = [
        {
            "error": one["exception"]["values"][-1]["type"] if "exception" in one else one["logentry"],
            "tags": one.get("tags", {}),
            "crumbs": [crumb.get("message") for crumb in one["breadcrumbs"]["values"]],
            "url": one["request"]["url"],
        }
        for one in REPORTS
    ]
    return JsonResponse({"pid": os.getpid(), "reports": found})


def stream(request):
    return StreamingHttpResponse(["one,", "two"])


def where(request):
    return JsonResponse({"path": request.path, "reversed": reverse("where")})


urlpatterns = [
    path("tagged", tagged),
    path("boom", boom),
    path("later", later),
    path("reports", reports),
    path("stream", stream),
    path("where", where, name="where"),
]
