from django.utils import timezone

from dbchannels import DenyConnection, Group, JsonWebsocketConsumer, route_class
from rooms.models import Line, Visit


@route_class(path="/rooms/<slug:room>/")
class Room(JsonWebsocketConsumer):
    def connect(self, message, room):
        if not self.user.is_authenticated:
            raise DenyConnection
        Group(f"room-{room}", immediately=True).add(self.reply_channel)
        visit = Visit.objects.create(room=room, user=self.user)
        self.channel_session["visit"] = visit.pk
        for rows, key in ((Visit.objects, "visit"), (Line.objects, "line")):
            for row in reversed(rows.filter(room=room).select_related("user").order_by("-id")[:50]):
                self.send_json({key: row.as_json()})
        self.send_group_json(f"room-{room}", {"visit": visit.as_json()})

    def receive_json(self, content, room):
        key, text = str(content.get("key", ""))[:50], str(content.get("text", "")).strip()[:2000]
        if key and text:
            line, _ = Line.objects.get_or_create(key=key, room=room, user=self.user, defaults={"text": text})
            self.send_group_json(f"room-{room}", {"line": line.as_json()})

    def disconnect(self, code, room):
        if visit := Visit.objects.filter(pk=self.channel_session.get("visit")).first():
            visit.left_at = timezone.now()
            visit.save()
            self.send_group_json(f"room-{room}", {"visit": visit.as_json()})
