"""`wildreward …`: one command a stage. Parses first and imports what is heavy after, so that help is instant."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from wildreward_ray import __version__
from wildreward_ray.cluster.run_log import say, set_up
from wildreward_ray.core.config.base import Section, flag_of, leaves
from wildreward_ray.core.config.submit import STAGES, SubmitConfig, check_outputs
from wildreward_ray.core.errors import StorageError, UserError, WildRewardError, nearest


@dataclass(frozen=True)
class Command:
    """A stage's command: where its settings and its code are, as `module:name`, imported only when it is called.

    `plan` is what `--dry-run` shows instead; commands without one have no such flag.
    """

    help: str
    config: str
    run: str
    plan: str | None = None


COMMANDS = {
    "extract": Command(
        "chat logs in, labelled dataset out",
        "wildreward_ray.core.config.extract:ExtractConfig",
        "wildreward_ray.stages.commands:extract",
        "wildreward_ray.stages.plan:extract",
    ),
    "train": Command(
        "labelled dataset in, ordinal reward model out",
        "wildreward_ray.core.config.train:TrainConfig",
        "wildreward_ray.stages.commands:train",
        "wildreward_ray.stages.plan:train",
    ),
    "score": Command(
        "conversations in, rewards out, in batch",
        "wildreward_ray.core.config.serve:ScoreConfig",
        "wildreward_ray.stages.commands:score",
        "wildreward_ray.stages.plan:score",
    ),
    "serve": Command(
        "reward model in, rewards over HTTP out",
        "wildreward_ray.core.config.serve:ServeConfig",
        "wildreward_ray.stages.commands:serve",
        "wildreward_ray.stages.plan:serve",
    ),
    "update-model": Command(
        "another model takes over in a running reward service, without downtime",
        "wildreward_ray.core.config.serve:UpdateModelConfig",
        "wildreward_ray.stages.commands:update_model",
    ),
    "online-dpo": Command(
        "prompts and rewards in, better policy out",
        "wildreward_ray.core.config.online_dpo:OnlineDpoConfig",
        "wildreward_ray.stages.commands:online_dpo",
        "wildreward_ray.stages.plan:online_dpo",
    ),
    "run-all": Command(
        "extract, train and online DPO in a row; stages that are done are skipped",
        "wildreward_ray.core.config.run_all:RunAllConfig",
        "wildreward_ray.stages.commands:run_all",
        "wildreward_ray.stages.plan:run_all",
    ),
    "demo": Command(
        "the whole loop on the shipped sample",
        "wildreward_ray.core.config.demo:DemoConfig",
        "wildreward_ray.stages.commands:demo",
    ),
    "inspect": Command(
        "labelled dataset in, a page to browse it and to see what is wrong with it out",
        "wildreward_ray.core.config.inspect:InspectConfig",
        "wildreward_ray.stages.commands:inspect",
    ),
    "experiment": Command(
        "reward models of variants of one dataset, compared: experiment ablation, experiment diversity",
        "wildreward_ray.core.config.experiment:ExperimentConfig",
        "wildreward_ray.stages.commands:experiment",
    ),
    "evaluate": Command(
        "reward model, service or scores in, what a benchmark says of it out",
        "wildreward_ray.core.config.evaluate:EvaluateConfig",
        "wildreward_ray.stages.commands:evaluate",
        "wildreward_ray.stages.plan:evaluate",
    ),
    "bench": Command(
        "throughput as a ratio to the ceiling: bench extract, bench all, bench compare",
        "wildreward_ray.core.config.bench:BenchConfig",
        "wildreward_ray.stages.commands:bench",
    ),
    "submit": Command(
        "run a stage as a job of a Ray cluster: submit [flags of submit] STAGE [flags of the stage]",
        "wildreward_ray.core.config.submit:SubmitConfig",
        "wildreward_ray.stages.commands:submit",
    ),
    "status": Command(
        "how far outputs and jobs are, and how to go on with them",
        "wildreward_ray.core.config.submit:StatusConfig",
        "wildreward_ray.stages.commands:status",
    ),
}
# Commands whose first word after the name is a setting.
_POSITIONAL = {"bench": "stage", "experiment": "kind", "inspect": "uri", "submit": "stage", "status": "runs"}
# Commands whose own flags end at their first word; what follows is a setting of its own, and another command's.
_PASSES_ON = {"submit": "arguments"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0, 2 for what the user can mend, 1 for other failures."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="wildreward", description="Chat logs in, reward model and better policy out.")
    parser.add_argument("--version", action="version", version=__version__)
    names = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        names.add_parser(name, help=command.help, add_help=False)
    if not arguments or arguments[0] not in COMMANDS:
        parser.parse_args(arguments or ["--help"])
        return 2
    return run_stage(arguments[0], arguments[1:])


def run_stage(name: str, arguments: Sequence[str]) -> int:
    """Parse a stage's flags, run it, and turn errors into one line and an exit code."""
    command = COMMANDS[name]
    verbose = "--verbose" in arguments
    if verbose:
        logging.getLogger("wildreward_ray").setLevel(logging.DEBUG)
    prefix = f"wildreward {name}: "
    try:
        set_up(name, logging.DEBUG if verbose else logging.WARNING)
        config = parse(name, _load(command.config), arguments)
        form = _dry_run(name, arguments)
        if form is None:
            _load(command.run)(config)
        else:
            plan = _load(str(command.plan))(config)
            print(plan.as_json() if form == "json" else plan.as_text())
    except WildRewardError as e:
        if verbose:
            logging.getLogger(__name__).debug("traceback", exc_info=True)
        say(name, str(e), event="error", level="error", prefix=f"{prefix}error: ", exit_code=e.exit_code)
        return e.exit_code
    except KeyboardInterrupt:
        say(name, "stopped", event="stopped", level="error", prefix=prefix, exit_code=130)
        return 130
    return 0


def parse(name: str, config: type[Section], arguments: Sequence[str]) -> Section:
    """The configuration that `--config URI` and the other flags give.

    Raises:
        UserError: an unknown flag (names the nearest one), or a value that breaks a rule; of a command that another one is
            passed on to, in that one's flags as well.
        StorageError: a `--config` that can't be read.
    """
    settings = dict(leaves(config))
    own, passed_on = _cut(name, config, list(arguments))
    given, unknown = _parser(name, config).parse_known_args(own)
    for word in unknown:
        if word.startswith("--"):
            flag = word.split("=", 1)[0]
            known = [_spellings(key)[0] for key in settings]
            raise UserError(f"unknown flag {flag!r}: {nearest(flag, known)}")
        raise UserError(f"{word!r} belongs to no flag")
    overrides = {key: value for key, value in vars(given).items() if key in settings and value not in (None, [])}
    if name in _PASSES_ON:
        overrides[_PASSES_ON[name]] = passed_on
    try:
        parsed = config.load(given.config_file, overrides, content=_remote(given.config_file))
    except UserError as e:
        positional = _POSITIONAL.get(name, "")
        if e.flag != flag_of(positional):
            raise
        # A setting that is given without a flag must not be asked for with one.
        raise UserError(e.problem, flag=positional.upper(), hint=e.hint) from e
    if isinstance(parsed, SubmitConfig):
        _check_submitted(parsed)
    return parsed


def _cut(name: str, config: type[Section], arguments: list[str]) -> tuple[list[str], list[str]]:
    """A command's own words and, where it passes the others on, those behind its first word that is no flag or a flag's value."""
    if name not in _PASSES_ON:
        return arguments, []
    valued = {
        "--config",
        *(s for key, field in leaves(config) if field.annotation is not bool for s in _spellings(key)),
    }
    is_value = False
    for i, word in enumerate(arguments):
        if not is_value and not word.startswith("-"):
            return arguments[: i + 1], arguments[i + 1 :]
        is_value = not is_value and word in valued
    return arguments, []


def _remote(file: str | None) -> bytes | None:
    """What a `--config` that is a URI holds; None for a path, which `Section.load` reads itself."""
    if file is None or "://" not in file:
        return None
    from wildreward_ray.cluster.storage import first_line, locate

    try:
        return locate(file, flag="--config").read_bytes()
    except OSError as e:
        raise StorageError(f"can't read {file!r}: {first_line(e)}", flag="--config") from e


def _check_submitted(submitted: SubmitConfig) -> None:
    """Raise here, before anything is uploaded, what the stage of a job would raise about its flags."""
    stage = submitted.stage
    if stage not in STAGES:
        raise UserError(f"{stage!r} is no stage that runs as a job: {nearest(stage, STAGES)}", flag="STAGE")
    config: type[Section] = _load(COMMANDS[stage].config)
    ours = {spelling for key, _ in leaves(SubmitConfig) for spelling in _spellings(key)}
    _, unknown = _parser(stage, config).parse_known_args(list(submitted.arguments))
    for word in unknown:
        flag = word.split("=", 1)[0]
        if flag in ours:
            raise UserError(f"{flag!r} belongs to submit and not to {stage}", hint=f"give it before {stage!r}")
    check_outputs(parse(stage, config, submitted.arguments))


def _parser(name: str, config: type[Section]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"wildreward {name}",
        description=COMMANDS[name].help,
        argument_default=None,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=36, width=110),
    )
    parser.add_argument(
        "--config", dest="config_file", metavar="URI", help="YAML file with these settings: a path or URI"
    )
    parser.add_argument(
        "--verbose", action="store_true", default=argparse.SUPPRESS, help="show logs of workers, and tracebacks"
    )
    if COMMANDS[name].plan is not None:
        _add_dry_run(parser)
    for key, setting in leaves(config):
        if key == _PASSES_ON.get(name):
            continue
        if key == _POSITIONAL.get(name):
            many = _is_list(setting)
            choices = None if many else get_args(setting.annotation) or None
            parser.add_argument(key, nargs="*" if many else "?", help=setting.description, choices=choices)
            continue
        options: dict[str, Any] = {"dest": key, "help": _help(setting), "metavar": _metavar(setting)}
        if name in _PASSES_ON or _POSITIONAL.get(name) == "runs":
            # No flag may take the words that follow it: they are another command, or runs.
            options |= _takes_no_more(setting)
        elif _is_list(setting):
            options["nargs"] = "+"
        elif setting.annotation is bool:
            options |= {"nargs": "?", "const": "true"}
        parser.add_argument(*_spellings(key), **options)
    return parser


def _takes_no_more(setting: FieldInfo) -> dict[str, Any]:
    """Options of a flag that takes one value, again and again where it is a list, or none where it is true or false."""
    if setting.annotation is bool:
        return {"action": "store_const", "const": "true", "metavar": None}
    return {"action": "append"} if _is_list(setting) else {}


def _add_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run",
        nargs="?",
        const="text",
        choices=("text", "json"),
        default=argparse.SUPPRESS,
        help="print what would be done (stages, actors, resources, inputs, outputs, estimates) and start nothing",
    )


def _dry_run(name: str, arguments: Sequence[str]) -> str | None:
    """The form that `--dry-run` asks the plan in, or None without that flag."""
    if COMMANDS[name].plan is None:
        return None
    parser = argparse.ArgumentParser(prog=f"wildreward {name}", add_help=False, allow_abbrev=False)
    _add_dry_run(parser)
    return getattr(parser.parse_known_args(list(arguments))[0], "dry_run", None)


def _spellings(key: str) -> list[str]:
    """`--a.b-c` and `--a.b_c`."""
    if key == "as_json":  # a model's own method is called `json`
        return ["--json"]
    return list(dict.fromkeys([flag_of(key), "--" + key]))


def _help(setting: FieldInfo) -> str:
    text = (setting.description or "").replace("%", "%%")
    if setting.is_required():
        return f"{text} (required)"
    default = setting.default
    if default in (None, PydanticUndefined) or _is_list(setting) or isinstance(default, BaseModel):
        return text
    return f"{text} [{default}]"


def _metavar(setting: FieldInfo) -> str:
    choices = [c for c in get_args(setting.annotation) if isinstance(c, str)]
    if choices:
        return "|".join(choices)
    name = getattr(setting.annotation, "__name__", "")
    return {"int": "N", "float": "X", "str": "TEXT", "bool": "BOOL"}.get(name, "VALUE")


def _is_list(setting: FieldInfo) -> bool:
    options = [setting.annotation, *get_args(setting.annotation)]
    return any(get_origin(option) in (tuple, list) for option in options)


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    loaded: type[Section] | Callable[[Any], None] = getattr(importlib.import_module(module), name)
    return loaded


if __name__ == "__main__":
    sys.exit(main())
