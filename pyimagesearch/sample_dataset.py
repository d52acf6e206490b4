"""Draw a small synthetic Food-11: eleven kinds of painted dishes, in the data set's own layout.

Points are complex numbers, x + y * 1j (y down) about the middle of what is painted, so that adding
moves them and multiplying sizes and turns them. Foods are drawn in units of their own size.
"""

import math
import os
import random
import shutil
from cmath import phase, rect

from PIL import Image, ImageChops, ImageColor, ImageDraw, ImageFilter
from tqdm import tqdm

SAMPLE_SIZE = 160
SAMPLE_COUNTS = {"training": 80, "validation": 20, "evaluation": 20}
SCALE = 2  # painted larger and shrunk at the end, which smooths the edges
MARGIN = 8  # room on all sides: for a shadow round a piece, to shift the dish in the picture
FAINT = [round(0.45 * level) for level in range(256)]  # the strength of light and shadow

CLEAR, SHADOW, LIGHT = (0, 0, 0, 0), (52, 28, 18), (255, 249, 232)
CLOTHS = ("#d9c7a8", "#9db093", "#8fa9b8", "#cf8f72", "#7c9488", "#ddb768", "#a9594a", "#44566b")
WOODS = ("#c08f5e", "#94683f", "#dcb88b", "#6d4f3a")
STONES = ("#454b4f", "#6a6f72", "#dcd7cf", "#bcb7b0")
CERAMICS = ("#fbf7ee", "#f1e6d4", "#d5e0da", "#33485c", "#c9765a", "#6e9490", "#3b3735", "#ebc9bb")
GREENS = ("#4f8a3c", "#6da544", "#2f6b39")
ICINGS = ("#f08fb0", "#6b3e2a", "#a7d3c4", "#b9a0d8", "#e8596f")
SPRINKLES = ("#ffffff", "#f6d04d", "#e5484d", "#4aa3df", "#58b368")
LEMON = ("#f1c232", "#f8e27a", "#fdf3bd")  # rind, flesh and seeds
SALAD = (
    ("#b8281f", "#e4503a", "#f3c66b"),
    ("#3d7a35", "#cfe39b", "#eef3cf"),
    ("#d96f1e", "#f0953c", "#f6b566"),
    ("#6f5a2e", "#8fbf3a", "#2f2a1c"),
)


def tint(colour, amount):
    """Lighten a colour (amount above 0) or darken it (below 0), at most to 1 or -1."""
    goal = LIGHT if amount > 0 else SHADOW
    return tuple(round(c + (g - c) * abs(amount)) for c, g in zip(colour, goal, strict=True))


def tone(rng, *shades):
    """Pick one of the "#rrggbb" shades and vary it a little."""
    return tint(ImageColor.getrgb(rng.choice(shades)), rng.uniform(-0.08, 0.12))


def spin(rng, most=math.pi):
    """A random turn by at most so many radians either way, to multiply points by."""
    return rect(1, rng.uniform(-most, most))


def disc(radius, place=0):
    return [place + rect(radius, math.tau * i / 48) for i in range(48)]


def blob(rng, width, height, wobble):
    """An oval of the two half-axes, its edge uneven by the wobble."""
    waves = [(k, rng.uniform(0, math.tau), rng.uniform(0.4, 1) * wobble) for k in (2, 3, 5)]
    reach = [1 + sum(s * math.sin(k * i / 10 + p) for k, p, s in waves) for i in range(63)]
    edge = [rect(r, i / 10) for i, r in enumerate(reach)]
    return [complex(width * p.real, height * p.imag) for p in edge]


def scatter(rng, number, radius):
    """Spread points over a disc, evenly but not regularly, in random order."""
    start = spin(rng)
    return rng.sample(
        [
            start * rect(radius * math.sqrt((i + rng.random()) / number), 2.4 * i)
            for i in range(number)
        ],
        number,
    )


def portions(rng, radius, most):
    """Return (place, half-size) for one to so many things that share a plate."""
    number, start = rng.randint(1, most), spin(rng)
    size = 0.85 * radius / math.sqrt(number)
    return [(start * rect(radius - size, math.tau * i / number), size) for i in range(number)]


def paint(shapes, pose, image=None):
    """Paint shapes about the middle of an image (None: a new clear one) and return the image.

    A shape is (points, colour) to fill or (points, colour, width) for a line. The pose, by which
    all points are multiplied, sizes them to picture pixels and turns them.
    """
    if image is None:
        reach = MARGIN + abs(pose) * max(abs(p) for points, *_ in shapes for p in points)
        image = Image.new("RGBA", (2 * round(SCALE * reach),) * 2, CLEAR)
    draw, middle = ImageDraw.Draw(image, "RGBA"), image.width / 2 * (1 + 1j)
    for points, colour, *width in shapes:
        pixels = [(p.real, p.imag) for p in (middle + SCALE * pose * p for p in points)]
        if width:
            draw.line(pixels, colour, round(SCALE * abs(pose) * width[0]))
        else:
            draw.polygon(pixels, colour)
    return image


def roughen(rng, image, columns, rows, strength, turn=1):
    """Darken what is painted by noise of so many columns and rows, turned; return the image."""
    noise = Image.frombytes("L", (columns, rows), rng.randbytes(columns * rows))
    side, edge = image.width, image.width // 4  # an edge for the turn to eat
    noise = noise.resize((side + 2 * edge,) * 2, Image.Resampling.BILINEAR)
    noise = noise.rotate(-math.degrees(phase(turn))).crop((edge, edge, edge + side, edge + side))
    noise = noise.point([round(strength * level) for level in range(256)])
    alpha = image.convert("RGBA").getchannel("A")
    image.paste(SHADOW, mask=ImageChops.multiply(noise, alpha))
    return image


def lay(table, image, place=0, height=2):
    """Lay a painted piece on the table, lit from the top left; height below 0 is a hollow."""
    alpha, shift = image.getchannel("A"), round(height * SCALE * 0.7)
    corner = [round((table.width - image.width) / 2 + SCALE * x) for x in (place.real, place.imag)]
    soft = alpha.filter(ImageFilter.BoxBlur(1.6 * abs(height) * SCALE))
    lit, shaded = ImageChops.offset(soft, -shift), ImageChops.offset(soft, shift)
    if height > 0:
        table.paste(SHADOW, corner, shaded.point(FAINT))
    table.paste(image, corner, alpha)
    for colour, rim in (
        (LIGHT, ImageChops.subtract(lit, shaded)),
        (SHADOW, ImageChops.subtract(shaded, lit)),
    ):
        table.paste(colour, corner, ImageChops.multiply(rim.point(FAINT), alpha))


def lay_table(rng):
    """Return a table top of wood, stone or cloth, larger than the picture by the margin."""
    turn, step, end = spin(rng), rng.randrange(12, 30), SAMPLE_SIZE
    shades = rng.choice((WOODS, STONES, CLOTHS, CLOTHS))
    table = Image.new("RGB", (SCALE * (end + 2 * MARGIN),) * 2, tone(rng, *shades))
    lines = [(y * 1j - end, y * 1j + end) for y in range(-end, end, 2 * step)]
    if shades is WOODS:
        roughen(rng, table, 5, 140, 0.35, turn)
        paint([(line, (*SHADOW, 160), 1) for line in lines], turn, table)
    elif shades is CLOTHS:
        for quarter in (1, 1j)[: rng.randint(1, 2)]:
            paint([(line, (*LIGHT, 120), step) for line in lines], turn * quarter, table)
    return roughen(rng, table, 200, 200, 0.12)


def lay_plate(rng, table, radius, place=0):
    """Lay a round plate, bowl or board of any of the materials."""
    shades, pose = rng.choice((WOODS, *[CERAMICS] * 4)), radius * spin(rng)
    colour, band = tone(rng, *shades), rng.uniform(0.84, 0.97)
    plate = [
        (disc(1), colour),
        (disc(band), tone(rng, *CERAMICS, *CLOTHS)),
        (disc(band - rng.uniform(0.01, 0.03)), colour),
    ]
    well = [(disc(0.82), tint(colour, rng.uniform(-0.12, 0.12)))]
    for shapes, height in ((plate, 4), (well, -3)):
        image = paint(shapes, pose)
        if shades is WOODS:
            roughen(rng, image, 4, 90, 0.35, pose)
        lay(table, image, place, height)


def lay_leaves(rng, table, radius, number, size):
    """Scatter veined green leaves."""
    for place in scatter(rng, number, radius):
        edge, colour = blob(rng, 1, rng.uniform(0.4, 0.6), 0.07), tone(rng, *GREENS)
        leaf = [(edge, colour), ((-0.9, 0.8), tint(colour, 0.4), 0.08)]
        lay(table, paint(leaf, size * spin(rng)), place, 1.5)


def lay_slice(rng, table, place, radius, rind, flesh, seed):
    """Lay a round slice of a fruit or vegetable, with a ring of seeds or segments."""
    number = rng.randint(6, 9)
    rays = [rect(1, math.tau * i / number) for i in range(number)]
    shapes = [
        (disc(size), tone(rng, shade))
        for size, shade in ((1, rind), (0.86, "#fff3dc"), (0.8, flesh))
    ]
    shapes += [((0.32 * ray, 0.62 * ray), tone(rng, seed), 0.14) for ray in rays]
    lay(table, paint(shapes, radius * spin(rng)), place, 1.5)


def draw_bread(rng, table, radius):
    crust, crumb = tone(rng, "#b5702f", "#a3602a", "#c48440"), tone(rng, "#f3ddb0", "#ead09c")
    pose, cut = radius * spin(rng), blob(rng, 0.07, 0.3, 0.1)
    loaf = [(blob(rng, 0.98, 0.46, 0.02), crust)]
    loaf += [([p + 0.3 * p.imag + 0.29 * i for p in cut], tint(crumb, -0.08)) for i in range(-2, 3)]
    loaf = roughen(rng, paint(loaf, pose * spin(rng, 0.3)), 40, 40, 0.25)
    lay(table, loaf, -0.38j * pose, 6)
    square = (-0.9 - 0.5j, 0.9 - 0.5j, 0.9 + 1j, -0.9 + 1j)
    for x in rng.sample((-0.5, 0, 0.5), rng.randint(1, 3)):
        toast = [
            ([size * p for p in part], colour)
            for size, colour in ((0.4, crust), (0.35, crumb))
            for part in (square, disc(0.62, -0.42 - 0.5j), disc(0.62, 0.42 - 0.5j))
        ]
        toast += [
            (disc(rng.uniform(0.005, 0.02), pore), tint(crumb, -0.15))
            for pore in scatter(rng, 30, 0.32)
        ]
        lay(table, paint(toast, pose * spin(rng, 0.4)), pose * (x + 0.38j))


def draw_cheese(rng, table, radius):
    for place, size in portions(rng, radius, 3):
        colour = tone(rng, "#f7d75a", "#fae389", "#f4cb4a")
        top = [p - 1 - 0.2j for p in (0, *(rect(1.8, i / 50) for i in range(-21, 22)))]
        wedge = [([p + i * 0.02j for p in top], tint(colour, -0.2)) for i in range(25)]
        wedge.append((top, tint(colour, 0.15)))
        for p in scatter(rng, 9, 0.55):
            spot, hole = 0.2 + p - 0.3j * p.imag, rng.uniform(0.05, 0.15)
            wedge += [
                (disc(hole, spot), tint(colour, -0.4)),
                (disc(0.8 * hole, spot + hole * (0.2 + 0.2j)), tint(colour, -0.2)),
            ]
        lay(table, paint(wedge, size * spin(rng, 0.9)), place, 3)


def draw_doughnuts(rng, table, radius):
    for place, size in portions(rng, radius, 4):
        dough = [(disc(1), tone(rng, "#d79a52", "#c5853f")), (disc(0.28), CLEAR)]
        icing = [(blob(rng, 0.88, 0.88, 0.03), tone(rng, *ICINGS))]
        icing += [
            ((spot, spot + 0.1 * spin(rng)), tone(rng, *SPRINKLES), 0.045)
            for spot in scatter(rng, 40, 0.78)
        ]
        lay(table, paint(dough, size), place, 4)
        lay(table, paint([*icing, (disc(0.36), CLEAR)], size), place, 2.5)


def draw_eggs(rng, table, radius):
    for place, size in portions(rng, radius, 3):
        edge = blob(rng, 1, rng.uniform(0.85, 1), 0.09)
        white = [(edge, tone(rng, "#e9cf9f")), ([0.96 * p for p in edge], LIGHT)]
        white += [(disc(0.016, pepper), SHADOW) for pepper in scatter(rng, 20, 0.75)]
        yolk = [
            (disc(0.42), tone(rng, "#f8a81c", "#fdbb2d", "#f28c13")),
            (disc(0.08, -0.13 - 0.15j), LIGHT),
        ]
        lay(table, paint(white, size * spin(rng)), place)
        lay(table, paint(yolk, size), place + 3 * spin(rng), 3)


def draw_fries(rng, table, radius):
    for place in scatter(rng, rng.randint(28, 38), radius * 0.66):
        colour, end = tone(rng, "#e8a02c", "#dc8f26", "#efb145"), rng.uniform(0.25, 0.42)
        fry = [((-end, end), tint(colour, -0.3), 0.14), ((0.02 - end, end - 0.02), colour, 0.14)]
        lay(table, paint(fry, radius * spin(rng)), place, 1.5)
    place = radius * 0.5 * spin(rng)
    lay_plate(rng, table, radius * 0.34, place)
    lay(table, paint([(disc(0.28), tone(rng, "#c3281c"))], radius), place, -3)


def draw_steak(rng, table, radius):
    edge, colour = blob(rng, 0.92, 0.7, 0.05), tone(rng, "#a63a32", "#8c3128", "#b5524a")
    steak = [(edge, tone(rng, "#f3dcc2")), ([0.9 * p for p in edge], colour)]
    for p in scatter(rng, 30, 0.66):
        turn, spot = spin(rng), p - 0.3j * p.imag
        vein = [spot + turn * rect(s / 70, s / 8) for s in range(9)]
        steak.append((vein, tint(colour, 0.5), rng.uniform(0.01, 0.03)))
    for i in range(-2, 3):
        end = (0.3 + 1j) * (0.46 - 0.04 * i * i)
        steak.append(((0.28 * i - end, 0.28 * i + end), tint(colour, -0.6), 0.07))
    lay(table, paint(steak, radius * spin(rng)), height=5)
    lay_leaves(rng, table, radius * 0.3, 3, radius * 0.16)


def draw_noodles(rng, table, radius):
    colour, sauce = tone(rng, "#f2d690", "#f3dda4"), tone(rng, "#b5371f", "#c9472a")
    nest = [(blob(rng, 0.74, 0.74, 0.03), tone(rng, "#b98a45"))]
    for spot in scatter(rng, 60, 0.28):
        ring, shade = rng.uniform(0.15, 0.62), tint(colour, rng.uniform(-0.1, 0.2))
        start, waves = spin(rng), rng.uniform(3, 6)
        strand = [
            spot + start * rect(ring + 0.035 * math.sin(waves * t), t)
            for t in (i / 7 for i in range(18))
        ]
        nest += [(strand, tint(shade, -0.4), 0.07), (strand, shade, 0.048)]
    lay(table, paint(nest, radius), height=3)
    sauce = paint([(blob(rng, 0.4, 0.36, 0.09), sauce)], radius)
    lay(table, roughen(rng, sauce, 30, 30, 0.4))
    lay_leaves(rng, table, radius * 0.2, 3, radius * 0.16)


def draw_rice(rng, table, radius):
    colour, gap, wood = tone(rng, "#fffcf2", "#faf3e0"), tone(rng, "#a98d62"), tone(rng, *WOODS)
    heap, pose = [(blob(rng, 0.84, 0.84, 0.03), gap)], radius * spin(rng)
    for spot in scatter(rng, 280, 0.82):
        lean = spin(rng)
        grain = [spot + lean * rect(0.04 if i % 3 else 0.07, i * math.pi / 3) for i in range(6)]
        heap += [
            ([p + 0.014 + 0.014j for p in grain], gap),
            (grain, tint(colour, rng.uniform(-0.06, 0.1))),
        ]
    heap += [(disc(0.05, pea), tone(rng, *GREENS)) for pea in scatter(rng, 14, 0.75)]
    lay(table, paint(heap, radius), height=4)
    for lean in (-0.06, 0.06):
        stick = (-0.9 - 0.015j, 1.3 - 0.035j, 1.3 + 0.035j, -0.9 + 0.015j)
        lay(table, paint([(stick, wood)], pose * rect(1, lean)), pose * lean * 1j)


def draw_fish(rng, table, radius):
    number, pose = rng.randint(1, 3), radius * spin(rng)
    for i in range(number):
        colour, deep = tone(rng, "#7d9db5", "#8fb0b8", "#6a8fbd", "#d98f86"), 0.5 - 0.08 * number
        back = [
            complex(u / 10 - 0.95, deep * math.sin(math.pi * (u / 16) ** 0.8)) for u in range(17)
        ]
        fish = [
            ((0.5, 0.98 - 0.3j, 0.85, 0.98 + 0.3j), tint(colour, -0.2)),
            (back, tint(colour, 0.5)),
            ([p.conjugate() for p in back], colour),
        ]
        for column, row in (divmod(i, 5) for i in range(35)):
            spot = complex(0.1 * column - 0.35, 0.28 * deep * (row - 2 + column % 2 / 2))
            if abs(spot.imag) < deep * (0.5 - 0.9 * spot.real):
                scale = [spot + rect(0.06, t / 4) for t in range(-5, 6)]
                fish.append((scale, tint(colour, -0.25), 0.012))
        eye = -0.7 - 0.2j * deep
        fish += [(disc(0.07, eye), LIGHT), (disc(0.04, eye), SHADOW)]
        place = 0.55j * pose * (i - (number - 1) / 2)
        lay(table, paint(fish, pose * spin(rng, 0.15)), place, 3)
    for place in scatter(rng, 3, radius * 0.75):
        lay_slice(rng, table, place, radius * 0.2, *LEMON)


def draw_soup(rng, table, radius):
    colour, curl = tone(rng, "#d9542b", "#e8902f", "#8fa545", "#b5495b"), rng.uniform(0.12, 0.2)
    start, light = spin(rng), tint(colour, 0.75)
    swirl = [start * rect(i / 150, curl * i) for i in range(80)]
    gleam = [rect(0.68, 3.4 + i / 10) for i in range(11)]
    soup = [(disc(0.82), colour), (swirl, light, 0.05), (gleam, tint(colour, 0.45), 0.05)]
    lay(table, paint(soup, radius), height=-3)
    for place in scatter(rng, 5, radius * 0.55):
        crouton = [((-1, 1), tone(rng, "#c98f45"), 2), ((-0.8, 0.8), tone(rng, "#eec27c"), 1.6)]
        lay(table, paint(crouton, radius * 0.09 * spin(rng)), place)
    lay_leaves(rng, table, radius * 0.6, 6, radius * 0.07)


def draw_salad(rng, table, radius):
    lay_leaves(rng, table, radius * 0.6, 10, radius * 0.38)
    for place in scatter(rng, 12, radius * 0.7):
        lay_slice(rng, table, place, radius * rng.uniform(0.17, 0.28), *rng.choice(SALAD))


DISHES = {
    "Bread": draw_bread,
    "Dairy_product": draw_cheese,
    "Dessert": draw_doughnuts,
    "Egg": draw_eggs,
    "Fried_food": draw_fries,
    "Meat": draw_steak,
    "Noodles/Pasta": draw_noodles,
    "Rice": draw_rice,
    "Seafood": draw_fish,
    "Soup": draw_soup,
    "Vegetable/Fruit": draw_salad,
}  # in the order of the class indices


def draw_dish(label, rng):
    """Draw one dish of a kind (a key of DISHES; KeyError otherwise) from a random.Random.

    Returns an RGB image of SAMPLE_SIZE x SAMPLE_SIZE pixels, the same for the same state of rng.
    """
    table, radius = lay_table(rng), rng.uniform(66, 84)
    lay_plate(rng, table, radius)
    DISHES[label](rng, table, radius * 0.95)
    left, top = (SCALE * rng.randint(0, 2 * MARGIN) for _ in "xy")
    box = (left, top, left + SCALE * SAMPLE_SIZE, top + SCALE * SAMPLE_SIZE)
    return table.resize((SAMPLE_SIZE, SAMPLE_SIZE), Image.Resampling.LANCZOS, box)


def draw_dataset(rootDir, seed):
    """Write the sample data set as rootDir/<split>/<class index>_<image number>.jpg.

    The same seed gives the same pictures. They are drawn in a folder beside rootDir, which is
    renamed at the end, so rootDir is complete or absent. Raises FileExistsError if it exists.
    """
    rootDir = os.path.normpath(rootDir)
    if os.path.exists(rootDir):
        raise FileExistsError(f"{rootDir} exists already")
    partial = f"{rootDir}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for split in SAMPLE_COUNTS:
        os.makedirs(os.path.join(partial, split))
    jobs = [
        (split, index, label, number)
        for split, count in SAMPLE_COUNTS.items()
        for index, label in enumerate(DISHES)
        for number in range(count)
    ]
    for split, index, label, number in tqdm(jobs, desc="drawing", unit="dish"):
        picture = draw_dish(label, random.Random(f"{seed} {split} {label} {number}"))
        picture.save(os.path.join(partial, split, f"{index}_{number}.jpg"), quality=90)
    os.rename(partial, rootDir)
