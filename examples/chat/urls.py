"""The URLs of the chat. A room's page and its WebSocket share one."""

from django.urls import path, re_path

from chat import views
from chat.models import ROOM_NAME

app_name = "chat"

urlpatterns = [
    path("", views.lobby, name="lobby"),
    re_path(rf"^(?P<name>{ROOM_NAME})/\Z", views.room, name="room"),
    path("<path:name>/", views.no_room),
]
