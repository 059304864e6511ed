from django.contrib.auth.hashers import make_password
from django.db import migrations


def add_admin(apps, schema_editor):
    user = apps.get_model("auth", "User")
    user.objects.create(username="admin", password=make_password("secret"), is_staff=True, is_superuser=True)


class Migration(migrations.Migration):
    dependencies = [("livesite", "0001_initial"), ("auth", "0012_alter_user_first_name_max_length")]
    operations = [migrations.RunPython(add_admin, migrations.RunPython.noop)]
