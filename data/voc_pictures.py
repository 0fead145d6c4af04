"""Matches the XML files of a Pascal VOC set with its images."""

import logging
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Container, Sequence
from pathlib import Path

from data.faults import DataFault, list_or_warn
from data.images import IMAGE_SUFFIXES, files_below
from data.lookup import ImageFinder, is_file

log = logging.getLogger(__name__)


class Pictures:
    """The images in a folder tree by stem, the path without the suffix: "a", "cam1/b".

    Args:
        folder: the folder of the images.
        annotations: the folder of the XML files.
        names: stems of the XML files.
    """

    def __init__(self, folder: Path, annotations: Path, names: Sequence[str]) -> None:
        self._folder, self._annotations = folder, annotations
        self._by_stem: dict[str, list[Path]] = {}
        for path in files_below(folder):
            if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
                stem = path.relative_to(folder).with_suffix("").as_posix()
                self._by_stem.setdefault(stem, []).append(path)
        self._by_last_part = self._apart(names)
        self._elsewhere: dict[Path, Path] = {}  # image in another folder -> its XML file

    def _apart(self, names: Sequence[str]) -> dict[str, Path]:
        """If no image matches a full stem: images by file name without suffix, where it is unique.

        If any image matches, {}: a missing image must not be replaced by a mask or thumbnail. An image is not
        matched with two names, nor if it has an XML file of its own.
        """
        if any(name in self._by_stem for name in names):
            return {}
        wanted = Counter(Path(name).name for name in names)
        free = [stem for stem in self._by_stem if not self._has_xml(stem)]
        last = {stem: Path(stem).name for stem in free}
        there = Counter(last.values())
        return {
            name: self._by_stem[stem][0] for stem, name in last.items() if there[name] == wanted[name] == 1
        }

    def _has_xml(self, stem: str) -> bool:
        return (self._annotations / f"{stem}.xml").is_file()

    def of(self, xml: Path, stem: str, tree: ET.Element, finder: ImageFinder) -> Path:
        """The image of an XML file.

        Tried in order: the image with the same stem, the image named in the XML, and, if no image matches any
        full stem, the only one with the same file name in any folder. Tools write arbitrary paths into the
        XML, so its name is used only where needed.
        """
        name = (tree.findtext("filename") or "").strip()
        if own := self._by_stem.get(stem):
            return next((path for path in own if path.name == name), own[0])
        if name in self._by_stem:  # name without suffix
            return self._by_stem[name][0]
        path = finder.find(name or f"{stem}.jpg", str(xml))
        other = None if is_file(path) else self._by_last_part.get(Path(stem).name)
        if other is None:
            return path
        self._elsewhere[other] = xml
        return other

    def warn(self, source: str) -> None:
        """Warn about images that were found in other folders."""
        if self._elsewhere:
            path, xml = next(iter(self._elsewhere.items()))
            log.warning(
                "%s: %d images are in different folders than their XML files, such as %s of %s",
                source, len(self._elsewhere), path, xml,
            )  # fmt: skip

    def say_what_has_no_xml(self, used: Container[Path], faults: list[DataFault] | None) -> None:
        """Report images without XML file.

        Annotation tools write none for images without objects, yet these would be useful background.

        Args:
            used: the images of all XML files.
            faults: as for `load_voc`.
        """
        lost = {
            stem: paths[0] for stem, paths in self._by_stem.items() if not any(path in used for path in paths)
        }
        # The fault of an unreadable XML file was reported with its image.
        lost = {stem: path for stem, path in lost.items() if not self._has_xml(stem)}
        if lost:
            found = [
                DataFault("image-unannotated", f"{path} has no .xml file", path) for path in lost.values()
            ]
            warning = (
                f"{len(lost)} of {len(self._by_stem)} images in {self._folder} have no .xml file and are "
                f"left out, such as {min(lost)}; to use an image as background, give it an XML file without "
                "<object>"
            )
            list_or_warn(found, faults, warning)
