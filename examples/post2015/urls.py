"""The one address: of the page, and of its WebSocket."""

from django.urls import path

from post2015 import views

app_name = "post2015"

urlpatterns = [path("", views.page, name="page")]
