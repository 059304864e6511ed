"""Pictures, made smaller; in a module of its own, because it needs nothing of Django's."""

from io import BytesIO

from PIL import Image


def smaller(image, side):
    """Return a picture as JPEG, its longer side of so many pixels at most."""
    made = image.convert("RGB")
    made.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = BytesIO()
    made.save(file, "JPEG", quality=85)
    return file.getvalue()
