"""The sheet as a page that needs nothing but a browser."""

import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files


def form(name: str, rows: Sequence[tuple[str, str, str]]) -> str:
    """An HTML page on which the responses are rated one by one, and which saves a CSV file of items and ratings.

    It works from a disk without a network, and keeps what was rated in the browser until it is saved.

    Args:
        name: of the sheet, and of the file that is saved.
        rows: item, prompt and response.
    """
    data = {
        "name": name,
        "id": hashlib.sha256("".join(item for item, *_ in rows).encode()).hexdigest()[:16],
        "rows": [{"item": item, "prompt": prompt, "response": response} for item, prompt, response in rows],
    }
    page = files("lorachains.human").joinpath("form.html").read_text(encoding="utf-8")
    # A "<" could end the script element that holds the data.
    return page.replace("{{data}}", json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"))
