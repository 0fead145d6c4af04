"""Write a checkpoint for other runtimes: python export.py RUN_DIR_OR_CHECKPOINT --format onnx"""

from pathlib import Path

from doors import NAMES_OF_THE_RUN, OptionParser, run_door


def main() -> None:
    parser = OptionParser(
        description="Write a checkpoint as one ONNX or TorchScript file, pixels in, detections out.",
        epilog="Example: python export.py runs/bccd --format onnx --output bccd.onnx. docs/export.md tells "
        "how to use the file.",
        elsewhere={
            **NAMES_OF_THE_RUN,
            "include": "here it is --format",
            "imgsz": "the file takes images of any size",
        },
    )
    parser.add_argument("model", metavar="RUN_DIR_OR_CHECKPOINT", help="takes best.pt of a run folder")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="dotted configuration keys: eval.detections_per_img=300",
    )
    parser.add_argument(
        "--format", choices=("onnx", "torchscript"), help="(default: by the name of --output, else onnx)"
    )
    parser.add_argument(
        "--output", metavar="FILE", type=Path, help="(default: next to the checkpoint, best.onnx of best.pt)"
    )
    parser.add_argument(
        "--raw", action="store_true", help="normalised pixels in, outputs of the heads and anchors out"
    )
    parser.add_argument(
        "--check",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="images, folders or patterns on which the file must find what PyTorch finds "
        "(default: three of the validation set)",
    )
    a = parser.parse_intermixed_args()
    export(a.model, a.overrides, a.format, a.raw, a.output, a.check)


def export(
    model: str, overrides: list[str], form: str | None, raw: bool, output: Path | None, check: list[str]
) -> None:
    """Export what the command line names, check it, say where it is."""
    from detector.export.session import export as run

    report = run(Path(model), overrides, form, raw, output, check)
    print(f"{report.file}: images -> {', '.join(report.outputs)}")
    print(f"checked against PyTorch: {report.check}")


if __name__ == "__main__":
    run_door(main)
