"""The processes of ``runchannels`` and ``runserver``: how they start, reload and end."""
