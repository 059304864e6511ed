"""A view and a consumer that leave everything behind that they can, and say what the one before has left."""

import json

from django.db import connection, transaction
from django.http import JsonResponse
from django.utils import timezone, translation

from dbchannels import consumer

LEFT = [
    "SELECT set_config('app.tenant', 'anna', false)",
    "SET ROLE pg_monitor",
    "SET search_path = anna",
    "SET default_transaction_read_only = on",
    "CREATE TEMPORARY TABLE left_behind (id int)",
    "SELECT pg_advisory_lock(hashtext(pg_backend_pid()::text))",
    "LISTEN left_behind",
]
FOUND = """
SELECT coalesce(current_setting('app.tenant', true), ''), current_user = session_user,
       current_setting('search_path') = 'anna', current_setting('default_transaction_read_only'),
       (SELECT count(*) FROM pg_class WHERE relname = 'left_behind' AND relnamespace = pg_my_temp_schema()),
       (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
       (SELECT count(*) FROM pg_listening_channels()), pg_backend_pid()
"""


def leave(number):
    """Return what is there, and the session; then leave something, and at each fiftieth number a transaction."""
    with connection.cursor() as cursor:
        cursor.execute(FOUND)
        *found, pid = cursor.fetchone()
        cursor.execute(LEFT[number % len(LEFT)])
    here = [translation.get_language(), timezone.get_current_timezone_name(), connection.in_atomic_block]
    translation.activate("de")
    timezone.activate("Asia/Tokyo")
    if number % 50 == 49:
        transaction.atomic().__enter__()
    return {"found": [*found, *here], "pid": pid}


def left(request, number):
    return JsonResponse(leave(number))


@consumer("websocket.receive", path=r"^/left/$")
def left_by_frame(message):
    message.reply_channel.send({"text": json.dumps(leave(int(message["text"])))})
