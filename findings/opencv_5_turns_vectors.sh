#!/usr/bin/env bash
# opencv-python-headless 4.14.0.94 and 5.0.0.93. OpenCV 5 has arrays of one dimension. A NumPy
# vector that was a column to OpenCV 4 is a row to OpenCV 5, so functions with an axis work along
# the other one; and what used to come back as (N, 1) or (N, 1, 2) comes back one dimension
# flatter.
#
# Seen: flip(vector, 0) reverses in 4 and does nothing in 5, flip(vector, 1) the other way round;
# sort(vector, SORT_EVERY_COLUMN) no longer sorts; minMaxLoc() gives (x, y) with x and y
# exchanged; calcHist() gives (256,) for (256, 1). findNonZero() gives (N, 2) for (N, 1, 2), so
# the usual findNonZero(mask)[:, 0] is a list of points in 4 and of x coordinates in 5.
# findContours() keeps its (N, 1, 2). None of it warns.
# Expected: an error, or the results of 4, as functions and parameters kept their names.
# Source: pull request 23473 and issue 27862 of opencv/opencv: a 1-D Mat has one row.
#
# For a training: imutils 0.5.4 and older tutorials allow any OpenCV, and a fresh install brings
# 5. Histograms, masks and vectors of scores need .ravel() or .reshape(-1, 2) to mean the same in
# both. This project pins OpenCV, and calls nothing of it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/vectors.py" <<'EOF'
import sys

import cv2
import numpy as np

vector = np.array([3.0, 9.0, 1.0])
mask = np.zeros((40, 60), np.uint8)
mask[10:20, 5:30] = 255
(contours, _) = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
seen = {
    "flip(vector, 0)": cv2.flip(vector, 0).ravel().tolist(),
    "flip(vector, 1)": cv2.flip(vector, 1).ravel().tolist(),
    "sort(vector, SORT_EVERY_COLUMN)": cv2.sort(vector, cv2.SORT_EVERY_COLUMN).ravel().tolist(),
    "minMaxLoc(vector), largest at": list(cv2.minMaxLoc(vector)[3]),
    "calcHist() shape": list(cv2.calcHist([mask], [0], None, [256], [0, 256]).shape),
    "findNonZero(mask)[:, 0], first": cv2.findNonZero(mask)[:, 0][0].tolist(),
    "findContours(mask) shape": list(contours[0].shape),
}
expected = {
    "4": {
        "flip(vector, 0)": [1.0, 9.0, 3.0],
        "flip(vector, 1)": [3.0, 9.0, 1.0],
        "sort(vector, SORT_EVERY_COLUMN)": [1.0, 3.0, 9.0],
        "minMaxLoc(vector), largest at": [0, 1],
        "calcHist() shape": [256, 1],
        "findNonZero(mask)[:, 0], first": [5, 10],
        "findContours(mask) shape": [66, 1, 2],
    },
    "5": {
        "flip(vector, 0)": [3.0, 9.0, 1.0],
        "flip(vector, 1)": [1.0, 9.0, 3.0],
        "sort(vector, SORT_EVERY_COLUMN)": [3.0, 9.0, 1.0],
        "minMaxLoc(vector), largest at": [1, 0],
        "calcHist() shape": [256],
        "findNonZero(mask)[:, 0], first": 5,
        "findContours(mask) shape": [66, 1, 2],
    },
}
print(f"OpenCV {cv2.__version__}, vector {vector.tolist()}")
for name, value in seen.items():
    print(f"    {name}: {value}")
if seen != expected[cv2.__version__[0]]:
    sys.exit(f"[CHANGED] OpenCV {cv2.__version__} treats vectors otherwise than described")
EOF

python3 -m venv "$folder/old"
"$folder/old/bin/pip" install --quiet opencv-python-headless==4.14.0.94 numpy==2.4.6
"$folder/old/bin/python" "$folder/vectors.py"

python3 -m venv "$folder/new"
"$folder/new/bin/pip" install --quiet opencv-python-headless==5.0.0.93 numpy==2.4.6
"$folder/new/bin/python" "$folder/vectors.py"
