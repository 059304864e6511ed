from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("livesite", "0002_admin")]
    operations = [
        migrations.CreateModel(
            name="Document",
            fields=[
                ("id", models.BigAutoField(primary_key=True)),
                ("name", models.CharField(max_length=100)),
                ("file", models.FileField(upload_to="documents")),
            ],
        ),
    ]
