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
from wildreward_ray.core.config.base import Section, flag_of, leaves
from wildreward_ray.core.errors import UserError, WildRewardError, nearest


@dataclass(frozen=True)
class Command:
    """A stage's command: where its settings and its code are, as `module:name`, imported only when it is called."""

    help: str
    config: str
    run: str


COMMANDS = {
    "extract": Command(
        "chat logs in, labelled dataset out",
        "wildreward_ray.core.config.extract:ExtractConfig",
        "wildreward_ray.stages.commands:extract",
    ),
    "train": Command(
        "labelled dataset in, ordinal reward model out",
        "wildreward_ray.core.config.train:TrainConfig",
        "wildreward_ray.stages.commands:train",
    ),
    "score": Command(
        "conversations in, rewards out, in batch",
        "wildreward_ray.core.config.serve:ScoreConfig",
        "wildreward_ray.stages.commands:score",
    ),
    "serve": Command(
        "reward model in, rewards over HTTP out",
        "wildreward_ray.core.config.serve:ServeConfig",
        "wildreward_ray.stages.commands:serve",
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
    ),
    "run-all": Command(
        "extract, train and online DPO in a row; stages that are done are skipped",
        "wildreward_ray.core.config.run_all:RunAllConfig",
        "wildreward_ray.stages.commands:run_all",
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
    ),
    "bench": Command(
        "throughput as a ratio to the ceiling: bench extract, bench all, bench compare",
        "wildreward_ray.core.config.bench:BenchConfig",
        "wildreward_ray.stages.commands:bench",
    ),
}
# Commands whose first word after the name is a setting.
_POSITIONAL = {"bench": "stage", "experiment": "kind", "inspect": "uri"}


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
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    if verbose:
        logging.getLogger("wildreward_ray").setLevel(logging.DEBUG)
    try:
        config = parse(name, _load(command.config), [a for a in arguments if a != "--verbose"])
        _load(command.run)(config)
    except WildRewardError as e:
        if verbose:
            logging.getLogger(__name__).debug("traceback", exc_info=True)
        print(f"wildreward {name}: error: {e}", file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        print(f"wildreward {name}: stopped", file=sys.stderr)
        return 130
    return 0


def parse(name: str, config: type[Section], arguments: Sequence[str]) -> Section:
    """The configuration that `--config FILE` and the other flags give.

    Raises:
        UserError: an unknown flag (names the nearest one), or a value that breaks a rule.
    """
    parser = _parser(name, config)
    given, unknown = parser.parse_known_args(list(arguments))
    for word in unknown:
        if word.startswith("--"):
            flag = word.split("=", 1)[0]
            known = [flag_of(key) for key, _ in leaves(config)]
            raise UserError(f"unknown flag {flag!r}: {nearest(flag, known)}")
        raise UserError(f"{word!r} belongs to no flag")
    overrides = {key: value for key, value in vars(given).items() if key not in ("config_file",) and value is not None}
    try:
        return config.load(given.config_file, overrides)
    except UserError as e:
        positional = _POSITIONAL.get(name, "")
        if e.flag != flag_of(positional):
            raise
        # A setting that is given without a flag must not be asked for with one.
        raise UserError(e.problem, flag=positional.upper(), hint=e.hint) from e


def _parser(name: str, config: type[Section]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"wildreward {name}",
        description=COMMANDS[name].help,
        argument_default=None,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=36, width=110),
    )
    parser.add_argument("--config", dest="config_file", metavar="FILE", help="YAML file with these settings")
    parser.add_argument(
        "--verbose", action="store_true", default=argparse.SUPPRESS, help="show logs of workers, and tracebacks"
    )
    for key, setting in leaves(config):
        if key == _POSITIONAL.get(name):
            parser.add_argument(key, nargs="?", help=setting.description, choices=get_args(setting.annotation) or None)
            continue
        options: dict[str, Any] = {"dest": key, "help": _help(setting), "metavar": _metavar(setting)}
        if _is_list(setting):
            options["nargs"] = "+"
        elif setting.annotation is bool:
            options |= {"nargs": "?", "const": "true"}
        parser.add_argument(*_spellings(key), **options)
    return parser


def _spellings(key: str) -> list[str]:
    """`--a.b-c` and `--a.b_c`."""
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
