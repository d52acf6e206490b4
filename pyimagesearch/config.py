"""The settings of all three scripts. All paths are relative to the working directory."""

import os
import sys

import joblib
import torch

# path to the original dataset
DATA_PATH = "Food-11"
# base path of the dataset reorganized into class folders
BASE_PATH = "dataset"
# the training, validation and test splits
TRAIN = os.path.join(BASE_PATH, "training")
VAL = os.path.join(BASE_PATH, "validation")
TEST = os.path.join(BASE_PATH, "evaluation")

# class labels: label n belongs to files n_*.jpg; or list the names of your class folders in any
# order. A slash makes nested folders, and the report shows the outer name
CLASSES = [
    "Bread",
    "Dairy_product",
    "Dessert",
    "Egg",
    "Fried_food",
    "Meat",
    "Noodles/Pasta",
    "Rice",
    "Seafood",
    "Soup",
    "Vegetable/Fruit",
]

# mean and standard deviation of the ImageNet images, per RGB channel, on a scale from 0 to 1
MEAN = [0.485, 0.456, 0.406]
STD = [0.229, 0.224, 0.225]
# side in pixels of the square images that the network takes
IMAGE_SIZE = 224

# where the network runs: on the CUDA GPUs where there are any ("cuda:1" takes that one alone),
# else on Apple's MPS, else on the CPU
isMps = torch.backends.mps.is_available()
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "mps" if isMps else "cpu")

# start from the ImageNet weights (False: from random ones)
PRETRAINED = True
# keep batch normalization as it is (False: train it); None follows PRETRAINED
FREEZE_BATCH_NORM = None
# images in a batch, per device, in training, evaluation, and for photographs of your own:
# fine-tuning with 128 needs 6 GB of a GPU's memory
LOCAL_BATCH_SIZE = 128 if "cuda" in str(DEVICE) else 32
# test images that distributed_inference.py draws, per device
PRED_BATCH_SIZE = 4
# passes over the training images; the learning rate falls to a tenth after every 10, and after 20
# it is too low to learn anything new
EPOCHS = 20
# learning rate, multiplied by the number of devices
LR = 0.0001
# numbers that the heavy layers compute with: "auto" is float16 on CUDA, bfloat16 on a CPU that has
# instructions for it, else float32. Or a dtype's name: "float32" on cards whose 16 bits are wrong,
# GTX 16 among them, which end with a loss that is not finite at any rate
PRECISION = "auto"
# seed of the random weights, of the split of plain class folders, of the order of the images and
# of their augmentation
SEED = 42
# processes per loader that load images: one per CPU that this process may use, at most 16; at most
# four on Windows and macOS, where each takes half a gigabyte
NUM_WORKERS = min(joblib.cpu_count(), 16 if sys.platform == "linux" else 4)

# what the scripts write, each under a name of its own; README.md says what each file is for
PLOT_PATH = os.path.join("output", "model_training.png")
MODEL_PATH = os.path.join("output", "food_classifier.pth")
HISTORY_PATH = os.path.join("output", "history.csv")
REPORT_PATH = os.path.join("output", "classification_report.txt")
CONFUSION_PATH = os.path.join("output", "confusion_matrix.png")
PREDICTIONS_PATH = os.path.join("output", "predictions.csv")
MISTAKES_PATH = os.path.join("output", "mistakes.png")
SETTINGS_PATH = os.path.join("output", "settings.json")
RESULTS_PATH = os.path.join("output", "results.png")
PHOTOGRAPHS_PATH = os.path.join("output", "photographs.csv")
CHECKPOINT_PATH = os.path.join("output", "checkpoint.pth")
