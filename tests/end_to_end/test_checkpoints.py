"""Files of weights as people have them: each loads as its owner's network, or is told rightly."""

import argparse
import copy
import io
import os
import pathlib
import pickle
import re
import sys
import tarfile
import types
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision import models as tv

from visionserve.models import MODELS
from visionserve_tools.archive.weights import (
    ClassCountError,
    Weights,
    WeightsError,
    load_state_dict,
)

CLASSES = 3
PIXELS = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
State = dict[str, Tensor]


class Settings:
    """A class of the owner's, which nobody who serves the weights has."""

    def __init__(self) -> None:
        self.depth = 18


class Evil:
    """Calls a function of Python's library where it is unpickled."""

    def __init__(self, function: Any, argument: str) -> None:
        self.call = function, (argument,)

    def __reduce__(self) -> Any:
        return self.call


def narrow(network: nn.Module) -> nn.Module:
    """Leave an eighth of each layer's channels: the file has 0.7 MB, and all names as before."""
    for module in network.modules():
        parts: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in parts:
            for name, of in tensors.items():
                if of is not None and of.dim():
                    sides = tuple(slice(side if side < 8 else side // 8) for side in of.shape)
                    part = of.detach()[sides].clone()
                    tensors[name] = nn.Parameter(part) if of.requires_grad else part
    return network


@cache
def owners(seed: int = 0, is_narrow: bool = True) -> nn.Module:
    """An owner's ResNet-18 of plain torchvision, its statistics as different as a trained one's."""
    torch.manual_seed(seed)
    network: nn.Module = tv.resnet18(num_classes=CLASSES)
    if is_narrow:
        narrow(network)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return owners()


@cache
def blank(architecture: str, is_narrow: bool) -> nn.Module:
    """The registry's network, into which each file is loaded."""
    network = MODELS[architecture].build(CLASSES).eval()
    return narrow(network) if is_narrow else network


@pytest.fixture(scope="module")
def expected(network: nn.Module) -> Tensor:
    return probabilities(network)


@torch.inference_mode()
def probabilities(network: nn.Module) -> Tensor:
    found: Tensor = network(PIXELS).softmax(-1)
    return found


def loaded(path: Path, averaged: bool = False, whole: str = "") -> nn.Module:
    """What the builder makes of a file, for a whole network; the next file overwrites it."""
    architecture = whole or "resnet18"
    module = blank(architecture, not whole)
    weights = Weights(path, "", "", averaged)
    module.load_state_dict(load_state_dict(weights, module.state_dict(), architecture))
    return module


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def hugging_face(state: State) -> State:
    """Names of microsoft/resnet-18, from the keys that transformers 5.14 gives that network.

    The same names in the same order of torchvision's blocks; transformers puts a block's shortcut
    first.
    """
    bases = {"conv1": "resnet.embedder.embedder.convolution"}
    bases |= {"bn1": "resnet.embedder.embedder.normalization", "fc": "classifier.1"}
    for stage in range(4):
        for block in range(2):
            here, there = (
                f"layer{stage + 1}.{block}",
                f"resnet.encoder.stages.{stage}.layers.{block}",
            )
            bases[f"{here}.conv1"] = f"{there}.layer.0.convolution"
            bases[f"{here}.bn1"] = f"{there}.layer.0.normalization"
            bases[f"{here}.conv2"] = f"{there}.layer.1.convolution"
            bases[f"{here}.bn2"] = f"{there}.layer.1.normalization"
            bases[f"{here}.downsample.0"] = f"{there}.shortcut.convolution"
            bases[f"{here}.downsample.1"] = f"{there}.shortcut.normalization"
    parts = ((name.rpartition("."), tensor) for name, tensor in state.items())
    return {f"{bases[base]}.{leaf}": tensor for (base, _, leaf), tensor in parts}


def lightning(state: State) -> Any:
    """The form of Lightning 2, with hyperparameters of the owner's classes."""
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": prefixed(state, "model.")
        | {"criterion.weight": torch.ones(CLASSES), "val_acc.tp": torch.ones(1)},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best": np.float64(0.5)}},
        "optimizer_states": [
            {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": []}
        ],
        "hyper_parameters": {
            "config": Settings(),
            "optimizer": torch.optim.SGD,
            "loss": nn.CrossEntropyLoss(),
            "rate": np.float64(0.1),
            "sizes": defaultdict(list, {"a": [1]}),
            "make": partial(dict, a=1),
            "frozen": frozenset([1]),
            "part": slice(2),
        },
    }


def torchvision_reference(state: State) -> Any:
    """What references/classification/train.py writes."""
    args = argparse.Namespace(model="resnet18", path=pathlib.Path("data"), seed=np.int64(1))
    return {"model": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, "args": args}


def cast(state: State, dtype: torch.dtype) -> State:
    return {n: of.to(dtype) if of.is_floating_point() else of for n, of in state.items()}


def without_counters(state: State) -> State:
    return {name: of for name, of in state.items() if not name.endswith("num_batches_tracked")}


FORMS: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "parameters": lambda state: {
        name: nn.Parameter(of, requires_grad=False) for name, of in state.items()
    },
    **{
        f"under {key}": lambda state, key=key: {"epoch": 1, key: state}  # type: ignore[misc]
        for key in ("model", "net", "network", "state_dict", "model_state_dict", "module")
    },
    **{
        f"average alone, {key}": lambda state, key=key: {key: state}  # type: ignore[misc]
        for key in ("model_ema", "ema", "state_dict_ema")
    },
    "nested": lambda state: {"checkpoint": 1, "model": {"state_dict": {"module": state}}},
    "beside a name of the model": lambda state: {"model": "resnet18", "state_dict": state},
    "beside a model's settings": lambda state: {"model": {"depth": 18}, "state_dict": state},
    "beside an optimizer": lambda state: {
        "net": state,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}},
        "scaler": {"scale": torch.ones(())},
    },
    **{
        f"prefix {prefix}": lambda state, p=prefix: prefixed(state, p)  # type: ignore[misc]
        for prefix in (
            *("model.", "module.", "_orig_mod.", "net.", "backbone.", "encoder.resnet."),
            *("module._orig_mod.model.", "_orig_mod.module.", "model._orig_mod.net.module."),
        )
    },
    "compiled in part": lambda state: {
        name.replace("layer1.", "layer1._orig_mod."): of for name, of in state.items()
    },
    "sharded in part": lambda state: {
        name.replace("layer2.0.", "layer2._fsdp_wrapped_module.0."): of
        for name, of in state.items()
    },
    "torchvision's training": torchvision_reference,
    "lightning's training": lightning,
    "flat with a number": lambda state: {**state, "epoch": 3, "best": 0.5},
    "criterion beside": lambda state: {**state, "criterion.weight": torch.ones(CLASSES)},
    "criterion's loss": lambda state: {**state, "loss_fn.pos_weight": torch.ones(CLASSES)},
    "no counters": without_counters,
    "fp64": lambda state: cast(state, torch.float64),
    "settings of the owner's": lambda state: {"model": state, "cfg": {"all": [Settings()]}},
    "hugging face": hugging_face,
    "hugging face in lightning": lambda state: {
        "state_dict": prefixed(hugging_face(state), "model.")
    },
    "timm's head elsewhere": lambda state: {
        re.sub(r"^fc\.", "head.fc.", name): of for name, of in state.items()
    },
    "ordered, with metadata": OrderedDict,
    "under another key": lambda state: {
        "best": {"epoch": 1, "weights": state},
        "optim": {"a": PIXELS},
    },
    "head beside a backbone": lambda state: {
        "state_dict": {
            re.sub(r"^model\.backbone\.fc\.", "model.classifier.1.", name): of
            for name, of in prefixed(state, "model.backbone.").items()
        }
    },
    "mmpretrain": lambda state: {
        re.sub(r"^backbone\.fc\.", "head.fc.", name): of
        for name, of in prefixed(state, "backbone.").items()
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_a_file_gives_its_owners_probabilities(
    form: str, network: nn.Module, expected: Tensor, tmp_path: Path
) -> None:
    torch.save(FORMS[form](network.state_dict()), tmp_path / "tuned.pt")
    assert torch.equal(probabilities(loaded(tmp_path / "tuned.pt")), expected)


def test_so_does_that_of_a_whole_resnet18(tmp_path: Path) -> None:
    """The others have fewer channels."""
    owner = owners(is_narrow=False)
    torch.save(lightning(owner.state_dict()), tmp_path / "tuned.ckpt")
    found = loaded(tmp_path / "tuned.ckpt", whole="resnet18")
    assert torch.equal(probabilities(found), probabilities(owner))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype: torch.dtype, network: nn.Module, tmp_path: Path) -> None:
    torch.save(copy.deepcopy(network).to(dtype).state_dict(), tmp_path / "half.pt")
    rounded = copy.deepcopy(network).to(dtype).float()
    assert torch.equal(probabilities(loaded(tmp_path / "half.pt")), probabilities(rounded))


@pytest.mark.parametrize("prefix", ["", "model."])
def test_safetensors_and_files_of_old_releases(
    network: nn.Module, tmp_path: Path, prefix: str
) -> None:
    state = prefixed(network.state_dict(), prefix)
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    old = {"state_dict": state, "args": argparse.Namespace(rate=0.1)}
    torch.save(old, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for file in ("model.safetensors", "old.pt"):
        assert torch.equal(probabilities(loaded(tmp_path / file)), probabilities(network))


@pytest.mark.parametrize(
    "head",
    [
        lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(64, CLASSES)),
        lambda: nn.Sequential(nn.Linear(64, CLASSES)),
        lambda: nn.Linear(64, CLASSES, bias=False),
        lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(64, CLASSES, bias=False)),
        lambda: nn.Sequential(OrderedDict(drop=nn.Dropout(), linear=nn.Linear(64, CLASSES))),
    ],
)
def test_other_heads_of_one_layer(
    head: Callable[[], nn.Module], network: nn.Module, tmp_path: Path
) -> None:
    owner: Any = copy.deepcopy(network)
    owner.fc = head().eval()
    torch.save(owner.state_dict(), tmp_path / "tuned.pt")
    assert torch.equal(probabilities(loaded(tmp_path / "tuned.pt")), probabilities(owner))


@pytest.mark.parametrize(
    ("architecture", "replace"),
    [
        ("mobilenet_v2", lambda owner: setattr(owner, "classifier", nn.Linear(1280, CLASSES))),
        ("mnasnet0_5", lambda _: None),
        ("googlenet", lambda owner: setattr(owner, "aux1", None)),
        ("squeezenet1_1", lambda _: None),
        ("densenet121", lambda _: None),
    ],
)
def test_other_networks(
    architecture: str, replace: Callable[[nn.Module], None], tmp_path: Path
) -> None:
    """A head of another form, versions that safetensors lacks, heads that inference leaves out."""
    torch.manual_seed(0)
    owner = MODELS[architecture].build(CLASSES).eval()
    replace(owner)
    state = {n: of.contiguous() for n, of in owner.state_dict().items() if ".aux2." not in n}
    safetensors.torch.save_file(prefixed(state, "model."), tmp_path / "tuned.safetensors")
    found = loaded(tmp_path / "tuned.safetensors", whole=architecture)
    assert torch.equal(probabilities(found), probabilities(owner))


@pytest.mark.parametrize(
    ("hold", "plain", "averaged"),
    [
        (lambda a, b: {"model": a, "model_ema": b}, "model", "model_ema"),
        (lambda a, b: {"state_dict": a, "state_dict_ema": b}, "state_dict", "state_dict_ema"),
        (lambda a, b: {"net": a, "ema": {"module": b}}, "net", "ema.module"),
        (
            lambda a, b: {"state_dict": prefixed(a, "model.") | prefixed(b, "ema_model.module.")},
            "state_dict.model",
            "state_dict.ema_model.module",
        ),
        (lambda a, b: a | prefixed(b, "ema."), "the top", "ema"),
    ],
)
def test_averaged_weights_are_a_printed_choice(
    network: nn.Module,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    hold: Callable[[State, State], Any],
    plain: str,
    averaged: str,
) -> None:
    path, average = tmp_path / "tuned.pt", owners(1)
    torch.save(hold(network.state_dict(), average.state_dict()), path)
    assert torch.equal(probabilities(loaded(path)), probabilities(network))
    said = f"{path}: takes the weights at {plain}. --use-ema takes {averaged}.\n"
    assert capsys.readouterr().err == said
    assert torch.equal(probabilities(loaded(path, averaged=True)), probabilities(average))
    assert capsys.readouterr().err == f"{path}: takes the weights at {averaged}.\n"


def test_pytorchs_averaged_model_beside_its_model(network: nn.Module, tmp_path: Path) -> None:
    """As torchvision's training writes it; `AveragedModel` counts its updates in `n_averaged`."""
    averaged = AveragedModel(network, use_buffers=True)
    averaged.update_parameters(network)
    averaged.update_parameters(owners(1))
    content = {"model": network.state_dict(), "model_ema": averaged.state_dict()}
    torch.save(content, tmp_path / "both.pt")
    torch.save(averaged.state_dict(), tmp_path / "alone.pt")
    expected = probabilities(averaged.module.eval())
    assert not torch.allclose(expected, probabilities(network), atol=1e-3)
    assert torch.equal(probabilities(loaded(tmp_path / "both.pt", averaged=True)), expected)
    assert torch.equal(probabilities(loaded(tmp_path / "alone.pt")), expected)


def test_what_only_training_needs_is_left_out_aloud(
    network: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tuned.ckpt"
    torch.save(lightning(network.state_dict()), path)
    loaded(path)
    assert capsys.readouterr().err == f"{path}: leaves out criterion.weight, val_acc.tp.\n"


SAVE = 'Where it was trained, save the weights alone: torch.save(model.state_dict(), "weights.pt").'
BROKEN = "is cut short or damaged: copy it again."


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.pt"), io.BytesIO())
    return buffer.getvalue()


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


# The first bytes of a file that torch.onnx of PyTorch 2.14 wrote.
ONNX = b"\x08\n\x12\x07pytorch\x1a\x062.14.1:\xc5\xa8\x05\n\xa0\n\n\x01x\n\x0cconv1.weight"
FOREIGN: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is empty."),
    "git lfs": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4\n",
        "is a pointer of Git LFS, not the weights: run git lfs pull.",
    ),
    "web page": (
        lambda: b"\n<!DOCTYPE html>\n<html><body>404</body></html>",
        "is a web page, not weights: download the file itself.",
    ),
    "text": (lambda: b"resnet18\n", f"is a text, not weights. {SAVE}"),
    "keras": (
        lambda: b"\x89HDF\r\n\x1a\n" + bytes(64),
        "is an HDF5 file, as Keras writes it: a network of PyTorch is needed.",
    ),
    "new keras": (
        lambda: zipped("metadata.json", "config.json", "model.weights.h5"),
        "is a Keras model: a network of PyTorch is needed.",
    ),
    "lite": (
        lambda: b"\x1c\0\0\0TFL3" + bytes(64),
        "is a TensorFlow Lite model: a network of PyTorch is needed.",
    ),
    "onnx": (lambda: ONNX, f"is an ONNX model, whose layers are joined. {SAVE}"),
    "zip": (
        lambda: zipped("a/model.pt", "a/labels.txt"),
        "is a zip archive of other files (a/model.pt, a/labels.txt): "
        "give the file of weights itself.",
    ),
    "mar": (
        lambda: zipped("MAR-INF/MANIFEST.json"),
        "is a model archive, built already: make serve ARCHIVE=FILE serves it.",
    ),
    "tar": (tarred, "is a tar archive: unpack it, and give the file of weights in it."),
    "gzip": (lambda: b"\x1f\x8b\x08" + bytes(64), "is a compressed file: unpack it first."),
    "cut zip": (lambda: saved({"fc.bias": torch.ones(9999)})[:9000], BROKEN),
    "cut safetensors": (
        lambda: safetensors.torch.save({"fc.bias": torch.ones(9999)})[:9000],
        BROKEN,
    ),
    "cut old": (
        lambda: saved({"a": torch.ones(99)}, _use_new_zipfile_serialization=False)[:100],
        "is cut short, damaged or of another program: torch.load cannot read it. " + SAVE,
    ),
    "pickle": (
        lambda: pickle.dumps({"fc.bias": 1}, protocol=4),
        f"is pickled in another way than that of torch.save. {SAVE}",
    ),
    "module": (
        lambda: saved(tv.resnet18(num_classes=CLASSES)),
        "holds a whole pickled object of torchvision.models.resnet.ResNet, not its weights alone. "
        + SAVE,
    ),
    "module inside": (
        lambda: saved({"epoch": 1, "ema": nn.Linear(2, 2)}),
        "holds a whole pickled object of torch.nn.modules.linear.Linear as ema, "
        f"not its weights alone. {SAVE}",
    ),
    "old module": (
        lambda: saved(nn.Linear(2, 2), _use_new_zipfile_serialization=False),
        f"holds an object of torch.nn.modules.linear.Linear, which is not loaded. {SAVE}",
    ),
    "another protocol": (
        lambda: saved({"fc.bias": torch.ones(3)}, pickle_protocol=4),
        f"is pickled in another way than that of torch.save. {SAVE}",
    ),
    "tensor": (lambda: saved(torch.ones(3)), f"holds a Tensor, not a dict of tensors. {SAVE}"),
    "numbers": (
        lambda: saved({"epoch": 3, "best": 0.1}),
        f"holds no dict of tensors; its keys are epoch, best. {SAVE}",
    ),
    "nothing": (lambda: saved({}), f"holds an empty dict. {SAVE}"),
    "system": (
        lambda: saved({"model": {"fc.bias": torch.ones(3)}, "x": Evil(os.system, "touch here")}),
        f"asks for {os.system.__module__}.system, which is not loaded. {SAVE}",
    ),
    "eval": (
        lambda: saved({"model": {"fc.bias": torch.ones(3)}, "x": Evil(eval, "1/0")}),
        f"asks for builtins.eval, which is not loaded. {SAVE}",
    ),
    "old eval": (
        lambda: saved({"model": {}, "x": Evil(eval, "1/0")}, _use_new_zipfile_serialization=False),
        f"holds an object of eval, which is not loaded. {SAVE}",
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_another_file_is_told_what_it_is(kind: str, tmp_path: Path) -> None:
    make, sentence = FOREIGN[kind]
    path = tmp_path / "tuned.pt"
    path.write_bytes(make())
    with pytest.raises(WeightsError) as raised:
        loaded(path)
    assert str(raised.value) == f"{path}: {sentence}"
    assert "weights_only" not in str(raised.value)


def test_the_command_takes_the_weights_out_of_a_program(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of TorchScript and of torch.export, by what the message says to run."""
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(network, PIXELS).save("my script.pt")  # type: ignore[no-untyped-call]
        torch.export.save(torch.export.export(network, (PIXELS,)), "exported.pt2")
    for name, kind in (("my script.pt", "a TorchScript program"), ("exported.pt2", "torch.export")):
        with pytest.raises(WeightsError) as raised:
            loaded(Path(name))
        said = re.fullmatch(rf'{name}: is .*{kind}.* python -c "(.*)" (.*)', str(raised.value))
        assert said and said[2].strip("'") == name
        monkeypatch.setattr(sys, "argv", ["-c", name])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(said[1], {})
        assert torch.equal(probabilities(loaded(Path("weights.pt"))), probabilities(network))


def test_a_class_of_the_owners_is_never_looked_for(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module by that name would be imported if the class were."""
    module = types.ModuleType("owners_library")
    vars(module)["Config"] = type("Config", (), {"__module__": "owners_library"})
    monkeypatch.setitem(sys.modules, "owners_library", module)
    content = {"model": network.state_dict(), "config": vars(module)["Config"]()}
    torch.save(content, tmp_path / "tuned.pt")
    del sys.modules["owners_library"]
    (tmp_path / "owners_library.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert torch.equal(probabilities(loaded(tmp_path / "tuned.pt")), probabilities(network))


HAS = "20 convolutions, 1 linear layer"


def test_all_that_does_not_fit_is_told_together(tmp_path: Path) -> None:
    path = tmp_path / "tuned.pt"
    torch.save({"model": prefixed(tv.resnet34(num_classes=7).state_dict(), "module.")}, path)
    with pytest.raises(WeightsError) as raised:
        loaded(path, whole="resnet18")
    assert str(raised.value) == (
        f"{path}: does not fit resnet18.\n"
        "It has 36 convolutions, 1 linear layer and 7 classes; "
        f"resnet18 has {HAS} and 3 classes, one for each label.\n"
        "The network lacks layer1.2.conv1.weight, layer1.2.bn1.weight, layer1.2.bn1.bias "
        "and 77 more.\n"
        "Of another form: fc.weight 7x512, not 3x512; fc.bias 7, not 3.\n"
        "Did you mean visionserve build resnet34?"
    )


def test_another_library_s_network_is_told_from_ours(tmp_path: Path) -> None:
    """A mobilenet for ResNet-18, and a network that nobody here has."""
    path = tmp_path / "tuned.pt"
    torch.save(MODELS["regnet_y_400mf"].build(5).state_dict(), path)
    with pytest.raises(WeightsError, match=r"Did you mean visionserve build regnet_y_400mf\?$"):
        loaded(path, whole="resnet18")
    torch.save(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 3)).state_dict(), path)
    with pytest.raises(WeightsError) as raised:
        loaded(path, whole="resnet18")
    assert str(raised.value) == (
        f"{path}: does not fit resnet18.\n"
        "It has 1 convolution, 1 linear layer and no last layer; "
        f"resnet18 has {HAS} and 3 classes, one for each label.\n"
        "It lacks conv1.weight, bn1.weight, bn1.bias and 99 more.\n"
        "The network lacks 0.weight, 0.bias, 2.weight and 1 more.\n"
        "No other model that can be built has these tensors."
    )


def test_another_number_of_classes_is_told_alone(tmp_path: Path) -> None:
    seven = narrow(tv.resnet18(num_classes=7))
    torch.save({"net": seven.state_dict()}, tmp_path / "tuned.pt")
    with pytest.raises(ClassCountError, match=r"tuned\.pt has 7 classes$"):
        loaded(tmp_path / "tuned.pt")


def changed(**tensors: Tensor | None) -> Callable[[State], Any]:
    new = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    return lambda state: {n: of for n, of in (state | new).items() if of is not None}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed(attention__weight=torch.ones(3)), "The network lacks attention.weight."),
        (changed(fc2__weight=torch.ones(3, 3)), "The network lacks fc2.weight."),
        (changed(conv1__weight=None), "It lacks conv1.weight."),
        (changed(bn1__running_mean=None), "It lacks bn1.running_mean."),
        (
            changed(fc__weight=torch.ones(3, 64, dtype=torch.int8)),
            "Of another form: fc.weight 3x64 int8, not 3x64.",
        ),
        (
            lambda state: prefixed(state, "model.") | {"temperature": torch.ones(1)},
            "The network lacks temperature.",
        ),
        (
            lambda state: prefixed(state, "1.") | {"0.mean": torch.ones(3)},
            "The network lacks 0.mean.",
        ),
        (
            lambda state: (
                {n: of for n, of in state.items() if not n.startswith("fc.")}
                | nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)).state_dict(
                    prefix="fc."
                )
            ),
            "The network lacks fc.0.weight, fc.0.bias, fc.2.weight and 1 more.",
        ),
        (
            lambda state: (
                {n: of for n, of in state.items() if not n.startswith("fc.")}
                | nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 3)).state_dict(prefix="fc.")
            ),
            "The network lacks fc.0.weight, fc.0.bias, fc.0.running_mean and 3 more.",
        ),
        (
            changed(fc__weight=torch.ones(3, 64).to_sparse()),
            "tensors are sparse or without values: fc.weight.",
        ),
        (
            lambda state: prefixed(state, "backbone.") | {"classifier.weight": torch.ones(3, 3)},
            "The network lacks classifier.weight.",
        ),
        (lambda state: {"G": state, "D": state}, "holds several networks, at G and D"),
        (
            lambda state: {"model": state, "net": state},
            "holds several networks, at model and net: save the one to serve.",
        ),
        (
            lambda state: prefixed(state, "student.") | prefixed(state, "teacher."),
            "holds several networks, at student and teacher: save the one to serve.",
        ),
        (
            changed(
                bn1__bias=torch.arange(8).sub(1).log(),
                fc__weight=torch.eye(3, 64).log(),
                fc__bias=torch.tensor([0, torch.inf, 0]),
            ),
            "values are not finite, in bn1.bias, fc.weight, fc.bias: the training diverged, or its "
            "type was too small. Take an earlier checkpoint.",
        ),
    ],
)
def test_a_network_that_computes_something_else_is_refused(
    network: nn.Module, tmp_path: Path, change: Callable[[State], Any], said: str
) -> None:
    torch.save(change(network.state_dict()), tmp_path / "tuned.pt")
    with pytest.raises(WeightsError, match=re.escape(said)):
        loaded(tmp_path / "tuned.pt")


def test_averaged_weights_that_are_not_there_are_told(network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "tuned.pt"
    torch.save({"model": network.state_dict()}, path)
    with pytest.raises(WeightsError) as raised:
        loaded(path, averaged=True)
    said = f"{path}: holds no averaged weights, as in model_ema; omit --use-ema."
    assert str(raised.value) == said
