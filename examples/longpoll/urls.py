"""The page, the request that waits, and the form."""

from django.urls import path

from longpoll import views

app_name = "longpoll"

urlpatterns = [
    path("", views.page, name="page"),
    path("next/", views.next_headline, name="next"),
    path("add/", views.add, name="add"),
]
