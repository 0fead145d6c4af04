"""What predict.py has found, on disk as it is found: so that a run that is killed can be gone on with.

A file of JSON lines in the folder of the results: what they were found with, then an image or frame each. It
goes when the tables are written.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from detector.output import write_text
from detector.prediction.annotations import Result
from detector.prediction.results import ResultsFolder
from errors import InputError

JOURNAL = ".found.jsonl"


class Journal:
    """The lines of a folder of results.

    Args:
        folder: made with the first line, if it is not there.
        settings: all that decides on what is found and drawn.

    Attributes:
        before: of a folder that is gone on with, what has been found, as `add` has written it.

    Raises:
        InputError: the folder is gone on with, and holds no lines, or lines of other settings.
    """

    def __init__(self, folder: ResultsFolder, settings: dict[str, Any]) -> None:
        self._folder = folder
        self._head = json.loads(json.dumps(settings))
        self._file: TextIO | None = None
        self.before: list[dict[str, Any]] = list(self._read()) if folder.resumed else []

    def _read(self) -> Iterator[dict[str, Any]]:
        path = self._folder.path / JOURNAL
        if not path.is_file():
            raise InputError(
                f"--resume: {self._folder.path} holds nothing to go on with: it is done, or no folder of "
                "predict.py"
            )
        text = path.read_text(encoding="utf-8")
        whole = [line for line in text.splitlines(keepends=True) if line[-1] == "\n"]
        try:
            head, *found = [json.loads(line) for line in whole]
        except ValueError:
            raise InputError(f"--resume: {path} is damaged; begin anew, with another --output") from None
        for name, value in self._head.items():
            if head.get(name) != value:
                raise InputError(
                    f"--resume: {self._folder.path} was begun with another {name}; give that, or begin anew "
                    "with another --output"
                )
        if "".join(whole) != text:  # the last line was cut off
            write_text(path, "".join(whole))
        return iter(found)

    def add(self, results: Sequence[Result]) -> None:
        """Raises InputError: no permission or no space."""
        path = self._folder.path / JOURNAL
        lines = "".join(json.dumps(self._folder.as_plain(result)) + "\n" for result in results)
        try:
            if self._file is None:
                begun = path.exists()
                self._file = path.open("a", encoding="utf-8")
                lines = lines if begun else json.dumps(self._head) + "\n" + lines
            self._file.write(lines)
            self._file.flush()
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from None

    def close(self, done: bool) -> None:
        """done: nothing is left to go on with."""
        if self._file is not None:
            try:
                self._file.close()
            except OSError:  # a full disk, which has been told
                pass
        if done:
            (self._folder.path / JOURNAL).unlink(missing_ok=True)


def digest_of(file: Path) -> str:
    """Of the content of a checkpoint: it may have been moved, or trained on."""
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as content:
        while chunk := content.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
