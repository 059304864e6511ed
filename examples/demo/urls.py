"""The front page, the examples, and the admin."""

from django.contrib import admin
from django.templatetags.static import static
from django.urls import include, path
from django.views.generic import RedirectView

from demo import views

urlpatterns = [
    path("", views.index, name="index"),
    path("chat/", include("chat.urls")),
    path("post-2015/", include("post2015.urls")),
    path("rooms/", RedirectView.as_view(url="lobby/"), name="rooms"),
    path("rooms/", include("rooms.urls")),
    path("accounts/", include("django.contrib.auth.urls")),
    path("liveblog/", include("liveblog.urls")),
    path("thumbnails/", include("thumbnails.urls")),
    path("longpoll/", include("longpoll.urls")),
    path("admin/", admin.site.urls),
    # The admin has no icon, so browsers request this one.
    path("favicon.ico", RedirectView.as_view(url=static("demo/icon.svg"))),
]
