"""The page: a chat, and the code behind it."""

from __future__ import annotations

from pathlib import Path

from django.shortcuts import render

CODE = Path(__file__).with_name("consumers.py")


def page(request):
    """Show the chat beside the file that serves it (read as text: no consumer is imported for a page)."""
    return render(request, "post2015/page.html", {"code": CODE.read_text(encoding="utf-8")})
