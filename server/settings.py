"""The server's settings. Owns their names, defaults, sources and validation. Acts on none of them.

Sources; the first that has a setting wins:
1. SETBACK_<NAME> in the environment (for the database also DATABASE_URL, after it);
   SETBACK_REFINE_<NAME> for the options in refine/options.py;
2. the TOML file named by SETBACK_CONFIG, or else setback.toml in the working folder.

The model and vLLM's own options are arguments of `setback serve`, not settings.
"""

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from sqlalchemy import URL

from guard.adapter_folder import AdapterFolder, check_url
from guard.call import RevisedFinishReason, StreamMode
from guard.prompts import CritiqueStyle
from guard.store.url import parse_url
from guard.store.webhooks import EVENT_TYPES, EventType
from refine.options import RefineOptions
from server.telemetry.logs import LogFormat

PREFIX = "SETBACK_"
CONFIG_VARIABLE = "SETBACK_CONFIG"
CONFIG_DEFAULT = "setback.toml"


class SettingsInvalid(Exception):
    """One line per wrong setting: the variable or TOML key, what is wrong, and the fix."""


_KUBERNETES_VARIABLE = re.compile(
    r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?$",
    re.IGNORECASE,
)
"""Variables that Kubernetes sets in a container for each service, by the service's name."""


def _listed(value: Any) -> Any:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _database(value: Any) -> URL:
    return parse_url(value) if isinstance(value, str) else value


def _origin(value: str) -> str:
    """Returns the origin of a URL: its scheme and host, without a path."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise ValueError("a URL such as https://guard.example is needed")
    return f"{parts.scheme}://{parts.netloc.lower()}"


def _phone_region(value: str) -> str:
    # Imported here because its tables load slowly, and most commands do not need them.
    from guard.redact import check_region

    return check_region(value)


def _web_url(value: str) -> str:
    _origin(value)
    return value


def _webhook_secret(value: SecretStr) -> SecretStr:
    from server.jobs.webhook_signature import check_secret

    check_secret(value.get_secret_value())
    return value


Route = Annotated[str, Field(pattern=r"^/\S*$", description="a path that begins with /")]


class Settings(BaseSettings):
    """All settings, validated and frozen. Create it with load_settings()."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        # SETBACK_REFINE_MIN_FLAGS is min_flags in [refine].
        env_nested_delimiter="_",
        env_nested_max_split=1,
        extra="forbid",
        frozen=True,
        arbitrary_types_allowed=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )

    database_url: Annotated[URL, NoDecode, BeforeValidator(_database)] = parse_url(
        "sqlite:///data/setback.db"
    )
    """The database: sqlite:///file.db (relative to the working folder) or postgresql://..."""

    database_pool_size: int = Field(default=10, ge=2)
    """The most database connections of one API process."""

    policy_file: Path | None = None
    """The policy file; guard/policy.toml documents its fields and is the default."""

    world: str | None = None
    """The registered world that the served model belongs to (entry point group setback.worlds).
    `setback serve NAME` sets it for a world of that name."""

    reminder: bool = True
    """Guided answering: put the paper's reminder into the system turn. Unset, `setback serve
    smollm2` turns it off."""

    on_failure: Literal["closed", "open"] = "closed"
    """When the critic or the store fails: withhold the answer (closed) or release it (open)."""

    block_input: bool = False
    """Refuse flagged requests with a 400. Each is judged while its answer is generated."""

    stream_mode: StreamMode = StreamMode.WINDOW
    """How streams are held back: `buffer` until the whole answer is judged, `window` as far as a
    verdict covers it, `async` not at all (weaker: a verdict can only end the stream)."""

    stream_window: int = Field(default=32, ge=1)
    """Tokens that the first verdict on a stream waits for."""

    stream_window_growth: float = Field(default=2, ge=1, allow_inf_nan=False)
    """The factor by which the tokens grow that each later verdict waits for."""

    verdict_tokens: int | None = Field(default=None, ge=1)
    """The most tokens of an answer that one verdict covers, streamed or not; longer answers are
    judged in several parts. Unset: 256, or what a model with a short name brings along."""

    revision_max_tokens: int = Field(default=512, ge=1)
    """Tokens for a revision, including its analysis, which takes at most a third."""

    revision_timeout_s: float = Field(default=20, gt=0, allow_inf_nan=False)
    """Seconds for a revision and the verdict on it; then the answer is blocked instead."""

    revisions_at_once: int = Field(default=16, ge=0)
    """Concurrent revisions in one API process; beyond that, flagged answers are blocked."""

    revised_finish_reason: RevisedFinishReason = "stop"
    """What a revised answer ends with: `stop`, like any answer, or `content_filter`, on which many
    clients raise an error and lose the answer. Always `content_filter` when a part of the flagged
    answer was sent before."""

    user_salt: SecretStr | None = Field(default=None, min_length=16)
    """Salt for the hashes of user names. Unset: a random one in the database, shared by all server
    processes; set it to keep the salt out of the database that holds the hashes."""

    redact: bool = False
    """Remove personal data from flags before they are stored: e-mail addresses, phone, card and
    account numbers, IP addresses."""

    redact_phone_region: Annotated[str, AfterValidator(_phone_region)] = "US"
    """The country whose phone numbers are recognised without a country code."""

    retention_days: int | None = Field(default=None, ge=1)
    """Days after which flags are deleted for good. Unset: never."""

    public_url: Annotated[str, AfterValidator(_origin)] | None = None
    """The URL under which browsers reach the server, such as https://guard.example, if a proxy in
    front of it rewrites the Host header or ends TLS. The console needs it there."""

    webhook_url: Annotated[str, AfterValidator(_web_url)] | None = None
    """Where events are sent: flags, ended runs and rollouts, activated adapters and
    policies."""

    webhook_secret: Annotated[SecretStr, AfterValidator(_webhook_secret)] | None = None
    """Signs webhooks as the Standard Webhooks specification says: whsec_ and base64."""

    webhook_events: Annotated[tuple[EventType, ...], NoDecode, BeforeValidator(_listed)] = (
        EVENT_TYPES
    )
    """The events that are sent; in a variable, comma-separated."""

    webhook_categories: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)] = ()
    """Of flags, only those of these categories or criteria are sent. Unset: all."""

    open_routes: Annotated[tuple[Route, ...], NoDecode, BeforeValidator(_listed)] = ()
    """Routes to serve although the guard does not cover them; in a variable, comma-separated."""

    max_body_mib: float = Field(default=32, gt=0, allow_inf_nan=False)
    """The largest request body in MiB, after decoding; larger ones get a 413."""

    critic_timeout_s: float = Field(default=30, gt=0, allow_inf_nan=False)
    """Seconds for a critique; then it counts as failed."""

    refine: RefineOptions = RefineOptions()
    """The refine loop; in the file the table [refine]."""

    critique: CritiqueStyle | None = None
    """How the critic reads a verdict: `yes_no`, for models that are trained for it or large enough,
    or `tone`, for small models without training. Unset: what suits the model. An adapter is read as
    it was trained to be."""

    models_dir: Path = Path("data/models")
    """Where Setback keeps models that it converts itself, such as smollm2."""

    adapters_dir: Path = Path("data/adapters")
    """Where adapters are stored, one numbered directory each; servers and refine jobs share it,
    unless they share a URL."""

    adapters_url: Annotated[str, AfterValidator(check_url)] | None = None
    """A URL that servers and refine jobs on several machines share instead, such as
    s3://bucket/adapters; `adapters_dir` is then each machine's copy."""

    adapter_poll_s: float = Field(default=2, gt=0, allow_inf_nan=False)
    """Seconds between two checks of which adapter is active."""

    rollout_answers: int = Field(default=200, ge=1)
    """Answers of the new adapter and of the old one before a staged rollout is decided on for the
    first time; again at twice as many, and so on."""

    rollout_hours: float = Field(default=24, gt=0, allow_inf_nan=False)
    """Hours after which a staged rollout that could not be decided on is reverted."""

    rollout_margin: float = Field(default=0.05, gt=0, lt=1)
    """By how much a new adapter's share of flagged and of withheld answers may be above the old
    one's, as a difference: 0.05 is five points."""

    rollout_error_margin: float = Field(default=0.02, gt=0, lt=1)
    """The same for the share of answers whose critique or flag failed."""

    rollout_slowdown: float = Field(default=1.3, gt=1, allow_inf_nan=False)
    """How many times the old adapter's seconds for each token a new one may take."""

    log_format: LogFormat = "text"
    """The format of the server's log: vLLM's own lines (`text`) or JSON objects (`json`)."""

    @property
    def adapter_folder(self) -> AdapterFolder:
        """Where adapters are."""
        return AdapterFolder(self.adapters_dir, self.adapters_url)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Returns arguments (tests), environment, DATABASE_URL and file, in this order."""
        url = os.environ.get("DATABASE_URL")
        database = InitSettingsSource(settings_cls, {"database_url": url} if url else {})
        file = InitSettingsSource(settings_cls, _in_file())
        assert isinstance(env_settings, EnvSettingsSource)
        env_settings.env_vars = {
            name: value
            for name, value in env_settings.env_vars.items()
            if not _KUBERNETES_VARIABLE.search(name)
        }
        return init_settings, env_settings, database, file


def ignored_variables() -> list[str]:
    """Returns environment variables that begin like settings but are none, sorted."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    known |= {f"{PREFIX}REFINE_{name.upper()}" for name in RefineOptions.model_fields}
    known.add(CONFIG_VARIABLE)
    return sorted(
        name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known
    )


def _in_file() -> dict[str, Any]:
    """Returns the file's content, if there is a file. Editors may add a byte-order mark."""
    path = config_file()
    return tomllib.loads(path.read_text("utf-8-sig")) if path.is_file() else {}


def config_file() -> Path:
    """Returns the path of the TOML file. Only the default one may be missing."""
    return Path(os.environ.get(CONFIG_VARIABLE) or CONFIG_DEFAULT)


def with_refine(
    settings: Settings, *, server_url: str | None = None, gate_file: Path | None = None
) -> Settings:
    """Returns the settings with the given options of the refine loop replaced."""
    options = {"server_url": server_url, "gate_file": gate_file}
    update = {name: value for name, value in options.items() if value is not None}
    return settings.model_copy(update={"refine": settings.refine.model_copy(update=update)})


def load_settings() -> Settings:
    """Returns the settings. Raises SettingsInvalid."""
    path = config_file()
    if os.environ.get(CONFIG_VARIABLE) and not path.is_file():
        raise SettingsInvalid(f"{CONFIG_VARIABLE}: there is no file {path}; correct it or unset it")
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsInvalid(explain(error)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsInvalid(f"{path}: not a TOML file in UTF-8: {error}") from error
    except OSError as error:
        raise SettingsInvalid(f"{path}: cannot be read: {error.strerror}") from error


def explain(error: ValidationError) -> str:
    """Returns one line per wrong setting, named as the user wrote it, without its value."""
    return "\n".join(_explain_one(_name(item["loc"]), item) for item in error.errors())


def _name(location: tuple[int | str, ...]) -> str:
    """Returns the setting's name; in its table, as "refine.min_flags"."""
    depth = 2 if location[0] == "refine" else 1
    return ".".join(str(part) for part in location[:depth])


def _explain_one(name: str, item: Any) -> str:
    if item["type"] == "extra_forbidden":
        fields = RefineOptions.model_fields if name.startswith("refine.") else Settings.model_fields
        known = ", ".join(fields)
        return f"{_source_name(name)}: unknown setting; remove it or use one of {known}"
    if name == "refine":
        return (
            f"{_source_name(name)}: a table, not a value; set its options one by one, such as "
            f"{PREFIX}REFINE_MIN_FLAGS, or in {config_file()} under [refine]"
        )
    problem = item["msg"].removeprefix("Value error, ")
    return f"{_source_name(name)}: {problem[0].lower()}{problem[1:]}"


def _source_name(name: str) -> str:
    variables = [PREFIX + name.upper().replace(".", "_")]
    variables += ["DATABASE_URL"] * (name == "database_url")
    set_variables = {variable.upper() for variable, value in os.environ.items() if value}
    for variable in variables:
        if variable in set_variables:
            return variable
    return f"{config_file()}: {name}"
