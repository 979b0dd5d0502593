"""The token for the Hugging Face hub: from the environment, from a file of this server, or from `hf auth login`.

A request can save a token in the file `TTS_DATA_DIR/hub/token`, which only the server's user can read. The token is
never shown and never logged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from app.durable_file import replace_file, sync_folder
from app.weights.hub import login_token

if TYPE_CHECKING:
    from pathlib import Path

    from app.settings import Settings

FOLDER, FILE = "hub", "token"
Origin = Literal["environment", "file", "login", "request"]
_NAMES: dict[Origin, str] = {
    "environment": "HF_TOKEN",
    "file": f"the token in TTS_DATA_DIR/{FOLDER}/{FILE}",
    "login": "the stored token",
    "request": "the token of this request",
}


@dataclass(frozen=True, slots=True)
class HubToken:
    """A token (`text`; "" = there is no token), and where it comes from (`origin`)."""

    text: str = field(default="", repr=False)
    origin: Origin = "environment"

    @property
    def name(self) -> str:
        """The name of the token in error messages."""
        return _NAMES[self.origin]


NO_TOKEN = HubToken()


def find_token(settings: Settings) -> HubToken:
    """Return the token for downloads: HF_TOKEN, or the saved token, or the token of `hf auth login`."""
    if token := settings.token.strip():
        return HubToken(token, "environment")
    try:
        saved = _path(settings).read_text().strip()
    except (OSError, ValueError):  # the file does not exist, belongs to another user, or is not a text
        saved = ""
    if saved:
        return HubToken(saved, "file")
    if token := login_token():
        return HubToken(token, "login")
    return NO_TOKEN


def save_token(settings: Settings, text: str) -> None:
    """Save a token in a file that only the server's user can read. Raises OSError if the file can't be written."""
    settings.folder(FOLDER)
    replace_file(_path(settings), text.encode())


def delete_token(settings: Settings) -> bool:
    """Delete the saved token. Returns False if no token was saved. Raises OSError if the file can't be deleted."""
    path = _path(settings)
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    sync_folder(path.parent)
    return True


def _path(settings: Settings) -> Path:
    return settings.data_dir / FOLDER / FILE
