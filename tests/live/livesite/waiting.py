"""Views that read large bodies, and views that are answered later."""

import hashlib
import io
import os
import signal
import time

from django.conf import settings
from django.db import transaction
from django.http import FileResponse, HttpResponse, JsonResponse
from django.http.request import UnreadablePostError
from django.views.decorators.csrf import csrf_exempt

from dbchannels import Channel, Group, ResponseLater, event_stream
from livesite.models import Entry

PIECE = 65_536


def digest(pieces):
    """Return the number of bytes and their SHA-256."""
    total, found = 0, hashlib.sha256()
    for piece in pieces:
        total += len(piece)
        found.update(piece)
    return {"size": total, "sha256": found.hexdigest()}


def read(request):
    return iter(lambda: request.read(PIECE), b"")


@csrf_exempt
def hashed(request):
    return JsonResponse({**digest(read(request)), "length": request.META["CONTENT_LENGTH"]})


@csrf_exempt
def stored(request):
    """A file of a form, as Django's upload handlers have stored it."""
    file = request.FILES["file"]
    return JsonResponse({**digest(file.chunks(PIECE)), "stored": type(file).__name__})


@csrf_exempt
def unread(request):
    return HttpResponse("not read")


@csrf_exempt
def body(request):
    return HttpResponse(str(len(request.body)))


def wait_for(name):
    deadline = time.monotonic() + 30
    while not Entry.objects.filter(text=name).exists() and time.monotonic() < deadline:
        time.sleep(0.01)


@csrf_exempt
def read_at(request, name):
    """Read a piece, and the rest once an entry of that name is there; write down what became of it."""
    first = request.read(PIECE)
    Entry.objects.create(text=f"began {name}")
    wait_for(name)
    try:
        found = digest([first, *read(request)])
    except UnreadablePostError as error:
        Entry.objects.create(text=f"unreadable: {error}")
        raise
    Entry.objects.create(text=f"read {found['size']}")
    return JsonResponse(found)


@csrf_exempt
def read_at_sign(request, name):
    """The same without the database: signs are files, and what is written down is the answer."""
    first = request.read(PIECE)
    (settings.MEDIA_ROOT / f"began-{name}").touch()
    deadline = time.monotonic() + 30
    while not (settings.MEDIA_ROOT / name).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return JsonResponse(digest([first, *read(request)]))


@csrf_exempt
def die_at(request, name):
    request.read(1_000_000)
    os.kill(os.getpid(), signal.SIGKILL)


@csrf_exempt
def in_a_transaction(request):
    with transaction.atomic():
        Entry.objects.create(text="uploaded")
        return JsonResponse(digest(read(request)))


def later(request, text):
    """Leave the answer to a consumer that runs after the time in which a view must answer."""
    with transaction.atomic():
        Entry.objects.create(text="kept")
        Channel("answers", delay=3.5).send({"to": request.reply_channel.name, "text": text})
    raise ResponseLater


def never(request):
    Entry.objects.create(text="waits")
    raise ResponseLater


def events(request):
    """Server-sent events: the head now, and then whatever is sent to the group."""
    headers = [[b"Content-Type", b"text/event-stream"], [b"Cache-Control", b"no-store"]]
    request.reply_channel.send(
        {"status": 200, "headers": headers, "content": b": hello\n\n", "more_content": True}
    )
    Group("events").add(request.reply_channel)
    raise ResponseLater


def tell(request, text):
    Group("events").send({"content": f"data: {text}\n\n".encode(), "more_content": text != "end"})
    return HttpResponse("told")


def ranged(request):
    """A hundred thousand numbers, or the part that the Range header asks for."""
    data = b"".join(b"%05d\n" % number for number in range(100_000))
    first, _, last = request.headers.get("Range", "bytes=0-").partition("=")[2].partition("-")
    end = int(last) + 1 if last else len(data)
    response = FileResponse(io.BytesIO(data[int(first) : end]), content_type="text/plain")
    response["Accept-Ranges"] = "bytes"
    if "Range" in request.headers:
        response.status_code = 206
        response["Content-Range"] = f"bytes {first}-{end - 1}/{len(data)}"
    return response


def room_events(request, room):
    """The messages to a room as server-sent events."""
    return event_stream(f"room-{room}")
