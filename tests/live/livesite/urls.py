"""Views of the usual kinds."""

import hashlib
import os
import tempfile
import time

from django import forms
from django.contrib import admin
from django.db import transaction
from django.http import FileResponse, HttpResponse, JsonResponse, StreamingHttpResponse
from django.middleware.csrf import get_token
from django.shortcuts import redirect, render
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from dbchannels import Channel
from livesite import imported, leaving, people, sending, waiting
from livesite.models import Entry

imported.note(__name__)


class UploadForm(forms.Form):
    name = forms.CharField()
    file = forms.FileField()


def hello(request):
    return HttpResponse("hello")


def page(request):
    return render(request, "livesite/page.html")


def pid(request):
    return HttpResponse(str(os.getpid()))


def boom(request):
    raise ValueError("as asked for")


def die(request):
    os._exit(9)


def sleep(request, milliseconds):
    time.sleep(milliseconds / 1000)
    return HttpResponse("slept")


def seen(request):
    """What the request looks like from the inside."""
    keys = ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "REMOTE_ADDR", "HTTP_X_TWICE", "CONTENT_TYPE")
    seen = {key: request.META.get(key) for key in keys}
    return JsonResponse({**seen, "host": request.get_host(), "secure": request.is_secure()})


def cookies(request):
    response = redirect("/seen")
    response.set_cookie("a", "1")
    response.set_cookie("b", "2", httponly=True)
    return response


def visits(request):
    request.session["visits"] = request.session.get("visits", 0) + 1
    return HttpResponse(str(request.session["visits"]))


@csrf_exempt
def upload(request):
    form = UploadForm(request.POST, request.FILES)
    if not form.is_valid():
        return JsonResponse(form.errors, status=400)
    data = form.cleaned_data["file"].read()
    digest = hashlib.sha256(data).hexdigest()
    return JsonResponse({"name": form.cleaned_data["name"], "size": len(data), "sha256": digest})


def token(request):
    return HttpResponse(get_token(request))


def guarded(request):
    return HttpResponse(request.method)


def download(request, mebibytes):
    """A file of that size, sparse on the disk."""
    file = open("/dev/zero", "rb")  # noqa: SIM115  (the response closes it)

    class Cut:
        left = mebibytes * 1_048_576

        def read(self, size):
            size = min(size, self.left)
            self.left -= size
            return file.read(size)

        def close(self):
            file.close()

    return FileResponse(Cut(), filename="zeros.bin", content_type="application/octet-stream")


def file(request, mebibytes):
    """A regular file of that size; ``?from=`` where to begin, ``?length=`` what is promised, ``?shorter`` than that."""
    made = tempfile.TemporaryFile()  # noqa: SIM115  (the response closes it)
    made.write(hashlib.shake_256().digest(1_048_576))
    made.truncate(mebibytes * 1_048_576)
    made.seek(int(request.GET.get("from", 0)))
    response = FileResponse(made, filename="zeros.bin")
    if "length" in request.GET:
        response["Content-Length"] = request.GET["length"]
    if "shorter" in request.GET:
        response._resource_closers.insert(0, lambda: made.truncate(1_048_576))
    return response


def stream(request, name):
    """The first piece at once, the second when an entry of that name is there."""

    def pieces():
        yield "first\n"
        deadline = time.monotonic() + 30
        while not Entry.objects.filter(text=name).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        yield "second\n"

    return StreamingHttpResponse(pieces())


def cut_off(request):
    def pieces():
        yield b"x" * 100
        raise ValueError("as asked for")

    return StreamingHttpResponse(pieces())


def cut_off_early(request):
    def pieces():
        raise ValueError("as asked for")
        yield

    return StreamingHttpResponse(pieces())


def empty(request):
    return HttpResponse(status=204)


def sends_a_set(request):
    Channel("ledger").send({"text": {"a set"}})


def send(request):
    """Send inside a transaction that commits, or not."""
    with transaction.atomic():
        Channel("ledger").send({"text": request.GET["text"]})
        if "roll-back" in request.GET:
            transaction.set_rollback(True)
    return HttpResponse("sent")


urlpatterns = [
    path("admin/", admin.site.urls),
    path("", hello),
    path("page", page),
    path("pid", pid),
    path("boom", boom),
    path("die", die),
    path("sleep/<int:milliseconds>", sleep),
    path("seen", seen),
    path("cookies", cookies),
    path("visits", visits),
    path("upload", upload),
    path("token", token),
    path("guarded", guarded),
    path("download/<int:mebibytes>", download),
    path("file/<int:mebibytes>", file),
    path("stream/<name>", stream),
    path("cut-off", cut_off),
    path("cut-off-early", cut_off_early),
    path("empty", empty),
    path("send", send),
    path("sends-a-set", sends_a_set),
    path("hash", waiting.hashed),
    path("stored", waiting.stored),
    path("unread", waiting.unread),
    path("read/<name>", waiting.read_at),
    path("read-at-sign/<name>", waiting.read_at_sign),
    path("body", waiting.body),
    path("die/<name>", waiting.die_at),
    path("in-a-transaction", waiting.in_a_transaction),
    path("later/<text>", waiting.later),
    path("never", waiting.never),
    path("ranged", waiting.ranged),
    path("events", waiting.events),
    path("room-events/<room>", waiting.room_events),
    path("tell/<text>", waiting.tell),
    path("log-in/<name>", people.log_in),
    path("log-out", people.log_out),
    path("left/<int:number>", leaving.left),
    path("sends/<how>/<channel>/<text>", sending.sends),
]
