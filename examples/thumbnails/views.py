"""The page, the upload, the pictures, and the events that report their progress."""

from django import forms
from django.http import FileResponse, Http404, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_POST

from dbchannels import Channel, Group, ResponseLater
from thumbnails.consumers import event
from thumbnails.models import SIDES, Photo

LARGEST = 20 * 1024 * 1024  # bytes of an upload
SHOWN = 24  # photos, the newest first


class UploadForm(forms.Form):
    file = forms.ImageField()

    def clean_file(self):
        """Refuse pictures that would keep a worker too long."""
        file = self.cleaned_data["file"]
        if file.size > LARGEST:
            raise forms.ValidationError(f"A picture may have {LARGEST // 1024 // 1024} MB at most.")
        return file


def page(request):
    """Show the form; the events send the photos."""
    return render(request, "thumbnails/page.html", {"sides": " ".join(map(str, SIDES))})


@require_POST
def upload(request):
    """Store a picture, and send a message to have its thumbnails made: one row in the same transaction."""
    form = UploadForm(request.POST, request.FILES)
    if not form.is_valid():
        return JsonResponse({"problem": form.errors["file"][0]}, status=400)
    file = form.cleaned_data["file"]
    name, file.name = file.name[-100:], "photo"  # never name a file by what a client sent
    photo = Photo.objects.create(name=name, original=file)
    Channel("thumbnails").send({"photo": photo.pk})
    return JsonResponse(photo.as_json(), status=201)


@require_GET
def picture(request, pk, side):
    """Send one size."""
    photo = get_object_or_404(Photo, pk=pk)
    if side not in SIDES or not photo.original.storage.exists(photo.path(side)):
        raise Http404
    file = photo.original.storage.open(photo.path(side))
    return FileResponse(file, content_type="image/jpeg", headers={"Cache-Control": "max-age=86400"})


@require_GET
def events(request):
    """Send the progress of all photos, and then each change. The request stays open, but no worker waits."""
    Group("thumbnails").add(request.reply_channel)
    headers = [[b"Content-Type", b"text/event-stream"], [b"Cache-Control", b"no-store"]]
    now = (
        b"".join(event(photo.as_json()) for photo in reversed(Photo.objects.all()[:SHOWN]))
        or b": none yet\n\n"
    )
    request.reply_channel.send({"status": 200, "headers": headers, "content": now, "more_content": True})
    raise ResponseLater


@require_POST
def clear(request):
    """Delete all photos and their files."""
    for photo in Photo.objects.all():
        for side in SIDES:
            photo.original.storage.delete(photo.path(side))
        photo.original.delete(save=False)
        photo.delete()
    return redirect("thumbnails:page")
