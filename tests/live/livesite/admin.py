"""Django's admin as every site has it."""

from django.contrib import admin

from livesite.models import Document

admin.site.register(Document)
