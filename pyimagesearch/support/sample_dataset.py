"""Draw a small synthetic Food-11, eleven kinds of painted dishes: each piece is drawn upright on a
separate transparent image, which lay() turns and puts on the dish with a shadow."""

# import the necessary packages
import math
import os
import random
import shutil

from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from .progress import progress

SAMPLE_SIZE = 160
SAMPLE_COUNTS = {"training": 80, "validation": 20, "evaluation": 20}
MIDDLE = (200, 200)  # of a dish of 400 x 400 pixels
SHADOW, LIGHT, CLEAR = "#341c12", "#fff9e8", (0, 0, 0, 0)
CLOTHS = ("#d9c7a8", "#9db093", "#8fa9b8", "#cf8f72", "#ddb768", "#a9594a", "#44566b", "#6a6f72")
WOODS = ("#c08f5e", "#94683f", "#dcb88b", "#6d4f3a")
CERAMICS = ("#fbf7ee", "#f1e6d4", "#d5e0da", "#33485c", "#c9765a", "#6e9490", "#3b3735", "#ebc9bb")
SUGARS = ("#f08fb0", "#6b3e2a", "#a7d3c4", "#b9a0d8", "#e8596f", "#f6d04d", "#fbf3e0")
GREENS, NOODLES = ("#4f8a3c", "#6da544", "#2f6b39"), ("#b98a45", "#dfbb74", "#f2d690", "#f8e6b4")
SLICES = (("brown", "#d33"), ("green", "#cfe39b"), ("#d96f1e", "#f5a04a"), ("#c8326a", "#fbe6e8"))


def spread(rng, count, radius, middle=MIDDLE):
    """Spread points over a disc, evenly but not regularly, from the outside in."""
    angle = rng.uniform(0, 6.28)
    for i in range(count, 0, -1):
        distance = radius * math.sqrt((i - rng.random()) / count)
        yield middle[0] + distance * math.cos(angle), middle[1] + distance * math.sin(angle)
        angle += 2.4


def new_oval(rng, width, height, colour, wobble=0, rim=None, rimWidth=0):
    """Return a transparent image with an oval on it, its edge uneven by the wobble."""
    piece = Image.new("RGBA", (width, height))
    phase = rng.uniform(0, 6.28)
    for fill, inset in ((rim or colour, 0), (colour, rimWidth)):
        points = []
        for i in range(48):
            angle = i / 48 * 6.28
            size = 1 - wobble * (2 + math.sin(2 * angle + phase) + math.sin(3 * angle - phase))
            x = (width / 2 - inset) * size * math.cos(angle)
            y = (height / 2 - inset) * size * math.sin(angle)
            points.append((width / 2 + x, height / 2 + y))
        ImageDraw.Draw(piece).polygon(points, fill)
    return piece


def new_leaf(rng, width):
    """Return a transparent image with a green leaf on it."""
    return new_oval(rng, width, width // 2, "#8fbf6a", 0.04, rng.choice(GREENS), width // 5)


def new_slice(rng, width, rind, flesh):
    """Return a transparent image with a round slice of a fruit or vegetable, a pair of SLICES."""
    piece = new_oval(rng, width, width, LIGHT, 0, rind, 4)
    for start in range(0, 360, 45):
        ImageDraw.Draw(piece).pieslice((6, 6, width - 7, width - 7), start, start + 38, flesh)
    return piece


def lay(rng, dish, piece, places=(MIDDLE,), height=4, turn=None):
    """Lay a piece at each place, turned by so many degrees (None: at random), lit from the top
    left. A height below 0 makes a hollow."""
    piece = ImageOps.expand(piece, 2 * abs(height), CLEAR)  # room for the shadow
    for x, y in places:
        copy = ImageEnhance.Brightness(piece).enhance(rng.uniform(0.9, 1.1))
        angle = rng.uniform(0, 360) if turn is None else turn
        copy = copy.rotate(angle, Image.Resampling.BILINEAR, expand=True)
        corner = (round(x - copy.width / 2), round(y - copy.height / 2))
        outline = copy.getchannel("A")
        dish.paste(copy, corner, outline)
        # a blurred outline, moved up and down, differs where the rim is in the light or in shadow
        soft = outline.filter(ImageFilter.BoxBlur(abs(height)))
        (upper, lower) = (ImageChops.offset(soft, -height), ImageChops.offset(soft, height))
        dish.paste(SHADOW, corner, ImageChops.subtract(lower, upper, 2))
        dish.paste(LIGHT, corner, ImageChops.darker(outline, ImageChops.subtract(upper, lower, 2)))


def draw_bread(rng, dish):
    loaf = new_oval(rng, 280, 130, "#b5702f", 0.02)
    lay(rng, loaf, new_oval(rng, 22, 90, "#ead09c"), [(x, 65) for x in range(60, 221, 40)], -2, -25)
    lay(rng, dish, loaf, spread(rng, 1, 80), 8)
    toast = Image.new("RGBA", (124, 124))
    edge = ((11, 50), (0, 34), (4, 13), (24, 2), (99, 2), (119, 13), (123, 34), (112, 50))
    ImageDraw.Draw(toast).polygon((*edge, (112, 122), (11, 122)), "#f3ddb0", "#b5702f", 8)
    lay(rng, toast, new_oval(rng, 5, 5, "#dcc08a"), spread(rng, 18, 42, (62, 66)), -1, 0)
    lay(rng, dish, toast, spread(rng, rng.randint(1, 3), 90))


def draw_cheese(rng, dish):
    for place in spread(rng, rng.randint(2, 3), 85):
        cheese = Image.new("RGBA", (170, 170))
        for y in range(36, 0, -1):  # the side is the top again and again, each a pixel higher
            ImageDraw.Draw(cheese).pieslice((-150, y - 43, 165, y + 157), -38, 38, "#c9a640")
        ImageDraw.Draw(cheese).pieslice((-150, -43, 165, 157), -38, 38, "#f9df70")
        for hole in spread(rng, 9, 40, (112, 58)):
            ImageDraw.Draw(cheese).circle(hole, rng.randint(4, 11), "#d0ae48", "#a98832", 3)
        lay(rng, dish, cheese, [place], 5, rng.uniform(-50, 50))


def draw_doughnuts(rng, dish):
    for place in spread(rng, rng.randint(2, 4), 95):
        lay(rng, dish, new_oval(rng, 150, 150, CLEAR, 0, "#d79a52", 54), [place], 6, 0)
        icing = new_oval(rng, 136, 136, CLEAR, 0.01, rng.choice(SUGARS), 43)
        for x, y in list(spread(rng, 52, 58, (68, 68)))[:40]:  # the others are in the hole
            ImageDraw.Draw(icing).line((x, y, x + rng.randint(-8, 8), y + 6), rng.choice(SUGARS), 4)
        lay(rng, dish, icing, [place], 5, 0)


def draw_eggs(rng, dish):
    white = new_oval(rng, 190, 180, LIGHT, 0.06, "#e9cf9f", 4)
    lay(rng, white, Image.new("RGBA", (4, 4), SHADOW), spread(rng, 20, 60, (95, 90)), 1)
    yolk = new_oval(rng, 76, 76, rng.choice(("#f8a81c", "#fdbb2d", "#f28c13")))
    ImageDraw.Draw(yolk).circle((28, 26), 7, LIGHT)
    number = rng.randint(1, 3)
    places = list(spread(rng, number, 28 * number))
    lay(rng, dish, white, places)
    lay(rng, dish, yolk, places, 5, 0)


def draw_fries(rng, dish):
    for place in spread(rng, rng.randint(26, 34), 95):
        lay(rng, dish, Image.new("RGBA", (rng.randint(70, 120), 18), "#e8a636"), [place], 3)
    ketchup = new_oval(rng, 100, 100, "#c3281c", 0, rng.choice(CERAMICS), 9)
    lay(rng, dish, ketchup, spread(rng, 1, 100), 5, 0)


def draw_steak(rng, dish):
    steak = new_oval(rng, 270, 220, rng.choice(("#a63a32", "#8c3128")), 0.04, "#f3dcc2", 12)
    lay(rng, steak, Image.new("RGBA", (16, 4), "#d0968a"), spread(rng, 24, 78, (135, 110)), 1)
    marks = [(x, 110) for x in range(65, 216, 35)]
    lay(rng, steak, Image.new("RGBA", (10, 100), "#55241c"), marks, -2, -15)
    lay(rng, dish, steak, height=7)
    lay(rng, dish, new_leaf(rng, 48), spread(rng, 3, 40), 2)


def draw_noodles(rng, dish):
    nest = new_oval(rng, 240, 240, "#a5783c", 0.02)
    for place in spread(rng, 80, 38, (120, 120)):
        ImageDraw.Draw(nest).circle(place, rng.randint(20, 80), None, rng.choice(NOODLES), 6)
    lay(rng, dish, nest, height=5)
    lay(rng, dish, new_oval(rng, 130, 120, rng.choice(("#b5371f", "#c9472a")), 0.08))
    lay(rng, dish, new_leaf(rng, 46), spread(rng, 3, 30), 2)


def draw_rice(rng, dish):
    heap = new_oval(rng, 260, 260, "#c4b08a", 0.01)
    grain = new_oval(rng, 27, 13, LIGHT, 0, "#b09a6e", 2)
    for x, y in spread(rng, 220, 116, (116, 116)):
        heap.alpha_composite(grain.rotate(rng.randrange(180), expand=True), (round(x), round(y)))
    lay(rng, dish, heap, height=6)
    lay(rng, dish, new_oval(rng, 16, 16, "#5c9a3f"), spread(rng, 14, 105), 2)
    stick = Image.new("RGBA", (340, 9), rng.choice(WOODS))
    lay(rng, dish, stick, spread(rng, 2, 30), 4, rng.uniform(0, 180))


def draw_fish(rng, dish):
    (number, turn) = (rng.randint(1, 3), rng.uniform(0, 360))
    for place in spread(rng, number, 25 * number):
        colour = rng.choice(("#7d9db5", "#8fb0b8", "#6a8fbd", "#d98f86"))
        fish = Image.new("RGBA", (290, 130))
        draw = ImageDraw.Draw(fish)
        draw.polygon(((205, 65), (280, 15), (265, 65), (280, 115)), colour)
        draw.chord((-30, 20, 280, 330), 225, 315, colour)
        draw.chord((-30, -200, 280, 110), 45, 135, "#d8dcd8")
        for x, y in spread(rng, 40, 36, (130, 65)):
            draw.arc((x, y - 8, x + 14, y + 8), 90, 270, "#5a6f80", 2)
        draw.circle((45, 58), 8, SHADOW, LIGHT, 3)
        lay(rng, dish, fish, [place], 5, turn + rng.uniform(-8, 8))
    lay(rng, dish, new_slice(rng, 56, "#f1c232", "#f8dc5a"), spread(rng, 3, 110), 2)


def draw_soup(rng, dish):
    soup = new_oval(rng, 250, 250, rng.choice(("#d9542b", "#e8902f", "#8fa545", "#b5495b")))
    lay(rng, dish, soup, height=-6, turn=0)
    swirl = Image.new("RGBA", (160, 160))
    spiral = [(80 + i * math.cos(i / 4), 80 + i * math.sin(i / 4)) for i in range(75)]
    ImageDraw.Draw(swirl).line(spiral, LIGHT, 7, "curve")
    lay(rng, dish, swirl, height=1)
    lay(rng, dish, Image.new("RGBA", (26, 26), "#e2b269"), spread(rng, 5, 80), 3)
    lay(rng, dish, new_leaf(rng, 22), spread(rng, 6, 90), 2)


def draw_salad(rng, dish):
    for place in spread(rng, 8, 105):
        lay(rng, dish, new_leaf(rng, 116), [place], 2)
    for place in spread(rng, 12, 105):
        lay(rng, dish, new_slice(rng, rng.randint(48, 76), *rng.choice(SLICES)), [place], 2)


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


def draw_table(rng):
    """Return a table top of wood or cloth."""
    (colour, step) = (rng.choice(WOODS + CLOTHS), rng.randrange(12, 30))
    (rows, columns) = (rng.choice((0, step)), rng.choice((0, step)))
    table = Image.new("RGB", (285, 285), colour)
    draw = ImageDraw.Draw(table, "RGBA")
    for start in range(0, 285, 2 * step):
        draw.rectangle((0, start, 285, start + rows), "#fff9e860")
        draw.rectangle((start, 0, start + columns, 285), "#fff9e860")
    grain = (4, 140) if colour in WOODS else (285, 285)
    noise = Image.frombytes("L", grain, rng.randbytes(grain[0] * grain[1])).resize(table.size)
    table.paste(SHADOW, mask=noise.point(lambda level: level / 4))
    table = table.rotate(rng.uniform(0, 360))  # the corners are cut off below
    return table.resize((400, 400), Image.Resampling.BILINEAR, (42, 42, 242, 242))


def draw_dish(label, rng):
    """Return an RGB picture of a dish, the same for the same state of rng, a random.Random."""
    (dish, colour) = (draw_table(rng), rng.choice(CERAMICS))
    plate = new_oval(rng, 300, 300, colour, 0, rng.choice(CLOTHS), rng.randint(0, 10))
    lay(rng, dish, plate, height=6, turn=0)
    lay(rng, dish, new_oval(rng, 240, 240, colour), height=-5, turn=0)
    DISHES[label](rng, dish)
    (x, y, half) = (rng.randint(182, 218), rng.randint(182, 218), rng.randint(145, 180))
    dish = dish.crop((x - half, y - half, x + half, y + half))
    return dish.resize((SAMPLE_SIZE, SAMPLE_SIZE), Image.Resampling.LANCZOS)


def draw_dataset(rootDir, seed):
    """Write the sample as rootDir/<split>/<class index>_<image number>.jpg, the same for a seed;
    rootDir is complete or absent. Raises FileExistsError if it exists."""
    rootDir = os.path.normpath(rootDir)
    if os.path.exists(rootDir):
        raise FileExistsError(f"{rootDir} exists already")
    partial = f"{rootDir}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for split, count in SAMPLE_COUNTS.items():
        os.makedirs(os.path.join(partial, split))
        for index, label in enumerate(progress(DISHES, f"drawing {split}", "classes")):
            for number in range(count):
                dish = draw_dish(label, random.Random(f"{seed} {split} {label} {number}"))
                dish.save(os.path.join(partial, split, f"{index}_{number}.jpg"), quality=90)
    os.rename(partial, rootDir)
