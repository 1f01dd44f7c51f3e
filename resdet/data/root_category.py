"""Roboflow's root category: a parent of all classes that no object has, and so no class to learn."""

from __future__ import annotations

from typing import Any


def root_category(content: dict[str, Any]) -> dict[str, Any] | None:
    """The category of supercategory "none" that every other one names as its supercategory, if no annotation uses it."""
    categories = content["categories"]
    for root in categories:
        others = [category for category in categories if category is not root]
        name, identity = root.get("name"), root.get("id")
        is_parent = others and isinstance(name, str) and all(other.get("supercategory") == name for other in others)
        if not is_parent or root.get("supercategory") != "none":
            continue
        ids = (entry.get("category_id") for entry in content["annotations"])
        if not any(used == identity or str(used) == str(identity) for used in ids):
            return dict(root)
    return None


def without_root(content: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """COCO's structure without its root category, and what was left out, for `Source.remarks`."""
    root = root_category(content)
    if root is None:
        return content, []
    categories = [category for category in content["categories"] if category != root]
    remark = f"root category {root['name']!r} (parent of all others, no object has it: left out of the classes)"
    return {**content, "categories": categories}, [remark]
