"""News by long poll: a request is answered when there is a headline, even if that takes a minute.

No worker waits meanwhile. The view raises ResponseLater and returns. Any code that has the request's reply channel can
answer it; here, all waiting reply channels are in a group.
"""

from django.http import JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_POST

from dbchannels import Channel, Group, ResponseLater
from longpoll.models import Headline

WAITING = Group("longpoll")
PATIENCE = 25.0  # seconds: proxies give up after 30 to 60 seconds of silence
SHOWN = 10  # headlines, the newest first


def page(request):
    """Show the newest headlines, and a form for another one."""
    return render(request, "longpoll/page.html", {"headlines": Headline.objects.all()[:SHOWN]})


@require_GET
def next_headline(request):
    """Answer with the first headline after the newest one on the page, now or later; 204 if there is none."""
    after = request.GET.get("after", "")
    if not (after.isascii() and after.isdecimal()) or len(after) > 18:
        return JsonResponse(
            {"error": "Give ?after=, the id of the newest headline that you have, or 0."}, status=400
        )
    # Join first, and look second: a new headline is saved first, and then sent to the group.
    Group(WAITING.name, immediately=True).add(request.reply_channel)
    Channel("longpoll.patience", delay=PATIENCE).send({"to": request.reply_channel.name})
    found = Headline.objects.filter(id__gt=int(after)).order_by("id").first()
    if found is not None:
        WAITING.discard(request.reply_channel)
        return JsonResponse(found.as_json())
    raise ResponseLater


@require_POST
def add(request):
    """Store a headline, and answer all waiting requests."""
    # PostgreSQL stores no NUL.
    if text := request.POST.get("text", "").replace("\0", "").strip()[:200]:
        headline = Headline.objects.create(text=text)
        WAITING.send(JsonResponse(headline.as_json()))
    return redirect("longpoll:page")
