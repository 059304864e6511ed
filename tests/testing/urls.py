"""Views that send."""

from django.contrib.auth import get_user
from django.contrib.auth.models import Group as Model
from django.db import transaction
from django.http import HttpResponse
from django.urls import path

from dbchannels import Channel, Group, ResponseLater, event_stream


@transaction.atomic
def send(request):
    """Send and answer."""
    Channel("a").send({"n": "view"})
    Group("room-a").send({"text": "from a view"})
    return HttpResponse(str(get_user(request)))


@transaction.atomic
def fail(request):
    """Send and fail."""
    Channel("a").send({"n": "failed view"})
    raise ValueError("view failed")


def later(request):
    """Leave the answer to whoever answers the group."""
    Group("waiting").add(request.reply_channel)
    Model.objects.get_or_create(name="a view that waits")
    raise ResponseLater


def rows(request):
    """Answer with the names of all rows."""
    return HttpResponse(",".join(Model.objects.order_by("pk").values_list("name", flat=True)))


def news(request):
    """Send the news as events."""
    response = event_stream("news", "more")
    response.set_cookie("seen", "yes")
    return response


urlpatterns = [
    path("news/", news),
    path("send/", send),
    path("fail/", fail),
    path("rows/", rows),
    path("later/", later),
]
