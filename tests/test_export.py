"""The export against the student it came from, and against tampering."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import kdtune
from kdtune.data import Dataset
from kdtune.errors import ExportError
from kdtune.experiment import Experiment
from kdtune.export import export_student, load_student
from kdtune.export import writing as room
from kdtune.models import build_model, channels_last, count_parameters
from kdtune.teacher import fingerprint, keep
from kdtune.training import evaluate
from kdtune.trial import Bench, Materials
from tests.conftest import CPU, MakeExperiment


def a_student(seed: int = 0, model: str = "cnn-8") -> nn.Module:
    """With statistics of its own, as training leaves them."""
    torch.manual_seed(seed)
    network = build_model(model, (1, 8, 8), 10)
    with torch.no_grad():
        network(torch.rand(64, 1, 8, 8) * 3)
    return network.eval()


def a_card(files: Mapping[str, Any]) -> str:
    return "card\n"


def another_card(files: Mapping[str, Any]) -> str:
    return "another card\n"


@pytest.fixture
def network() -> nn.Module:
    return a_student()


@pytest.fixture
def folder(tmp_path: Path, network: nn.Module, experiment: Experiment, digits: Dataset) -> Path:
    """An export of `network`."""
    export_student(tmp_path / "student", network, experiment, digits, a_card)
    return tmp_path / "student"


@torch.inference_mode()
def logits_of(network: nn.Module, digits: Dataset) -> Tensor:
    logits: Tensor = network(digits.normalise(digits.test.pixels))
    return logits


# --- the front door


@pytest.mark.parametrize("model", ["cnn-8-16", "resnet8", "vgg8"])
def test_a_student_in_the_layout_that_it_was_trained_in_is_exported(
    model: str, tmp_path: Path, experiment: Experiment, digits: Dataset
) -> None:
    """Kernels for channels last add in another order, and so far apart are logits after some training."""
    network = channels_last(a_student(model=model))
    with torch.no_grad():
        network.get_parameter([name for name, _ in network.named_parameters()][-2]).mul_(300)
    section = experiment.student.model_copy(update={"model": model})
    export_student(tmp_path / "student", network, experiment.model_copy(update={"student": section}), digits, a_card)
    assert (load_student(tmp_path / "student")(digits.test.images) - logits_of(network, digits)).abs().max() > 1e-6


def test_an_exported_student_answers_as_the_student_did_to_uint8_images(
    folder: Path, network: nn.Module, digits: Dataset
) -> None:
    student = kdtune.load_student(folder)
    assert (student(digits.test.images) - logits_of(network, digits)).abs().max() <= 1e-6


def test_an_exported_student_answers_as_the_student_did_to_floats(
    folder: Path, network: nn.Module, digits: Dataset
) -> None:
    student = kdtune.load_student(str(folder))
    floats = digits.test.pixels.float() / 255
    torch.testing.assert_close(student(floats), logits_of(network, digits), rtol=1e-6, atol=1e-6)


def test_the_front_door_is_the_exports_own(folder: Path) -> None:
    assert kdtune.load_student is load_student
    assert "load_student" in kdtune.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = kdtune.nothing


def test_a_loaded_student_is_frozen_and_knows_its_classes(folder: Path, digits: Dataset) -> None:
    student = load_student(folder)
    assert not any(module.training for module in student.modules())
    assert not any(parameter.requires_grad for parameter in student.parameters())
    assert student.classes == tuple("0123456789")
    assert student.image_shape == (1, 8, 8)
    assert student(digits.test.pixels[:3]).shape == (3, 10)


def test_the_export_of_a_feature_trial_holds_the_bare_student(
    make_experiment: MakeExperiment, materials: Materials, tmp_path: Path
) -> None:
    """No projectors, no prefixes, no hooks."""
    experiment = make_experiment({"distill.feature_weight": 1, "student.model": "cnn-4-8", "train.epochs": 1})
    trial = Bench(materials, CPU).start(experiment, seed=0)
    list(trial.records)
    export_student(tmp_path / "student", trial.student.network, experiment, materials.dataset, a_card)
    weights = safetensors.torch.load_file(tmp_path / "student" / "student.safetensors")
    assert weights.keys() == build_model("cnn-4-8", (1, 8, 8), 10).state_dict().keys()
    assert all(torch.equal(weights[key], t) for key, t in trial.student.network.state_dict().items())
    dataset = materials.dataset
    exported = load_student(tmp_path / "student").network
    mine, theirs = (evaluate(n, dataset, dataset.images, dataset.labels) for n in (exported, trial.student.network))
    assert (mine.accuracy, mine.loss) == (theirs.accuracy, theirs.loss)


# --- what is written


def test_config_json_says_what_is_needed_to_use_the_student(folder: Path, network: nn.Module, digits: Dataset) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["model"] == "cnn-8"
    assert config["classes"] == list("0123456789")
    assert config["image_shape"] == [1, 8, 8]
    assert (config["mean"], config["std"]) == (list(digits.mean), list(digits.std))
    assert config["parameters"] == count_parameters(network)
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "student.safetensors"]


def test_an_export_gives_the_largest_difference_of_logits(
    network: nn.Module, experiment: Experiment, digits: Dataset, tmp_path: Path
) -> None:
    files = export_student(tmp_path / "student", network, experiment, digits, a_card)
    assert files.keys() == {"student.safetensors"}
    assert 0 <= files["student.safetensors"]["difference"] <= 1e-6
    assert json.loads((tmp_path / "student" / "config.json").read_text())["files"] == files


def test_a_second_export_replaces_the_first(folder: Path, experiment: Experiment, digits: Dataset) -> None:
    other = a_student(1)
    export_student(folder, other, experiment, digits, another_card)
    assert (load_student(folder)(digits.test.images) - logits_of(other, digits)).abs().max() <= 1e-6
    assert (folder / "README.md").read_text() == "another card\n"
    assert [file.name for file in folder.parent.iterdir() if file.name != "runs"] == ["student"]


# --- whole or absent


def full_disk(*arguments: object, **given: object) -> None:
    raise OSError(28, "No space left on device")


def no_folder_renamed(source: Path, target: Path) -> None:
    if source.is_dir():
        raise OSError(5, "Input/output error")
    os.replace(source, target)


def new_one_not_renamed(source: Path, target: Path) -> None:
    """The old export has made room already."""
    no_folder_renamed(source, target) if source.suffix == ".part" else os.replace(source, target)


def other_outputs(*arguments: object) -> float:
    return 0.5


def not_a_number(*arguments: object) -> float:
    return float("nan")


FAILURES: dict[str, list[tuple[Any, str, Any]]] = {  # owner, name, what takes its place
    "weights not written": [(room, "write_bytes", full_disk)],
    "card not written": [(room, "write_text", full_disk)],
    "not read back": [(room, "load_student", full_disk)],
    "other outputs": [(room, "largest_difference", other_outputs)],
    "outputs that are not numbers": [(room, "largest_difference", not_a_number)],
    "not renamed": [(Path, "rename", no_folder_renamed), (Path, "replace", no_folder_renamed)],
    "new one not renamed": [(Path, "rename", new_one_not_renamed), (Path, "replace", new_one_not_renamed)],
}


@pytest.mark.parametrize("failure", FAILURES)
def test_an_export_that_fails_leaves_the_old_one(
    folder: Path, experiment: Experiment, digits: Dataset, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with monkeypatch.context() as patch:
        for owner, name, instead in FAILURES[failure]:
            patch.setattr(owner, name, instead)
        with pytest.raises((ExportError, OSError)):
            export_student(folder, a_student(1), experiment, digits, another_card)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    load_student(folder)


@pytest.mark.parametrize("failure", FAILURES)
def test_a_first_export_that_fails_leaves_nothing_that_looks_like_one(
    tmp_path: Path, experiment: Experiment, digits: Dataset, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    with monkeypatch.context() as patch:
        for owner, name, instead in FAILURES[failure]:
            patch.setattr(owner, name, instead)
        with pytest.raises((ExportError, OSError)):
            export_student(tmp_path / "student", a_student(), experiment, digits, a_card)
    assert not (tmp_path / "student").exists()
    export_student(tmp_path / "student", a_student(), experiment, digits, a_card)
    load_student(tmp_path / "student")


def test_a_student_that_the_export_does_not_reproduce_is_refused(
    tmp_path: Path, make_experiment: MakeExperiment, digits: Dataset
) -> None:
    """Weights that read back as a slightly other function."""

    class Louder(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def state_dict(self, *arguments: Any, **named: Any) -> Any:
            return self.network.state_dict(*arguments, **named)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.network(images)
            return logits + 1e-4

    with pytest.raises(ExportError, match=r"differs from the student by 1\.\d+e-04 in a logit, more than 1e-06"):
        export_student(tmp_path / "student", Louder(a_student()), make_experiment(), digits, a_card)
    assert not (tmp_path / "student").exists()


def test_a_folder_that_is_no_export_is_never_replaced(tmp_path: Path, experiment: Experiment, digits: Dataset) -> None:
    """`--to ~/models/mine` must not remove what somebody keeps there, a config.json of another library included."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.json").write_text('{"model_type": "bert"}')
    (mine / "model.safetensors").write_bytes(b"months of training")
    with pytest.raises(ExportError, match="mine"):
        export_student(mine, a_student(), experiment, digits, a_card)
    assert sorted(file.name for file in mine.iterdir()) == ["config.json", "model.safetensors"]


# --- damage


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def test_one_other_bit_in_the_weights_is_refused(folder: Path) -> None:
    flip(folder / "student.safetensors")
    with pytest.raises(ExportError, match=r"student\.safetensors is not the file that config\.json describes"):
        load_student(folder)


def test_weights_of_another_student_are_refused(folder: Path) -> None:
    safetensors.torch.save_file(a_student(1).state_dict(), folder / "student.safetensors")
    with pytest.raises(ExportError, match="fingerprint"):
        load_student(folder)


def test_weights_cut_short_are_refused(folder: Path) -> None:
    cut(folder / "student.safetensors")
    with pytest.raises(ExportError, match="is damaged"):
        load_student(folder)


@pytest.mark.parametrize("name", ["config.json", "student.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ExportError, match=rf"is no export: .*{name} is missing"):
        load_student(folder)


def test_a_folder_that_is_not_there_and_a_file_are_no_exports(folder: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", folder / "README.md", folder / "nowhere.safetensors"):
        with pytest.raises(ExportError, match="is no export"):
            load_student(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "7", "{}"])
def test_a_config_that_is_none_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ExportError, match="student"):
        load_student(folder)


@pytest.mark.parametrize("key", ["format", "model", "options", "fingerprint", "image_shape", "classes", "mean", "std"])
def test_a_config_without_one_of_its_keys_is_refused(folder: Path, key: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config[key]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match="student"):
        load_student(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("classes", ["a", "b", "c"]),
        ("classes", 10),
        ("image_shape", []),
        ("image_shape", [3, 8, 8]),
        ("mean", "0.5"),
        ("mean", [0.1, 0.2, 0.3]),
    ],
)
def test_a_config_that_does_not_fit_its_weights_is_refused(folder: Path, key: str, value: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(ExportError, match="student"):
        load_student(folder)


def test_an_export_of_format_2_still_loads(folder: Path, network: nn.Module, digits: Dataset) -> None:
    """As version 0.1.0 wrote it, key by key."""
    config = json.loads((folder / "config.json").read_text())
    written = ("model", "options", "classes", "image_shape", "mean", "std", "parameters", "fingerprint", "kdtune")
    (folder / "config.json").write_text(json.dumps({"format": 2, **{key: config[key] for key in written}}))
    assert (load_student(folder)(digits.test.images) - logits_of(network, digits)).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("shape", "resize", "warned"),
    [((3, 48, 48), None, True), ((3, 48, 48), "fit", False), ((3, 32, 32), None, False), ((1, 48, 48), None, False)],
)
def test_an_export_that_does_not_say_how_its_images_were_cut_is_warned_of(
    folder: Path, caplog: pytest.LogCaptureFixture, shape: tuple[int, int, int], resize: str | None, *, warned: bool
) -> None:
    """Format 2 did not; students of images on disk, RGB and square, then get others than they were trained on."""
    weights = build_model("cnn-8", shape, 10).state_dict()
    safetensors.torch.save_file(weights, folder / "student.safetensors")
    config = json.loads((folder / "config.json").read_text())
    del config["resize"]
    config |= {"format": 2, "image_shape": shape, "mean": [0.5] * shape[0], "std": [0.5] * shape[0]}
    config |= {"fingerprint": fingerprint("cnn-8", weights, {})} | ({"resize": resize} if resize else {})
    (folder / "config.json").write_text(json.dumps(config))
    load_student(folder)
    assert ("export it again" in caplog.text) == warned


def test_an_export_of_another_version_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "format": 7}))
    with pytest.raises(ExportError, match=r"of format 7; this version reads formats 2 and 3"):
        load_student(folder)


@pytest.mark.parametrize("model", ["vit-22b", "timm:no_such_model", "resnet8"])
def test_an_export_of_another_model_is_refused(folder: Path, model: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    weights = safetensors.torch.load_file(folder / "student.safetensors")
    print_ = fingerprint(model, weights, config["options"])  # a forger would not forget it
    (folder / "config.json").write_text(json.dumps({**config, "model": model, "fingerprint": print_}))
    with pytest.raises(ExportError, match=r"config\.json and student\.safetensors do not fit"):
        load_student(folder)


def test_an_export_whose_model_is_somebodys_code_does_not_run_it_unasked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[object] = []
    monkeypatch.setattr(json, "harmful", lambda **given: called.append(given), raising=False)
    config = json.loads((folder / "config.json").read_text())
    weights = safetensors.torch.load_file(folder / "student.safetensors")
    changed = {**config, "model": "json:harmful", "fingerprint": fingerprint("json:harmful", weights)}
    (folder / "config.json").write_text(json.dumps(changed))
    with pytest.raises(ExportError, match="allow_code=True"):
        load_student(folder)
    assert not called
    with pytest.raises(ExportError, match="do not fit"):  # it makes no network
        load_student(folder, allow_code=True)
    assert called


def test_layers_that_share_their_weights_are_exported_and_kept(
    tmp_path: Path, make_experiment: MakeExperiment, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
from torch import nn

def net(image_shape, classes):
    layer = nn.Linear(64, 64)
    return nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer, nn.Linear(64, classes))
"""
    (tmp_path / "tied_layers.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    experiment = make_experiment({"student.model": "tied_layers:net"})
    tied = build_model("tied_layers:net", digits.shape, 10)
    export_student(tmp_path / "student", tied.eval(), experiment, digits, a_card)
    exported = load_student(tmp_path / "student", allow_code=True)
    assert torch.equal(exported(digits.pixels[:9]), tied(digits.normalise(digits.pixels[:9])))
    (tmp_path / "kept").mkdir()
    teacher = keep(tied, "tied_layers:net", {}, digits, tmp_path / "kept", depth=1)
    assert torch.equal(teacher.load(CPU)(digits.normalise(digits.pixels[:9])), exported(digits.pixels[:9]))


def test_loading_a_timm_student_or_teacher_fetches_no_weights_of_timms(
    tmp_path: Path, make_experiment: MakeExperiment, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    def create_model(name: str, *, in_chans: int, num_classes: int, pretrained: bool = False) -> nn.Module:
        asked.append(pretrained)
        return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_chans, num_classes))

    asked: list[bool] = []
    monkeypatch.setattr(timm, "create_model", create_model)
    options = {"pretrained": True}
    experiment = make_experiment({"student.model": "timm:resnet18", "student.options": options})
    network = build_model("timm:resnet18", digits.shape, 10, options)
    export_student(tmp_path / "student", network.eval(), experiment, digits, a_card)
    (tmp_path / "kept").mkdir()
    teacher = keep(network, "timm:resnet18", options, digits, tmp_path / "kept", depth=1)
    load_student(tmp_path / "student")
    teacher.load(CPU)
    assert asked == [True, False, False, False]
