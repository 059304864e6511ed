"""The URLs of the tests' site."""

from django.contrib import admin
from django.http import HttpResponse
from django.urls import path


def hello(request):
    """Answer with a few bytes that a test can recognise."""
    return HttpResponse("hello")


urlpatterns = [path("", hello), path("admin/", admin.site.urls)]
