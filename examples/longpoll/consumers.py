"""The end of a wait: the page asks again at once, before a proxy gives up."""

from django.http import HttpResponse

from dbchannels import Channel, consumer


@consumer("longpoll.patience")
def enough(message):
    """Answer with an empty response; a request that was answered meanwhile ignores it."""
    Channel(message["to"]).send(HttpResponse(status=204))
