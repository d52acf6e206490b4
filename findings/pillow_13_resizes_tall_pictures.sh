#!/usr/bin/env bash
# Pillow 12.3.0 and 13.0.0. Image.resize() works in two passes and rounds to 8 bits between them.
# Up to 12 the first pass was always the horizontal one. 13 begins with the vertical one where the
# picture loses more than twice as many rows as columns, and the pixels come out otherwise.
#
# Seen: at 224 x 224 a picture of 300 x 400 pixels changes and one of 600 x 800, with the same
# proportions, does not: 176 rows go against 76 columns, 576 against 376. Bilinear pixels differ
# by one level of 255. Bicubic and Lanczos overshoot, and what the first pass clips at 0 and 255
# is lost to the second: there pixels of a picture of noise differ by up to 20 and 36 levels.
# Expected: at most one level with any filter, from the rounding between the passes, as the
# filters are the same; and a rule about proportions, not about pixels.
# Source: ImagingResampleInner() in src/libImaging/Resample.c, and pull request 9549 of Pillow,
# which made the change; the factor of two is measured here (376 rows and 377).
#
# For a training: an update of Pillow between two runs, or between training and inference, changes
# the inputs of small portrait pictures and crops alone, and a resumed run is no longer the same.
# This project pins Pillow.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/resize.py" <<'EOF'
import random
import sys
from pathlib import Path

import PIL
from PIL import Image

SIZES = [(300, 400), (600, 800), (300, 376), (300, 377), (100, 300), (400, 300), (1080, 1920)]
FILTERS = ["BILINEAR", "BICUBIC", "LANCZOS"]

for width, height in SIZES:
    noise = random.Random(0).randbytes(width * height * 3)
    picture = Image.frombytes("RGB", (width, height), noise)
    for name in FILTERS:
        small = picture.resize((224, 224), Image.Resampling[name])
        path = Path(sys.argv[1]) / f"{PIL.__version__} {width} {height} {name}"
        path.write_bytes(small.tobytes())
EOF

cat > "$folder/compare.py" <<'EOF'
import sys
from pathlib import Path

from resize import FILTERS, SIZES

isAsDescribed = True
for width, height in SIZES:
    isTall = height - 224 > 2 * (width - 224)
    differences = {}
    for name in FILTERS:
        old = (Path(sys.argv[1]) / f"12.3.0 {width} {height} {name}").read_bytes()
        new = (Path(sys.argv[1]) / f"13.0.0 {width} {height} {name}").read_bytes()
        differences[name] = max(abs(a - b) for a, b in zip(old, new, strict=True))
    text = ", ".join(f"{name} {value}" for name, value in differences.items())
    counts = f"{height - 224} rows and {width - 224} columns fewer"
    print(f"{width} x {height} to 224 x 224, {counts}: largest difference {text}")
    if isTall:
        isAsDescribed &= differences["BILINEAR"] == 1 and differences["LANCZOS"] > 1
    else:
        isAsDescribed &= not any(differences.values())
if not isAsDescribed:
    sys.exit("[CHANGED] other pictures differ between Pillow 12.3 and 13.0, or by other amounts")
EOF

python3 -m venv "$folder/old"
"$folder/old/bin/pip" install --quiet pillow==12.3.0
"$folder/old/bin/python" "$folder/resize.py" "$folder"

python3 -m venv "$folder/new"
"$folder/new/bin/pip" install --quiet pillow==13.0.0
"$folder/new/bin/python" "$folder/resize.py" "$folder"
"$folder/new/bin/python" "$folder/compare.py" "$folder"
