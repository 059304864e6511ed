"""Views that send, in transactions that end in each way."""

import os
import signal

from django.db import transaction
from django.http import HttpResponse

from dbchannels import Channel


class Undone(Exception):
    """What rolls a transaction back."""


def sends(request, how, channel, text):
    """Send one message, or with a savepoint two; ``how`` is the name of a function below."""
    try:
        HOW[how](lambda more="": Channel(channel).send({"text": text + more}))
    except Undone:
        return HttpResponse("undone")
    return HttpResponse("sent")


def commit(send):
    with transaction.atomic():
        send()


def roll_back(send):
    with transaction.atomic():
        send()
        raise Undone


def savepoint(send):
    with transaction.atomic():
        send(" before")
        try:
            with transaction.atomic():
                send(" inside")
                raise Undone
        except Undone:
            send(" after")


def die(send):
    """The process is killed between the INSERT and the COMMIT."""
    with transaction.atomic():
        send()
        os.kill(os.getpid(), signal.SIGKILL)


def plainly(send):
    """In the transaction that ATOMIC_REQUESTS makes, or in none."""
    send()


def plainly_and_raise(send):
    send()
    raise ValueError("as asked for")


HOW = {
    one.__name__.replace("_", "-"): one
    for one in (commit, roll_back, savepoint, die, plainly, plainly_and_raise)
}
