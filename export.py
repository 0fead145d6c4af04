"""Write a checkpoint for other runtimes: python export.py RUN_DIR_OR_CHECKPOINT --format onnx"""

from pathlib import Path

from doors import NAMES_OF_THE_RUN, OptionParser, run_door


def main() -> None:
    parser = OptionParser(
        description="Export a checkpoint as a single ONNX or TorchScript file that takes pixels and returns "
        "detections.",
        epilog="Example: python export.py runs/bccd --format onnx --output bccd.onnx. docs/export.md "
        "explains how to use the file.",
        elsewhere={
            **NAMES_OF_THE_RUN,
            "include": "use --format",
            "imgsz": "the file takes images of any size",
        },
    )
    parser.add_argument("model", metavar="RUN_DIR_OR_CHECKPOINT", help="of a run folder best.pt is used")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="settings as dotted keys, such as eval.detections_per_img=300",
    )
    parser.add_argument(
        "--format",
        choices=("onnx", "torchscript"),
        help="format of the file (default: from the name of --output, else onnx)",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help="file to write (default: next to the checkpoint, best.onnx for best.pt)",
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="export a model that takes normalised pixels and returns the outputs of the heads and the "
        "anchors",
    )
    parser.add_argument(
        "--check",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="images, folders or patterns on which the exported model must agree with PyTorch (default: "
        "three validation images)",
    )
    a = parser.parse_intermixed_args()
    export(a.model, a.overrides, a.format, a.raw, a.output, a.check)


def export(
    model: str, overrides: list[str], form: str | None, raw: bool, output: Path | None, check: list[str]
) -> None:
    """Export the model named on the command line, check it, print where it is."""
    from detector.export.session import export as run

    report = run(Path(model), overrides, form, raw, output, check)
    print(f"{report.file}: images -> {', '.join(report.outputs)}")
    print(f"checked against PyTorch: {report.check}")


if __name__ == "__main__":
    run_door(main)
