"""The blog's one page."""

from django.urls import path
from django.views.generic import TemplateView

app_name = "liveblog"

urlpatterns = [path("", TemplateView.as_view(template_name="liveblog/blog.html"), name="blog")]
