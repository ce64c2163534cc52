"""What was done to a verified copy, in words."""

TURNED = (
    "", "turned 90° to the right", "turned 180°", "turned 90° to the left",
    "mirrored", "mirrored and turned 90° to the left", "mirrored top to bottom", "mirrored and turned 90° to the right",
)  # fmt: skip


def change(turn: int, shown: float, own: float, covered: float) -> str:
    """What was done to a copy, in words.

    turn       0 to 7: turns the copy to stand as the original does
    shown      share of the original's area that the copy shows
    own        share of the copy's area that shows it
    covered    share of the common area that shows something else
    """
    words = [TURNED[turn]] if turn else []
    if shown < 0.98:
        words.append(f"cropped to {100 * shown:.0f} %")
    if own < 0.98:
        words.append(f"set in a frame that it fills to {100 * own:.0f} %")
    if covered >= 0.02:
        words.append(f"{100 * covered:.0f} % covered")
    return ", ".join(words) or "the whole picture"
