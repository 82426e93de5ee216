"""A student's answers to image files, against what PIL, torchvision and the student itself make of them."""

import contextlib
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import nn
from torchvision import transforms

from kdtune.cli import main
from kdtune.data import Dataset, ImageFiles, Images, prepare
from kdtune.data.images import open_rgb
from kdtune.errors import DataError, ExportError
from kdtune.experiment import Experiment
from kdtune.export import FORMATS, Opened, Prediction, Wanted, export_student, load_student, open_student, predict
from kdtune.models import build_model
from tests.conftest import tiny_experiment
from tests.test_export import a_card, a_student


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Path:
    """An export with TorchScript, which is written quickest. Read only."""
    to = tmp_path_factory.mktemp("exported") / "student"
    export_student(to, a_student(), tiny_experiment(to.parent), digits, a_card, Wanted(["torchscript"]))
    return to


@pytest.fixture
def picture() -> Image.Image:
    """RGB, 40 x 30, different in every corner."""
    values = np.random.default_rng(0).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((40, 30), Image.Resampling.BICUBIC)


def one(student: Opened, path: Path, top: int = 10) -> Prediction:
    (found,) = predict(student, [path], top)
    return found


def chances(prediction: Prediction) -> dict[str, float]:
    return dict(prediction.ranked)


# --- files into images


def test_a_file_is_fitted_as_class_folders_in_memory_are(picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "a.png")
    fitted = np.array(ImageOps.fit(picture, (12, 8), Image.Resampling.BILINEAR))
    found = prepare(tmp_path / "a.png", (3, 8, 12), "fit")
    assert torch.equal(found, torch.from_numpy(fitted).permute(2, 0, 1))
    grey = np.array(ImageOps.fit(picture, (12, 8), Image.Resampling.BILINEAR).convert("L"))
    assert torch.equal(prepare(tmp_path / "a.png", (1, 8, 12), "fit"), torch.from_numpy(grey)[None])


def test_a_file_is_cut_as_images_on_disk_are(picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "a.png")
    found = prepare(tmp_path / "a.png", (3, 14, 14), "centre-crop")
    cut = transforms.Compose([transforms.Resize(16), transforms.CenterCrop(14), transforms.PILToTensor()])
    assert torch.equal(found, cut(picture))
    files = ImageFiles(str(tmp_path), np.array([b"a.png"]), side=14)
    assert torch.equal(found, files.decode(0, None, (1.0, 1.0), flipped=False))


def test_an_export_knows_how_its_training_images_were_made(
    digits: Dataset, experiment: Experiment, tmp_path: Path, picture: Image.Image
) -> None:
    for k in range(3):
        ImageOps.fit(picture, (9, 9)).rotate(90 * k).save(tmp_path / f"{k}.png")
    files = ImageFiles(str(tmp_path), np.array([b"0.png", b"1.png", b"2.png"]), side=8)
    labels = torch.tensor([0, 1, 2])
    on_disk = replace(
        digits, images=files, labels=labels, test=Images(files, labels), mean=(0.5,) * 3, std=(0.25,) * 3,
        fit=torch.arange(2), validation=torch.tensor([2]),
    )  # fmt: skip
    network = build_model("cnn-8", (3, 8, 8), 10).eval()
    export_student(tmp_path / "student", network, experiment, on_disk, a_card)
    assert load_student(tmp_path / "student").resize == open_student(tmp_path / "student").resize == "centre-crop"


def sixteen_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.array(image.convert("L")).astype(np.uint16) << 8)


MODES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "L": lambda image: image.convert("L"),
    "RGB": lambda image: image.convert("L").convert("RGB"),
    "RGBA": lambda image: image.convert("L").convert("RGBA"),
    "LA": lambda image: image.convert("LA"),
    "I;16": sixteen_bits,
}


@pytest.mark.parametrize("mode", MODES)
def test_the_mode_of_a_file_does_not_matter(folder: Path, picture: Image.Image, tmp_path: Path, mode: str) -> None:
    picture.convert("L").save(tmp_path / "grey.png")
    MODES[mode](picture).save(tmp_path / "other.png")
    student = open_student(folder)
    expected = chances(one(student, tmp_path / "grey.png"))
    assert chances(one(student, tmp_path / "other.png")) == pytest.approx(expected, abs=1e-5)


def test_photographs_are_turned_upright(folder: Path, picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned by 90 degrees clockwise
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "lying.png")
    student = open_student(folder)
    expected = one(student, tmp_path / "upright.png").ranked
    assert one(student, tmp_path / "turned.png").ranked == expected
    assert one(student, tmp_path / "lying.png").ranked != expected


# --- answers


def test_predictions_are_the_students_softmax_in_order(folder: Path, digits: Dataset, tmp_path: Path) -> None:
    for k in range(3):
        Image.fromarray(digits.test.pixels[k, 0].numpy()).save(tmp_path / f"{k}.png")
    expected = load_student(folder)(digits.test.pixels[:3]).softmax(1)
    found = list(predict(open_student(folder), [tmp_path], top=4))
    assert [prediction.image.name for prediction in found] == ["0.png", "1.png", "2.png"]
    for prediction, row in zip(found, expected, strict=True):
        best = row.argsort(descending=True)[:4].tolist()
        assert [name for name, _ in prediction.ranked] == [str(k) for k in best]
        assert [chance for _, chance in prediction.ranked] == pytest.approx(row[best].tolist(), abs=1e-6)


def test_a_file_that_was_copied_elsewhere_answers_as_its_folder(
    folder: Path, picture: Image.Image, tmp_path: Path
) -> None:
    picture.save(tmp_path / "a.png")
    copy = tmp_path / "mine.torchscript"
    copy.write_bytes((folder / "student.torchscript").read_bytes())
    expected = chances(one(open_student(folder), tmp_path / "a.png"))
    assert chances(one(open_student(copy, allow_code=True), tmp_path / "a.png")) == pytest.approx(expected, abs=1e-6)


def test_what_is_no_image_is_told_and_the_others_are_answered(
    folder: Path, picture: Image.Image, tmp_path: Path
) -> None:
    picture.save(tmp_path / "a.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:300])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    paths = [tmp_path / name for name in ("nowhere.png", "cut.jpg", "a.jpg", "text.png", "empty", "a.jpg")]
    found = list(predict(open_student(folder), paths, top=1))
    assert [prediction.image for prediction in found] == paths
    assert [bool(prediction.error) for prediction in found] == [True, True, False, True, True, False]
    assert "nowhere.png" in found[0].error
    assert "cannot identify" in found[3].error
    assert found[4].error == f"{tmp_path / 'empty'}: no images in this folder"
    assert found[2].ranked == found[5].ranked


def test_a_folder_of_more_images_than_a_batch_keeps_its_order(folder: Path, tmp_path: Path) -> None:
    for k in range(70):
        Image.new("L", (8, 8), 3 * k).save(tmp_path / f"{k:02}.png")
    student = open_student(folder)
    found = list(predict(student, [tmp_path], top=1))
    assert [prediction.image.name for prediction in found] == [f"{k:02}.png" for k in range(70)]
    assert found[69].ranked[0][1] == pytest.approx(one(student, tmp_path / "69.png").ranked[0][1], abs=1e-6)


# --- opening


def test_an_image_that_is_not_there_needs_no_repair(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^there is no image .*none\.png$"):
        open_rgb(tmp_path / "none.png")


def test_what_is_no_student_is_refused_with_what_to_give(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.torchscript").write_bytes(b"PK\x03\x04 not really")
    (tmp_path / "run" / "student").mkdir(parents=True)
    (tmp_path / "run" / "student" / "config.json").write_text("{}")
    for path, said in {
        folder / "README.md": r"README\.md is no student; give an export folder",
        tmp_path / "nowhere": "there is no ",
        tmp_path / "nowhere.pt2": "there is no ",
        tmp_path / "broken.torchscript": r"cannot be opened by torch\.jit",
        tmp_path / "run": r"is no export: .*Did you mean .*student\?",
    }.items():
        with pytest.raises(ExportError, match=said):
            open_student(path, allow_code=True)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Identity()), tmp_path / "other.torchscript")
    with pytest.raises(ExportError, match="is no student of kdtune: it does not say what its classes are"):
        open_student(tmp_path / "other.torchscript", allow_code=True)


# --- opening files of strangers

Attack = Callable[[Path, Path], None]  # (file to write, marker): opening the file leaves the marker


def pickled_weights(path: Path, marker: Path) -> None:
    """What torch.export writes for weights that are no plain tensors, and unpickles without asking."""

    class Touch:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {marker}",)

    whole = path.with_suffix(".whole.pt2")
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(3, 2),), strict=False), whole)
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(path, "w") as altered:
        (about,) = (name for name in archive.namelist() if name.endswith("weights_config.json"))
        config = json.loads(archive.read(about))
        first = next(iter(config["config"].values()))
        first["use_pickle"] = True
        changed = {about: json.dumps(config).encode(), first["path_name"]: pickle.dumps(Touch())}
        for name in archive.namelist():
            altered.writestr(name, changed.get(name, changed.get(name.rpartition("/")[2], archive.read(name))))


def guards(path: Path, marker: Path) -> None:
    """Conditions on inputs are in the graph's JSON as Python, which `module()` executes when it is called."""
    program = torch.export.export(nn.Linear(2, 2), (torch.zeros(3, 2),), strict=False)
    program._guards_code = [f"__import__('pathlib').Path({str(marker)!r}).touch() is None"]
    torch.export.save(program, path)


class Writes(nn.Module):
    def __init__(self, marker: str) -> None:
        super().__init__()
        self.marker = marker

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        torch.save(images, self.marker)
        return images


def script(path: Path, marker: Path) -> None:
    torch.jit.save(torch.jit.script(Writes(str(marker))), path)


def used(path: Path) -> None:
    """Opened by its own runtime, by nobody who is careful."""
    kind = "pt2" if path.suffix == ".pt2" else "torchscript"
    answers, _ = FORMATS[kind].open(path)
    answers(torch.zeros(3, 2))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize(
    ("name", "attack"),
    [("pickle.pt2", pickled_weights), ("guards.pt2", guards), ("script.torchscript", script)],
)
def test_a_file_that_runs_code_is_not_opened_unless_that_is_allowed(tmp_path: Path, name: str, attack: Attack) -> None:
    path, marker = tmp_path / name, tmp_path / "marker"
    attack(path, marker)
    with pytest.raises(ExportError, match=r"is a program: .*--allow-code"):
        open_student(path)
    assert not marker.exists()
    with contextlib.suppress(Exception):  # nothing is left of the student after some attacks
        used(path)
    assert marker.exists(), "no attack: the refusal above shows nothing"


# --- the command


def test_the_command_prints_a_table_and_exits_2_for_what_is_no_image(
    folder: Path, picture: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture.save(tmp_path / "a [b].png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(SystemExit) as left:
        main(["predict", str(folder), str(tmp_path / "a [b].png"), str(tmp_path / "text.png"), "--top", "2"])
    assert left.value.code == 2
    said = capsys.readouterr()
    (name, chance), (second, _) = one(open_student(folder), tmp_path / "a [b].png", 2).ranked
    assert "a [b].png" in said.out.replace("\n", "")
    assert [line.split("│")[2].strip() for line in said.out.splitlines() if "%" in line] == [name, second]
    assert f"{chance:.2%}" in said.out
    assert "text.png" in said.err


def test_the_command_prints_json_lines(
    folder: Path, picture: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture.save(tmp_path / "a.png")
    with pytest.raises(SystemExit) as left:
        main(["predict", str(folder), str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--json"])
    assert left.value.code == 2
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert [entry["class"] for entry in first["classes"]] == [
        name for name, _ in one(open_student(folder), tmp_path / "a.png", 3).ranked
    ]
    assert "b.png" in second["error"]
    assert "classes" not in second


def test_a_student_of_somebodys_code_runs_only_when_that_is_allowed(
    digits: Dataset, picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    picture.save(tmp_path / "a.png")
    (tmp_path / "own_nets.py").write_text(
        "from torch import nn\n"
        "def net(image_shape, classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    network = build_model("own_nets:net", digits.shape, 10).eval()
    experiment = tiny_experiment(tmp_path, {"student.model": "own_nets:net"})
    export_student(tmp_path / "student", network, experiment, digits, a_card, Wanted(["torchscript"]))
    for path in (tmp_path / "student", tmp_path / "student" / "student.torchscript"):
        for more, code in (([], 2), (["--allow-code"], 0)):
            with pytest.raises(SystemExit) as left:
                main(["predict", str(path), "a.png", *more])
            assert left.value.code == code, path
            assert ("--allow-code" in capsys.readouterr().err) == (code == 2)


def test_the_command_line_does_not_wait_for_torch_or_tables_to_show_its_help() -> None:
    code = (
        "import sys\nfrom kdtune.cli import main\n"
        "try: main(['predict', '--help'])\n"
        "except SystemExit: sys.exit(any(m in sys.modules for m in ('torch', 'onnx', 'rich.table')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
