"""Every format against the student it came from, each in its own runtime and without kdtune.

They take half a minute: `pytest -m slow`.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from kdtune.cli import main
from kdtune.data import Dataset, Images
from kdtune.errors import ExportError
from kdtune.experiment import dump
from kdtune.export import FORMATS, Wanted, export_student, load_student
from kdtune.export.formats import Answers, Source
from kdtune.models import build_model
from kdtune.trial import made_of
from tests.conftest import MakeExperiment, tiny_experiment
from tests.test_export import a_card, a_student
from tests.test_export_card import SUMMARY

pytestmark = pytest.mark.slow

EVERY = ["pt2", "onnx", "torchscript"]
ALL = Wanted(EVERY, half=True, int8=True)
FILES = [
    "student.safetensors", "student.fp16.safetensors", "student.pt2", "student.fp16.pt2", "student.onnx",
    "student.fp16.onnx", "student.int8.onnx", "student.torchscript", "student.fp16.torchscript",
]  # fmt: skip
OTHER_RUNTIMES = [name for name in FILES if not name.endswith("safetensors")]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Path:
    """A small student in everything there is. Read only."""
    folder = tmp_path_factory.mktemp("exported") / "student"
    export_student(folder, a_student(), tiny_experiment(folder.parent), digits, a_card, ALL, seen=True)
    return folder


def answers_of(path: Path) -> Answers:
    """What its own runtime makes of a file, without anything of kdtune's."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    if path.suffix == ".pt2":
        module: Answers = torch.export.load(path).module()
        return module
    loaded: Answers = torch.jit.load(path)  # type: ignore[no-untyped-call]
    return loaded


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


# --- what is written


def test_config_json_has_every_file_with_what_was_measured(exported: Path) -> None:
    files = config_of(exported)["files"]
    assert list(files) == FILES
    assert sorted(file.name for file in exported.iterdir()) == sorted([*FILES, "README.md", "config.json"])
    for name, facts in files.items():
        assert facts["bytes"] == (exported / name).stat().st_size
        assert facts["latency_ms"] > 0
        assert 0 <= facts["difference"] < (1e-5 if facts["precision"] == "float32" else 0.1)
        assert ("cost" in facts) == (facts["precision"] != "float32")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize("name", OTHER_RUNTIMES)
def test_a_file_answers_as_the_student_in_its_own_runtime_to_any_number_of_images(
    exported: Path, digits: Dataset, name: str
) -> None:
    answers, student = answers_of(exported / name), load_student(exported)
    allowed = {"float32": 1e-5, "float16": 5e-3, "int8": 0.1}[config_of(exported)["files"][name]["precision"]]
    for count in (1, 2, 17):
        images = digits.test.pixels[:count]
        assert answers(images).shape == (count, 10)
        assert (answers(images) - student(images)).abs().max() < allowed


def test_half_weights_load_by_their_files_name_and_are_the_students_rounded(exported: Path) -> None:
    whole, half = load_student(exported), load_student(exported / "student.fp16.safetensors")
    for (name, one), other in zip(whole.state_dict().items(), half.state_dict().values(), strict=True):
        expected = one.half().float() if one.ndim >= 2 and one.is_floating_point() else one
        assert torch.equal(other, expected), name
        assert other.dtype == one.dtype


def test_half_weights_of_another_student_are_refused(exported: Path, tmp_path: Path) -> None:
    for name in ("config.json", "student.safetensors"):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    other = (exported / "student.safetensors").read_bytes()
    (tmp_path / "student.fp16.safetensors").write_bytes(other)
    with pytest.raises(ExportError, match=r"student\.fp16\.safetensors is not the file that config\.json describes"):
        load_student(tmp_path / "student.fp16.safetensors")


def test_what_fewer_bits_cost_is_measured_on_all_validation_images(exported: Path, digits: Dataset) -> None:
    images, labels = digits.pixels[digits.validation], digits.labels[digits.validation]
    theirs = load_student(exported)(images).argmax(1)
    mine = load_student(exported / "student.fp16.safetensors")(images).argmax(1)
    assert config_of(exported)["files"]["student.fp16.safetensors"]["cost"] == {
        "split": "validation",
        "trained_on": True,
        "images": len(labels),
        "accuracy_float32": (theirs == labels).double().mean().item(),
        "accuracy": (mine == labels).double().mean().item(),
        "agreement": (theirs == mine).double().mean().item(),
    }


# --- what is in the files


def description(path: Path) -> dict[str, Any]:
    extra = {"kdtune.json": ""}
    if path.suffix == ".onnx":
        extra["kdtune.json"] = {p.key: p.value for p in onnx.load(path).metadata_props}["kdtune"]
    elif path.suffix == ".pt2":
        torch.export.load(path, extra_files=extra)
    else:
        torch.jit.load(path, _extra_files=extra)  # type: ignore[no-untyped-call]
    found: dict[str, Any] = json.loads(extra["kdtune.json"])
    return found


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize("name", OTHER_RUNTIMES)
def test_a_file_says_itself_what_its_classes_are(exported: Path, name: str) -> None:
    found = description(exported / name)
    assert found["classes"] == list("0123456789")
    assert found["image_shape"] == [1, 8, 8]
    assert found["resize"] == "fit"
    assert found["fingerprint"] == config_of(exported)["fingerprint"]


def test_onnx_passes_its_checker_and_has_one_free_dimension(exported: Path) -> None:
    for name in ("student.onnx", "student.fp16.onnx", "student.int8.onnx"):
        model = onnx.load(exported / name)
        onnx.checker.check_model(model, full_check=name != "student.int8.onnx")  # ConvInteger has no shape inference
        (given,), (answer,) = model.graph.input, model.graph.output
        assert (given.name, answer.name) == ("images", "logits")
        assert given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
        assert answer.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        shape = [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim]
        assert shape == ["batch", 1, 8, 8]


def test_onnx_in_half_stores_its_matrices_in_float16_and_in_int8_in_bytes(exported: Path) -> None:
    def stored(name: str) -> set[int]:
        return {t.data_type for t in onnx.load(exported / name).graph.initializer if np.prod(t.dims) > 64}

    def operations(name: str) -> set[str]:
        return {node.op_type for node in onnx.load(exported / name).graph.node}

    assert stored("student.onnx") == {onnx.TensorProto.FLOAT}
    assert stored("student.fp16.onnx") == {onnx.TensorProto.FLOAT16}
    assert stored("student.int8.onnx") == {onnx.TensorProto.UINT8}
    assert {"ConvInteger", "MatMulInteger"} <= operations("student.int8.onnx")
    assert not {"Conv", "Gemm", "MatMul"} & operations("student.int8.onnx")


@pytest.mark.parametrize("name", ["student.pt2", "student.onnx", "student.fp16.onnx", "student.int8.onnx"])
def test_no_folder_of_the_machine_that_wrote_it_is_in_a_file(exported: Path, name: str) -> None:
    content = (exported / name).read_bytes()
    assert str(Path(__file__).parents[1]).encode() not in content
    assert str(Path(torch.__file__).parent).encode() not in content


FRESH = """
import sys, warnings
warnings.simplefilter("ignore")
sys.modules["kdtune"] = None
import torch
folder = sys.argv[1]
images = torch.arange(3 * 64).reshape(3, 1, 8, 8).to(torch.uint8)
program = torch.export.load(f"{folder}/student.pt2").module()
script = torch.jit.load(f"{folder}/student.torchscript")
torch.save({"pt2": program(images), "torchscript": script(images), "floats": script(images / 255)}, sys.argv[2])
"""


def test_a_process_without_kdtune_runs_pt2_and_torchscript(exported: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.pt"
    command = [sys.executable, "-I", "-c", FRESH, str(exported), str(answers)]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = load_student(exported)(torch.arange(3 * 64).reshape(3, 1, 8, 8).to(torch.uint8))
    for name, found in torch.load(answers, weights_only=True).items():
        assert (found - expected).abs().max() < 1e-5, name


def test_what_takes_bytes_alone_refuses_floats(exported: Path, digits: Dataset) -> None:
    """They would be taken for images that are nearly black."""
    floats = digits.test.pixels[:2] / 255
    with pytest.raises(RuntimeError, match="dtype"):
        answers_of(exported / "student.pt2")(floats)
    with pytest.raises(Exception, match=r"data type|Unexpected input"):
        answers_of(exported / "student.onnx")(floats)


# --- refused


def test_a_file_that_answers_otherwise_is_refused_and_the_old_folder_stays(
    exported: Path, tmp_path: Path, digits: Dataset, make_experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "student"
    export_student(folder, a_student(), make_experiment(), digits, a_card)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def another(source: Source, path: Path, precision: str) -> None:
        path.write_bytes((exported / "student.onnx").read_bytes())  # of the student with the other seed

    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], write=another))
    with pytest.raises(ExportError, match=r"student\.onnx differs from the student by .* what there was before"):
        export_student(folder, a_student(1), make_experiment(), digits, a_card, Wanted(["onnx"]))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def nothing_but_nan(images: Tensor) -> Tensor:
    return torch.full((len(images), 10), float("nan"))


def too_few(images: Tensor) -> Tensor:
    return torch.zeros(1, 10)


@pytest.mark.parametrize(
    ("answers", "said"), [(nothing_but_nan, "differs from the student by nan"), (too_few, "cannot be written as pt2")]
)
def test_answers_that_are_no_numbers_or_too_few_are_refused(
    tmp_path: Path,
    digits: Dataset,
    make_experiment: MakeExperiment,
    monkeypatch: pytest.MonkeyPatch,
    answers: Callable[[Tensor], Tensor],
    said: str,
) -> None:
    def write(source: Source, path: Path, precision: str) -> None:
        path.write_bytes(b"something")

    monkeypatch.setitem(FORMATS, "pt2", replace(FORMATS["pt2"], write=write, open=lambda path: (answers, "")))
    with pytest.raises(ExportError, match=said):
        export_student(tmp_path / "student", a_student(), make_experiment(), digits, a_card, Wanted(["pt2"]))
    assert not (tmp_path / "student").exists()


class AsManyAsThree(nn.Module):
    """Forgets how many images there are: recorded with three, it answers for three."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(images.flatten(1))
        return logits + torch.zeros(len(images.tolist()), 1)


def test_a_network_of_which_no_graph_can_be_made_is_refused_by_its_name(
    tmp_path: Path, digits: Dataset, make_experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets.py").write_text(
        "from tests.test_export_formats import AsManyAsThree\ndef net(image_shape, classes): return AsManyAsThree()\n"
    )
    monkeypatch.chdir(tmp_path)
    network = build_model("nets:net", (1, 8, 8), 10).eval()
    experiment = make_experiment({"student.model": "nets:net"})
    with pytest.raises(ExportError, match=r"nets:net cannot be written as pt2 in float32: .*Leave pt2 out"):
        export_student(tmp_path / "student", network, experiment, digits, a_card, Wanted(["pt2"]))
    assert not (tmp_path / "student").exists()


def test_weights_that_half_cannot_hold_are_refused(
    tmp_path: Path, digits: Dataset, make_experiment: MakeExperiment
) -> None:
    network = a_student()
    with torch.no_grad():
        network.get_parameter("fc.weight")[3, 2] = 7e4  # float16 ends at 65,504
    with pytest.raises(ExportError, match=r"student\.fp16\.safetensors differs from the student by (inf|nan)"):
        export_student(tmp_path / "student", network, make_experiment(), digits, a_card, Wanted(half=True))
    assert not (tmp_path / "student").exists()


def test_a_format_that_there_is_not_and_int8_without_onnx_are_refused() -> None:
    with pytest.raises(ExportError, match=r"no format is named tflite; choose of safetensors, pt2, onnx, torchscript"):
        Wanted(["tflite", "onnx"]).check()
    with pytest.raises(ExportError, match="add onnx to the formats"):
        Wanted(["pt2"], int8=True).check()


def test_a_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("kdtune.export.formats.find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(ExportError, match=r"onnxscript, which is not installed: pip install 'kdtune\[onnx\]'"):
        Wanted(["onnx"]).check()
    Wanted(["pt2", "torchscript"], half=True).check()


# --- the command


def a_finished_run(folder: Path, dataset: Dataset) -> Path:
    """What `kdtune export` reads of a run."""
    experiment = tiny_experiment(folder.parent)
    (folder / "final").mkdir(parents=True)
    (folder / "experiment.yaml").write_text(dump(experiment))
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    (folder / "materials.json").write_text(json.dumps(made_of(dataset)))
    safetensors.torch.save_file(a_student().state_dict(), folder / "final" / "best.safetensors")
    return folder


def told(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code and output of the command."""
    with pytest.raises(SystemExit) as left:
        main(["export", *map(str, arguments)])
    assert isinstance(left.value.code, int)
    return left.value.code, *capsys.readouterr()


def test_the_command_writes_what_is_asked_for_and_prints_what_was_measured(
    tmp_path: Path, digits: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = a_finished_run(tmp_path / "tiny", digits), tmp_path / "out"
    code, said, _ = told(run, "--format", "safetensors, torchscript", "--half", "--to", out, capsys=capsys)
    assert code == 0
    written = ["student.fp16.safetensors", "student.fp16.torchscript", "student.safetensors", "student.torchscript"]
    assert sorted(file.name for file in out.iterdir() if file.name.startswith("student")) == written
    for name, facts in config_of(out)["files"].items():
        (row,) = [line for line in said.splitlines() if line.startswith(f"│ {name} ")]
        assert f"{facts['difference']:.1e}" in row
        if facts["precision"] == "float16":
            cost = facts["cost"]
            assert f"{name}: accuracy {cost['accuracy']:.2%} instead of {cost['accuracy_float32']:.2%}" in said
    assert f"{len(digits.validation)} validation images, on which these weights were trained as well" in said


def test_the_command_alone_writes_safetensors_and_refuses_other_names(
    tmp_path: Path, digits: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_finished_run(tmp_path / "tiny", digits)
    code, said, _ = told(run, capsys=capsys)
    assert (code, list(config_of(run / "student")["files"])) == (0, ["student.safetensors"])
    assert "read back, largest difference of logits on real images 0.0e+00" in said
    code, _, why = told(run, "--format", "onxx", capsys=capsys)
    assert code == 2
    assert "no format is named onxx" in why


@pytest.mark.parametrize("below", ["", "student"])
def test_a_file_where_the_folder_should_be_is_named_before_the_data_are_read(
    tmp_path: Path, digits: Dataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    run, there = a_finished_run(tmp_path / "tiny", digits), tmp_path / "file"
    there.write_text("mine")
    monkeypatch.setattr("kdtune.data.load_dataset", lambda *given: pytest.fail("the data were read"))
    code, _, why = told(run, "--to", there / below, capsys=capsys)
    assert (code, there.read_text()) == (2, "mine")
    assert f"{there} is a file, and an export is a folder" in why


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (None, "the same `kdtune search` again, which writes it"),
        ("{", "materials.json is not JSON"),
        ("[]", "materials.json is no JSON object"),
    ],
)
def test_a_run_that_does_not_say_what_it_is_made_of_is_refused_in_words(
    tmp_path: Path, digits: Dataset, capsys: pytest.CaptureFixture[str], written: str | None, said: str
) -> None:
    run = a_finished_run(tmp_path / "tiny", digits)
    (run / "materials.json").unlink() if written is None else (run / "materials.json").write_text(written)
    code, _, why = told(run, capsys=capsys)
    assert code == 2
    assert said in why
    assert "materials.json" in why
    assert not (run / "student").exists()


# --- other families


@pytest.mark.parametrize(("model", "shape"), [("mlp-800-800", (1, 8, 8)), ("resnet8", (3, 8, 8))])
def test_other_families_are_exported_in_every_format(
    tmp_path: Path, digits: Dataset, make_experiment: MakeExperiment, model: str, shape: tuple[int, int, int]
) -> None:
    channels = shape[0]
    pixels = digits.pixels[:40].expand(-1, channels, -1, -1).contiguous()
    small = replace(
        digits,
        images=pixels,
        labels=digits.labels[:40],
        fit=torch.arange(30),
        validation=torch.arange(30, 40),
        test=Images(pixels, digits.labels[:40]),
        mean=digits.mean * channels,
        std=digits.std * channels,
    )
    torch.manual_seed(0)
    network = build_model(model, shape, 10)
    network(small.normalise(pixels))  # statistics of its own
    files: Mapping[str, Any] = export_student(
        tmp_path / "student",
        network.eval(),
        make_experiment({"student.model": model}),
        small,
        a_card,
        Wanted(EVERY, int8=True),
    )
    assert len(files) == 5
