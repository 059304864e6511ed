"""Where posts are written, corrected and deleted: Django's own pages, which know nothing of sockets."""

from django.contrib import admin

from liveblog.models import Post


@admin.register(Post)
class PostAdmin(admin.ModelAdmin):
    list_display = ("title", "posted_at")
