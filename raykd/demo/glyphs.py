"""Characters that nobody wrote: glyphs of matplotlib's fonts and digits drawn with a pen, distorted at random.

The demo's teacher learns from these alone.
Shape letters: N pictures, P points of a stroke, S pixels of a side.
"""

import math
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

CANVAS = 48  # pixels of a side
INK = 0.75  # share of the canvas that the longer side of a character takes

FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta",
    "cmr10", "cmb10", "cmss10", "cmtt10", "cmti10",
)  # fmt: skip


def _arc(x: float, y: float, x_radius: float, y_radius: float, start: float, stop: float, num_points: int) -> list:
    """Points of an ellipse's arc; angles in degrees, 0 to the right, 90 down."""
    angles = np.radians(np.linspace(start, stop, num_points))
    return [(x + x_radius * math.cos(a), y + y_radius * math.sin(a)) for a in angles]


# Digit -> the ways people write it -> pen strokes -> points in the unit square, y down.
STROKES = (
    (
        [_arc(0.5, 0.5, 0.34, 0.48, -100, 265, 13)],
        [_arc(0.5, 0.5, 0.26, 0.48, -60, 300, 13)],
    ),
    (
        [[(0.5, 0.02), (0.5, 0.5), (0.5, 0.98)]],
        [[(0.28, 0.25), (0.55, 0.03), (0.55, 0.5), (0.55, 0.98)]],
        [[(0.28, 0.22), (0.52, 0.03), (0.52, 0.5), (0.52, 0.95)], [(0.25, 0.97), (0.52, 0.97), (0.8, 0.97)]],
    ),
    (
        [
            [*_arc(0.47, 0.28, 0.32, 0.26, -165, 40, 8), (0.5, 0.68), (0.14, 0.96)],
            [(0.14, 0.96), (0.5, 0.96), (0.88, 0.96)],
        ],
        [
            [
                *_arc(0.47, 0.28, 0.32, 0.26, -165, 45, 8),
                *[(0.45, 0.72), (0.22, 0.93), (0.14, 0.84), (0.26, 0.78), (0.52, 0.9), (0.9, 0.96)],
            ],
        ],
    ),
    (
        [_arc(0.45, 0.26, 0.33, 0.24, -155, 85, 8) + _arc(0.45, 0.73, 0.37, 0.25, -80, 150, 8)],
        [
            [(0.15, 0.04), (0.5, 0.04), (0.84, 0.04)],
            [(0.84, 0.04), (0.66, 0.22), (0.44, 0.42), *_arc(0.42, 0.7, 0.4, 0.28, -75, 150, 8)],
        ],
    ),
    (
        [
            [(0.3, 0.04), (0.2, 0.3), (0.1, 0.58)],
            [(0.1, 0.58), (0.5, 0.58), (0.92, 0.56)],
            [(0.68, 0.1), (0.66, 0.5), (0.64, 0.98)],
        ],
        [
            [(0.66, 0.02), (0.38, 0.34), (0.08, 0.66)],
            [(0.08, 0.66), (0.5, 0.66), (0.94, 0.66)],
            [(0.66, 0.02), (0.66, 0.5), (0.66, 0.98)],
        ],
        [
            [(0.22, 0.04), (0.18, 0.28), (0.3, 0.46), (0.55, 0.5), (0.74, 0.42)],
            [(0.76, 0.04), (0.75, 0.5), (0.72, 0.98)],
        ],
    ),
    (
        [
            [(0.84, 0.04), (0.5, 0.04), (0.22, 0.05)],
            [(0.22, 0.05), (0.19, 0.25), (0.17, 0.44), *_arc(0.44, 0.68, 0.38, 0.28, -130, 140, 10)],
        ],
        [
            [(0.26, 0.05), (0.22, 0.28), (0.18, 0.45), *_arc(0.44, 0.68, 0.36, 0.28, -130, 140, 10)],
            [(0.26, 0.05), (0.55, 0.05), (0.88, 0.03)],
        ],
    ),
    (
        [[(0.72, 0.03), (0.42, 0.2), (0.2, 0.48), *_arc(0.48, 0.7, 0.31, 0.27, 190, -150, 12)]],
        [[(0.42, 0.02), (0.26, 0.3), (0.19, 0.6), *_arc(0.48, 0.72, 0.3, 0.25, 190, -170, 12)]],
    ),
    (
        [[(0.1, 0.05), (0.5, 0.05), (0.88, 0.05)], [(0.88, 0.05), (0.62, 0.45), (0.42, 0.98)]],
        [
            [(0.1, 0.05), (0.5, 0.05), (0.88, 0.05)],
            [(0.88, 0.05), (0.62, 0.45), (0.42, 0.98)],
            [(0.3, 0.5), (0.56, 0.5), (0.82, 0.5)],
        ],
        [[(0.12, 0.2), (0.12, 0.05), (0.5, 0.06), (0.86, 0.04)], [(0.86, 0.04), (0.66, 0.4), (0.54, 0.98)]],
    ),
    (
        [_arc(0.5, 0.26, 0.27, 0.24, 75, -255, 11) + _arc(0.5, 0.74, 0.33, 0.25, -70, 250, 12)],
        [_arc(0.5, 0.27, 0.28, 0.24, -90, 270, 12), _arc(0.5, 0.75, 0.33, 0.24, -90, 270, 12)],
    ),
    (
        [_arc(0.46, 0.28, 0.3, 0.25, -10, -350, 11), [(0.76, 0.1), (0.74, 0.5), (0.68, 0.98)]],
        [[*_arc(0.48, 0.29, 0.31, 0.26, -20, -355, 11), (0.76, 0.6), (0.62, 0.84), (0.3, 0.96)]],
        [[*_arc(0.48, 0.29, 0.31, 0.26, -20, -340, 11), (0.8, 0.3), (0.6, 0.65), (0.4, 0.98)]],
    ),
)


def font_glyphs(chars: str) -> torch.Tensor:
    """Characters in every font: white on black, float [len(FONTS) * len(chars), 1, S, S] in 0 to 1, font by font."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    glyphs = []
    for name in FONTS:
        font = ImageFont.truetype(str(folder / f"{name}.ttf"), 96)
        for char in chars:
            picture = Image.new("L", (240, 240))
            ImageDraw.Draw(picture).text((60, 40), char, font=font, fill=255)
            glyphs.append(_centred(picture))
    return torch.from_numpy(np.stack(glyphs))


def pen_glyphs(per_digit: int, rng: np.random.Generator) -> torch.Tensor:
    """Digits drawn with a round pen along jittered strokes: float [10 * per_digit, 1, S, S] in 0 to 1, by digit."""
    side = 3 * CANVAS  # drawn larger and reduced, for smooth edges
    glyphs = []
    for ways in STROKES:
        for _ in range(per_digit):
            picture = Image.new("L", (side, side))
            draw = ImageDraw.Draw(picture)
            pen = rng.uniform(0.05, 0.17) * INK * side
            bend = rng.normal(0, 0.05, (2, 2))  # one for the whole digit
            for stroke in ways[rng.integers(len(ways))]:
                points_P2 = np.array(stroke) + rng.normal(0, rng.uniform(0.005, 0.028), (len(stroke), 2))
                points_P2 = points_P2 + rng.normal(0, 0.02, 2)
                points_P2 = points_P2 + np.sin(np.pi * points_P2[:, ::-1]) @ bend
                curve_P2 = (_catmull_rom(points_P2) * INK + (1 - INK) / 2) * side
                draw.line([tuple(point) for point in curve_P2], fill=255, width=max(1, round(pen)))
                for x, y in curve_P2:
                    draw.ellipse((x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2), fill=255)
            glyphs.append(_centred(picture))
    return torch.from_numpy(np.stack(glyphs))


def _centred(picture: Image.Image) -> np.ndarray:
    """The ink of a picture, fitted to the middle of a canvas: float32 [1, S, S]."""
    ink = picture.crop(picture.getbbox())
    scale = INK * CANVAS / max(ink.size)
    width, height = (max(1, round(side * scale)) for side in ink.size)
    canvas = Image.new("L", (CANVAS, CANVAS))
    resized = ink.resize((width, height), Image.Resampling.BOX)
    canvas.paste(resized, ((CANVAS - width) // 2, (CANVAS - height) // 2))
    return np.asarray(canvas, dtype=np.float32)[None] / 255


def _catmull_rom(points_P2: np.ndarray, steps: int = 8) -> np.ndarray:
    """A smooth curve through the points, `steps` points for each of theirs."""
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    ends_P2 = np.vstack([2 * points_P2[0] - points_P2[1], points_P2, 2 * points_P2[-1] - points_P2[-2]])
    pieces = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(ends_P2, ends_P2[1:], ends_P2[2:], ends_P2[3:], strict=False)
    ]
    return np.vstack([*pieces, points_P2[-1:]])


def distort(glyphs_N1SS: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """Pictures of the glyphs as a careless hand and a bad camera would have them, at random.

    Args:
        glyphs_N1SS: float [N, 1, S, S] in 0 to 1, white on black.
        size: Side of the result.
        generator: Where all of the chance comes from.

    Returns:
        float [N, 1, size, size] in 0 to 1.
    """
    n = len(glyphs_N1SS)

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(n, 1, 1, 1, generator=generator)

    def normal(std: float) -> torch.Tensor:
        return std * torch.randn(n, generator=generator).clamp(-2.2, 2.2)

    # Stroke width: some fatter, some much fatter, some thinner where enough ink stays.
    x = glyphs_N1SS
    fat = F.max_pool2d(x, 3, 1, 1)
    thin = -F.max_pool2d(-x, 3, 1, 1)
    keeps_ink = thin.sum((1, 2, 3), keepdim=True) > 0.35 * x.sum((1, 2, 3), keepdim=True)
    chance = uniform(0, 1)
    x = torch.where((chance > 0.75) & keeps_ink, thin, x)
    x = torch.where(chance < 0.3, fat, x)
    x = torch.where(chance < 0.12, F.max_pool2d(fat, 3, 1, 1), x)

    # Turn, slant, zoom, stretch, shift; then an elastic bend. Both map a place in the result to one in the glyph.
    angle, slant, stretch = normal(0.17), normal(0.22), torch.exp(normal(0.20))
    zoom = uniform(0.72, 1.45).flatten()
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(n, 2, 2)
    shear = torch.eye(2).repeat(n, 1, 1)
    shear[:, 0, 1] = slant
    scale = torch.diag_embed(torch.stack([zoom * stretch, zoom / stretch.clamp(min=0.8)], 1))
    shift = torch.cat([uniform(-0.12, 0.12), uniform(-0.12, 0.12)], 1).view(n, 2, 1)
    grid = F.affine_grid(torch.cat([turn @ shear @ scale, shift], 2), [n, 1, size, size], align_corners=False)
    bend = torch.randn(n, 2, 4, 4, generator=generator) * uniform(0, 0.13)
    bend = F.interpolate(bend, size=(size, size), mode="bicubic", align_corners=False)
    x = F.grid_sample(x, grid + bend.permute(0, 2, 3, 1), align_corners=False)

    # Half of the batch went through a low resolution, enlarged with Pillow's bicubic kernel (antialias); all blurred.
    side = int(torch.randint(8, 21, (1,), generator=generator))
    low = F.interpolate(x[: n // 2], size=(side, side), mode="area")
    x = torch.cat([enlarge(low, size), x[n // 2 :]])
    x = torch.lerp(x, F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 1), uniform(0, 1))

    # Gamma, black level, contrast, noise.
    x = (x / x.amax((1, 2, 3), keepdim=True).clamp(min=0.2)).clamp(0, 1) ** uniform(0.5, 1.6)
    x = uniform(0, 0.12) + x * uniform(0.7, 1.0)
    x = x + torch.randn(x.shape, generator=generator) * uniform(0, 0.12)
    return x.clamp(0, 1)


def enlarge(x_N1SS: torch.Tensor, size: int) -> torch.Tensor:
    """Bicubic as Pillow does it (and so open_clip's preprocessing): `antialias` gives torch Pillow's kernel."""
    return F.interpolate(x_N1SS, size=(size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
