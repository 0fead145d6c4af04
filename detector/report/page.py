"""The report of `evaluate.py ... --report DIR`: a folder with one page, and tables of its numbers."""

import contextlib
from collections.abc import Sequence
from html import escape
from pathlib import Path

from detector.evaluation.coco import CocoResult
from detector.evaluation.matching import Ints
from detector.output import check_new_folder, write_texts
from detector.report import sections
from detector.report.facts import Shown, confusion, shown
from detector.report.galleries import galleries
from detector.report.tables import is_table, tables
from errors import InputError

PAGE = "index.html"
_GENERATOR = '<meta name="generator" content="aploss-detector report">'
_HEAD = 4096  # bytes at the beginning of a page that contain _GENERATOR

_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: #fff; color: #111;
  font: 15px/1.45 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.5rem; margin: .4rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .4rem; border-bottom: 1px solid #999; break-after: avoid; }
p { max-width: 46rem; margin: .4rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .5rem 0 1rem; }
dt { color: #555; } dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .18rem .6rem; border-bottom: 1px solid #ddd; text-align: left; }
th { border-bottom: 1.5px solid #555; font-weight: 600; vertical-align: bottom; }
th.n, td.n { text-align: right; }
tr { break-inside: avoid; }
figure { margin: .4rem 0; break-inside: avoid; }
figcaption { font-size: .85rem; overflow-wrap: anywhere; }
svg { max-width: 100%; height: auto; font: 11px system-ui, Arial, sans-serif; }
svg text { fill: #111; } .grid { stroke: #e2e2e2; fill: none; } .axis { stroke: #333; fill: none; }
.cell { stroke: #bbb; stroke-width: .5; }
.charts { display: flex; flex-wrap: wrap; gap: .4rem 1.4rem; }
.charts figcaption { text-align: center; font-weight: 600; }
.crops { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(15rem, 100%), 1fr)); }
.pairs { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(30rem, 100%), 1fr)); }
.images { display: flex; gap: .3rem; align-items: flex-start; }
.images img { flex: 1 1 0; min-width: 0; max-width: 100%; height: auto; }
.crops img { aspect-ratio: 1; object-fit: contain; background: #f2f2f2; }
@page { margin: 14mm; }
@media print {
  body { font-size: 10pt; max-width: none; padding: 0; print-color-adjust: exact;
    -webkit-print-color-adjust: exact; }
  .wide { overflow: visible; } th, td { padding: .1rem .35rem; }
  .crops { grid-template-columns: repeat(3, 1fr); } .pairs { grid-template-columns: repeat(2, 1fr); }
}
"""


def check_report_folder(folder: Path) -> None:
    """Accept a missing or empty folder, or one with nothing but an earlier report.

    Raises:
        InputError: it contains something else, or cannot be created or written.
    """
    check_new_folder("--report", folder)
    held = [*folder.iterdir()] if folder.is_dir() else []
    held = [path for path in held if not path.name.startswith(".")]  # ignore files such as Finder's
    tables_held = all(is_table(path) for path in held if path.name != PAGE)
    if held and not (_is_report(folder / PAGE) and tables_held):
        raise InputError(f"--report: {folder} contains something other than a report; choose another folder")


def write_report(
    folder: Path,
    title: str,
    facts: Sequence[tuple[str, str]],
    result: CocoResult,
    extra: dict[str, float],
) -> Path:
    """Write page and tables to their folder; an earlier report is replaced, or kept if there is no space.

    Args:
        facts: what was scored, as (name, value) pairs.
        extra: the metrics beside COCO's.

    Raises:
        InputError: the folder contains something else or cannot be written, or an image cannot be read.
    """
    check_report_folder(folder)
    at = shown(result)
    matrix = confusion(result, at)
    texts = {PAGE: report_page(title, facts, result, extra, at, matrix), **tables(result, at, matrix)}
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_texts(folder, texts)
    except (OSError, InputError) as error:
        for path in made:
            with contextlib.suppress(OSError):  # some may not have been created
                path.rmdir()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"--report: {folder}: {reason}") from None
    return folder / PAGE


def report_page(
    title: str,
    facts: Sequence[tuple[str, str]],
    result: CocoResult,
    extra: dict[str, float],
    at: Shown,
    matrix: Ints,
) -> str:
    """The page as self-contained HTML, without scripts.

    Raises:
        InputError: an image cannot be read.
    """
    m = result.material
    boxes = f"{int((~m.gt.ignore).sum()):,} ({int(m.gt.ignore.sum()):,} more ignored)"
    facts = [*facts, ("images", f"{len(m.image_ids):,}"), ("gt boxes", boxes),
             ("detections", f"{len(m.found.scores):,}"), ("classes", f"{len(m.classes):,}")]  # fmt: skip
    parts = [
        sections.summary(result, facts, extra),
        sections.errors(result),
        sections.classes(result),
        sections.curves(result),
        sections.thresholds(result),
        sections.matrix(result, matrix),
        sections.scores(result, at),
        sections.sizes(result, at),
        sections.pictures(None if m.files is None else galleries(result, at)),
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{_GENERATOR}\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{''.join(parts)}</body>\n</html>\n"
    )


def _is_report(page: Path) -> bool:
    try:
        with page.open("rb") as file:
            return _GENERATOR.encode() in file.read(_HEAD)
    except OSError:
        return False
