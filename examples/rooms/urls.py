from django.urls import path

from rooms import views

app_name = "rooms"
urlpatterns = [path("<slug:room>/", views.room, name="room")]
