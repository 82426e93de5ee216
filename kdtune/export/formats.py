"""Formats besides safetensors: each writes the student with its preprocessing as one file, and opens it again.

    pt2            torch.export: torch alone runs it, and torch's compilers take it
    onnx           ONNX Runtime and many others run it
    torchscript    torch.jit: C++ programs (libtorch) run it

All take uint8 images [B, C, H, W] of any batch B and give logits [B, classes] in float32; all say within the file what
their classes are (`Description`). In `float16` the kernels and matrices are stored in half the bytes and widened to
float32 when they are used: the answers hardly move and any device can run it. In `int8` (ONNX only) ONNX Runtime's
dynamic quantisation has every convolution and matrix product done in 8-bit integers: weights in advance, activations
with a scale that is found anew for each batch. The rest, normalisation and sums, stays in float32.

Files of strangers: .safetensors (of an architecture that is no code of its own) and .onnx are data, and safe to open.
A .pt2 or .torchscript is a program and is opened with `allow_code` only. torch.export.load unpickles, and compiles
expressions that the file holds as Python (`guards_code`, sizes); TorchScript runs no Python, but has operations that
write any file (`torch.save`). No search of such a file for what is dangerous would be complete.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kdtune.errors import ExportError
from kdtune.export.student import Description, ExportedStudent
from kdtune.records import write_bytes

Answers = Callable[[Tensor], Tensor]  # uint8 images [B, C, H, W] -> logits [B, classes], both on the CPU

FLOAT32, FLOAT16, INT8 = "float32", "float16", "int8"
DESCRIPTION = "kdtune.json"  # its name in a file of torch's
KEY = "kdtune"  # in ONNX's metadata_props
OPSET = 20
EXAMPLES = 3  # images that a graph is recorded with: torch takes a batch of 1 for a constant


class Source:
    """A student that is about to be written. Graphs are made once, whatever is made of them."""

    def __init__(self, student: ExportedStudent, description: Description) -> None:
        self.student = student
        self.description = description
        self.example = torch.zeros((EXAMPLES, *student.image_shape), dtype=torch.uint8)

    def stored(self, precision: str) -> ExportedStudent:
        """A copy of the student, its kernels and matrices in `precision` and widened whenever they are used."""
        student = copy.deepcopy(self.student)
        if precision == FLOAT16:
            halve(student.network)
        return student

    def program(self, precision: str) -> Any:  # torch.export.ExportedProgram; torch has few types
        """The graph of one forward pass, for any batch."""
        student, shapes = self.stored(precision), ({0: torch.export.Dim.DYNAMIC},)
        program = torch.export.export(student, (self.example,), dynamic_shapes=shapes, strict=False)
        for module in program.graph_module.modules():
            for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
                node.meta.pop("stack_trace", None)  # names folders of this machine
        return program

    @cached_property
    def onnx(self) -> Any:  # onnx.ModelProto
        """The float32 model, checked; its one free dimension is called batch."""
        import onnx

        exported = torch.onnx.export(
            self.program(FLOAT32),
            (),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            opset_version=OPSET,
            verbose=False,
        )
        assert exported is not None
        model = exported.model_proto
        del model.graph.value_info[:]  # shapes within the graph are of use to nobody, and quantising changes them
        for node in model.graph.node:
            node.ClearField("metadata_props")  # which module each comes from: more bytes than a small student has
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
        onnx.helper.set_model_props(model, {KEY: self.description.to_json()})
        onnx.checker.check_model(model, full_check=True)
        return model


def halve(network: nn.Module) -> None:
    """Stores parameters of two dimensions and more in float16; biases and statistics stay as they are."""
    for module in list(network.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.ndim >= 2 and parameter.dtype == torch.float32:
                setattr(module, name, nn.Parameter(parameter.detach().half(), requires_grad=False))
                parametrize.register_parametrization(module, name, _Widened(), unsafe=True)


class _Widened(nn.Module):
    def forward(self, stored: Tensor) -> Tensor:
        return stored.float()


# --- torch.export


def _write_pt2(source: Source, path: Path, precision: str) -> None:
    torch.export.save(source.program(precision), path, extra_files={DESCRIPTION: source.description.to_json()})


def _open_pt2(path: Path) -> tuple[Answers, str]:
    extra = {DESCRIPTION: ""}
    program = torch.export.load(path, extra_files=extra)
    return program.module(), extra[DESCRIPTION]


# --- TorchScript


def _write_torchscript(source: Source, path: Path, precision: str) -> None:
    """The network as it was traced, in a script that asks for the images' type: floats in 0..1 do as well."""
    student = source.stored(precision)
    with _deprecated(), torch.inference_mode(False), torch.no_grad():
        images = torch.addcmul(student.shift, source.example.to(torch.float32), student.scale)
        student.network = torch.jit.trace(student.network, images)  # type: ignore[no-untyped-call]
        torch.jit.save(torch.jit.script(student), path, _extra_files={DESCRIPTION: source.description.to_json()})


def _open_torchscript(path: Path) -> tuple[Answers, str]:
    extra = {DESCRIPTION: ""}
    with _deprecated():
        module = torch.jit.load(path, "cpu", extra)  # type: ignore[no-untyped-call]
    text: str | bytes = extra[DESCRIPTION]
    return module, text.decode() if isinstance(text, bytes) else text


@contextmanager
def _deprecated() -> Iterator[None]:
    """TorchScript is, and says so at every call; whoever asks for it knows."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit._trace.TracerWarning)
        yield


# --- ONNX


def _write_onnx(source: Source, path: Path, precision: str) -> None:
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(source.onnx)
    if precision == INT8:
        _quantise(model, path)
        return
    if precision == FLOAT16:
        _narrow(model)
        onnx.checker.check_model(model, full_check=True)
    write_bytes(path, model.SerializeToString())


def _narrow(model: Any) -> None:
    """Stores kernels and matrices in float16, each followed by a Cast to float32, which runtimes do once."""
    import onnx
    from onnx import helper, numpy_helper

    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) >= 2:
            stored = f"{tensor.name}.float16"
            casts.append(helper.make_node("Cast", [stored], [tensor.name], to=onnx.TensorProto.FLOAT))
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float16"), stored))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _quantise(model: Any, path: Path) -> None:
    """Writes the model in 8-bit integers: unsigned ones, for which ONNX Runtime has convolutions, a scale a channel."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    props = {prop.key: prop.value for prop in model.metadata_props}
    # says that shapes are inferred: else it warns through the root logger
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    quantize_dynamic(model, path, weight_type=QuantType.QUInt8, per_channel=True)
    written = onnx.load(path)
    del written.metadata_props[:]
    onnx.helper.set_model_props(written, props)
    write_bytes(path, written.SerializeToString())


def _open_onnx(path: Path) -> tuple[Answers, str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def answers(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(logits)

    return answers, session.get_modelmeta().custom_metadata_map.get(KEY, "")


# --- by name


@dataclass(frozen=True)
class Format:
    """`write(source, path, precision)`, and `open(path)`: what answers, and the description as JSON."""

    suffix: str
    runtime: str
    write: Callable[[Source, Path, str], None]
    open: Callable[[Path], tuple[Answers, str]]
    precisions: tuple[str, ...] = (FLOAT32, FLOAT16)
    packages: tuple[str, ...] = ()  # of the extra `onnx`
    program: bool = False  # its runtime does what the file says, to the machine too

    def opened(self, path: Path, *, allow_code: bool = False) -> tuple[Answers, str]:
        """`open`, for files that come from anywhere.

        Raises ExportError where the runtime cannot read one, and for a program without `allow_code`.
        """
        if not path.is_file():
            raise ExportError(f"there is no {path}")
        if self.program and not allow_code:
            raise ExportError(
                f"{path} is a program: {self.runtime} does whatever its maker wrote into it, to your files as well. "
                f"If you trust where it is from, open it with allow_code=True (--allow-code); the export's "
                f".safetensors and .onnx files need no trust"
            )
        try:
            return self.open(path)
        except Exception as error:  # each runtime has errors of its own for what is damaged
            why = str(error).strip().splitlines() or [type(error).__name__]
            raise ExportError(f"{path} cannot be opened by {self.runtime}: {why[0]}") from error

    def need(self) -> None:
        """Raises ExportError where a package is missing."""
        missing = [package for package in self.packages if find_spec(package) is None]
        if missing:
            raise ExportError(f"ONNX needs {', '.join(missing)}, which is not installed: pip install 'kdtune[onnx]'")


FORMATS = {
    "pt2": Format(".pt2", "torch.export", _write_pt2, _open_pt2, program=True),
    "onnx": Format(
        ".onnx", "ONNX Runtime", _write_onnx, _open_onnx,
        (FLOAT32, FLOAT16, INT8), ("onnx", "onnxscript", "onnxruntime"),
    ),
    "torchscript": Format(".torchscript", "torch.jit", _write_torchscript, _open_torchscript, program=True),
}  # fmt: skip
