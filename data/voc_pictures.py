"""Which image an XML file of a Pascal VOC set is of, and which images have none."""

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
    """The images below a folder by their stems, names without the ending: "a", "cam1/b".

    Args:
        annotations: the folder of the XML files.
        names: of those that images are wanted of, as stems.
    """

    def __init__(self, folder: Path, annotations: Path, names: Sequence[str]) -> None:
        self._folder, self._annotations = folder, annotations
        self._by_stem: dict[str, list[Path]] = {}
        for path in files_below(folder):
            if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
                stem = path.relative_to(folder).with_suffix("").as_posix()
                self._by_stem.setdefault(stem, []).append(path)
        self._by_last_part = self._apart(names)
        self._elsewhere: dict[Path, Path] = {}  # XML files by images that are in other folders

    def _apart(self, names: Sequence[str]) -> dict[str, Path]:
        """Where no image is of such a stem: by the last parts of names the only image of each.

        Where one is, another that is missing is not to become a mask or a thumbnail; nor is one image to be
        that of two names, or what belongs to an XML file of its own.
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
        """The image of an XML file: that of its own stem, else the one that the XML names; where no image is
        of such a stem, the only one of its name in any folder.

        Tools write all sorts of paths for the name in it, which is only looked at where there is a choice.
        """
        name = (tree.findtext("filename") or "").strip()
        if own := self._by_stem.get(stem):
            return next((path for path in own if path.name == name), own[0])
        if name in self._by_stem:  # without its ending
            return self._by_stem[name][0]
        path = finder.find(name or f"{stem}.jpg", str(xml))
        other = None if is_file(path) else self._by_last_part.get(Path(stem).name)
        if other is None:
            return path
        self._elsewhere[other] = xml
        return other

    def warn(self, source: str) -> None:
        """Say which were taken for which."""
        if self._elsewhere:
            path, xml = next(iter(self._elsewhere.items()))
            log.warning(
                "%s: %d images are in different folders than their XML files, such as %s of %s",
                source, len(self._elsewhere), path, xml,
            )  # fmt: skip

    def say_what_has_no_xml(self, used: Container[Path], faults: list[DataFault] | None) -> None:
        """Annotation tools write none for an image without objects, which is background all the same.

        Args:
            used: the images of all XML files.
            faults: as for `load_voc`.
        """
        lost = {
            stem: paths[0] for stem, paths in self._by_stem.items() if not any(path in used for path in paths)
        }
        # Of an XML file that could not be read it is the image that is told.
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
