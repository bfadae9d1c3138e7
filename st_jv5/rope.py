"""RoPE's theta: read from a config, written to both keys that readers look for.

transformers 5 keeps ``rope_theta`` inside ``rope_parameters`` and drops the top-level key when it
saves; other engines read the top-level key. Where the two disagree transformers silently takes the
inner one, so we refuse such a folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from st_jv5.files import read_json, write_json


def theta_of(config: Any) -> float | None:
    """Theta of a loaded transformers config; None for a backbone without RoPE."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return parameters.get("rope_theta") or getattr(config, "rope_theta", None)


def check_both_keys(config_path: str | Path) -> None:
    """Raise if ``config.json`` names two different thetas."""
    config = read_json(config_path)
    inner = (config.get("rope_parameters") or {}).get("rope_theta")
    outer = config.get("rope_theta")
    if inner is not None and outer is not None and float(inner) != float(outer):
        raise ValueError(
            f"{config_path} names two thetas: rope_theta {outer} and rope_parameters.rope_theta "
            f"{inner}; set both to the one the model was trained for"
        )


def write_both_keys(config_path: str | Path) -> None:
    """Repeat ``rope_parameters.rope_theta`` at the top level of a saved ``config.json``."""
    config = read_json(config_path)
    theta = (config.get("rope_parameters") or {}).get("rope_theta")
    if theta is not None and config.get("rope_theta") != theta:
        write_json(config_path, {**config, "rope_theta": theta})
