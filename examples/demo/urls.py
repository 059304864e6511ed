"""The front page, the examples, and the admin."""

from django.contrib import admin
from django.urls import include, path

from demo import views

urlpatterns = [
    path("", views.index, name="index"),
    path("chat/", include("chat.urls")),
    path("post-2015/", include("post2015.urls")),
    path("admin/", admin.site.urls),
]
