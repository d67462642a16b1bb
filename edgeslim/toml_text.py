"""Plain tables as TOML text: what recipes are written in."""

import json
from typing import Any


def to_toml(table: dict[str, Any]) -> str:
    """Return `table` as TOML. Values: strings, numbers, booleans, lists of these, tables, lists of tables; None and
    empty lists are left out."""
    return "\n".join(_lines(table, ())).strip() + "\n"


def _lines(table: dict[str, Any], path: tuple[str, ...]) -> list[str]:
    plain, nested = [], []
    for key, value in table.items():
        if isinstance(value, dict):
            nested += ["", f"[{'.'.join((*path, key))}]", *_lines(value, (*path, key))]
        elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            for item in value:
                nested += ["", f"[[{'.'.join((*path, key))}]]", *_lines(item, (*path, key))]
        elif value is not None and value != () and value != []:
            plain.append(f"{key} = {_value(value)}")
    return plain + nested


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
