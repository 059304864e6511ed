"""Smaller pictures, in a module of its own, because it does not need Django."""

from io import BytesIO

from PIL import Image


def smaller(image, side):
    """Return a picture as JPEG, with at most this many pixels on its longer side."""
    made = image.convert("RGB")
    made.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = BytesIO()
    made.save(file, "JPEG", quality=85)
    return file.getvalue()
