"""Environment variables are described, parsed as documented and validated, and secrets stay hidden."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from app.settings import PRIVATE_FOLDERS, Settings, address_of, as_markdown, public_values, unknown_variables

pytestmark = pytest.mark.unit

PAGE = Path(__file__).parents[2] / "docs/settings.md"
FIELDS = Settings.model_fields


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove this machine's variables and ignore the .env file of this folder."""
    for variable in [name for name in os.environ if name in {field.alias for field in FIELDS.values()}]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_has_a_variable_and_a_description(name):
    alias, description = FIELDS[name].alias, FIELDS[name].description
    assert alias
    assert alias == alias.upper()
    assert description
    assert description.endswith(".")
    assert "|" not in description  # the description becomes a cell of a table in the documentation


def test_variable_names_are_unique():
    aliases = [field.alias for field in FIELDS.values()]
    assert len(set(aliases)) == len(aliases)


def test_settings_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == as_markdown(), "run `make docs`"


def test_settings_page_names_every_variable_and_no_secret(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    page = as_markdown()
    for field in FIELDS.values():
        assert page.count(f"| `{field.alias}` |") == 1
    assert "hf_secret" not in page


def test_defaults_are_valid_without_any_variable():
    settings = Settings()
    assert (settings.engine, settings.fallback_engine, settings.port) == ("csm", "espeak", 8000)
    assert settings.api_keys == settings.cors_origins == ()
    assert settings.token == ""


def test_variables_override_the_file_and_the_file_overrides_defaults(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text("PORT=9001\nHOST=127.0.0.1\nSOMETHING_ELSE=1\n")
    monkeypatch.setenv("PORT", "9002")
    settings = Settings()
    assert (settings.port, settings.host) == (9002, "127.0.0.1")


@pytest.mark.parametrize(
    ("text", "keys"),
    [("", ()), ("  ", ()), ("a", ("a",)), ("a,b", ("a", "b")), (" a , b,,c ", ("a", "b", "c"))],
)
def test_lists_are_split_at_commas(monkeypatch, text, keys):
    monkeypatch.setenv("TTS_API_KEYS", text)
    settings = Settings()
    assert tuple(key.get_secret_value() for key in settings.api_keys) == keys


@pytest.mark.parametrize(
    "origin", ["https://studio.example", "http://localhost:3000", "*", "http://[::1]:8080", "chrome-extension://abc"]
)
def test_valid_origins_are_accepted(origin):
    assert Settings(TTS_CORS_ORIGINS=f"{origin}, https://other.example").cors_origins[0] == origin


@pytest.mark.parametrize(
    "origin",
    ["https://studio.example/", "studio.example", "null", "https://*.example", "https://a@b", "HTTPS://a", "https://"],
)
def test_invalid_origins_are_refused(origin):
    with pytest.raises(ValidationError, match="is not an origin"):
        Settings(TTS_CORS_ORIGINS=origin)


@pytest.mark.parametrize(
    ("uri", "host", "port"),
    [
        ("tcp://0.0.0.0:10200", "0.0.0.0", 10_200),
        (" tcp://localhost:1 ", "localhost", 1),
        ("tcp://[::]:10200", "::", 10_200),
        ("tcp://127.0.0.1:0", "127.0.0.1", 0),
    ],
)
def test_address_of_the_wyoming_server(uri, host, port):
    assert address_of(Settings(TTS_WYOMING=uri).wyoming) == (host, port)


@pytest.mark.parametrize(
    "uri",
    [
        "10200",
        "0.0.0.0:10200",
        "tcp://0.0.0.0",
        "tcp://:10200",
        "unix:///tmp/socket",
        "stdio://",
        "http://0.0.0.0:10200",
        "tcp://0.0.0.0:x",
        "tcp://0.0.0.0:70000",
        "tcp://0.0.0.0:10200/path",
        "tcp://a@b:1",
        "tcp://[::1",
    ],
)
def test_other_addresses_of_the_wyoming_server_are_refused(uri):
    with pytest.raises(ValidationError, match="TTS_WYOMING"):
        Settings(TTS_WYOMING=uri)


@pytest.mark.parametrize("name", ["x" * 64, "ä" * 32, "a\nb", "a\0b"])
def test_names_that_the_local_network_cant_have_are_refused(name):
    with pytest.raises(ValidationError, match="TTS_WYOMING_ZEROCONF"):
        Settings(TTS_WYOMING_ZEROCONF=name)


def test_key_list_of_only_commas_is_refused(monkeypatch):
    monkeypatch.setenv("TTS_API_KEYS", " , ,")
    with pytest.raises(ValidationError, match="no key"):
        Settings()


def test_secrets_are_never_shown(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_sesame")
    monkeypatch.setenv("TTS_API_KEYS", "key-one,key-two")
    settings = Settings()
    shown = [repr(settings), str(settings), json.dumps(public_values(settings)), repr(public_values(settings))]
    for secret in ("hf_sesame", "key-one", "key-two"):
        assert not [text for text in shown if secret in text]
    assert settings.token == "hf_sesame"
    assert public_values(settings)["HF_TOKEN"] == public_values(settings)["TTS_API_KEYS"] == "set"
    assert public_values(Settings(HF_TOKEN="", TTS_API_KEYS=""))["HF_TOKEN"] == "not set"
    assert public_values(Settings(HF_TOKEN="", TTS_API_KEYS=""))["TTS_API_KEYS"] == "not set"


def test_public_values_hide_every_secret():
    for name, field in FIELDS.items():
        if "SecretStr" in str(field.annotation):
            value = public_values(Settings(**{field.alias: "x"}))[field.alias or ""]
            assert value == "set", name


def test_public_values_are_plain_json(tmp_path):
    values = public_values(Settings(TTS_DATA_DIR=tmp_path))
    assert values.keys() == {field.alias for field in FIELDS.values()}
    assert json.loads(json.dumps(values))["TTS_DATA_DIR"] == str(tmp_path)


@pytest.mark.parametrize("blank", ["", "   "])
def test_blank_token_counts_as_missing(monkeypatch, blank):
    monkeypatch.setenv("HF_TOKEN", blank)
    assert Settings().hf_token is None


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PORT", "eighty"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("TTS_MAX_ROWS", "0"),
        ("TTS_MAX_ROWS", "1025"),
        ("TTS_MAX_QUEUE", "-1"),
        ("TTS_OUTBOX_S", "0.1"),
        ("TTS_OUTBOX_S", "nan"),
        ("TTS_CACHE_BYTES", "-1"),
        ("TTS_MAX_INPUT_CHARS", "0"),
        ("TTS_MAX_BODY_BYTES", "1023"),
        ("TTS_SHUTDOWN_GRACE_S", "-1"),
        ("LOG_LEVEL", "LOUD"),
        ("DEV_MODE", "perhaps"),
    ],
)
def test_wrong_value_is_refused(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValidationError) as error:
        Settings()
    assert error.value.errors()[0]["loc"] == (variable,)


# For each variable with a range: the values that are just outside (None = no limit) and the limits themselves.
RANGES = {
    "TTS_LOAD_WAIT_S": ("-0.1", "0", "3600", "3600.1"),
    "TTS_IDLE_UNLOAD_S": ("-0.1", "0", "1e9", None),
    "TTS_ADAPTER_SLOTS": ("-1", "0", "128", "129"),
    "TTS_ADAPTER_RANK": ("0", "1", "256", "257"),
    "CSM_SPEAKERS": ("3,-1", "3,0", "3,999", "3,1000"),
    "CSM_CONTEXT_LINES": ("-1", "0", "100", "101"),
    "TTS_GPU_MEMORY_FRACTION": ("0", "0.001", "1", "1.001"),
    "TTS_STEPS_PER_CHECK": ("0", "1", "32", "33"),
    "PORT": ("-1", "0", "65535", "65536"),
    "TTS_MAX_INPUT_CHARS": ("0", "1", "100000000", None),
    "TTS_MAX_BODY_BYTES": ("1023", "1024", "10000000000", None),
    "TTS_MAX_UPLOAD_BYTES": ("1023", "1024", "10000000000", None),
    "TTS_MAX_ADAPTER_BYTES": ("1023", "1024", "10000000000", None),
    "TTS_READ_TIMEOUT_S": ("0", "0.001", "3600", "3600.1"),
    "TTS_KEEP_ALIVE_S": ("0", "1", "1000000", None),
    "TTS_MAX_ROWS": ("0", "1", "1024", "1025"),
    "TTS_MAX_QUEUE": ("-1", "0", "1000000", None),
    "TTS_CASTING_WAIT_S": ("-0.1", "0", "600", "600.1"),
    "TTS_MEMORY_TOKENS": ("-1", "0", "100000", "100001"),
    "TTS_MEMORY_TTL_S": ("0", "0.001", "1e9", None),
    "TTS_OUTBOX_S": ("0.1", "0.101", "1e6", None),
    "TTS_READER_TIMEOUT_S": ("0.09", "0.1", "86400", "86400.1"),
    "TTS_CACHE_BYTES": ("-1", "0", "10000000000000", None),
    "TTS_JOBS_MAX_CHARS": ("-1", "0", "10000000000", None),
    "TTS_JOBS_KEEP_DAYS": ("-0.1", "0", "100000", None),
    "TTS_SHUTDOWN_GRACE_S": ("-1", "0", "1000000", None),
}


@pytest.mark.parametrize("variable", RANGES)
def test_limits_of_a_range_are_accepted_and_values_outside_are_refused(monkeypatch, variable):
    below, lowest, highest, above = RANGES[variable]
    for value in (lowest, highest):
        monkeypatch.setenv(variable, value)
        Settings()
    for value in filter(None, (below, above)):
        monkeypatch.setenv(variable, value)
        with pytest.raises(ValidationError) as error:
            Settings()
        assert error.value.errors()[0]["loc"][0] == variable


def test_every_number_has_a_range():
    numbers = {str(field.alias) for field in FIELDS.values() if field.annotation in (int, float)}
    assert numbers <= RANGES.keys()


@pytest.mark.parametrize(
    ("variable", "value", "name", "expected"),
    [
        ("LOG_LEVEL", "debug", "log_level", "DEBUG"),
        ("TTS_ENGINE", " Espeak ", "engine", "espeak"),
        ("TTS_FALLBACK_ENGINE", "", "fallback_engine", ""),
        ("PORT", "0", "port", 0),
        ("TTS_MAX_QUEUE", "0", "max_queue", 0),
        ("TTS_CACHE_BYTES", "0", "cache_bytes", 0),
        ("DEV_MODE", "1", "dev_mode", True),
    ],
)
def test_values_are_parsed(monkeypatch, variable, value, name, expected):
    monkeypatch.setenv(variable, value)
    assert getattr(Settings(), name) == expected


def test_settings_are_immutable():
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1
    assert isinstance(Settings(TTS_API_KEYS="a").api_keys[0], SecretStr)


def test_folder_is_created_on_first_use(tmp_path):
    settings = Settings(TTS_DATA_DIR=tmp_path / "deep" / "data")
    assert not (tmp_path / "deep").exists()
    assert settings.folder("logs").is_dir()
    assert settings.folder("logs") == tmp_path / "deep/data/logs"


# ---- empty values, unknown names, folders


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("empty", ["", "  "])
def test_empty_variable_has_its_default_value(monkeypatch, name, empty):
    alias = FIELDS[name].alias
    monkeypatch.setenv(alias, empty)
    settings = Settings()
    if alias == "TTS_FALLBACK_ENGINE":
        assert settings.fallback_engine == ""  # the default has no fallback engine, as documented
        return
    monkeypatch.delenv(alias)
    assert getattr(settings, name) == getattr(Settings(), name)


def test_empty_variable_in_the_file_has_its_default_value(tmp_path):
    (tmp_path / ".env").write_text("TTS_MAX_QUEUE=\nTTS_DTYPE=\nTTS_CACHE_BYTES=\nTTS_ENHANCE=\n")
    assert Settings() == Settings(_env_file=None)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("TTS_ENGIN", "TTS_ENGINE"),
        ("TTS_MAX_QUEU", "TTS_MAX_QUEUE"),
        ("TTS_DEVISES", "TTS_DEVICES"),
        ("TTS_API_KEY", "TTS_API_KEYS"),
        ("CSM_DEVICEMAP", "CSM_DEVICE_MAP"),
        ("DIA_MODELL", "DIA_MODEL"),
        ("tts_engin", "TTS_ENGINE"),
        ("TTS_PORT", "PORT"),
        ("TTS_HOST", "HOST"),
        ("TTS_QQQQQQQQQQQQQQQQQQ", ""),
    ],
)
def test_unknown_variables_are_found_with_the_nearest_name(tmp_path, name, nearest):
    environment = [name, "PATH", "HF_TOKEN", "TTS_ENGINE", "TTSX", "DIALOG", "HOST"]
    assert unknown_variables(environment, tmp_path / "none") == {name: nearest}
    (tmp_path / ".env").write_text(f"{name}=1\nTTS_ENGINE=csm\n")
    assert unknown_variables([], tmp_path / ".env") == {name: nearest}


def test_known_variables_are_not_reported(tmp_path):
    assert unknown_variables([str(field.alias) for field in FIELDS.values()], tmp_path / "none") == {}


def test_private_folders_are_closed_to_other_users(tmp_path):
    old_mask = os.umask(0o022)
    try:
        settings = Settings(TTS_DATA_DIR=tmp_path / "new" / "data")
        for name in PRIVATE_FOLDERS:
            assert settings.folder(name).stat().st_mode & 0o777 == 0o700
        assert settings.folder("models").stat().st_mode & 0o777 == 0o755
        shared = Settings(TTS_DATA_DIR=tmp_path)
        (tmp_path / "cloned_voices").mkdir()
        (tmp_path / "audio_cache").mkdir()
        (tmp_path / "audio_cache").chmod(0o2775)
        shared.close_to_others()
        assert (tmp_path / "cloned_voices").stat().st_mode & 0o777 == 0o750
        assert (tmp_path / "audio_cache").stat().st_mode & 0o7777 == 0o2770  # the folder is shared by its group
    finally:
        os.umask(old_mask)


def test_unwritable_folders_are_reported(tmp_path, monkeypatch):
    settings = Settings(TTS_DATA_DIR=tmp_path)
    for name in ("models", "cloned_voices"):
        settings.folder(name)
    assert settings.unwritable_folders() == []
    monkeypatch.setattr("app.settings.os.access", lambda path, mode: Path(path).name != "cloned_voices")
    assert settings.unwritable_folders() == [tmp_path / "cloned_voices"]
