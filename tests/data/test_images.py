"""Whatever an image file holds comes out as upright 8-bit RGB, or as an error that names the file."""

import errno
import os
import re
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps, features

from data.images import files_below, read_image, read_size, read_stored, read_upright
from errors import InputError

NOISE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
# The EXIF standard: where the stored first row and first column lie in the upright picture.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}


def save(path, image: Image.Image, orientation: int | None = None, **options):
    if orientation is not None:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    image.save(path, **options)
    return path


KINDS = {
    "png": {},
    "jpg": {},
    "webp": {"lossless": True},
    "tif": {},  # Pillow turns it while loading it, in two ways
    "tiff": {"compression": "tiff_lzw"},
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("ending", KINDS)
def test_exif_orientation_is_applied(tmp_path, orientation, ending):
    """Oracles: the definition of the eight orientations, and Pillow's own exif_transpose."""
    path = save(tmp_path / f"a.{ending}", Image.fromarray(NOISE), orientation, **KINDS[ending])
    with Image.open(path) as image:
        stored = np.array(image) if ending == "jpg" else NOISE
        turned = np.array(ImageOps.exif_transpose(image))
    expected = UPRIGHT[orientation](stored)
    np.testing.assert_array_equal(expected, turned)
    np.testing.assert_array_equal(read_image(path, expected.shape[:2]), expected)
    np.testing.assert_array_equal(read_upright(path, "a"), expected)
    assert read_size(path) == expected.shape[:2] and read_stored(path).size == (5, 7)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("ending", ["png", "tif", "tiff"])
def test_image_annotated_on_its_stored_pixels_is_not_turned(tmp_path, orientation, ending):
    path = save(tmp_path / f"a.{ending}", Image.fromarray(NOISE), orientation, **KINDS[ending])
    np.testing.assert_array_equal(read_image(path, (5, 7)), NOISE)


@pytest.mark.parametrize(("mode", "size"), [("L", 1), ("I;16", 2), ("RGBA", 4), ("CMYK", 4)])
def test_a_tiff_that_pillow_could_map_into_memory_is_turned_as_any_other(tmp_path, mode, size):
    """Oracle: the same pixels without an orientation; Pillow scrambles them when it maps the file."""
    image = Image.frombytes(mode, (7, 5), np.random.default_rng(0).bytes(35 * size))
    upright = read_upright(save(tmp_path / "a.tif", image), "a")
    path = save(tmp_path / "b.tif", image, 6)
    np.testing.assert_array_equal(read_upright(path, "b"), UPRIGHT[6](upright))
    np.testing.assert_array_equal(read_image(path, (5, 7)), upright)


@pytest.mark.parametrize("ending", ["tif", "gif", "png", "webp"])
def test_of_several_pages_the_first_is_taken_and_the_others_are_named(tmp_path, caplog, ending):
    pages = [Image.fromarray(np.full((5, 7, 3), grey, np.uint8)) for grey in (10, 90, 200)]
    pages[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=pages[1:])
    assert read_upright(tmp_path / f"a.{ending}", "a").mean() == pytest.approx(10, abs=2)
    assert caplog.messages == ["image a has 3 pages or frames; only the first is used"]


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_whose_later_pages_are_damaged_has_its_first(tmp_path, compression):
    noise = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    pages, path = [Image.fromarray(page) for page in noise], tmp_path / "a.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:], compression=compression)
    content, whole = path.read_bytes(), 0
    for length in range(len(content) // 3, len(content), 7):
        path.write_bytes(content[:length])
        try:
            first = read_upright(path, "a")
        except InputError:
            continue
        whole += 1
        np.testing.assert_array_equal(first, noise[0])
    assert whole > 200


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    (tmp_path / "set" / "night").mkdir(parents=True)
    (tmp_path / "set" / "lost+found").mkdir()
    listing = os.scandir

    def scandir(path):
        if os.fspath(path).endswith(("night", "lost+found")):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listing(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match="night cannot be read: Permission denied"):
        files_below(tmp_path / "set")
    (tmp_path / "set" / "night").rmdir()
    (tmp_path / "set" / "@eaDir" / "a.jpg").mkdir(parents=True)  # as on a Synology NAS
    (tmp_path / "set" / "@eaDir" / "a.jpg" / "SYNOPHOTO_THUMB_M.jpg").touch()
    assert files_below(tmp_path / "set") == []


def test_of_two_ways_to_a_folder_the_one_without_links_is_taken(tmp_path):
    """Labels are looked for beside the real name. Both orders of names, and a link that leads back."""
    for name in ("b", "y"):
        (tmp_path / name / "real").mkdir(parents=True)
        (tmp_path / name / "real" / "1.jpg").touch()
    (tmp_path / "a").symlink_to("b/real")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "z").symlink_to(tmp_path / "y")
    (tmp_path / "b" / "real" / "round").symlink_to(tmp_path)
    (tmp_path / "elsewhere").symlink_to("/dev/null")
    assert files_below(tmp_path) == [tmp_path / "b/real/1.jpg", tmp_path / "y/real/1.jpg"]
    assert files_below(tmp_path / "c") == [tmp_path / "c/z/real/1.jpg"]


def test_an_orientation_behind_the_pixels_of_a_png_counts(tmp_path):
    """The chunk may come before or after them."""
    content = save(tmp_path / "a.png", Image.fromarray(NOISE), 6).read_bytes()
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    last = content.index(b"IEND") - 4
    (tmp_path / "b.png").write_bytes(
        content[:start] + content[end:last] + content[start:end] + content[last:]
    )
    np.testing.assert_array_equal(read_image(tmp_path / "b.png", (7, 5)), UPRIGHT[6](NOISE))
    assert read_size(tmp_path / "b.png") == (7, 5)


@pytest.mark.parametrize("ending", KINDS)
def test_the_size_is_read_without_the_pixels(tmp_path, ending, monkeypatch):
    path = save(tmp_path / f"a.{ending}", Image.fromarray(NOISE))

    def load(_):
        raise AssertionError("the pixels are decoded")

    if ending == "png":  # as ImageMagick writes it, with a text after the pixels
        content = path.read_bytes()
        text = b"tEXtdate:create\0" + b"2026-11-27"
        chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
        path.write_bytes(content[:-12] + chunk + content[-12:])
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    assert read_size(path) == (5, 7)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_an_orientation_in_xmp_counts_for_size_and_pixels_alike(tmp_path, ending):
    """Pillow follows it if EXIF says nothing; in the PNG it comes after the pixels."""
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    if ending == "tif":
        path = save(tmp_path / "a.tif", Image.fromarray(NOISE), tiffinfo={700: xmp})
    else:
        path = save(tmp_path / "a.png", Image.fromarray(NOISE))
        content, text = path.read_bytes(), b"iTXtXML:com.adobe.xmp" + bytes(5) + xmp
        chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
        path.write_bytes(content[:-12] + chunk + content[-12:])
    assert read_size(path) == (7, 5)
    np.testing.assert_array_equal(read_image(path, (7, 5)), UPRIGHT[6](NOISE))


def test_an_exif_entry_of_a_wrong_type_is_no_hindrance(tmp_path):
    """Orientation 6, and a resolution that is a string: Pillow fails when it rewrites the EXIF data."""
    entries = struct.pack("<HHIHxx", 0x0112, 3, 1, 6) + struct.pack("<HHI4s", 0x011A, 2, 4, b"72d")
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    path = save(tmp_path / "a.png", Image.fromarray(NOISE), exif=exif)
    with Image.open(path) as image, pytest.raises(TypeError):
        ImageOps.exif_transpose(image)
    np.testing.assert_array_equal(read_image(path, (7, 5)), UPRIGHT[6](NOISE))


def test_an_image_of_absurd_size_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", Image.fromarray(NOISE))
    monkeypatch.setattr("data.images._MOST_IN_ALL", 34)
    for read in (read_size, lambda p: read_image(p, (5, 7)), lambda p: read_upright(p, "a.png")):
        with pytest.raises(
            InputError, match=r"a\.png cannot be read: its 7 x 5 px are more than the limit of 34"
        ):
            read(path)
    monkeypatch.setattr("data.images._MOST_IN_ALL", 35)
    assert read_size(path) == (5, 7)


def test_orientation_out_of_range_is_no_rotation(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(NOISE), 9)
    np.testing.assert_array_equal(read_image(path, (5, 7)), NOISE)


def check(path, expected):
    pixels = read_image(path, expected.shape[:2])
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("alpha", [False, True])
def test_grey_is_repeated_in_three_channels(tmp_path, alpha):
    image = Image.fromarray(NOISE[:, :, 0])
    if alpha:
        image = Image.merge("LA", [image, Image.fromarray(NOISE[:, :, 1])])
    check(save(tmp_path / "a.png", image), np.dstack([NOISE[:, :, 0]] * 3))


def test_black_and_white_becomes_0_and_255(tmp_path):
    bits = NOISE[:, :, 0] > 127
    check(save(tmp_path / "a.png", Image.fromarray(bits)), np.dstack([bits * np.uint8(255)] * 3))


@pytest.mark.parametrize("transparency", [None, 2, bytes([0, 128, 255, 7])])
def test_palette_is_looked_up_whatever_its_transparency(tmp_path, transparency):
    palette = np.array([[10, 20, 30], [200, 0, 1], [0, 255, 9], [77, 78, 79]], dtype=np.uint8)
    rows = NOISE[:, :, 0] % 4
    image = Image.fromarray(rows)
    image.putpalette(palette.tobytes())
    options = {} if transparency is None else {"transparency": transparency}
    path = save(tmp_path / "a.png", image, **options)
    with Image.open(path) as stored:
        assert stored.mode == "P"
        assert ("transparency" in stored.info) == (transparency is not None)
    check(path, palette[rows])


def test_alpha_is_dropped_not_blended(tmp_path):
    alpha = np.resize(np.array([0, 1, 128, 255], dtype=np.uint8), (5, 7))
    check(save(tmp_path / "a.png", Image.fromarray(np.dstack([NOISE, alpha]))), NOISE)


def test_16_bit_grey_is_scaled_by_its_full_range(tmp_path):
    """Oracle: v / 257 rounded, by hand."""
    values = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    assert cv2.imwrite(str(tmp_path / "a.png"), values)
    check(tmp_path / "a.png", np.repeat(np.array([[0, 0, 1, 1, 128, 255]], np.uint8)[:, :, None], 3, axis=2))


def test_16_bit_grey_is_turned_too(tmp_path):
    values = np.arange(35, dtype=np.uint16).reshape(5, 7) * 257
    path = save(tmp_path / "a.png", Image.fromarray(values), 6)
    check(path, np.dstack([UPRIGHT[6](values // 257).astype(np.uint8)] * 3))


def test_16_bit_colour_is_scaled_by_its_full_range(tmp_path):
    values = np.random.default_rng(1).integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    assert cv2.imwrite(str(tmp_path / "a.png"), values[:, :, ::-1])
    pixels = read_image(tmp_path / "a.png", (5, 7))
    assert pixels.dtype == np.uint8
    assert np.abs(pixels - values / 257).max() <= 1


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    """Oracles: by hand for no ink (white), full cyan and full black; Pillow's conversion for noise."""
    for ink, colour in [
        ((0, 0, 0, 0), (255, 255, 255)),
        ((255, 0, 0, 0), (0, 255, 255)),
        ((0, 0, 0, 255), (0, 0, 0)),
    ]:
        path = save(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), ink), quality=100)
        assert np.abs(read_image(path, (8, 8)).astype(int) - colour).max() <= 2
    noise = Image.frombytes("CMYK", (9, 8), np.random.default_rng(2).bytes(8 * 9 * 4))
    path = save(tmp_path / "noise.jpg", noise)
    with Image.open(path) as image:
        assert image.mode == "CMYK"
        check(path, np.array(image.convert("RGB")))


@pytest.mark.parametrize("values", [[[0.5, 3.0]], [[0, 70_000]], [[-1, 5]]])
def test_pixels_without_a_defined_range_are_refused(tmp_path, values):
    pixels = np.array(values)
    pixels = pixels.astype(np.float32 if pixels.dtype.kind == "f" else np.int32)
    path = save(tmp_path / "a.tif", Image.fromarray(pixels))
    with pytest.raises(InputError, match=rf"{re.escape(str(path))}.*no defined range"):
        read_image(path, (1, 2))


def damage(data: bytes, kind: str) -> bytes:
    return {"truncated": data[: len(data) // 2], "text": b"no image at all", "empty": b""}[kind]


@pytest.mark.parametrize("kind", ["truncated", "text", "empty"])
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_damaged_file_is_named(tmp_path, kind, ending):
    path = tmp_path / f"a.{ending}"
    cv2.imwrite(str(path), np.resize(NOISE, (40, 50, 3)))
    path.write_bytes(damage(path.read_bytes(), kind))
    with pytest.raises(InputError, match=rf"image {re.escape(str(path))} cannot be read") as raised:
        read_image(path, (40, 50))
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_damaged_avif_is_named(tmp_path):
    """Its decoder raises errors of another type."""
    path = tmp_path / "a.avif"
    Image.fromarray(np.resize(NOISE, (40, 50, 3))).save(path)
    data = path.read_bytes()
    at = data.index(b"mdat")
    path.write_bytes(data[: at + 4] + bytes(len(data) - at - 4))
    with pytest.raises(InputError, match=rf"image {re.escape(str(path))} cannot be read"):
        read_image(path, (40, 50))


def test_what_does_not_fit_into_memory_is_named(tmp_path, monkeypatch):
    """Pillow also raises MemoryError for a JPEG 2000 file with a damaged length."""
    cv2.imwrite(str(tmp_path / "a.png"), np.resize(NOISE, (40, 50, 3)))

    def refuse(*_):
        raise MemoryError

    monkeypatch.setattr("data.images._to_rgb", refuse)
    with pytest.raises(InputError, match=r"a\.png cannot be read: it is damaged, or .*not enough memory"):
        read_image(tmp_path / "a.png", (40, 50))


@pytest.mark.parametrize("read", [lambda path: read_image(path, (5, 7)), read_size])
def test_what_is_no_file_is_named(tmp_path, read):
    with pytest.raises(InputError, match=rf"{re.escape(str(tmp_path))}/a\.png does not exist"):
        read(tmp_path / "a.png")
    (tmp_path / "a.png").mkdir()
    with pytest.raises(InputError, match=rf"{re.escape(str(tmp_path))}/a\.png cannot be read"):
        read(tmp_path / "a.png")


@pytest.mark.filterwarnings("ignore")  # Pillow warns of some of the damage
@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "tif", "webp", "gif"])
def test_no_damage_raises_anything_but_input_errors(tmp_path, ending):
    """Bytes cut off or overwritten at random: pixels of the right size, or an InputError."""
    path = save(tmp_path / f"a.{ending}", Image.fromarray(np.resize(NOISE, (16, 16, 3))), 6)
    whole, rng, refused = path.read_bytes(), np.random.default_rng(3), 0
    for trial in range(150):
        data = bytearray(whole)
        for position in rng.integers(0, len(whole), size=3):
            data[position] = rng.integers(0, 256)
        path.write_bytes(data if trial % 3 else data[: rng.integers(0, len(whole))])
        for read in (read_size, lambda path: read_image(path, (16, 16))):
            try:
                read(path)
            except InputError as error:
                assert str(path) in str(error)
                refused += 1
    assert refused > 10


@pytest.mark.parametrize("orientation", [1, 6])
def test_size_mismatch_names_file_and_both_sizes(tmp_path, orientation):
    path = save(tmp_path / "a.png", Image.fromarray(NOISE), orientation)
    found = "7 x 5" if orientation == 1 else "5 x 7"
    with pytest.raises(InputError, match=rf"{re.escape(str(path))} is {found} px.*says 70 x 50"):
        read_image(path, (50, 70))
    if orientation == 1:
        with pytest.raises(InputError, match="5 x 7"):
            read_image(path, (7, 5))  # only EXIF may swap height and width
