"""News by long poll: a request that is answered when there is something to say, be it a minute later.

No worker waits meanwhile. The view raises ResponseLater and is done; whoever has the request's reply channel answers
it, and here that is a group of all who wait.
"""

from django.http import JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_POST

from dbchannels import Channel, Group, ResponseLater
from longpoll.models import Headline

WAITING = Group("longpoll")
PATIENCE = 25.0  # seconds: proxies give up on a silent answer after 30 to 60
SHOWN = 10  # headlines, the newest first


def page(request):
    """Show the newest headlines, and a form for the next."""
    return render(request, "longpoll/page.html", {"headlines": Headline.objects.all()[:SHOWN]})


@require_GET
def next_headline(request):
    """Answer with the first headline after the one that the page has, now or later; 204 when there was none."""
    after = request.GET.get("after", "")
    if not (after.isascii() and after.isdecimal()) or len(after) > 18:
        return JsonResponse(
            {"error": "Say ?after=, the id of the newest headline that you have, or 0."}, status=400
        )
    # First wait, then look: whoever adds a headline saves it, and then tells those who wait.
    Group(WAITING.name, immediately=True).add(request.reply_channel)
    Channel("longpoll.patience", delay=PATIENCE).send({"to": request.reply_channel.name})
    found = Headline.objects.filter(id__gt=int(after)).order_by("id").first()
    if found is not None:
        WAITING.discard(request.reply_channel)
        return JsonResponse(found.as_json())
    raise ResponseLater


@require_POST
def add(request):
    """Keep a headline, and answer everybody who waits for it."""
    if text := request.POST.get("text", "").strip()[:200]:
        headline = Headline.objects.create(text=text)
        WAITING.send(JsonResponse(headline.as_json()))
    return redirect("longpoll:page")
