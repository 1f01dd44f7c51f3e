"""Numbers as short text."""

from __future__ import annotations

from collections.abc import Sequence

BLOCKS, PLAIN_BLOCKS = "▁▂▃▄▅▆▇█", "_.-~=+*#"


def sparkline(
    values: Sequence[float], width: int, blocks: str = BLOCKS, span: tuple[float, float] | None = None
) -> str:
    """The finite values as means of at most `width` parts of equal length, from the lowest block to the highest.

    span: the values of these, by default the lowest and the highest mean.
    """
    finite = [v for v in values if abs(v) < float("inf")]
    count = min(width, len(finite))
    parts = [finite[k * len(finite) // count : (k + 1) * len(finite) // count] for k in range(count)]
    means = [sum(part) / len(part) for part in parts]
    low, high = span or (min(means, default=0.0), max(means, default=0.0))
    top = len(blocks) - 1
    return "".join(blocks[round((mean - low) / (high - low) * top) if high > low else 0] for mean in means)


def duration(seconds: float) -> str:
    """Hours, minutes, seconds as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def short(value: object, length: int = 40) -> str:
    """A config value on one line of bounded length."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= length else f"{text[: length - 1]}…"
