"""The page and its requests."""

from django.urls import path

from thumbnails import views

app_name = "thumbnails"

urlpatterns = [
    path("", views.page, name="page"),
    path("upload/", views.upload, name="upload"),
    path("events/", views.events, name="events"),
    path("clear/", views.clear, name="clear"),
    path("<int:pk>/<int:side>.jpg", views.picture, name="picture"),
]
