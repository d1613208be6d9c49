"""`setback serve`: vLLM's own server with the guard. Owns the options it adds, the defaults it
changes, and the order of the checks before the long start-up. Does not set up the API-server
processes (plugin.py).
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NoReturn

from guard.errors import GuardError, PolicyInvalid, Unsupported
from guard.policy_file import load_policy
from guard.store.keys import KeyStore
from guard.vllm.cpu import PLUGIN
from guard.vllm.cpu.backend import require_installed
from guard.vllm.cpu.processor import bfloat16_is_slow
from guard.vllm.private import check_vllm
from guard.vllm.session import SCHEDULER
from refine.schedule import parse_duration
from server.jobs.child import job_command, job_environment, supervised
from server.jobs.webhooks import receiver_of
from server.launch.models import DEFAULT, NamedModel, find_model, named_model, names
from server.launch.preflight import check_model
from server.launch.processes import share_process
from server.launch.revision import folder_revision
from server.launch.shipped import install
from server.launch.vllm_options import MIN_LORAS, add_middlewares, check_access, check_options
from server.settings import PREFIX, Settings, SettingsInvalid, load_settings
from server.telemetry import logs, traces

_PLUGINS = ("setback", PLUGIN)
"""As in pyproject.toml: the guard, and the fixes of vLLM's CPU backend."""
_SECRETS = frozenset({"user_salt"})
_CPU_BLOCK_SIZE = 32
_LORA_DEFAULTS = {"enable_lora": True, "max_loras": MIN_LORAS, "max_lora_rank": 32}


def serve(arguments: Sequence[str]) -> None:
    """Serves until stopped. Exits with one message when it cannot start."""
    # Before vLLM's command line adds variables of its own.
    environment = dict(os.environ)
    try:
        options = prepare(arguments)
    except (SettingsInvalid, Unsupported, PolicyInvalid, ValueError) as error:
        _fail(error, code=2)
    except GuardError as error:
        _fail(error, code=1)
    from vllm.entrypoints.cli.serve import ServeSubcommand

    _remove_old_metrics()
    share_process(options, environment)
    with _refining(options):
        ServeSubcommand.cmd(options)


def prepare(arguments: Sequence[str]) -> argparse.Namespace:
    """Loads the plugins, checks everything that can be checked before the long start-up, and
    returns vLLM's options.

    Raises SettingsInvalid, Unsupported, PolicyInvalid, ValueError or another GuardError. Runs its
    own event loop, so do not call it from a running one.
    """
    # vLLM loads plugins once, with its first import.
    load_plugins()
    _choose_log_format(arguments)
    # Imported here because it takes many seconds, and other commands do not need it.
    from vllm.entrypoints.launchers.cli_args import validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args

    cli_env_setup()
    options = parse(arguments)
    check_vllm()
    check_options(options)
    _check_settings(options)
    traces.exporter_class()
    model = prepare_model(options)
    _install_adapter(options, model)
    require_installed()
    configure_logging_from_args(options)
    validate_parsed_serve_args(options)
    return options


def _fail(error: Exception, code: int) -> NoReturn:
    """Ends with the exit codes of all commands: see cli/terminal.py."""
    sys.stderr.write(f"setback: {error}\n")
    sys.exit(code)


def _choose_log_format(arguments: Sequence[str]) -> None:
    """Sets the log format. Call it before importing vLLM, which logs from then on."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--log-format", "--log_format", action=_SetEnvironment)
    early.parse_known_args(arguments)
    # Errors in settings are reported later: options not parsed yet may fix them.
    with suppress(SettingsInvalid):
        if load_settings().log_format == "json":
            logs.begin_json()


def _refining(options: argparse.Namespace) -> AbstractContextManager[None]:
    """Runs the refine job beside the server if --refine-every asks for it."""
    if options.refine_every is None:
        return nullcontext()
    command = job_command(options, options.refine_every)
    return supervised(command, job_environment(options))


def _check_settings(options: argparse.Namespace) -> None:
    """Raises SettingsInvalid, PolicyInvalid, StoreUnavailable or Unsupported before the long
    start-up instead of after it."""

    async def keys_in_force(settings: Settings) -> bool:
        store = KeyStore(settings.database_url)
        try:
            await store.check()
            return any(key.revoked_at is None for key in await store.list())
        finally:
            await store.close()

    settings = load_settings()
    load_policy(settings.policy_file)
    receiver_of(settings)
    check_access(options, keys=asyncio.run(keys_in_force(settings)))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses vLLM's options and ours, with our defaults; argparse refuses unknown ones."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.platforms import current_platform
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(
        prog="setback serve",
        usage="setback serve [MODEL] [OPTIONS]",
        description="Serve a model with the guard in front of every answer. MODEL is a folder, a "
        f"Hub name, or one of {', '.join(names())}; the default is {DEFAULT}. Takes vLLM's "
        "options too; --help=GROUP or --help=all shows more of them.",
    )
    make_arg_parser(parser)
    _add_settings(parser)
    parser.set_defaults(host="127.0.0.1")
    # By priority, so that the refine loop's requests wait for all others.
    parser.set_defaults(scheduling_policy="priority", **_LORA_DEFAULTS)
    if current_platform.is_cpu():
        # With smaller blocks, a critique reuses more of its answer's KV cache.
        parser.set_defaults(enforce_eager=True, block_size=_CPU_BLOCK_SIZE)
        parser.set_defaults(scheduler_cls=SCHEDULER)
    options: argparse.Namespace = parser.parse_args(list(arguments))
    options.model_tag = options.model_tag or DEFAULT
    model = named_model(options.model_tag)
    if model is not None:
        _set_model_defaults(options, model)
        if options.dtype == "auto" and current_platform.is_cpu() and bfloat16_is_slow():
            # Named models are small; for others twice the memory might not be available.
            options.dtype = "float32"
    add_middlewares(options)
    return options


def _set_model_defaults(options: argparse.Namespace, model: NamedModel) -> None:
    """Sets the options that suit a named model, unless the command line sets them."""
    options.served_model_name = options.served_model_name or [model.served_model_name]
    for name, value in model.options.items():
        setattr(options, name, getattr(options, name) or value)


def prepare_model(options: argparse.Namespace) -> NamedModel:
    """Creates the model's folder if needed, checks it, and passes its path to vLLM.

    Raises ValueError, also for a model that cannot be served, and SettingsInvalid.
    """
    settings = load_settings()
    model = find_model(options.model_tag)
    # Child processes inherit the environment.
    for name in ("critique", "verdict_tokens", "reminder", "world"):
        if name not in settings.model_fields_set and getattr(model, name) is not None:
            os.environ[f"{PREFIX}{name.upper()}"] = str(getattr(model, name))
    options.model_tag = str(model.prepare(settings.models_dir))
    check_model(options)
    return model


def _install_adapter(options: argparse.Namespace, model: NamedModel) -> None:
    """Installs and activates the adapter that ships with a model, at its first start. Raises
    StoreUnavailable."""
    if model.adapter is None:
        return
    settings = load_settings()
    installed = asyncio.run(
        install(
            model.adapter,
            model=options.served_model_name[0],
            model_revision=folder_revision(Path(options.model_tag)),
            database_url=settings.database_url,
            folder=settings.adapter_folder,
        )
    )
    if installed:
        sys.stderr.write(f"setback: the adapter that ships with {model.name} is now active\n")


def _add_settings(parser: Any) -> None:
    """Adds an option for each setting. It sets the variable, which child processes inherit."""
    group = parser.add_argument_group("Setback", "Also as SETBACK_* variables or in setback.toml.")
    group.add_argument(
        "--refine-every",
        type=_duration,
        metavar="DURATION",
        help="Run the refine job beside the server, with this pause: 30m, 6h, 1d. No variable.",
    )
    for name, field in Settings.model_fields.items():
        if name not in _SECRETS and name != "refine":
            group.add_argument(
                f"--{name.replace('_', '-')}",
                action=_SetEnvironment,
                metavar=name.upper(),
                help=field.description,
            )


def _duration(text: str) -> str:
    try:
        parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


class _SetEnvironment(argparse.Action):
    def __call__(
        self,
        _parser: argparse.ArgumentParser,
        _namespace: argparse.Namespace,
        values: Any,
        _option: str | None = None,
    ) -> None:
        os.environ[f"{PREFIX}{self.dest.upper()}"] = str(values)


def _remove_old_metrics() -> None:
    """Removes the metrics of processes that ended, from a folder that the user named: their gauges
    would be added to those of this server."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    for file in Path(folder).glob("*.db") if folder else ():
        file.unlink(missing_ok=True)


def load_plugins() -> None:
    """Adds our plugins to VLLM_PLUGINS without excluding the others, which setting it would do."""
    if "VLLM_PLUGINS" in os.environ:
        named = os.environ["VLLM_PLUGINS"].split(",")
    else:
        groups = (group for group in entry_points().groups if group.startswith("vllm."))
        named = [point.name for group in groups for point in entry_points(group=group)]
    os.environ["VLLM_PLUGINS"] = ",".join(dict.fromkeys([*named, *_PLUGINS]))
