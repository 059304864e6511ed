"""What is secret by its name in the address of a request: shown to nobody, in no log and no admin."""

from __future__ import annotations

import re

#: A parameter whose name has one of these words, alone or between ``_``, ``-`` and ``.``: ``token``, ``access_token``.
SECRET_WORDS = (
    "apikey auth authorization code credential jwt key otp passwd password pwd secret session sessionid sig "
    "signature ticket token"
)
_PARAMETER = re.compile(
    r"(?i)([?&;](?:[^=&;\s]*[_.-])?(?:" + "|".join(SECRET_WORDS.split()) + r")(?:[_.-][^=&;\s]*)?=)[^&;\s]+"
)


def mask_query(address: str) -> str:
    """Return a text with ``***`` in the place of each secret value of a query string in it: ``/a?token=***&b=c``."""
    return _PARAMETER.sub(r"\1***", address) if "=" in address else address
