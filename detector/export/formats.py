"""The formats of exported files: how a graph is written to a file, and how such a file is run."""

import io
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from detector.export.suppression import keep_best, keep_best_op, onnx_translations
from errors import InputError, first_line

OUTPUTS = {"detections": ("boxes", "scores", "labels", "count"), "raw": ("logits", "deltas", "anchors")}
OPSET = 18  # the oldest that torch.onnx.export writes without a conversion
_IR_VERSION = 8  # the one current with that opset; older runtimes would refuse the exporter's default
# Shape of the exporter's example, and the range of sides in px that it must assume: from 129 px on, the
# coarsest level has more than one cell in each direction, and the exporter would treat a size of 1 as a
# constant. The resulting graph is correct for smaller images too.
_EXAMPLE, _LEAST, _MOST = (2, 3, 200, 330), 129, 2**15

INSTALL = "python -m pip install -r requirements-export.txt"
_UPGRADE = INSTALL.replace("install", "install --upgrade")

Run = Callable[[NDArray[Any]], list[NDArray[Any]]]  # images -> the outputs


@dataclass(frozen=True)
class ExportedFile:
    """An exported file that was read; callable as a Run."""

    run: Run
    told: dict[str, Any]  # metadata; empty if there is none

    def __call__(self, images: NDArray[Any]) -> list[NDArray[Any]]:
        return self.run(images)


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        make: graph, "detections" or "raw", metadata -> the content of a file.
        read: the content of a file -> an object that runs it on a CPU.
    """

    suffix: str
    needs: tuple[str, ...]  # packages beyond requirements.txt
    least_torch: str  # oldest PyTorch version that can export it
    suppress: Any  # NMS for the graph
    make: Callable[[nn.Module, str, dict[str, str]], bytes]
    read: Callable[[bytes], ExportedFile]


def require_packages(name: str) -> None:
    """Raises InputError: a format's packages are missing or do not work, or PyTorch is too old for it."""
    if not torch_serves(name):
        raise InputError(
            f"--format {name} needs PyTorch {FORMATS[name].least_torch} or newer, but {torch.__version__} "
            "is installed; --format torchscript works with any version"
        )
    missing = [package for package in FORMATS[name].needs if find_spec(package) is None]
    if missing:
        raise InputError(f"--format {name} needs {', '.join(missing)}: {INSTALL}")
    for package in FORMATS[name].needs:
        try:
            import_module(package)
        except (ImportError, OSError, AttributeError) as error:  # built for another Python, NumPy or machine
            raise InputError(
                f"--format {name}: {package} is installed but does not work here ({first_line(error)}); "
                f"{_UPGRADE}"
            ) from None


def torch_serves(name: str) -> bool:
    """Whether PyTorch is new enough for a format."""
    return TorchVersion(torch.__version__) >= FORMATS[name].least_torch


def _make_onnx(graph: nn.Module, outputs: str, metadata: dict[str, str]) -> bytes:
    import onnx

    size = torch.export.Dim
    sides = {2: size("height", min=_LEAST, max=_MOST), 3: size("width", min=_LEAST, max=_MOST)}
    with torch.no_grad(), _without_noise():
        shapes = {"images": {0: size("batch"), **sides}}
        program = torch.export.export(graph, (_example(outputs),), dynamic_shapes=shapes, strict=False)
        try:
            converted = torch.onnx.export(
                program,
                (),
                input_names=["images"],
                output_names=OUTPUTS[outputs],
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=shapes,
                custom_translation_table=onnx_translations(),
                verbose=False,
            )
        except (torch.onnx.errors.OnnxExporterError, ImportError) as error:
            raise InputError(
                f"PyTorch {torch.__version__} could not write the model as ONNX "
                f"({first_line(error)}); try newer versions of torch and onnxscript: {_UPGRADE}"
            ) from None
    assert converted is not None
    model = converted.model_proto
    _strip(model.graph)
    model.ir_version = _IR_VERSION
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _strip(graph: Any) -> None:
    """Remove the exporter's notes on source code and folders from every node."""
    graph.doc_string = ""
    del graph.metadata_props[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]


def _read_onnx(content: bytes) -> ExportedFile:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as many as the user allows PyTorch
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    texts = session.get_modelmeta().custom_metadata_map
    told = {}
    for name, text in texts.items():
        with suppress(ValueError):  # converters may add text that is not JSON
            told[name] = json.loads(text)
    return ExportedFile(lambda images: session.run(None, {"images": images}), told)


def _make_torchscript(graph: nn.Module, outputs: str, metadata: dict[str, str]) -> bytes:
    with torch.no_grad(), _without_noise():
        checked = _Checked(graph, torch.jit.script(_of_pixels if outputs == "detections" else _of_floats))
        traced = torch.jit.trace(checked, _example(outputs), check_trace=False)
        content = {name: json.loads(text) for name, text in metadata.items()}
        extra = {METADATA_FILE: json.dumps(content)}
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer, _extra_files=extra)
    return buffer.getvalue()


class _Checked(nn.Module):
    """Checks the input of a graph: a trace would accept anything, e.g. floats in [0, 1] or a grey image."""

    def __init__(self, graph: nn.Module, check: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.graph, self.check = graph, check

    def forward(self, images: Tensor) -> Any:
        return self.graph(self.check(images))


# Compiled by TorchScript, which unlike a trace keeps the conditions.
def _of_pixels(images: Tensor) -> Tensor:
    if images.dtype != torch.uint8 or images.dim() != 4 or images.size(1) != 3:
        raise ValueError("images must be uint8 [B, 3, H, W], RGB from 0 to 255")
    return images


def _of_floats(images: Tensor) -> Tensor:
    if images.dtype != torch.float32 or images.dim() != 4 or images.size(1) != 3:
        raise ValueError("images must be float32 [B, 3, H, W], (RGB / 255 - mean) / std")
    return images


def _keep_best_in_torchscript(*arguments: Any) -> Tensor:
    # Compiled, since it depends on the number of candidates, which a trace would fix.
    with _without_noise():
        compiled: Tensor = torch.jit.script(keep_best)(*arguments)
    return compiled


def _read_torchscript(content: bytes) -> ExportedFile:
    extra: dict[str, Any] = {METADATA_FILE: ""}
    with _without_noise():
        module = torch.jit.load(io.BytesIO(content), map_location="cpu", _extra_files=extra)

    def run(images: NDArray[Any]) -> list[NDArray[Any]]:
        with torch.no_grad():
            return [tensor.numpy() for tensor in module(torch.from_numpy(images))]

    return ExportedFile(run, json.loads(extra[METADATA_FILE] or "{}"))


def _example(outputs: str) -> Tensor:
    kind = torch.uint8 if outputs == "detections" else torch.float32
    return torch.zeros(_EXAMPLE, dtype=kind)


@contextmanager
def _without_noise() -> Iterator[None]:
    """Silence TorchScript's deprecation warnings and the tracer's warnings about intended behaviour."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def format_of(file: Path) -> str | None:
    """The format with the suffix of this file; None if there is none."""
    return next((name for name, one in FORMATS.items() if file.suffix == one.suffix), None)


def endings() -> str:
    """The suffixes of all formats, in words."""
    return " or ".join(one.suffix for one in FORMATS.values())


METADATA_FILE = "metadata.json"  # inside a TorchScript file: all values as one JSON object
FORMATS = {
    # Older exporters cannot keep height and width dynamic.
    "onnx": Format(
        ".onnx", ("onnx", "onnxscript", "onnxruntime"), "2.8", keep_best_op, _make_onnx, _read_onnx
    ),
    "torchscript": Format(
        ".torchscript", (), "2.6", _keep_best_in_torchscript, _make_torchscript, _read_torchscript
    ),
}


def refuse_elsewhere(overrides: Sequence[str], why: str) -> None:
    """Raises InputError: an override requests another device than the CPU, or a lower precision."""
    for word in overrides:
        key, _, value = word.partition("=")
        # YAML reads off as false.
        if value.lower() not in {"train.device": ("cpu",), "train.amp": ("off", "false")}.get(
            key, (value.lower(),)
        ):
            raise InputError(f"{word}: {why}; leave it out")
