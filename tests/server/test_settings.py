"""Settings: which source wins, and the messages about wrong values."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from server.settings import SettingsInvalid, ignored_variables, load_settings

SALT = "sixteen letters+"


def write(folder: Path, text: str) -> None:
    (folder / "setback.toml").write_text(text)


def test_the_defaults(clean_folder: Path) -> None:
    settings = load_settings()
    assert settings.database_url.database == "data/setback.db"
    assert settings.policy_file is None
    assert settings.reminder is True
    assert settings.on_failure == "closed"
    assert settings.user_salt is None
    assert settings.open_routes == ()
    assert settings.critic_timeout_s == 30


def test_everything_from_the_environment(
    clean_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {
        "DATABASE_URL": "postgres://me:pw@host/flags",
        "POLICY_FILE": "my.toml",
        "REMINDER": "false",
        "ON_FAILURE": "open",
        "USER_SALT": SALT,
        "OPEN_ROUTES": "/pooling, /invocations",
        "CRITIC_TIMEOUT_S": "2.5",
        "REDACT": "true",
        "REDACT_PHONE_REGION": "GB",
    }
    for name, value in environment.items():
        monkeypatch.setenv(f"SETBACK_{name}", value)
    settings = load_settings()
    assert settings.database_url.host == "host"
    assert settings.policy_file == Path("my.toml")
    assert settings.reminder is False
    assert settings.on_failure == "open"
    assert settings.user_salt is not None
    assert settings.user_salt.get_secret_value() == SALT
    assert settings.open_routes == ("/pooling", "/invocations")
    assert settings.critic_timeout_s == 2.5
    assert settings.redact is True
    assert settings.redact_phone_region == "GB"
    assert "pw" not in repr(settings)
    assert SALT not in repr(settings)


def test_everything_from_the_file(clean_folder: Path) -> None:
    write(
        clean_folder,
        """
        database_url = "sqlite:///here.db"
        policy_file = "my.toml"
        reminder = false
        on_failure = "open"
        user_salt = "sixteen letters+"
        open_routes = ["/pooling"]
        critic_timeout_s = 3
        """,
    )
    settings = load_settings()
    assert settings.database_url.database == "here.db"
    assert settings.open_routes == ("/pooling",)
    assert settings.critic_timeout_s == 3


def test_the_environment_wins_over_the_file(
    clean_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(clean_folder, 'database_url = "sqlite:///file.db"\ncritic_timeout_s = 1')
    assert load_settings().database_url.database == "file.db"
    monkeypatch.setenv("DATABASE_URL", "sqlite:///usual.db")
    assert load_settings().database_url.database == "usual.db"
    monkeypatch.setenv("SETBACK_DATABASE_URL", "sqlite:///own.db")
    assert load_settings().database_url.database == "own.db"
    assert load_settings().critic_timeout_s == 1


def test_an_empty_variable_is_ignored(clean_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SETBACK_POLICY_FILE", "")
    monkeypatch.setenv("DATABASE_URL", "")
    monkeypatch.setenv("SETBACK_CONFIG", "")
    assert load_settings().policy_file is None
    assert load_settings().database_url.database == "data/setback.db"


def test_setback_config_names_another_file(
    clean_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (clean_folder / "other.toml").write_text("critic_timeout_s = 7")
    monkeypatch.setenv("SETBACK_CONFIG", "other.toml")
    assert load_settings().critic_timeout_s == 7
    monkeypatch.setenv("SETBACK_CONFIG", "absent.toml")
    with pytest.raises(SettingsInvalid, match=r"SETBACK_CONFIG: there is no file absent\.toml"):
        load_settings()


def test_settings_are_frozen(clean_folder: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().reminder = False  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SETBACK_REMINDER", "perhaps", "boolean"),
        ("SETBACK_ON_FAILURE", "ajar", "'closed' or 'open'"),
        ("SETBACK_CRITIC_TIMEOUT_S", "0", "greater than 0"),
        ("SETBACK_CRITIC_TIMEOUT_S", "inf", "finite"),
        ("SETBACK_CRITIC_TIMEOUT_S", "soon", "number"),
        ("SETBACK_OPEN_ROUTES", "pooling", "match pattern"),
        ("SETBACK_USER_SALT", "short", "at least 16"),
        ("SETBACK_REDACT_PHONE_REGION", "UK", "write two capital letters such as US, GB or DE"),
        ("SETBACK_DATABASE_URL", "mysql://h/d", "use sqlite or postgresql"),
        ("DATABASE_URL", "flags.db", "sqlite:///file.db"),
    ],
)
def test_a_wrong_variable_is_named_with_the_fix(
    clean_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsInvalid, match=rf"^{name}: .*{message}"):
        load_settings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('reminder = "perhaps"', "reminder: .*boolean"),
        ("timeout = 3", "timeout: unknown setting; .*critic_timeout_s"),
        ('database_url = "mysql://h/d"', "database_url: .*use sqlite or postgresql"),
        ("database_url = 7", "database_url: .*URL"),
        ('open_routes = [1, "/a"]', "open_routes: .*string"),
        ("reminder =", "not a TOML file in UTF-8"),
    ],
)
def test_a_wrong_key_in_the_file_is_named_with_the_fix(
    clean_folder: Path, text: str, message: str
) -> None:
    write(clean_folder, text)
    with pytest.raises(SettingsInvalid, match=rf"^setback\.toml: {message}"):
        load_settings()


def test_all_wrong_settings_are_reported_at_once_without_secrets(
    clean_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SETBACK_USER_SALT", "tooshort")
    monkeypatch.setenv("DATABASE_URL", "mysql://me:s3cret@h/d")
    with pytest.raises(SettingsInvalid) as raised:
        load_settings()
    assert len(str(raised.value).splitlines()) == 2
    assert "tooshort" not in str(raised.value)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SETBACK_REFINE_PORT", "tcp://10.0.0.1:80"),
        ("SETBACK_REFINE_PORT_80_TCP", "tcp://10.0.0.1:80"),
        ("SETBACK_REFINE_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("SETBACK_REFINE_SERVICE_HOST", "10.0.0.1"),
        ("SETBACK_REFINE_SERVICE_PORT_HTTP", "80"),
        ("SETBACK_SERVICE_HOST", "10.0.0.1"),
    ],
)
def test_kubernetes_service_variables_are_not_settings(
    clean_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("SETBACK_REFINE_MIN_FLAGS", "7")
    monkeypatch.setenv(name, value)
    assert load_settings().refine.min_flags == 7
    assert ignored_variables() == [name]


def test_a_variable_that_is_misspelt_is_known_to_be_ignored(
    clean_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SETBACK_CRITIC_TIMEOUT", "7")
    monkeypatch.setenv("SETBACK_CRITIC_TIMEOUT_S", "7")
    assert ignored_variables() == ["SETBACK_CRITIC_TIMEOUT"]


@pytest.mark.parametrize("value", ["true", "3", "[1]"])
def test_a_value_instead_of_a_table_is_reported(
    clean_folder: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("SETBACK_REFINE", value)
    with pytest.raises(SettingsInvalid, match="^SETBACK_REFINE: a table.*SETBACK_REFINE_MIN_FLAGS"):
        load_settings()
    monkeypatch.delenv("SETBACK_REFINE")
    write(clean_folder, f"refine = {value}")
    with pytest.raises(SettingsInvalid, match=r"^setback.toml: refine: a table.*under \[refine\]"):
        load_settings()


def test_a_file_as_editors_on_windows_write_it(clean_folder: Path) -> None:
    text = "critic_timeout_s = 7\r\n\r\n[refine]\r\nmin_flags = 3\r\n"
    (clean_folder / "setback.toml").write_bytes(b"\xef\xbb\xbf" + text.encode())
    settings = load_settings()
    assert (settings.critic_timeout_s, settings.refine.min_flags) == (7, 3)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://Guard.example", "https://guard.example"),
        ("https://guard.example:8443/console/", "https://guard.example:8443"),
    ],
)
def test_of_a_public_url_the_origin_is_kept(
    clean_folder: Path, monkeypatch: pytest.MonkeyPatch, url: str, origin: str
) -> None:
    monkeypatch.setenv("SETBACK_PUBLIC_URL", url)
    assert load_settings().public_url == origin


@pytest.mark.parametrize("url", ["guard.example", "ftp://guard.example", "https://a@b.example"])
def test_what_is_no_public_url_is_refused_by_name(
    clean_folder: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("SETBACK_PUBLIC_URL", url)
    with pytest.raises(SettingsInvalid, match="SETBACK_PUBLIC_URL.*https://guard.example"):
        load_settings()
