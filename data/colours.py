"""Colours that colour-blind people can tell apart: Okabe & Ito, "Color Universal Design" (2008)."""

Colour = tuple[int, int, int]  # RGB

# Without black.
PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)


def colour(label: int) -> Colour:
    """The colour of a class; from the eighth class on lighter, then darker shades of the same colours."""
    red, green, blue = PALETTE[label % len(PALETTE)]
    turn = label // len(PALETTE) % 3
    if turn == 0:
        return red, green, blue
    towards = 255 if turn == 1 else 0
    return (red + towards) // 2, (green + towards) // 2, (blue + towards) // 2
