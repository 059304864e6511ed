"""The page: a chat and its code."""

from __future__ import annotations

from pathlib import Path

from django.shortcuts import render

CODE = Path(__file__).with_name("consumers.py")


def page(request):
    """Show the chat and the source of its consumers, read as text: pages import no consumer."""
    return render(request, "post2015/page.html", {"code": CODE.read_text(encoding="utf-8")})
