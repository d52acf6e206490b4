"""The code of docs/elsewhere.md, each piece as it stands there."""

import re
import shutil
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import PROJECT, assert_same, draw_image, load, save_weights
from PIL import Image
from torchvision import transforms
from torchvision.models import densenet121

from pyimagesearch import config
from pyimagesearch.food_classifier import FoodClassifier, load_classifier, predict
from pyimagesearch.support import weights
from pyimagesearch.support.images import load_image

PAGE = (PROJECT / "docs" / "elsewhere.md").read_text()
# side of the network's input
SIZE = 64
# largest difference of probabilities; those of the two photographs differ a hundred times as much
LIMIT = 5e-4
CLASSES = ["Pizza", "bread", "Crème brûlée"]


def read_snippets(text):
    """Return the pieces of code of a page, {heading: list of texts}."""
    snippets = {}
    for section in text.split("\n## ")[1:]:
        (heading, body) = section.split("\n", 1)
        found = re.findall(r"(?:^    .*\n|^\n(?=\n*    ))+", body, re.MULTILINE)
        snippets[heading] = [textwrap.dedent(code) for code in found]
    return snippets


SNIPPETS = read_snippets(PAGE)


def run(heading, number=0):
    """Run a piece of code of the page here; return its variables."""
    found = {"__name__": "snippet"}
    exec(SNIPPETS[heading][number], found)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with the weights of a DenseNet121 whose answers differ from photograph to
    photograph, and with two photographs: a large one that EXIF rotates, and a small one."""
    folder = tmp_path_factory.mktemp("elsewhere")
    draw_image(folder / "dinner.jpg", 7, seed=1, size=(90, 120))
    draw_image(folder / "lunch.jpg", 2, size=(800, 600))
    with Image.open(folder / "lunch.jpg") as photo:
        exif = photo.getexif()
        exif[0x0112] = 6
        # one half is dark, so that a photograph that lies on its side is another one
        photo.paste((10, 40, 20), (0, 0, 400, 600))
        photo.save(folder / "lunch.jpg", exif=exif)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(config, "IMAGE_SIZE", SIZE)
        patch.setattr(config, "DEVICE", torch.device("cpu"))
        patch.setattr(config, "PRECISION", "float32")
        patch.setattr(config, "MEAN", [0.4, 0.5, 0.6])
        torch.manual_seed(0)
        model = FoodClassifier(densenet121(weights=None), len(CLASSES))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
        resize = transforms.Compose([transforms.Resize((SIZE, SIZE)), transforms.PILToTensor()])
        images = [resize(load_image(path)) for path in ("lunch.jpg", "dinner.jpg")]
        with torch.no_grad():
            model(torch.stack(images))
            model.classifier.weight *= 10
        weights.save_weights(model, CLASSES)
    return folder


@pytest.fixture(autouse=True)
def here(folder):
    """Copy weights and photographs into the empty directory of the test."""
    shutil.copytree(folder, ".", dirs_exist_ok=True)


def classify():
    """Return the probabilities of both photographs, as this project computes them."""
    (model, _, transform) = load_classifier(config.MODEL_PATH, precision="float32")
    images = torch.stack([transform("lunch.jpg"), transform("dinner.jpg")])
    return predict(model, images)


def test_these_tests_run_all_code_of_the_page():
    counts = {heading: len(found) for heading, found in SNIPPETS.items()}
    assert counts == {
        "Your own Python code": 1,
        "Export to ONNX": 1,
        "Run it with ONNX Runtime": 2,
        "torch.export": 2,
        "The tutorial's script": 1,
        "timm": 1,
        "safetensors": 2,
        "Where the network looked": 1,
    }
    code = [line for line in PAGE.splitlines() if line.startswith("    ")]
    found = "".join(code for pieces in SNIPPETS.values() for code in pieces)
    assert len(code) == len([line for line in found.splitlines() if line])


def test_ones_own_code_classifies_photographs(capsys):
    config.PRECISION = "float32"
    probs = classify()
    # answers that differ, or the tests would see no wrong input
    assert (probs[0] - probs[1]).abs().max() > 100 * LIMIT
    run("Your own Python code")
    lines = []
    for row in probs:
        lines.append(f"{CLASSES[row.argmax()]} {row.max():.2f}")
    assert capsys.readouterr().out.splitlines() == lines


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="PyTorch has no TorchScript there")
# the older exporter warns of itself
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnx_runtime_agrees_on_bytes_of_any_number_and_knows_the_classes(capsys):
    # on a CPU with bf16 instructions the page's precision counts
    config.PRECISION = "bfloat16"
    run("Export to ONNX")
    expected = classify()
    capsys.readouterr()

    found = run("Run it with ONNX Runtime")
    (model, _, transform) = load_classifier(config.MODEL_PATH)
    assert np.array_equal(found["images"][0], transform("lunch.jpg").numpy())
    torch.testing.assert_close(torch.tensor(found["probs"]), expected[0], atol=LIMIT, rtol=0)
    assert found["classes"] == CLASSES
    best = expected[0].argmax()
    assert capsys.readouterr().out == f"{CLASSES[best]} {expected[0, best]:.2f}\n"
    (images,) = found["session"].get_inputs()
    assert (images.name, images.shape) == ("images", ["batch", 3, SIZE, SIZE])
    assert images.type == "tensor(uint8)"

    found = run("Run it with ONNX Runtime", 1)
    assert found["difference"].abs().max() < LIMIT
    assert found["difference"].shape == (2, 3)


# of PyTorch 2.11, as it reads its own file
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
def test_torch_export_agrees_on_any_number_without_this_project(tinyNet):
    # a small network, as exporting DenseNet121 takes half a minute
    save_weights(CLASSES)
    run("torch.export")
    assert "pyimagesearch" not in SNIPPETS["torch.export"][1]
    found = run("torch.export", 1)
    assert found["facts"] == {"classes": CLASSES, "imageSize": 48}
    (_, _, transform) = load_classifier(config.MODEL_PATH)
    images = torch.stack([transform("lunch.jpg"), transform("dinner.jpg")])
    expected = classify()
    for count in (1, 2):
        probs = found["program"].module()(images[:count]).softmax(1)
        torch.testing.assert_close(probs, expected[:count], atol=LIMIT, rtol=0)


def test_torch_warns_of_torchscript():
    text = "deprecated|not supported in Python 3.14"
    with pytest.warns(Warning, match=text):
        torch.jit.trace(torch.nn.ReLU(), torch.ones(1))
    with pytest.warns(Warning, match=text):
        torch.jit.script(torch.nn.ReLU())


def test_the_tutorials_class_takes_the_weights_and_what_they_were_trained_on():
    # small, so that this code and load_image() decode the same pixels
    shutil.copy("dinner.jpg", "lunch.jpg")
    found = run("The tutorial's script")
    torch.testing.assert_close(found["probs"], classify()[:1], atol=LIMIT, rtol=0)


def test_timm_has_the_same_network():
    found = run("timm")
    (_, _, transform) = load_classifier(config.MODEL_PATH)
    facts = found["facts"]
    normalize = transforms.Normalize(facts["mean"], facts["std"])
    images = torch.stack([transform("lunch.jpg"), transform("dinner.jpg")])
    # strictly, as the page says
    own = densenet121(num_classes=len(CLASSES)).eval()
    own.load_state_dict(found["renamed"])
    with torch.inference_mode():
        for model in (found["model"], own):
            probs = model(normalize(images / 255)).softmax(1)
            torch.testing.assert_close(probs, classify(), atol=LIMIT, rtol=0)


def test_safetensors_holds_the_weights_and_what_they_were_trained_on():
    run("safetensors")
    found = run("safetensors", 1)
    state = load(config.MODEL_PATH)
    assert_same(dict(sorted(found["state"].items())), dict(sorted(state.items())))
    (mean, std) = ([0.4, 0.5, 0.6], config.STD)
    expected = {"classes": CLASSES, "imageSize": SIZE, "mean": mean, "std": std}
    assert found["facts"] == expected


def test_the_heat_map_is_that_of_grad_cam():
    found = run("Where the network looked")
    assert Path("output/heat.png").stat().st_size > 0
    # Grad-CAM with its gradients, whose mean over the places is the weight through their number
    (model, _, transform) = load_classifier(config.MODEL_PATH, precision="float32")
    kept = []
    model.baseModel.features.register_forward_hook(lambda *call: kept.append(call[-1]))
    logits = model(transform("lunch.jpg").unsqueeze(0))
    (features,) = kept
    (gradient,) = torch.autograd.grad(logits[0, found["best"]], features)
    weight = gradient.sum((2, 3), keepdim=True)
    heat = (weight * features).sum(1).relu()[0].detach()
    assert heat.max() > 0
    torch.testing.assert_close(found["heat"], heat, atol=1e-4, rtol=1e-3)
