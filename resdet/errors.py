"""The one error for a user's mistake: the message names the file or key, the value and the fix; tools exit with 2."""


class UserError(ValueError):
    """Something outside the code is wrong: a config, a file, a dataset. Shown without a traceback."""


def listed(title: str, problems: list[str], limit: int = 20) -> UserError:
    """One error for all `problems`; the first `limit` are spelled out, the rest counted."""
    lines = [f"  - {problem}" for problem in problems[:limit]]
    if len(problems) > limit:
        lines.append(f"  … and {len(problems) - limit} more")
    return UserError("\n".join([title, *lines]))
