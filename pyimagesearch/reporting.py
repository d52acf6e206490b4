# The pictures and the report in output/.

# import the necessary packages
import io

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import ConfusionMatrixDisplay, classification_report

from . import config
from .files import write_file


def save_figure(figure, path):
    """Write figure to path as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    write_file(path, buffer.getvalue())


def plot_history(H):
    """Save the four curves of history H to PLOT_PATH.

    H: dict of train_loss, train_acc, val_loss and val_acc, a list each with a value per epoch.
    """
    epochs = np.arange(1, len(H["train_loss"]) + 1)
    with plt.style.context("ggplot"):
        (figure, axes) = plt.subplots()
        for name, values in H.items():
            # a single epoch is a point, which a line alone would not show
            axes.plot(epochs, values, label=name, marker="o" if len(epochs) == 1 else None)
        axes.set_title("Training Loss and Accuracy on Dataset")
        axes.set_xlabel("Epoch #")
        axes.set_ylabel("Loss/Accuracy")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.legend(loc="lower left")
        save_figure(figure, config.PLOT_PATH)
    plt.close(figure)


def save_report(targets, preds, classes):
    """Print scikit-learn's classification report, and save it to REPORT_PATH.

    Args:
        targets, preds: true and predicted class index of each image.
        classes: the class names, in the order of the indices.
    """
    report = classification_report(
        targets,
        preds,
        labels=range(len(classes)),
        target_names=classes,
        # a class that was never predicted has precision 0, without a warning
        zero_division=0,
    )
    print(report)
    write_file(config.REPORT_PATH, report.encode())


def plot_confusion(targets, preds, classes):
    """Save the confusion matrix of the predictions to CONFUSION_PATH; see save_report."""
    side = max(5, 0.8 * len(classes))
    (figure, axes) = plt.subplots(figsize=(side, side))
    ConfusionMatrixDisplay.from_predictions(
        targets,
        preds,
        labels=range(len(classes)),
        display_labels=classes,
        cmap="Blues",
        colorbar=False,
        xticks_rotation=45,
        ax=axes,
    )
    plt.setp(axes.get_xticklabels(), ha="right", rotation_mode="anchor")
    save_figure(figure, config.CONFUSION_PATH)
    plt.close(figure)


def plot_predictions(images, titles):
    """Save images, one under another with its title, to RESULTS_PATH; show them on a screen.

    Args:
        images: float tensor (N, 3, H, W), normalized.
        titles: N strings.
    """
    # undo the normalization
    (mean, std) = (np.array(config.MEAN), np.array(config.STD))
    pictures = images.cpu().permute(0, 2, 3, 1).numpy() * std + mean
    (figure, rows) = plt.subplots(len(pictures), squeeze=False, figsize=(4, 4 * len(pictures)))
    for axes, picture, title in zip(rows[:, 0], pictures, titles, strict=True):
        axes.imshow(picture.clip(0, 1))
        axes.set_title(title)
        axes.axis("off")
    save_figure(figure, config.RESULTS_PATH)
    # without a screen matplotlib falls back to the backend agg, which cannot show
    if plt.get_backend().lower() != "agg":
        plt.show()
    plt.close(figure)
