"""Procedural street scenes with 8 classes: a built-in data set that needs no download.

A scene is a straight street seen by a pinhole camera. Objects have metric positions and are painted
from far to near, so that sizes, occlusion and perspective are consistent. Light, haze, materials,
camera and density vary between images; signs are small and rare. Posts and the hood of the
camera's own car belong to no class: they are ignored.
"""

import dataclasses
import functools
import math

import cv2
import numpy as np

from kseg.errors import option
from pipelines.datasets.dataset import IGNORE_LABEL, Found, Taxonomy
from pipelines.errors import DataError

SKY, BUILDING, ROAD, SIDEWALK, VEGETATION, CAR, PERSON, SIGN = range(8)

_SPLITS = ("train", "val")
_OVERSAMPLING = 2  # Scenes are painted at twice the size, then averaged: smooth edges.
_FAR = 120.0  # Metres.


def taxonomy():
    """Returns the 8 classes; posts and the camera's own car are ignored."""
    return Taxonomy.load("synthetic")


def find(source=None, *, seed=0, train_images=200, val_images=40, size=(144, 256)):
    """Lists the examples of both splits; each is painted when it is read.

    Args:
        source: must be None: there are no files.
        seed: int >= 0; an image depends on the seed, its split, its number and `size` alone.
        train_images, val_images: int > 0.
        size: `(height, width)`, pixels, each at least 32.

    Returns:
        `Found`, with splits `train`, `val` of `SyntheticExample`.

    Raises:
        DataError: if an option is out of range.
    """
    if source is not None:
        raise DataError(f"'synthetic' has no source folder. Received: {source}. Leave it out")
    if seed < 0:
        raise DataError(f"{option('seed')} must be 0 or more. Received: {seed}")
    if min(train_images, val_images) < 1:
        raise DataError(
            "Both splits need at least one image. Received: train_images="
            f"{train_images}, val_images={val_images}"
        )
    if min(size) < 32:
        raise DataError(f"{option('size')} must be 32 or more each way. Received: {tuple(size)}")
    counts = dict(zip(_SPLITS, (train_images, val_images), strict=True))
    splits = {
        split: [SyntheticExample(split, index, seed, tuple(size)) for index in range(count)]
        for split, count in counts.items()
    }
    return Found(taxonomy(), splits)


@dataclasses.dataclass(frozen=True)
class SyntheticExample:
    """A scene that is painted on reading.

    Attributes:
        split: str, `train` or `val`.
        index: int, number in the split.
        seed: int.
        size: `(height, width)`.
    """

    split: str
    index: int
    seed: int
    size: tuple[int, int]

    @property
    def id(self):
        """Unique in the split."""
        return f"{self.split}_{self.index:05d}"

    @property
    def fingerprint(self):
        """The values that the content depends on."""
        return [self.split, self.index, self.seed, *self.size]

    def read(self):
        """Returns the bytes of a JPEG and of the label PNG."""
        image, labels = render(self.seed, self.split, self.index, self.size)
        jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
        return jpeg.tobytes(), cv2.imencode(".png", labels)[1].tobytes()


def render(seed, split, index, size):
    """Paints one scene.

    Args:
        seed, split, index: which scene.
        size: `(height, width)`.

    Returns:
        `(image, labels)`: uint8 `(height, width, 3)` and `(height, width)`, 255 = ignored.
    """
    scene = _Scene(np.random.default_rng([seed, _SPLITS.index(split), index]), size)
    _paint_sky(scene)
    _paint_ground(scene)
    things = _lay_out_street(scene)
    for _, paint in sorted(things, key=lambda thing: -thing[0]):
        paint()
    if scene.chance(0.5):
        _paint_hood(scene)
    return scene.develop()


class _Scene:
    """The camera, the light, and what has been painted so far.

    Meters: x to the right, y up from the ground, z away from the camera. Colors are 0 to 1.
    """

    def __init__(self, rng, size):
        self.rng = rng
        self.size = size
        height, width = (_OVERSAMPLING * n for n in size)
        self.image = np.zeros((height, width, 3), "float32")
        self.labels = np.full((height, width), IGNORE_LABEL, "uint8")
        # The camera.
        self.focal = self.uniform(0.62, 0.8) * max(width, height)
        self.eye = self.uniform(1.35, 1.8)
        self.horizon = self.uniform(0.4, 0.52) * height
        self.vanish = self.uniform(0.36, 0.64) * width
        # The street; the camera is in a lane, not in its middle.
        self.half_road = self.uniform(3.2, 5.5)
        self.middle = self.uniform(-0.45, 0.3) * self.half_road
        self.pavements = rng.uniform(1.2, 3.5, 2)
        # The light.
        self.overcast = self.uniform(0, 1)
        self.sun_side = rng.choice([-1.0, 1.0])
        warmth = self.uniform(-0.08, 0.12)
        self.sun = np.float32([1 + warmth, 1, 1 - warmth]) * np.float32(self.uniform(0.75, 1.12))
        self.haze = np.float32([0.78, 0.82, 0.86]) * np.float32(self.uniform(0.8, 1.1))
        self.visibility = self.uniform(90, 400)

    def uniform(self, low, high):
        return float(self.rng.uniform(low, high))

    def chance(self, probability):
        return self.rng.random() < probability

    def edge(self, side):
        """Returns x of the curb; side is -1 (left) or 1."""
        return self.middle + side * self.half_road

    def front(self, side):
        """Returns x of the house fronts."""
        return self.edge(side) + side * self.pavements[int(side > 0)]

    def project(self, x, y, z):
        """Returns the column and row of a point."""
        return self.vanish + self.focal * x / z, self.horizon + self.focal * (self.eye - y) / z

    def outline(self, points):
        """Projects a list of points `(x, y, z)`."""
        return np.array([self.project(*point) for point in points])

    def side_light(self, side):
        """Returns the brightness of a wall that faces the street from one side."""
        direct = 0.32 * (1 - self.overcast) * (1 if side != self.sun_side else -1)
        return 0.85 + direct

    def noise(self, shape, scale=1.0):
        """Cuts a window from a noise texture, 0 to 1, mean 0.5; the finest grain has `scale` px."""
        texture = _noise_texture(int(self.rng.integers(4)))
        offset = self.rng.integers(0, texture.shape[0], 2)
        rows, columns = (
            (start + np.arange(n) / scale).astype(int) % texture.shape[0]
            for start, n in zip(offset, shape, strict=True)
        )
        return texture[np.ix_(rows, columns)]

    def paint(self, points, color, label, depth, *, shape="polygon", thickness=1):
        """Fills an outline.

        Args:
            points: `(n, 2)` columns and rows: corners, ends, or the center.
            color: `(3,)`, or a function of the columns and rows of the pixels, `(n,)` each, that
                gives `(n, 3)`; for polygons only.
            label: int.
            depth: float, metres, for the haze.
            shape: `polygon`, `line` or `disc`.
            thickness: pixels, of a line, or the diameter of a disc.
        """
        points = np.asarray(points, "float64")
        if not callable(color):
            color = tuple(map(float, self.lit(color, depth)))
            _draw(self.image, points, color, shape, thickness)
            _draw(self.labels, points, label, shape, thickness)
            return
        left, top, right, bottom = self._window(points.min(axis=0), points.max(axis=0))
        if right > left and bottom > top:
            mask = np.zeros((bottom - top, right - left), "uint8")
            _draw(mask, points - (left, top), 1, shape, thickness)
            self.paint_mask(mask, left, top, color, label, depth)

    def paint_mask(self, mask, left, top, color, label, depth):
        """Fills a mask whose first pixel is at `left`, `top`; `color` must be a function."""
        rows, columns = np.nonzero(mask)
        rows, columns = rows + top, columns + left
        self.image[rows, columns] = self.lit(color(columns, rows), depth)
        self.labels[rows, columns] = label

    def lit(self, color, depth):
        """Returns a surface's colors `(..., 3)` in the scene's light, seen through its haze."""
        clear = math.exp(-depth / self.visibility)
        return np.asarray(color, "float32") * (self.sun * clear) + self.haze * (1 - clear)

    def shade(self, points, factor):
        """Darkens the ground inside an outline softly."""
        left, top, right, bottom = self._window(points.min(axis=0) - 3, points.max(axis=0) + 3)
        if right <= left or bottom <= top:
            return
        window = (slice(top, bottom), slice(left, right))
        mask = np.zeros((bottom - top, right - left), "float32")
        places = np.round(np.clip(points - (left, top), -1e4, 1e4)).astype("int32")
        cv2.fillPoly(mask, [places], 1.0)
        mask = cv2.blur(mask, (5, 5))
        mask *= np.isin(self.labels[window], (ROAD, SIDEWALK, VEGETATION))
        self.image[window] *= 1 - (1 - factor) * mask[..., None]

    def _window(self, low, high):
        """Returns left, top, right and bottom of the part inside the picture; ends exclusive."""
        height, width = self.labels.shape
        return (
            max(math.floor(low[0]), 0),
            max(math.floor(low[1]), 0),
            min(math.ceil(high[0]) + 1, width),
            min(math.ceil(high[1]) + 1, height),
        )

    def develop(self):
        """Renders the photograph: the scene seen through lens, sensor and resolution."""
        height, width = self.size
        image = cv2.resize(self.image, (width, height), interpolation=cv2.INTER_AREA)
        rows = np.linspace(-1, 1, height, dtype="float32")[:, None]
        columns = np.linspace(-1, 1, width, dtype="float32")
        image *= (1 - self.uniform(0, 0.12) * (rows**2 + columns**2))[..., None]
        image = np.clip(image, 0, 1.15) ** self.uniform(0.85, 1.2)
        noise = self.rng.standard_normal(image.shape, dtype="float32")
        image += self.uniform(0.004, 0.022) * noise
        labels = self.labels[::_OVERSAMPLING, ::_OVERSAMPLING]
        return (np.clip(image, 0, 1) * 255 + 0.5).astype("uint8"), np.ascontiguousarray(labels)


def _draw(target, points, value, shape, thickness):
    """Draws a filled shape in place, see `_Scene.paint`."""
    # Corners far outside the picture would overflow the fixed point of OpenCV.
    places = np.round(np.clip(points, -1e5, 1e5) * 16).astype("int32")
    if shape == "polygon":
        cv2.fillPoly(target, [places], value, lineType=cv2.LINE_8, shift=4)
    elif shape == "line":
        start, end = map(tuple, places.tolist())
        cv2.line(target, start, end, value, max(1, round(thickness)), cv2.LINE_8, shift=4)
    else:
        radius = max(8, round(thickness * 8))
        cv2.circle(target, tuple(places[0].tolist()), radius, value, -1, cv2.LINE_8, shift=4)


@functools.cache
def _noise_texture(number):
    """Returns tileable noise of many octaves, `(512, 512)`, 0 to 1."""
    rng = np.random.default_rng(number)
    total = np.zeros((512, 512), "float32")
    for octave in range(2, 9):
        cells = 2**octave
        grid = rng.random((cells, cells), dtype="float32")
        grid = np.pad(grid, 2, mode="wrap")
        scale = 512 // cells
        layer = cv2.resize(grid, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        total += layer[2 * scale : -2 * scale, 2 * scale : -2 * scale] * 0.75**octave
    low, high = np.percentile(total, (1, 99))
    return np.clip((total - low) / (high - low), 0, 1)


def _paint_sky(scene):
    height, width = scene.labels.shape
    overcast = scene.overcast
    top = (1 - overcast) * np.array([0.25, 0.47, 0.82]) + overcast * np.array([0.66, 0.69, 0.73])
    rise = np.linspace(1, 0, height, dtype="float32")[:, None, None] ** 1.3
    sky = rise * top.astype("float32") + (1 - rise) * scene.haze.astype("float32")
    clouds = cv2.resize(scene.noise((height // 2, width // 6)), (width, height))
    cover = np.clip((clouds - scene.uniform(0.35, 0.75)) * 3, 0, 1)[..., None]
    scene.image[:] = sky + (1 - sky) * cover * scene.uniform(0.4, 0.95)
    scene.labels[:] = SKY


def _paint_ground(scene):
    """Paints the road with lane marks, pavements with slabs, grass, and shadows of houses."""
    height, width = scene.labels.shape
    first = int(scene.horizon) + 1
    rows = np.arange(first, height, dtype="float32")[:, None]
    z = scene.focal * scene.eye / (rows - scene.horizon + 0.3)
    x = (np.arange(width, dtype="float32") - scene.vanish) * z / scene.focal
    across = x - scene.middle
    beyond = np.abs(across) - scene.half_road
    road = beyond < 0
    pavement = ~road & (beyond < np.where(across > 0, scene.pavements[1], scene.pavements[0]))

    texture = _noise_texture(int(scene.rng.integers(4)))
    # Near the horizon OpenCV clips the coordinates, but there `near` has faded the texture out.
    fine, coarse = (
        cv2.remap(
            texture,
            x * n,
            np.ascontiguousarray(np.broadcast_to(z * n, x.shape)),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_WRAP,
        )
        for n in (97.0, 9.0)
    )
    near = np.clip(12 / z, 0, 1)  # Far away, texture averages out.
    grain = (0.5 + (fine - 0.5) * near) * 0.5 + coarse * 0.5 - 0.5

    asphalt = scene.uniform(0.26, 0.44) * np.array([1, 1, scene.uniform(0.97, 1.06)])
    stone = scene.uniform(0.45, 0.65) * np.array([1, scene.uniform(0.93, 1), 0.92])
    grass = np.array([0.3, 0.42, 0.18]) * scene.uniform(0.7, 1.2)
    labels = np.where(road, ROAD, np.where(pavement, SIDEWALK, VEGETATION))
    materials = np.zeros((VEGETATION + 1, 3), "float32")
    materials[[ROAD, SIDEWALK, VEGETATION]] = asphalt, stone, grass
    light = 1 + 0.5 * grain

    slab = scene.uniform(0.8, 1.5)
    joints = ((across % slab) < 0.04 * slab) | ((z % slab) < 0.06 * slab)
    light[pavement & joints & (z < 25)] *= 0.8
    light[pavement & (beyond < 0.17)] *= 1.15  # Curb.
    light[road & (beyond > -0.35)] *= 0.85  # Gutter.

    marks = (np.abs(across) < 0.08) & ((z + scene.uniform(0, 8)) % 8 < scene.uniform(3, 6))
    if scene.chance(0.5):
        marks |= np.abs(np.abs(across) - scene.half_road + 0.5) < 0.06
    if scene.chance(0.3):
        start = scene.uniform(8, 22)
        stripes = ((across + 20) % 1.0 < 0.5) & (np.abs(across) < scene.half_road - 0.4)
        marks |= stripes & (z > start) & (z < start + 3.0)
    marks &= road

    # Houses on the sun's side throw their shadow on the street.
    reach = scene.uniform(-0.6, 1.1) * scene.half_road
    jagged = reach + 1.5 * np.sign(np.sin(z / scene.uniform(2, 5) + scene.uniform(0, 6)))
    shadow = np.clip((across * scene.sun_side - jagged) * 4, 0, 1) * 0.45 * (1 - scene.overcast)

    color = materials[labels]
    worn = (0.35 + 0.5 * coarse[marks])[:, None]
    color[marks] += worn * (0.85 - color[marks])
    clear = np.exp(-z / scene.visibility)
    color *= (light * (1 - shadow) * clear)[..., None]
    scene.image[first:] = color * scene.sun + (1 - clear)[..., None] * scene.haze
    scene.labels[first:] = labels


def _lay_out_street(scene):
    """Places the objects; returns a list of `(depth, function that paints the object)`."""
    rng = scene.rng
    things = []

    def add(depth, paint, *arguments):
        things.append((depth, functools.partial(paint, scene, *arguments)))

    end = scene.uniform(55, _FAR)
    if scene.chance(0.75):
        add(end + 30, _paint_skyline, end + 30)
    add(end + 15, _paint_hedge, end + 15)
    for side in (-1, 1):
        built = rng.choice([0.25, 0.75, 0.95])
        z = scene.uniform(2, 6)
        while z < end:
            length = scene.uniform(7, 20)
            if scene.chance(built):
                # By its far end, so that objects on the pavement in front of it are painted later.
                add(min(z + length, end), _paint_house, side, z, min(z + length, end))
            elif scene.chance(0.7):
                for _ in range(int(rng.integers(2, 5))):
                    away = scene.front(side) + side * scene.uniform(1, 9)
                    place = z + scene.uniform(0.5, length)
                    add(place, _paint_tree, away, place, scene.uniform(3, 9))
            z += length + (scene.uniform(2, 6) if scene.chance(0.25) else 0)
        if scene.chance(0.5):
            step = scene.uniform(8, 16)
            for z in np.arange(scene.uniform(5, 5 + step), end, step):
                x = scene.edge(side) + side * 0.9
                add(z, _paint_tree, x, z, scene.uniform(4.5, 7))
        if scene.chance(0.55):
            z = scene.uniform(5, 14)
            while z < 60:
                if scene.chance(0.7):
                    add(z, _paint_car, scene.edge(side) - side * 1.1, z, side > 0)
                z += scene.uniform(5, 8)
        for _ in range(rng.poisson(1.6)):
            x = scene.edge(side) + side * scene.uniform(0.3, scene.pavements[int(side > 0)])
            z = scene.uniform(5.5, 30)
            add(z, _paint_person, x, z)
            if scene.chance(0.3):
                add(z + 0.3, _paint_person, x + side * scene.uniform(0.45, 0.7), z + 0.3)
        if scene.chance(0.45):
            z = scene.uniform(6, 22)
            add(z, _paint_sign, scene.edge(side) + side * 0.4, z)
    lane = scene.half_road / 2
    for x, rear in ((scene.middle + lane, True), (scene.middle - lane, False)):
        z = scene.uniform(7, 30)
        for _ in range(rng.poisson(1.0)):
            add(z, _paint_car, x + scene.uniform(-0.3, 0.3), z, rear)
            z += scene.uniform(7, 20)
    if scene.chance(0.3):
        z = scene.uniform(7, 25)
        add(z, _paint_person, scene.middle + scene.uniform(-0.8, 0.8) * scene.half_road, z)
    return things


def _paint_skyline(scene, depth):
    """Paints houses that close off the street in the distance."""
    x = -depth
    while x < depth:
        width, height = scene.uniform(10, 25), scene.uniform(6, 24)
        style = _HouseStyle(scene)
        corners = [(x, 0, depth), (x, height, depth), (x + width, height, depth)]
        outline = scene.outline([*corners, (x + width, 0, depth)])
        scene.paint(outline, style.front(scene, depth, height), BUILDING, depth)
        x += width + (scene.uniform(0, 12) if scene.chance(0.4) else 0)


def _paint_hedge(scene, depth):
    for x in np.arange(-0.8 * depth, 0.8 * depth, 7.0):
        if scene.chance(0.55):
            _paint_tree(scene, x, depth, scene.uniform(3, 8))


class _HouseStyle:
    """The materials of a house."""

    _WALLS = (
        (0.55, 0.33, 0.27),
        (0.71, 0.63, 0.5),
        (0.6, 0.6, 0.6),
        (0.8, 0.77, 0.7),
        (0.42, 0.4, 0.42),
        (0.66, 0.5, 0.4),
        (0.5, 0.55, 0.6),
    )

    def __init__(self, scene):
        rng = scene.rng
        self.wall = np.array(self._WALLS[rng.integers(len(self._WALLS))])
        self.wall = (self.wall * rng.uniform(0.85, 1.1) + rng.uniform(-0.03, 0.03, 3)).astype("f4")
        self.base = self.wall * rng.uniform(0.55, 1.0) + rng.uniform(-0.06, 0.06, 3).astype("f4")
        self.storey = rng.uniform(2.8, 3.6)
        self.bay = rng.uniform(1.8, 3.4)
        # Half the width and height of windows as a share of bay and storey: ground floor, above.
        self.window = np.tile(rng.uniform(0.17, 0.35, 2), (2, 1))
        if rng.random() < 0.4:
            self.window[0] = 0.43, 0.38  # A shop.
        self.glass = rng.uniform(0.12, 0.75, (16, 16)).astype("f4") ** 1.5
        self.texture = _noise_texture(int(rng.integers(4)))

    def colors(self, along, up, height, depth, light):
        """Colors of points on a wall.

        Args:
            along, up: float `(n,)`, metres along the wall and up from the ground.
            height: float, metres.
            depth: float, the largest distance of the wall from the camera.
            light: float, brightness of the wall.

        Returns:
            float32 `(n, 3)`.
        """
        along, up = along.astype("float32"), up.astype("float32")
        bay, storey = along / self.bay, up / self.storey
        column, row = bay.astype("int32"), np.floor(storey).astype("int32")
        in_bay, in_storey = np.abs(bay - column - 0.5), np.abs(storey - row - 0.5)
        ground = row <= 0
        wide = np.where(ground, self.window[0, 0], self.window[1, 0])
        tall = np.where(ground, self.window[0, 1], self.window[1, 1])
        inside = up < height - 0.5
        hole = (in_bay < wide) & (in_storey < tall) & inside
        frame = (in_bay < wide + 0.04) & (in_storey < tall + 0.03) & inside
        material = np.where(ground, 0, 1)
        material[frame] = 2
        material[hole] = 3 + (row[hole] % 16) * 16 + column[hole] % 16

        # Windows finer than a pixel would alias: they fade into the wall with distance.
        fade = min(max(1.6 - depth / 60, 0.25), 1)
        glass = self.glass.reshape(-1, 1) * np.float32([0.8, 0.95, 1.1]) * (0.6 + 0.4 * light)
        solid = np.stack([self.base, self.wall, self.wall * 0.6 + 0.3]) * light
        solid[2] += (1 - fade) * (solid[1] - solid[2])
        table = np.concatenate([solid, glass + (1 - fade) * (solid[1] - glass)]).astype("float32")

        stone = self.texture[(up * 23).astype("int32") % 512, (along * 17).astype("int32") % 512]
        shade = 0.85 + 0.3 * stone
        shade[(in_storey > 0.47) | (up > height - 0.45)] *= 0.8
        shade[hole] = 1
        return table[material] * shade[:, None]

    def front(self, scene, depth, height):
        """Colors of the wall that faces the camera, for `_Scene.paint`."""

        def color(columns, rows):
            along = (columns - scene.vanish) * depth / scene.focal + 200
            up = scene.eye - (rows - scene.horizon) * depth / scene.focal
            return self.colors(along, up, height, depth, 0.8)

        return color

    def side(self, scene, x, z_far, height, light):
        """Colors of the wall along the street at `x`, for `_Scene.paint`."""

        def color(columns, rows):
            z = scene.focal * x / (columns - scene.vanish + math.copysign(1e-3, x))
            z = np.clip(z, 0.5, z_far)
            up = scene.eye - (rows - scene.horizon) * z / scene.focal
            return self.colors(z, up, height, z_far, light)

        return color


def _paint_house(scene, side, z_near, z_far):
    style = _HouseStyle(scene)
    x = scene.front(side) + side * scene.uniform(0, 1.5)
    height = scene.uniform(5, 9) if scene.chance(0.4) else scene.uniform(8, 22)
    z_near = max(z_near, 1.0)
    back = x + side * 12
    front = [(x, 0, z_near), (x, height, z_near), (back, height, z_near), (back, 0, z_near)]
    scene.paint(scene.outline(front), style.front(scene, z_near, height), BUILDING, z_near)
    wall = [(x, 0, z_near), (x, height, z_near), (x, height, z_far), (x, 0, z_far)]
    color = style.side(scene, x, z_far, height, scene.side_light(side))
    depth = (z_near + z_far) / 2
    scene.paint(scene.outline(wall), color, BUILDING, depth)
    if height < 9 and scene.chance(0.7):  # A pitched roof.
        ridge = x + side * 4, height + scene.uniform(1.5, 3)
        slope = [(x, height, z_near), (*ridge, z_near), (*ridge, z_far), (x, height, z_far)]
        tile = np.array([0.42, 0.24, 0.2]) * scene.uniform(0.6, 1.2)
        scene.paint(scene.outline(slope), tile, BUILDING, depth)
        gable = [(x, height, z_near), (*ridge, z_near), (x + side * 8, height, z_near)]
        scene.paint(scene.outline(gable), style.wall * 0.8, BUILDING, z_near)


def _paint_tree(scene, x, z, height):
    rng = scene.rng
    scale = scene.focal / z
    column, ground = scene.project(x, 0, z)
    bush = height < 4
    width = height * scene.uniform(0.5, 0.8)
    if not bush:
        trunk = scene.outline([(x, 0, z), (x + scene.uniform(-0.2, 0.2), height * 0.6, z)])
        bark = np.array([0.3, 0.24, 0.18]) * scene.uniform(0.7, 1.2)
        scene.paint(trunk, bark, VEGETATION, z, shape="line", thickness=0.28 * scale)
    low, high = (0.0 if bush else 0.35) * height, height
    left, top = column - 0.75 * width * scale, ground - 1.1 * high * scale
    right, bottom = column + 0.75 * width * scale, ground - (low - 0.05 * height) * scale
    limits = scene.labels.shape
    left, right = (int(np.clip(v, 0, limits[1])) for v in (left, right))
    top, bottom = (int(np.clip(v, 0, limits[0])) for v in (top, bottom))
    if right - left < 2 or bottom - top < 2:
        return
    crown = np.zeros((bottom - top, right - left), "uint8")
    middle = (low + high) / 2
    angles, away = rng.uniform(0, 2 * np.pi, 18), rng.random(18) ** 0.5
    columns = column + np.cos(angles) * away * width * 0.36 * scale - left
    rows = ground - (middle + np.sin(angles) * away * (high - low) * 0.36) * scale - top
    radii = width * rng.uniform(0.12, 0.24, 18) * scale + 1
    for place, radius in zip(np.stack([columns, rows], axis=1), radii, strict=True):
        _draw(crown, place[None], 1, "disc", 2 * radius)
    leaves = scene.noise(crown.shape, scale=max(scale / 18, 0.5))
    reach = 2 * int(0.05 * width * scale) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    core, fringe = cv2.erode(crown, kernel), cv2.dilate(crown, kernel)
    mask = (core > 0) | ((fringe > 0) & (leaves > 0.5))
    if not bush:  # Sky shows through.
        mask &= leaves > 0.12
    green = np.array([0.26, 0.4, 0.14]) * scene.uniform(0.65, 1.2) + rng.uniform(-0.05, 0.05, 3)

    def color(columns, rows):
        fall = 1.2 - 0.55 * (rows - top) / len(leaves)
        lit = fall * (0.45 + leaves[rows - top, columns - left])
        sunny = (columns - column) / (width * scale + 1) * scene.sun_side
        lit = lit * (1 - 0.4 * (1 - scene.overcast) * np.clip(-sunny, -0.5, 0.5))
        return lit[..., None] * green

    scene.paint_mask(mask, left, top, color, VEGETATION, z)


def _paint_car(scene, x, z, rear):
    """Paints a car that drives in the camera's direction (`rear`) or towards it."""
    length, half = scene.uniform(3.7, 4.8), scene.uniform(0.82, 0.95)
    roof = scene.uniform(1.4, 1.75)
    colors = [(0.75, 0.75, 0.77), (0.13, 0.13, 0.15), (0.85, 0.85, 0.84), (0.55, 0.1, 0.1)]
    colors += [(0.12, 0.22, 0.45), (0.35, 0.37, 0.4), (0.2, 0.35, 0.25), (0.8, 0.62, 0.15)]
    body = np.array(colors[scene.rng.integers(len(colors))]) * scene.uniform(0.85, 1.1)
    glass = np.array([0.14, 0.17, 0.2]) * scene.uniform(0.7, 1.6)
    far, belt = z + length, 0.56 * roof
    side = -np.sign(x) * half  # The flank that the camera sees.
    light = scene.side_light(np.sign(x))

    def quad(points, color):
        scene.paint(scene.outline(points), color, CAR, z)

    def near(x0, x1, y0, y1, at=z):
        return [(x + x0, y0, at), (x + x1, y0, at), (x + x1, y1, at), (x + x0, y1, at)]

    around = [
        (x - half, 0, z - 0.2),
        (x + half, 0, z - 0.2),
        (x + half, 0, far),
        (x - half, 0, far),
    ]
    scene.shade(scene.outline(around), 0.35)
    if abs(x) > half:
        flank = x + side
        points = [(flank, 0.25, z), (flank, belt, z), (flank, belt, far), (flank, 0.25, far)]
        quad(points, body * 0.85 * light)
        for hub in (z + 0.2 * length, z + 0.8 * length):
            angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
            tyre = [(flank, 0.33 + 0.33 * np.sin(a), hub + 0.33 * np.cos(a)) for a in angles]
            quad(tyre, (0.06, 0.06, 0.06))
    top = [(x - half, belt, z), (x + half, belt, z), (x + half, belt, far), (x - half, belt, far)]
    quad(top, body * 1.1)
    lean, inner = 0.12 * length, 0.8 * half
    start, stop = (0.08, 0.72) if rear else (0.28, 0.92)
    start, stop = z + start * length, z + stop * length
    if abs(x) > half:
        edge = x + side * 0.9
        ends = [(edge, belt, start), (x + side * 0.75, roof, start + lean)]
        ends += [(x + side * 0.75, roof, stop - lean), (edge, belt, stop)]
        quad(ends, body * 0.75 * light)
        low, high = belt + 0.06, roof - 0.1
        pane = [(edge, low, start + 0.25), (x + side * 0.77, high, start + lean + 0.15)]
        pane += [(x + side * 0.77, high, stop - lean - 0.15), (edge, low, stop - 0.25)]
        quad(pane, glass)
    lid = [(x - inner, roof, start + lean), (x + inner, roof, start + lean)]
    quad([*lid, (x + inner, roof, stop - lean), (x - inner, roof, stop - lean)], body * 1.05)
    cabin = [(x - 0.95 * half, belt, start), (x + 0.95 * half, belt, start)]
    cabin += [(x + inner, roof, start + lean), (x - inner, roof, start + lean)]
    quad(cabin, body)
    pane = [(x - 0.85 * half, belt + 0.05, start), (x + 0.85 * half, belt + 0.05, start)]
    pane += [
        (x + 0.7 * half, roof - 0.08, start + lean),
        (x - 0.7 * half, roof - 0.08, start + lean),
    ]
    quad(pane, glass * 1.3)
    if z > 35:  # The rest would be smaller than a pixel.
        quad(near(-half, half, 0.22, belt), body * 0.85)
        return
    for wheel in (-0.95 * half, 0.6 * half):
        quad(near(wheel, wheel + 0.35 * half, 0.0, 0.4), (0.05, 0.05, 0.05))
    quad(near(-half, half, 0.22, belt), body * 0.95)
    quad(near(-half, half, 0.22, 0.42), body * 0.55)
    lamp = (0.75, 0.08, 0.06) if rear else (0.95, 0.93, 0.8)
    for place in (-0.95, 0.65):
        quad(near(place * half, (place + 0.3) * half, belt - 0.26, belt - 0.1), lamp)
    if not rear:
        quad(near(-0.5 * half, 0.5 * half, belt - 0.32, belt - 0.15), (0.08, 0.08, 0.09))
    quad(near(-0.27, 0.27, 0.43, 0.54), (0.85, 0.83, 0.7))


def _paint_person(scene, x, z):
    rng = scene.rng
    tall = scene.uniform(1.5, 1.9)
    stride, sway = scene.uniform(0.03, 0.3), scene.uniform(-0.06, 0.06)
    coat, trousers = (rng.uniform(0.06, 0.75, 3) * rng.uniform(0.5, 1) for _ in range(2))
    skin = np.array([0.85, 0.64, 0.52]) * scene.uniform(0.45, 1.1)
    hair = np.array([0.25, 0.18, 0.12]) * scene.uniform(0.3, 2)
    scale = scene.focal / z

    def limb(start, end, width, color):
        ends = scene.outline([(x + start[0], start[1], z), (x + end[0], end[1], z)])
        scene.paint(ends, color, PERSON, z, shape="line", thickness=width * scale)

    def disc(dx, y, radius, color):
        place = scene.outline([(x + dx, y, z)])
        scene.paint(place, color, PERSON, z, shape="disc", thickness=2 * radius * scale)

    feet = [(x - 0.3, 0, z), (x + 0.3, 0, z), (x + 0.35, 0, z + 0.5), (x - 0.25, 0, z + 0.5)]
    scene.shade(scene.outline(feet), 0.6)
    hip, shoulder = 0.5 * tall, 0.81 * tall
    for sign in (-1, 1):
        foot = sign * stride * 0.8
        limb((sign * 0.07, hip), (foot, 0.05), 0.15, trousers * (1 + 0.1 * sign))
        limb((foot - 0.03, 0.04), (foot + 0.07, 0.04), 0.08, (0.08, 0.07, 0.07))
    for sign in (-1, 1):
        limb(
            (sign * 0.2 + sway, shoulder - 0.03),
            (sign * (0.24 + stride * 0.4), hip),
            0.1,
            coat * 0.8,
        )
        disc(sign * (0.24 + stride * 0.4), hip - 0.02, 0.05, skin)
    body = [
        (-0.17, hip - 0.1),
        (0.17, hip - 0.1),
        (0.22 + sway, shoulder),
        (0.12 + sway, shoulder + 0.06),
    ]
    body += [(-0.12 + sway, shoulder + 0.06), (-0.22 + sway, shoulder)]
    scene.paint(scene.outline([(x + dx, y, z) for dx, y in body]), coat, PERSON, z)
    limb((sway, shoulder), (sway, 0.88 * tall), 0.11, skin * 0.9)
    disc(sway, 0.935 * tall, 0.115, hair)
    disc(sway, 0.92 * tall, 0.1, skin)


def _paint_sign(scene, x, z):
    scale = scene.focal / z
    height, radius = scene.uniform(2.1, 2.7), scene.uniform(0.33, 0.46)
    post = scene.outline([(x, 0, z), (x, height, z)])
    scene.paint(post, (0.5, 0.5, 0.52), IGNORE_LABEL, z, shape="line", thickness=0.08 * scale)
    center = scene.outline([(x, height, z)])[0]

    def plate(corners, size, color, turn=0.0):
        if corners is None:
            scene.paint([center], color, SIGN, z, shape="disc", thickness=2 * size * scale)
            return
        angles = turn + 2 * np.pi * np.arange(corners) / corners
        points = center + size * scale * np.stack([np.sin(angles), -np.cos(angles)], axis=1)
        scene.paint(points, color, SIGN, z)

    red, white, blue = (0.78, 0.06, 0.08), (0.93, 0.93, 0.92), (0.06, 0.22, 0.62)
    kind = int(scene.rng.integers(4))
    if kind == 0:  # Speed limit.
        plate(None, radius, red)
        plate(None, 0.72 * radius, white)
        plate(4, 0.35 * radius, (0.1, 0.1, 0.1), np.pi / 4)
    elif kind == 1:  # Warning.
        plate(3, 1.25 * radius, red)
        plate(3, 0.75 * radius, white)
    elif kind == 2:  # Parking.
        plate(4, 1.3 * radius, blue, np.pi / 4)
        plate(4, 0.55 * radius, white, np.pi / 4)
    else:  # Stop.
        plate(8, radius, red, np.pi / 8)
        plate(4, 0.3 * radius, white)


def _paint_hood(scene):
    """Paints the camera's own car at the bottom of the picture."""
    height, width = scene.labels.shape
    top = height * (1 - scene.uniform(0.04, 0.09))
    columns = np.linspace(-0.05, 1.05, 25)
    rows = top + height * 0.12 * np.abs(2 * columns - 1) ** scene.uniform(2, 4)
    outline = np.stack([columns * width, rows], axis=1)
    outline = np.concatenate([outline, [(1.05 * width, height + 2), (-0.05 * width, height + 2)]])
    paint = scene.rng.uniform(0.05, 0.5) * np.array([1, 1, scene.uniform(0.95, 1.1)])

    def color(columns, rows):
        gleam = np.exp(-(((columns / width - 0.5) * 4) ** 2)) * 0.25
        fall = np.clip(1 - (rows - top) / (0.15 * height), 0.4, 1)
        return (paint + gleam[:, None]) * fall[:, None]

    scene.paint(outline, color, IGNORE_LABEL, 0.0)
