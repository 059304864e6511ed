"""One URL for the page and for its WebSocket."""

from django.urls import path

from post2015 import views

app_name = "post2015"

urlpatterns = [path("", views.page, name="page")]
