"""The pages on which posts are written, edited and deleted: Django's own admin, without any code for sockets."""

from django.contrib import admin

from liveblog.models import Post


@admin.register(Post)
class PostAdmin(admin.ModelAdmin):
    list_display = ("title", "posted_at")
