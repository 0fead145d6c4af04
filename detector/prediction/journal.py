"""A journal of predict.py's results, written as they are found, so that a killed run can be resumed.

A file of JSON lines in the folder of results: first the settings, then one line per image or frame, and after
the last frame of a video its number of frames. It is deleted once the tables are written.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from filelock import Timeout

from data.inputs import RESULTS_MARK, Source
from data.locks import locked
from detector.prediction.annotations import Result
from detector.prediction.results import ResultsFolder
from errors import InputError

JOURNAL = ".found.jsonl"


class Journal:
    """The journal of a folder of results; as a context it locks the folder for this process.

    Args:
        folder: created with the first line, if it does not exist.
        settings: everything that affects what is detected and drawn.

    Raises:
        InputError: the folder is to be resumed, but has no journal, or one with other settings, or another
            live process writes to it.
    """

    def __init__(self, folder: ResultsFolder, settings: dict[str, Any]) -> None:
        self._folder = folder
        self._head = json.loads(json.dumps(settings))
        self._file: TextIO | None = None
        self._whole = 0  # bytes of complete lines, which are kept
        self._kept = ExitStack()
        if folder.resumed:
            self._refuse_others(next(self._lines(), None))
            self._keep()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        with self._kept, contextlib.suppress(OSError):  # a full disk, which has been reported
            if self._file is not None:
                self._file.close()

    def _keep(self) -> None:
        try:
            self._kept.enter_context(
                locked(self._folder.path / RESULTS_MARK, "no other predict.py uses the folder", timeout=0)
            )
        except Timeout:
            raise InputError(
                f"{self._folder.path} is in use by another predict.py that is still running; wait for it, or "
                "stop it first"
            ) from None
        except OSError as error:
            raise InputError(f"cannot write in {self._folder.path}: {error.strerror}") from None

    def before(self) -> Iterator[dict[str, Any]]:
        """The lines that `add` and `end_video` wrote before, up to the first truncated one."""
        if self._folder.resumed:
            lines = self._lines()
            next(lines)
            yield from lines

    def _lines(self) -> Iterator[dict[str, Any]]:
        self._whole = 0
        with contextlib.suppress(FileNotFoundError), (self._folder.path / JOURNAL).open("rb") as file:
            for line in file:
                try:
                    plain = json.loads(line)
                except ValueError:
                    return
                if not isinstance(plain, dict) or not line.endswith(b"\n"):
                    return
                self._whole += len(line)
                yield plain

    def _refuse_others(self, head: dict[str, Any] | None) -> None:
        if head is None:
            raise InputError(
                f"--resume: {self._folder.path} has nothing to continue: it is complete, or not a results "
                "folder of predict.py"
            )
        for name, value in self._head.items():
            if head.get(name) != value:
                raise InputError(
                    f"--resume: {self._folder.path} was started with another {name}; give the same one, or "
                    "start again with another --output"
                )

    def add(self, results: Sequence[Result]) -> None:
        """Record images, or frames of a video.

        Raises:
            InputError: no permission or no space.
        """
        self._write(self._folder.as_plain(result) for result in results)

    def end_video(self, source: Source, frames: int) -> None:
        """Record that a video is complete and drawn. Raises InputError: as `add`."""
        names = {"file": str(source.path), "place": str(source.place)}
        self._write([{**names, "frames": frames, "drawn": self._folder.drawn(source)}])

    def _write(self, plain: Iterable[dict[str, Any]]) -> None:
        path = self._folder.path / JOURNAL
        lines = "".join(json.dumps(one) + "\n" for one in plain)
        try:
            if self._file is None:
                if self._folder.resumed:
                    os.truncate(path, self._whole)
                else:
                    self._keep()
                self._file = path.open("a" if self._folder.resumed else "w", encoding="utf-8")
                lines = lines if self._folder.resumed else json.dumps(self._head) + "\n" + lines
            self._file.write(lines)
            self._file.flush()
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from None

    def done(self) -> None:
        """Delete the journal: nothing is left to resume."""
        if self._file is not None or self._folder.resumed:  # otherwise the folder may not exist
            (self._folder.path / JOURNAL).unlink(missing_ok=True)


def digest_of(file: Path) -> str:
    """A hash of a checkpoint's content: the file may have been moved, or training may have replaced it."""
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as content:
        while chunk := content.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
