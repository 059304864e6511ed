from django.apps import AppConfig


class BlogConfig(AppConfig):
    """Models for the tests of bindings; without migrations, so that only tests have their tables."""

    name = "tests.blog"
    label = "blog"
    default_auto_field = "django.db.models.BigAutoField"
