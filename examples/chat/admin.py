"""The chat in the admin."""

from django.contrib import admin

from chat.models import Line, Presence, Room


@admin.register(Room)
class RoomAdmin(admin.ModelAdmin):
    list_display = ("name",)
    search_fields = ("name",)


@admin.register(Presence)
class PresenceAdmin(admin.ModelAdmin):
    list_display = ("name", "room", "reply_channel")
    list_filter = ("room",)

    def has_add_permission(self, request):
        """No: a presence without a socket would never leave."""
        return False

    def has_change_permission(self, request, obj=None):
        """No: the open pages would not be told."""
        return False


@admin.register(Line)
class LineAdmin(admin.ModelAdmin):
    list_display = ("said_at", "room", "__str__")
    list_filter = ("room",)
    search_fields = ("name", "text")
    date_hierarchy = "said_at"
