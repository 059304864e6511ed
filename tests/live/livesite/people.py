"""Consumers and views that ask who somebody is."""

import json

from django.contrib.auth import get_user_model, login, logout
from django.http import HttpResponse
from django.views.decorators.csrf import csrf_exempt

from dbchannels import ConsumeLater, JsonWebsocketConsumer, WebsocketConsumer, route_class
from livesite.models import Entry


@csrf_exempt
def log_in(request, name):
    user = get_user_model().objects.get_or_create(username=name)[0]
    login(request, user, backend="django.contrib.auth.backends.ModelBackend")
    return HttpResponse("in")


@csrf_exempt
def log_out(request):
    logout(request)
    return HttpResponse("out")


@route_class(path=r"^/who/$")
class Who(JsonWebsocketConsumer):
    """Count a client's frames, and say who it is; nothing is asked of who says nothing."""

    def receive_json(self, content):
        self.channel_session["count"] = self.channel_session.get("count", 0) + 1
        self.send_json({"user": self.user.get_username(), "count": self.channel_session["count"]})

    def disconnect(self, code):
        told = {"user": self.user.get_username(), "count": self.channel_session.get("count"), "code": code}
        Entry.objects.create(text=f"who {json.dumps(told)}")


@route_class(path=r"^/quiet/$")
class Quiet(WebsocketConsumer):
    """Asks for nothing."""

    def receive(self, text):
        self.send(text)


@route_class(path=r"^/patient/(?P<name>\w+)/$")
class Patient(WebsocketConsumer):
    """Take frames once an entry of that name is there."""

    def connect(self, message, name):
        self.wait_for(f"{name} open")

    def receive(self, text, name):
        if text == "one":
            self.wait_for(f"{name} one")
        self.send(text)

    def wait_for(self, text):
        if not Entry.objects.filter(text=text).exists():
            Entry.objects.create(text=f"later {text}")
            raise ConsumeLater
