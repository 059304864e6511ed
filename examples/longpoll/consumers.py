"""The end of somebody's patience: the page asks again at once, and no proxy has had enough before."""

from django.http import HttpResponse

from dbchannels import Channel, consumer


@consumer("longpoll.patience")
def enough(message):
    """Answer with nothing. To a request that was answered meanwhile this says nothing any more."""
    Channel(message["to"]).send(HttpResponse(status=204))
