"""A judge's replies on disk, so that nothing is asked, and paid, twice."""

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)


class ReplyCache:
    """The replies of one judge, each in a file named after the hash of judge and prompt, which are not kept.

    Several processes may share a folder.

    Args:
        judge: all that a reply depends on, beside the prompt.
    """

    def __init__(self, folder: Path, judge: str) -> None:
        self.folder, self.judge = folder, judge

    def get(self, prompt: str) -> str | None:
        """The reply; `None` if it isn't known. A damaged one is told of, and isn't known either."""
        file = self._file(prompt)
        try:
            return str(json.loads(file.read_text(encoding="utf-8"))["reply"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            log.warning("%s is damaged: asking the judge again", file)
            return None

    def put(self, prompt: str, reply: str) -> None:
        """Keeps a reply: the file is there whole, or not at all."""
        file = self._file(prompt)
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, part = tempfile.mkstemp(dir=file.parent, suffix=".part")
        try:
            with open(descriptor, "w", encoding="utf-8") as out:
                json.dump({"reply": reply}, out)
            os.replace(part, file)
        except BaseException:
            os.unlink(part)
            raise

    def _file(self, prompt: str) -> Path:
        digest = hashlib.sha256(f"{self.judge}\0{prompt}".encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest}.json"
