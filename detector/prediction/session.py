"""Detects objects in all inputs; unreadable ones are skipped and counted."""

import io
import itertools
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from data.images import read_size, read_upright
from data.inputs import Source
from data.progress import Progress
from data.video import VideoReader, VideoWriter
from detector.memory import is_out_of_memory
from detector.prediction.annotations import Result
from detector.prediction.journal import Journal
from detector.prediction.results import TO_CORRECT, ResultsFolder
from detector.prediction.tables import write_tables
from detector.prediction.termination import Termination
from detector.predictor import Detector, ImageDetections
from errors import InputError

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]

_MORE_MEMORY = (
    "needs more memory than is available; make images smaller in data.transforms.eval of the training, "
    "lower eval.tile_batch_size if tiles are used, or try --device cpu"
)
_READERS = 4  # threads that decode a batch while the network works on the previous one
_TOGETHER = 2048  # images that are grouped by shape at a time


@dataclass(frozen=True)
class Report:
    """A summary of the results."""

    folder: Path
    images: int
    frames: int  # of videos
    detections: int
    failed: int


def predict(
    detector: Detector,
    sources: Sequence[Source],
    folder: ResultsFolder,
    formats: Sequence[str],
    thresholds: NDArray[np.float64],
    one_per_object: bool = False,
    every: int | None = None,
    settings: dict[str, Any] | None = None,
) -> Report:
    """Detect objects in all sources and write the results.

    Args:
        formats: some of results.FORMATS.
        thresholds: float64 [C]; detections below the threshold of their class are dropped.
        one_per_object: then also drop boxes that overlap better ones of other classes.
        every: save every n-th frame of a video as an image, for annotations.
        settings: everything that the results depend on; a resumed folder must have the same.

    Raises:
        InputError: none of the sources can be read, or the results cannot be written.
    """

    def choose(found: ImageDetections) -> ImageDetections:
        above = found.above(thresholds)
        return above.one_per_object() if one_per_object else above

    least = float(np.min(thresholds))
    with Journal(folder, settings or {}) as journal, Termination() as termination:
        session = _Session(detector, folder, journal, "pictures" in formats, choose, least, every)
        left = session.restore(sources)
        try:
            session.detect_in(left)
        except BaseException:
            termination.hold_back()
            session.keep_what_was_found(formats)
            raise
        termination.hold_back()
        if not session.results:
            session.give_up()
        try:
            session.write_tables(formats)
        except InputError as error:
            then = f"to write what is missing, run the same command with --resume {folder.path}"
            raise InputError(f"{error}; {then}") from None
        journal.done()
    if full := sum(result.full for result in session.results):
        log.warning(
            "%d of %d images and frames have as many detections as eval.detections_per_img allows, and may "
            "contain more objects; set it higher", full, len(session.results),
        )  # fmt: skip
    detector.warn_of_sizes(np.array([result.size for result in session.results], dtype=np.int64))
    found = sum(len(result.found) for result in session.results)
    frames = sum(result.frame is not None for result in session.results)
    return Report(folder.path, len(session.results) - frames, frames, found, len(session.failed))


class _Undetectable(InputError):
    """The detector cannot process an image or frame."""


class _Session:
    """The state of a run: what has been found so far."""

    def __init__(
        self,
        detector: Detector,
        folder: ResultsFolder,
        journal: Journal,
        pictures: bool,
        choose: Callable[[ImageDetections], ImageDetections],
        least: float,
        every: int | None,
    ) -> None:
        self.results: list[Result] = []
        self.failed: list[tuple[Source, str]] = []
        self._order: list[Source] = []  # order of the sources in the tables
        self._has_frames = False  # whether the journal has frames of videos, which may be incomplete
        self._bar = Progress(0, "image")
        self._detector = detector
        self._folder = folder
        self._journal = journal
        self._pictures = pictures
        self._choose = choose
        self._least = least  # lowest threshold of any class
        self._every = every  # see `predict`
        self._frames_before: dict[Source, list[Result]] = {}  # of unfinished videos
        self._streamed: Pixels = np.zeros((0, 0, 3), dtype=np.uint8)  # the image from standard input

    def restore(self, sources: Sequence[Source]) -> list[Source]:
        """Restore the results of an interrupted run, if any; returns the sources that remain.

        Raises:
            InputError: the results are all of other sources.
        """
        named = {str(source.path): source for source in sources}
        whole: dict[Source, list[Result]] = {}
        gone: dict[str, Source] = {}
        for plain in self._journal.before():
            name = plain["file"]
            if name not in named and name not in gone:
                kind: Literal["image", "video"] = "image" if plain.get("frame") is None else "video"
                gone[name] = Source(kind, Path(name), Path(plain["place"]))
            source = named.get(name) or gone[name]
            ends = "frames" in plain
            result = None if ends else self._folder.from_plain(plain, source, self._detector.classes)
            if result is not None and result.frame is not None:
                frames = self._frames_before.setdefault(source, [])
                if result.frame == len(frames):  # otherwise recorded twice
                    frames.append(result)
            elif source not in whole and self._folder.has_drawn(plain):
                results = self._frames_before.get(source, []) if result is None else [result]
                if self._folder.keep_frames(results):
                    whole[source] = results
                    self._folder.keep_drawn(source, plain["drawn"])
                    self._frames_before.pop(source, None)
        if gone and not any(source in whole or source in self._frames_before for source in sources):
            raise InputError(
                f"--resume: {self._folder.path} has results of {next(iter(gone))}, which is not among the "
                "inputs; give the inputs that it was started with"
            )
        for source in gone.values():
            self._frames_before.pop(source, None)  # an incomplete video that is no input any more stays so
        if kept := [name for name, source in gone.items() if source in whole]:
            log.warning(
                "--resume: %d earlier inputs are not given now, such as %s; their results are kept",
                len(kept), kept[0],
            )  # fmt: skip
        if self._folder.resumed:
            frames_before = sum(map(len, self._frames_before.values()))
            self._has_frames = frames_before > 0
            more = f", and {frames_before} frames of others" if frames_before else ""
            print(f"{len(whole) - len(kept)} of {len(sources)} inputs are already done{more}", flush=True)
        self._order = [*gone.values(), *sources]
        self.results += [result for results in whole.values() for result in results]
        return [source for source in sources if source not in whole]

    def detect_in(self, sources: Sequence[Source]) -> None:
        """Detect objects in all images, then in all videos."""
        with ThreadPoolExecutor(_READERS) as readers, self._bar:
            self._all_images([source for source in sources if source.kind != "video"], readers)
            for source in sources:
                if source.kind == "video":
                    self._video(source)

    def keep_what_was_found(self, formats: Sequence[str]) -> None:
        """After an interruption: write the tables of what was found so far, and say how to continue."""
        if not (self.results or self._has_frames):
            return
        folder = self._folder.path
        held = f"{folder} contains what has been found so far"
        if not {*TO_CORRECT}.isdisjoint(formats):
            held += ", but no annotations to correct yet"
        try:
            if self.results:
                self.write_tables([f for f in formats if f not in TO_CORRECT])
        except InputError as error:  # the reason for the interruption is reported later
            held = f"{error}; what has been found so far is still in {folder}"
        log.warning("interrupted; %s; to continue, run the same command with --resume %s", held, folder)

    def give_up(self) -> NoReturn:
        """End a run that has no results; frames of a video that could not be read to its end are kept.

        Raises:
            InputError: always.
        """
        (_, reason), *more = self.failed
        some = f"none of the {len(more) + 1} inputs can be used: {reason}, ..." if more else reason
        if self._has_frames:
            some += (
                f"; to keep the frames done so far, run the same command with --resume {self._folder.path}"
            )
        else:
            self._journal.done()
        raise InputError(some)

    def _all_images(self, sources: Sequence[Source], readers: ThreadPoolExecutor) -> None:
        """Detect objects in images, grouping similar shapes and reading one batch ahead."""
        self._bar.total = len(sources)
        # Do not read all headers first: with 100,000 images on a network drive that would take minutes.
        for first in range(0, len(sources), _TOGETHER):
            self._images(sources[first : first + _TOGETHER], readers)

    def _images(self, sources: Sequence[Source], readers: ThreadPoolExecutor) -> None:
        sized = [(source, size) for source in sources if (size := self._size(source)) is not None]
        batches = self._detector.batches_of(np.array([size for _, size in sized], dtype=np.int64))

        def begin(rows: list[int]) -> list[tuple[Source, Future[Pixels | InputError]]]:
            return [(sized[row][0], readers.submit(self._read, sized[row][0])) for row in rows]

        ahead = begin(batches[0]) if batches else []
        for following in [*batches[1:], []]:
            reading, ahead = ahead, begin(following)
            good = []
            for source, future in reading:
                pixels = future.result()
                if isinstance(pixels, InputError):
                    self._fail(source, pixels)
                else:
                    good.append((source, pixels))
            for (source, _), (result, drawn) in zip(good, self._detect(good, None), strict=True):
                if isinstance(result, InputError):
                    self._fail(source, result)
                    continue
                self.results.append(result)
                if drawn is not None:
                    self._folder.write_picture(source, drawn)
                self._journal.add([result])
                self._bar.update()

    def _size(self, source: Source) -> tuple[int, int] | None:
        """Height and width; None, after recording the failure, for an image that cannot be read."""
        try:
            if source.kind != "stdin":
                return read_size(source.path)
            self._streamed = read_upright(io.BytesIO(sys.stdin.buffer.read()), "on standard input")
            return self._streamed.shape[0], self._streamed.shape[1]
        except InputError as error:
            self._fail(source, error)
            return None

    def _read(self, source: Source) -> Pixels | InputError:
        if source.kind == "stdin":
            return self._streamed
        try:
            return read_upright(source.path, str(source.path))
        except InputError as error:
            return error
        except MemoryError:
            return InputError(f"image {source.path} needs more memory than is available")

    def _video(self, source: Source) -> None:
        """Detect objects in every frame of a video."""
        try:
            reader = VideoReader(source.path)
            frames = iter(reader)
            first = list(islice(frames, 1))
        except InputError as error:
            self._bar.total += 1
            self._fail(source, error)
            return
        self._bar.total += reader.frames
        before = len(self.results)
        try:
            self._frames(source, itertools.chain(first, frames), reader.rate)
            self._journal.end_video(source, len(self.results) - before)
        except BaseException as error:
            some = self.results[before:]
            del self.results[before:]  # no partial results, just as no partial drawn video
            if not isinstance(error, _Undetectable):
                raise
            self._folder.forget_frames(some)
            self._fail(source, error)

    def _frames(self, source: Source, frames: Iterator[Pixels], rate: float) -> None:
        """Process all frames of a video.

        Raises:
            _Undetectable: the detector cannot process a frame.
        """
        with ExitStack() as stack:
            writer: VideoWriter | None = None
            for result, drawn in self._of_frames(source, frames):
                self.results.append(result)
                if drawn is not None and writer is None:
                    extent = (drawn.shape[0], drawn.shape[1])
                    writer = stack.enter_context(self._folder.video_writer(source, rate, extent))
                if drawn is not None and writer is not None:
                    writer.write(drawn)
                self._bar.update()

    def _of_frames(self, source: Source, frames: Iterator[Pixels]) -> Iterator[tuple[Result, Pixels | None]]:
        """Yield the result of each frame, and the drawn frame if requested; restored results are redrawn."""
        before = self._frames_before.pop(source, [])
        for known, pixels in zip(before, frames, strict=False):
            if pixels.shape[:2] != known.size:
                raise _Undetectable(
                    f"{source.path} has frames of a different size than before; start again "
                    "with another --output"
                )
            yield self._kept(known, pixels), self._drawn(known.found, pixels)
        first = len(before)
        while batch := list(islice(frames, self._detector.batch_size)):
            of_batch = list(self._detect([(source, frame) for frame in batch], first))
            found = [result for result, _ in of_batch if isinstance(result, Result)]
            self._journal.add(found)
            self._has_frames = True
            for result, drawn in of_batch:
                if isinstance(result, InputError):
                    raise result
                yield result, drawn
            first += len(batch)

    def _detect(
        self, images: list[tuple[Source, Pixels]], first_frame: int | None
    ) -> Iterator[tuple[Result | InputError, Pixels | None]]:
        """Yield for each image of a batch the result or an error, and the drawn picture if requested."""
        found = self._found([pixels for _, pixels in images])
        for number, ((source, pixels), one) in enumerate(zip(images, found, strict=True)):
            if isinstance(one, str):
                height, width = pixels.shape[:2]
                yield _Undetectable(f"{source.path} ({width} x {height} px): {one}"), None
                continue
            shown = self._choose(one)
            frame = None if first_frame is None else first_frame + number
            full = self._detector.is_full(one, self._least)
            result = Result(source, frame, (pixels.shape[0], pixels.shape[1]), shown, full)
            yield self._kept(result, pixels), self._drawn(shown, pixels)

    def _kept(self, result: Result, pixels: Pixels) -> Result:
        if self._every is None or result.frame is None or result.frame % self._every:
            return result
        return replace(result, kept=self._folder.write_frame(result.source, result.frame, pixels))

    def _drawn(self, found: ImageDetections, pixels: Pixels) -> Pixels | None:
        return np.array(found.draw(pixels, enlarge=True)) if self._pictures else None

    def _found(self, images: list[Pixels]) -> list[ImageDetections | str]:
        """The detections in each image; for one that fails even on its own, the reason."""
        try:
            return [*self._detector(images)]
        except InputError as error:  # from the transforms, or from a network that outputs NaN
            reason = str(error)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = _MORE_MEMORY
        if len(images) == 1:
            return [reason]
        return [one for image in images for one in self._found([image])]

    def write_tables(self, formats: Sequence[str]) -> None:
        """Write everything but the pictures, in the order of the sources; see `tables.write_tables`."""
        position = {source: number for number, source in enumerate(self._order)}
        self.results.sort(key=lambda r: (position[r.source], r.frame or 0))
        write_tables(
            self._folder,
            self.results,
            self.failed,
            formats,
            self._detector.classes,
            self._detector.category_ids,
        )

    def _fail(self, source: Source, error: InputError) -> None:
        self.failed.append((source, str(error)))
        self._bar.update()
