import os

import torch

from pyimagesearch import config


def test_holds_the_constants_of_the_tutorial():
    assert config.DATA_PATH == "Food-11"
    assert config.BASE_PATH == "dataset"
    assert config.TRAIN == os.path.join("dataset", "training")
    assert config.VAL == os.path.join("dataset", "validation")
    assert config.TEST == os.path.join("dataset", "evaluation")
    assert " ".join(config.CLASSES) == (
        "Bread Dairy_product Dessert Egg Fried_food Meat Noodles/Pasta Rice Seafood Soup "
        "Vegetable/Fruit"
    )
    assert config.MEAN == [0.485, 0.456, 0.406]
    assert config.STD == [0.229, 0.224, 0.225]
    assert config.IMAGE_SIZE == 224
    assert (config.PRED_BATCH_SIZE, config.EPOCHS, config.LR) == (4, 20, 0.0001)
    assert config.PLOT_PATH == os.path.join("output", "model_training.png")
    assert config.MODEL_PATH == os.path.join("output", "food_classifier.pth")


def test_adds_its_own_constants():
    assert config.PRETRAINED is True
    assert isinstance(config.SEED, int)
    assert config.REPORT_PATH == os.path.join("output", "classification_report.txt")
    assert config.CONFUSION_PATH == os.path.join("output", "confusion_matrix.png")
    assert config.RESULTS_PATH == os.path.join("output", "results.png")
    assert config.CHECKPOINT_PATH == os.path.join("output", "checkpoint.pth")


def test_names_a_device_that_exists_and_a_batch_that_fits_it():
    assert isinstance(config.DEVICE, torch.device)
    torch.zeros(1, device=config.DEVICE)
    assert config.LOCAL_BATCH_SIZE == (32 if config.DEVICE.type == "cpu" else 128)
