"""Settings as variables: what is set where this process starts, and what it tells another one."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Set
from pathlib import Path

from pydantic import AliasChoices

from common.settings import PREFIX, Settings

# Variables that name databases and brokers without our prefix.
_SERVERS = ("DATABASE_", "KAFKA_BROKERS", "REDIS_")


def secret_is_set() -> bool:
    """Whether the environment, or the file that MINDWEAVE_CONFIG names, says a secret."""
    if os.environ.get(f"{PREFIX}SECRET"):
        return True
    file = os.environ.get(f"{PREFIX}CONFIG")
    try:
        return bool(file) and "secret" in tomllib.loads(Path(str(file)).read_text())
    except (OSError, ValueError):
        # Whoever loads the settings says what is wrong with it.
        return False


def variables_of(settings: Settings, but: Set[str]) -> dict[str, str]:
    """What was set, from wherever it came, as variables; without the settings in ``but``."""
    told = settings.model_dump(
        mode="json",
        include=settings.model_fields_set - but,
        exclude_unset=True,
        exclude_none=True,
    )
    return {
        variable(name): value if isinstance(value, str) else json.dumps(value)
        for name, value in told.items()
    }


def variable(name: str) -> str:
    """The variable that says the setting ``name``."""
    alias = Settings.model_fields[name].validation_alias
    if isinstance(alias, AliasChoices):
        return str(alias.choices[0])
    return f"{PREFIX}{name.upper()}"


def without_settings() -> dict[str, str]:
    """This process's environment, but for what is ours."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith((PREFIX, *_SERVERS))
    }
