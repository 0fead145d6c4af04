"""Image files -> uint8 RGB, whatever they contain: EXIF rotation, grey, palette, alpha, 16 bit."""

import contextlib
import logging
import os
import struct
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from errors import InputError, reason_of

log = logging.getLogger(__name__)
# Pillow's advice on palettes and its complaints about truncated EXIF do not name the file.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PNG_ORIENTED = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # text that may hold an orientation
# What folders are searched for; a file named explicitly is opened whatever its suffix.
IMAGE_SUFFIXES = frozenset(
    {".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"}
)
# In most camera raw files Pillow finds only a thumbnail.
_RAW_SUFFIXES = frozenset({".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"})
_TO_CONVERT = _RAW_SUFFIXES | {".avif", ".heic", ".heif", ".jp2", ".jxl"}
# Picture formats that may be unreadable, but must not be ignored silently.
OTHER_SUFFIXES = _TO_CONVERT | {".gif"}
PICTURE_SUFFIXES = IMAGE_SUFFIXES | OTHER_SUFFIXES
MOST_PIXELS = 10**6  # per side: anything larger is a fault, not an image
_MOST_IN_ALL = 500 * 10**6  # per image, 1.5 GB decoded; a 1 MB file may be a decompression bomb
Image.MAX_IMAGE_PIXELS = _MOST_IN_ALL  # Pillow's own is 89 megapixels
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # refused below
PngImagePlugin.MAX_TEXT_CHUNK = 64 * 2**20  # editors may write more metadata than Pillow's limit of 1 MB
_OF_FRAMES = ("GIF", "PNG", "TIFF", "WEBP")  # not MPO: a camera's JPEG and its preview
# lost+found is at the root of a disk and unreadable; Synology's folders hold thumbnails and deleted files.
_NOT_SEARCHED = ("lost+found", "@eaDir", "#recycle")
_EXIF_ORIENTATION, _TIFF_WIDTH, _TIFF_HEIGHT = 0x0112, 0x0100, 0x0101
_TURNS = {  # EXIF orientation -> operation that makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNS_BACK = _TURNS | {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
_TRANSPOSING = (5, 6, 7, 8)  # those that swap height and width
_DECODE_ERRORS = (
    OSError,
    UnidentifiedImageError,
    SyntaxError,
    ValueError,
    TypeError,
    struct.error,
    KeyError,  # TIFF without size tags
    Image.DecompressionBombError,
    RuntimeError,  # AVIF
    MemoryError,  # also raised for a JPEG 2000 with a wrong length
)


def one_for_each_file(paths: Iterable[Path]) -> list[tuple[str, str]]:
    """A key for each path, equal for paths that reach the same name in the same folder, by links or ".."."""
    real: dict[Path, str] = {}
    keys = []
    for path in paths:
        folder = path.parent
        if folder not in real:
            real[folder] = os.path.realpath(folder)
        keys.append((real[folder], path.name))
    return keys


def files_below(folder: Path) -> list[Path]:
    """All files in a folder tree, following links, sorted; hidden ones, such as thumbnails, are left out.

    Broken links are included: they are missing files (not fetched by git-annex or DVC).

    Raises:
        InputError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise InputError(f"the folder {error.filename} cannot be read: {error.strerror}") from None

    found: list[Path] = []
    seen: set[str] = set()
    starts = [folder]
    for start in starts:  # links come last, so of two ways to a folder the choice is always the same
        for place, folders, names in os.walk(start, onerror=refuse):
            real = os.path.realpath(place)
            if real in seen:  # visited before; links may form loops
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(
                name for name in folders if not name.startswith(".") and name not in _NOT_SEARCHED
            )
            starts += [path for name in folders if (path := Path(place, name)).is_symlink()]
            found += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.is_file() or (path.is_symlink() and not path.exists()))


@dataclass(frozen=True)
class ImageHeader:
    """What is known about an image without decoding its pixels."""

    upright: tuple[int, int]  # height, width as displayed
    stored: tuple[int, int]
    mode: str  # Pillow's mode: RGB, L, P, I;16, RGBA, CMYK ...
    turned: bool  # EXIF says to rotate or mirror it
    pages: int  # pages or frames; only the first is used


def read_header(path: Path) -> ImageHeader:
    """The header of an image file.

    Raises:
        InputError: the file is missing or not an image.
    """
    with _explained(f"image {path}"), _opened(path) as image:
        stored = _as_stored(image)
        mode = f"{image.mode} with transparency" if "transparency" in image.info else image.mode
        return ImageHeader(stored.upright_size, stored.size, mode, stored.turned, _pages(image))


class Stored(NamedTuple):
    """How the pixels are stored in the file."""

    size: tuple[int, int]  # height, width
    orientation: int  # EXIF orientation; 1 is upright

    @property
    def upright_size(self) -> tuple[int, int]:
        height, width = self.size
        return (width, height) if self.orientation in _TRANSPOSING else self.size

    @property
    def turned(self) -> bool:
        """Whether EXIF says to rotate or mirror the image."""
        return self.orientation in _TURNS


def read_stored(path: Path) -> Stored:
    """How the pixels of an image are stored; reads only the header.

    Raises:
        InputError: the file is missing or not an image.
    """
    with _explained(f"image {path}"), _opened(path) as image:
        return _as_stored(image)


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of an image, upright; raises like `read_stored`."""
    return read_stored(path).upright_size


def read_image(path: Path, expected_size: tuple[int, int]) -> NDArray[np.uint8]:
    """The pixels of an image, uint8 [H, W, 3] RGB.

    EXIF rotation is applied, unless the image was annotated as stored: that is, `expected_size` (height,
    width) matches the stored image and not the upright one. 16-bit images are scaled to 8 bits by their full
    range; alpha is dropped.

    Raises:
        InputError: the file is missing, damaged, of an unsupported kind, or of another size.
    """
    # OpenCV decodes the same pixels faster, but accepts many damaged files that Pillow refuses.
    with _explained(f"image {path}"), _opened(path) as image:
        stored = _as_stored(image)
        on_stored = expected_size != stored.upright_size and expected_size == stored.size
        pixels = _pixels(image, stored, upright=not on_stored)
    if pixels.shape[:2] != expected_size:
        raise InputError(size_mismatch(path, expected_size, pixels.shape[:2]))
    return pixels


def read_upright(file: Path | BinaryIO, name: str) -> NDArray[np.uint8]:
    """The pixels of an image as displayed, uint8 [H, W, 3] RGB; `name` is for messages.

    Of several pages or frames the first is used, with a warning.

    Raises:
        InputError: the file is missing, damaged or of an unsupported kind.
    """
    with _explained(f"image {name}"), _opened(file) as image:
        pixels = _pixels(image, _as_stored(image), upright=True)
        count = _pages(image)  # last, because it changes the current page
        if count > 1:
            log.warning("image %s has %d pages or frames; only the first is used", name, count)
        return pixels


def rgb_pixels(image: Image.Image, name: str) -> NDArray[np.uint8]:
    """The pixels of an opened image as stored, uint8 [H, W, 3] RGB.

    Raises:
        InputError: the image is damaged or of an unsupported kind.
    """
    with _explained(name):
        return _to_rgb(image)


def size_mismatch(path: Path, annotated: tuple[int, int], found: tuple[int, ...]) -> str:
    """Error text for an image whose size differs from its annotation; sizes are height, width."""
    why = "its boxes would be in the wrong place. Correct the annotation."
    if annotated == found[1::-1]:
        why = "width and height seem to be swapped there. Correct the annotation."
    return (
        f"image {path} is {found[1]} x {found[0]} px, but its annotation says "
        f"{annotated[1]} x {annotated[0]}; {why}"
    )


@contextlib.contextmanager
def _opened(file: Path | BinaryIO) -> Iterator[Image.Image]:
    ending = file.suffix.lower() if isinstance(file, Path) else ""
    with contextlib.ExitStack() as end:
        # Given a path, Pillow memory-maps some TIFFs with the sides that they have after turning.
        stream = end.enter_context(file.open("rb")) if isinstance(file, Path) else file
        if not stream.read(1):
            raise ValueError("it is empty")
        stream.seek(0)
        try:
            if ending in _RAW_SUFFIXES:
                raise UnidentifiedImageError
            image = end.enter_context(Image.open(stream))
        except UnidentifiedImageError:
            if ending not in _TO_CONVERT:
                raise
            raise ValueError(f"{ending[1:].upper()} is not supported; convert it to JPEG or PNG") from None
        if image.width * image.height > _MOST_IN_ALL:
            raise ValueError(
                f"its {image.width} x {image.height} px are more than the limit of {_MOST_IN_ALL:,}; cut it "
                "into smaller images"
            )
        yield image


def _pages(image: Image.Image) -> int:
    if image.format in _OF_FRAMES:
        with contextlib.suppress(*_DECODE_ERRORS):  # damaged pages do not count
            return getattr(image, "n_frames", 1)
    return 1


def _as_stored(image: Image.Image) -> Stored:
    """How the pixels of a just opened image are stored."""
    if isinstance(image, TiffImageFile):  # Pillow's width and height may be those of the upright image
        size = image.tag_v2[_TIFF_HEIGHT], image.tag_v2[_TIFF_WIDTH]
    else:
        size = image.height, image.width
    return Stored(size, _exif(image).get(_EXIF_ORIENTATION, 1))


def _exif(image: Image.Image) -> Image.Exif:
    if isinstance(image, PngImageFile) and not _speaks_after_its_pixels(image):
        return Image.Image.getexif(image)  # PngImageFile.getexif decodes all pixels first
    return image.getexif()


def _speaks_after_its_pixels(image: PngImageFile) -> bool:
    """Whether an orientation may follow the pixels in the file."""
    file = image.fp
    if file is None:  # already decoded
        return True
    before, found, pixels = file.tell(), False, False
    file.seek(8)
    while not found and len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        next_chunk = file.tell() + length + 4
        pixels |= kind == b"IDAT"
        if pixels:
            found = kind == b"eXIf" or (kind in _PNG_TEXTS and file.read(22).startswith(_PNG_ORIENTED))
        file.seek(next_chunk)
    file.seek(before)
    return found


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{what} does not exist") from None
    except _DECODE_ERRORS as error:
        raise InputError(f"{what} cannot be read: {_reason(error)}") from None


def _pixels(image: Image.Image, stored: Stored, upright: bool) -> NDArray[np.uint8]:
    # ImageOps.exif_transpose would rewrite the EXIF, and fail on unrelated entries of a wrong type.
    turns = _TURNS if upright else {}
    if isinstance(image, TiffImageFile):  # Pillow turns TIFFs while loading
        turns = {} if upright else _TURNS_BACK
    turn = turns.get(stored.orientation)
    return _to_rgb(image if turn is None else image.transpose(turn))


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range; convert the file to 8 or 16 bit")
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0:
            below = f"pixels below 0 (down to {grey.min()}) have no defined range"
            raise ValueError(f"{below}; convert the file to 8 bit, or to unsigned 16 bit")
        if grey.max() > 65535:
            raise ValueError("32-bit pixels have no defined range; convert the file to 8 or 16 bit")
        scaled = ((grey + 128) // 257).clip(0, 255).astype(np.uint8)
        return np.repeat(scaled[:, :, None], 3, axis=2)
    if image.mode != "RGB":
        image = image.convert("RGBA").convert("RGB") if image.mode == "P" else image.convert("RGB")
    return np.array(image)


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return (
            "it is not an image, or of a kind that is not supported (such as TIFF with floats or many "
            "channels)"
        )
    if isinstance(error, MemoryError):
        return "it is damaged, or there is not enough memory for it"
    reason = reason_of(error)
    if "truncated" in reason:
        reason += "; copy the file again, or open it in a viewer that shows all of it and save it again"
    return reason
