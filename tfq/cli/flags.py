# SPDX-License-Identifier: Apache-2.0
"""The flags of the commands: the config tree as absl flags. The only file of tfq that imports absl.flags.

A command has the flags of its own section under their short path (`convert --scheme=int8` sets `conversion.scheme`)
and, under their full path, the flags of the other fields that it reads (`COMMANDS`). `run` has all of its flags under
their full path. Precedence: default < --config < flag.
"""

import dataclasses
import functools
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from absl import flags

from tfq import artifacts, config, registry
from tfq.config.base import choices_of, field_types, is_section, section_field
from tfq.errors import InputError, did_you_mean
from tfq.provenance import SCHEMA_VERSION

COMMON = ("model", "data", "out", "plugin", "executor", "seed")


class CommandFlags(NamedTuple):
    """The flags of one command.

    Args:
        command: Its name: a file in pipelines/.
        model: What --model accepts, for the help; "" if the command has no --model.
        uses: What it reads besides its own section, --model, --out and --plugin: sections, fields, "allow_code".
        ignores: What it does not read of the sections that it uses, or sets itself.
        arguments: The fields that arguments without a flag set: the last argument sets the last field.
    """

    command: str
    model: str
    uses: tuple[str, ...]
    ignores: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()


_KERAS = "a .keras or .h5 file, or a SavedModel directory that Keras 2's model.save wrote"
_KERAS_OR_TFLITE = "a .keras, .h5 or float .tflite file, or a SavedModel directory"
# What a command reads of `conversion` to convert a model to float32.
_FLOAT_CONVERSION = ("conversion.input_shapes", "conversion.signature")

# Section of RunConfig that belongs to the command -> its flags; None is `run`, which reads all sections.
COMMANDS: dict[str | None, CommandFlags] = {
    "training": CommandFlags(
        "train",
        "the name of a model that tfq builds, such as digits_cnn; or a .keras or .h5 file",
        ("data", "seed", "allow_code"),
    ),
    "compression": CommandFlags("compress", _KERAS, ("data", "seed", "allow_code")),
    "conversion": CommandFlags("convert", _KERAS_OR_TFLITE, ("data", "allow_code", "executor")),
    "audit": CommandFlags("audit", "a .tflite file", ()),
    "evaluation": CommandFlags(
        "evaluate",
        "a .tflite file; another model is converted to float32: a .keras or .h5 file or a SavedModel directory",
        ("data", "allow_code", "executor", *_FLOAT_CONVERSION),
    ),
    "benchmark": CommandFlags("benchmark", "a .tflite file", ("data", "seed")),
    "search": CommandFlags(
        "search",
        _KERAS_OR_TFLITE,
        ("data", "allow_code", "conversion"),
        ignores=(
            "conversion.calibration.method",
            "conversion.techniques",
            "conversion.sparsity",
            "conversion.sparsity_m_by_n",
        ),
    ),
    "sweep": CommandFlags(
        "sweep",
        f"{_KERAS_OR_TFLITE}; or the name of a model that tfq builds; empty if the grid names models",
        ("data", "seed", "allow_code", "executor"),
        ignores=("executor.num_shards",),
        arguments=("sweep.action", "out"),
    ),
    "analysis": CommandFlags(
        "analyze",
        "an int8 .tflite file; with --bit_widths and without --reference, a float model: a .keras, .h5 or .tflite "
        "file, or a SavedModel directory",
        ("data", "allow_code", *_FLOAT_CONVERSION),
    ),
    "comparison": CommandFlags(
        "compare",
        "the .tflite file or record that is compared with the reference: the last argument, B",
        ("data",),
        arguments=("comparison.reference", "model"),
    ),
    "export": CommandFlags("export", "a .tflite file", ("data", "seed")),
    "report": CommandFlags("report", "", (), arguments=("report.folder",)),
    None: CommandFlags(
        "run",
        f"{_KERAS_OR_TFLITE}; or the name of a model that tfq builds",
        ("allow_code",),
        ignores=(
            "executor",
            "search",
            "sweep",
            "analysis",
            "comparison",
            "report",
            "evaluation.reference",
            "benchmark.against",
            "audit.execute",
            "export.metadata_only",
            "export.record",
        ),
    ),
}


class Setting(NamedTuple):
    """A flag of the config tree: its name, its path in RunConfig, its type and its declaration."""

    flag: str
    path: tuple[str, ...]
    type: Any
    field: dataclasses.Field


class Invocation(NamedTuple):
    """A parsed command line.

    Args:
        config: The settings: defaults, then --config, then flags.
        format: "text" or "json": what is printed.
        allow_code: Whether code in the model file may run.
        verbosity: 1 shows TensorFlow's messages and tracebacks.
        section: The command's own section of the config; None for `run`.
        fresh: Whether to delete the results of earlier runs (`run`).
        preflight: Whether to only report what can be compressed (`compress`).
    """

    config: config.RunConfig
    format: str
    allow_code: bool
    verbosity: int
    section: str | None = None
    fresh: bool = False
    preflight: bool = False


class HelpRequested(Exception):
    """The arguments contain --help; the exception's message is the text to print."""


def every_setting() -> list[Setting]:
    """Return a flag for each field of RunConfig, under its full path."""
    return list(_walk(config.RunConfig, (), ()))


@functools.cache
def settings_of(section: str | None) -> tuple[Setting, ...]:
    """Return the flags of the command that `section` belongs to (None is `run`); those of its own section are last."""
    if section is None:
        settings = every_setting()
    else:
        uses = (*(["model"] if COMMANDS[section].model else []), "out", "plugin", *COMMANDS[section].uses)
        settings = [item for item in every_setting() if any(_is_within(item.path, name) for name in uses)]
        settings += _walk(field_types(config.RunConfig)[section], (section,), ())
    ignores = COMMANDS[section].ignores
    return tuple(setting for setting in settings if not any(_is_within(setting.path, name) for name in ignores))


def _is_within(path: tuple[str, ...], name: str) -> bool:
    """Check whether `path` is the field or section called `name`, or a field in that section."""
    return f"{'.'.join(path)}.".startswith(f"{name}.")


def parse(arguments: Sequence[str], *, command: str, section: str | None, description: str) -> Invocation:
    """Parse a command line.

    Args:
        arguments: The program's name, then the arguments.
        command: The command's name, for messages and the help.
        section: The command's own section of the config; None for `run`.
        description: The first part of the help: what the command does.

    Raises:
        HelpRequested: The arguments contain --help.
        InputError: A flag is unknown, a value is not allowed, or there are too many arguments without a flag.
    """
    settings = settings_of(section)
    values = _define(settings, section)
    try:
        rest = values(list(arguments))
    except flags.Error as error:
        raise InputError(
            f"{_explain(error, values)} (tfq {command} --help lists all flags)", got=getattr(error, "flagname", None)
        ) from error
    if "model" in values and values["model"].present > 1:
        advice = ". Name the other files with --against" if "against" in values else ""
        raise InputError(
            f"--model is set {values['model'].present} times, expected one{advice}",
            field="model",
            got=values["model"].value,
        )
    if not values["help"].value:
        _take_arguments(rest[1:], settings, values, COMMANDS[section].arguments)
    tree: dict[str, Any] = {}
    if values["config"].value:
        tree = _read_config(values["config"].value, section)
    _load_plugins(values["plugin"].value or tree.get("plugin", []))
    if tree:
        _check_config(tree, values["config"].value)
    if values["help"].value:
        raise HelpRequested(_help(command, section, description, settings, values))
    for setting in settings:
        if values[setting.flag].present:
            _assign(tree, setting.path, _plain(setting, values[setting.flag].value))
    return Invocation(
        config=config.RunConfig.from_dict(tree),
        format=values["format"].value,
        allow_code="allow_code" in values and values["allow_code"].value,
        verbosity=values["verbosity"].value,
        section=section,
        fresh="fresh" in values and values["fresh"].value,
        preflight="preflight" in values and values["preflight"].value,
    )


def _take_arguments(
    arguments: Sequence[str], settings: Sequence[Setting], values: flags.FlagValues, fields: tuple[str, ...]
) -> None:
    """Set the flags of `fields` to the arguments that are not flags, from the last one on.

    Raises:
        InputError: There are too many arguments, or a flag sets the same field.
    """
    if len(arguments) > len(fields):
        expected = f"at most {len(fields)} files" if fields else "flags only, such as --model=FILE"
        raise InputError(
            f"unexpected argument {arguments[len(fields)]!r}: expected {expected}",
            expected=expected,
            got=arguments[len(fields)],
        )
    names = {".".join(setting.path): setting.flag for setting in settings}
    for field, argument in zip(reversed(fields), reversed(arguments), strict=False):
        flag = values[names[field]]
        if flag.present:
            raise InputError(
                f"unexpected argument {argument!r}: --{flag.name} is set too, expected one of them",
                field=field,
                expected="one value",
                got=argument,
            )
        flag.parse(argument)


def with_flags(message: str, section: str | None, *, field: str | None = None) -> str:
    """Return `message` with the config fields in it written as flags.

    "conversion.scheme" becomes "--scheme" for `tfq convert`, "--conversion.scheme" for `tfq run`, and
    "tfq convert --scheme" for a command without such a flag. "compression.qat.enabled=False" becomes "--noqat". A field
    of one word ("model", "out") is translated if a value follows it ("model=x.h5"), and at the start of an error about
    this `field`.

    Args:
        message: A message of the library.
        section: The section of the command that shows the message; None is `run`.
        field: The field that an error is about.
    """
    spelled = _spelled(section)
    if field in spelled and "." not in field and re.match(rf"{field}\b(?![.=])", message):
        message = spelled[field][0] + message[len(field) :]

    def replace(match: re.Match[str]) -> str:
        name, value = match["name"], match["value"]
        flag, is_switch = spelled[name]
        if "." not in name and not value:
            return match[0]
        if is_switch and value:
            stem, dashes, word = flag.rpartition("--")
            return f"{stem}{dashes}{'no' if value[1:].lower() == 'false' else ''}{word}"
        return flag + (value or "")

    names = "|".join(re.escape(name) for name in sorted(spelled, key=len, reverse=True))
    values = r"(?P<value>=(?:[Tt]rue|[Ff]alse)\b|=(?=\S))?"
    return re.sub(rf"(?<![\w./\-])(?P<name>{names})(?!\w|\.\w){values}", replace, message)


@functools.cache
def _spelled(section: str | None) -> dict[str, tuple[str, bool]]:
    """Return config path -> (its flag, whether it is a switch), for messages of the command of `section`."""
    results = {"allow_code": ("--allow_code", True)}
    own = {setting.path: setting.flag for setting in settings_of(section)}
    elsewhere = {
        setting.path: f"tfq {other.command} --{setting.flag}"
        for top, other in COMMANDS.items()
        for setting in settings_of(top)
        if top is not None and setting.path[0] == top
    }
    for setting in every_setting():
        top = setting.path[0]
        if setting.path in own:
            flag = f"--{own[setting.path]}"
        elif top in COMMON:
            flag = f"--{setting.flag}"
        else:
            flag = elsewhere[setting.path]
        is_switch = setting.type is bool
        results[".".join(setting.path)] = (flag, is_switch)
        if setting.field.metadata.get("names_section") and len(setting.path) > 2:
            results[".".join(setting.path[:-1])] = (flag, is_switch)
    return results


def _load_plugins(paths: object) -> None:
    """Run installed plugins and those at `paths`, so that the objects that they register are choices of flags."""
    registry.load_installed_plugins()
    if isinstance(paths, list) and all(isinstance(path, str) for path in paths):  # else from_dict refuses it
        registry.load_plugins(paths)


def _walk(cls: type, path: tuple[str, ...], flag_path: tuple[str, ...]) -> Iterator[Setting]:
    for field in dataclasses.fields(cls):
        kind = field_types(cls)[field.name]
        if is_section(kind):
            yield from _walk(kind, (*path, field.name), (*flag_path, field.name))
        else:
            names_section = field.metadata.get("names_section") and flag_path
            name = ".".join(flag_path if names_section else (*flag_path, field.name))
            yield Setting(name, (*path, field.name), kind, field)


def _define(settings: Sequence[Setting], section: str | None) -> flags.FlagValues:
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # flags may follow arguments
    for setting in settings:
        _define_one(setting, values)
    flags.DEFINE_string(
        "config", None, "JSON file with settings: a config, or a record that tfq wrote", flag_values=values
    )
    flags.DEFINE_enum("format", "text", ["text", "json"], "output on the terminal", flag_values=values)
    if "allow_code" in COMMANDS[section].uses:
        message = "allow code inside the model file to run (Lambda layers, custom classes)"
        flags.DEFINE_boolean("allow_code", False, message, flag_values=values)
    if section is None:
        flags.DEFINE_boolean(
            "fresh", False, "ignore and delete the results of earlier runs in --out", flag_values=values
        )
    if section == "compression":
        message = "only report which layers of --model can be pruned and trained with fake quantization"
        flags.DEFINE_boolean("preflight", False, message, flag_values=values)
    flags.DEFINE_integer(
        "verbosity", 0, "1 shows TensorFlow's messages and tracebacks", short_name="v", flag_values=values
    )
    flags.DEFINE_boolean("help", False, "show this help", flag_values=values)
    return values


def _define_one(setting: Setting, values: flags.FlagValues) -> None:
    kind = next((arm for arm in get_args(setting.type) if arm is not type(None) and arm is not ...), setting.type)
    help_text, default, choices = (
        setting.field.metadata["help"],
        setting.field.default,
        # The config checks the names of an extension point, because an address may follow them.
        () if setting.field.metadata["choices_of"] else setting.field.metadata["choices"],
    )
    if setting.field.metadata["repeatable"]:
        flags.DEFINE_multi_string(setting.flag, [], help_text, flag_values=values)
    elif isinstance(default, tuple):
        flags.DEFINE_list(setting.flag, [str(item) for item in default], help_text, flag_values=values)
    elif choices:
        flags.DEFINE_enum(setting.flag, default, list(choices), help_text, flag_values=values)
    else:
        define = {
            bool: flags.DEFINE_boolean,
            int: flags.DEFINE_integer,
            float: flags.DEFINE_float,
            str: flags.DEFINE_string,
        }[kind]
        define(setting.flag, default, help_text, flag_values=values)


def _plain(setting: Setting, value: Any) -> Any:
    """Return the parsed value of a flag as the JSON value of its field."""
    for kind, word in ((int, "integers"), (float, "numbers")):
        if not isinstance(value, list) or kind not in get_args(setting.type):
            continue
        try:
            return [kind(item) for item in value]
        except ValueError as error:
            raise InputError(
                f"--{setting.flag}: expected {word} separated by commas, got {','.join(value)!r}",
                field=".".join(setting.path),
                expected=word,
                got=",".join(value),
            ) from error
    return value


def _explain(error: flags.Error, values: flags.FlagValues) -> str:
    if isinstance(error, flags.UnrecognizedFlagError):
        # A config has the key `enabled`; its flag has the name of the section.
        section = error.flagname.removeprefix("no").removesuffix(".enabled")
        if error.flagname.endswith(".enabled") and section in values:
            return f"unknown flag --{error.flagname}: use --{section} or --no{section}"
        flags_of_command = [f"--{name}" for name in values]
        return f"unknown flag --{error.flagname}: {did_you_mean(f'--{error.flagname}', flags_of_command)}"
    message = str(error).removesuffix(".")
    return re.sub(
        r"^flag (--[\w.]+)=(.*): could not convert string to float: .*", r"\1: expected a number, got '\2'", message
    )


def _assign(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for depth, name in enumerate(path[:-1]):
        branch = tree.get(name, {})
        if not isinstance(branch, dict):  # the shorthand {"data": "digits"}
            cls = _section_class(path[: depth + 1])
            branch = {section_field(cls): branch}
        tree[name] = branch
        tree = branch
    tree[path[-1]] = value


def _section_class(path: tuple[str, ...]) -> type:
    cls: type = config.RunConfig
    for name in path:
        cls = field_types(cls)[name]
    return cls


def _read_config(path: str, section: str | None) -> dict[str, Any]:
    """Return the config tree in a JSON file.

    The file contains a full config, or a record with one, or only the fields of the command's own section and the
    common fields.
    """
    tree = artifacts.read_json(path, field="config")
    if isinstance(tree, Mapping) and "schema_version" in tree and "config" in tree:
        version = tree["schema_version"]
        if version != SCHEMA_VERSION:
            raise InputError(
                f"--config={path}: the record has schema_version {version!r}, expected {SCHEMA_VERSION}. Replay it "
                "with the tfq that wrote it, or write its settings again under their current names",
                field="config",
                expected=SCHEMA_VERSION,
                got=version,
            )
        tree = tree["config"]
    if not isinstance(tree, dict):
        raise InputError(
            f"--config={path}: expected a JSON object, got {type(tree).__name__}",
            field="config",
            expected="a JSON object",
            got=type(tree).__name__,
        )
    whole = set(field_types(config.RunConfig)) - set(COMMON)
    own = field_types(_section_class((section,))) if section else {}
    if section is None or any(key in whole and key not in own for key in tree):
        return tree
    common = {key: value for key, value in tree.items() if key in COMMON}
    return common | {section: {key: value for key, value in tree.items() if key not in COMMON}}


def _check_config(tree: dict[str, Any], path: str) -> None:
    """Raise InputError if the settings of --config are not valid, whatever the flags are."""
    try:
        config.RunConfig.from_dict(tree)
    except InputError as error:
        raise InputError(
            f"--config={path}: {error}", field=error.field, expected=error.expected, got=error.got
        ) from error


_OTHERS = ("config", "fresh", "preflight", "format", "allow_code", "verbosity", "help")


def _help(
    command: str, section: str | None, description: str, settings: Sequence[Setting], values: flags.FlagValues
) -> str:
    """Return the text of --help: what the command does, then its flags with their defaults, section by section.

    Registered objects are listed with their help at the first flag of the command's own section that names them.
    """
    groups: dict[tuple[str, ...], list[str]] = {(): []}
    listed: set[str] = set()
    for setting in settings:
        field, kind = setting.field, setting.field.metadata["choices_of"]
        is_listed = kind and section is not None and setting.path[0] in (section, *COMMON) and kind not in listed
        for depth in range(1, len(setting.path)):
            groups.setdefault(setting.path[:depth], [])
        group = groups[setting.path[:-1]]
        if is_listed:
            listed.add(kind)
            choices = (*field.metadata["choices"], "a name from this list")
            group += _flag_lines(values, setting.flag, field.metadata["help"], choices) + _registered_lines(kind)
        else:
            what = COMMANDS[section].model if setting.path == ("model",) else field.metadata["help"]
            group += _flag_lines(values, setting.flag, what, choices_of(field))
    for name in _OTHERS:
        if name in values:
            choices = ("text", "json") if name == "format" else ()
            what = values[name].help.partition(">: ")[2] if choices else values[name].help
            groups[()] += _flag_lines(values, name, what, choices)
    text = [f"tfq {command}: {description.strip()}"]
    # General flags, then the command's own section; the sort keeps the order of the rest.
    for path in sorted(groups, key=lambda path: 0 if not path else 1 if path[0] == section else 2):
        text += ["", _heading(path), *groups[path]]
    text += [
        "",
        "Exit codes: 0 success; 1 a requirement is not met; 2 invalid input or flags; 3 tfq or its environment",
    ]
    text += ["failed; 130 interrupted."]
    return "\n".join(text)


def _heading(path: tuple[str, ...]) -> str:
    if not path:
        return "Flags:"
    parent = _section_class(path[:-1])
    message = next(field.metadata["help"] for field in dataclasses.fields(parent) if field.name == path[-1])
    return f"{'.'.join(path)}: {message}"


def _flag_lines(values: flags.FlagValues, name: str, what: str, choices: Sequence[str]) -> list[str]:
    flag = values[name]
    is_list = isinstance(flag.default, list)
    # The help text says what an empty value means, and it may list the choices itself.
    choices = [choice for choice in choices if choice]
    if all(re.search(rf"\b{re.escape(choice)}\b", what) for choice in choices):
        choices = []
    facts = [f"{'any' if is_list else 'one'} of {', '.join(choices)}" if len(choices) > 1 else "".join(choices)]
    if isinstance(flag, flags.MultiFlag):
        facts.append("may be repeated")
    elif is_list:
        facts.append("separated by commas")
    default = ",".join(flag.default) if is_list else flag.default
    facts.append("no default" if default in (None, "") else f"default: {default}")
    spelling = f"--[no]{name}" if flag.boolean else f"--{name}"
    short = f" (-{flag.short_name})" if flag.short_name else ""
    indent = " " * 6
    return [
        f"  {spelling}{short}",
        *textwrap.wrap(
            f"{what} ({'; '.join(filter(None, facts))})", 100, initial_indent=indent, subsequent_indent=indent
        ),
    ]


def _registered_lines(kind: str) -> list[str]:
    """Return lines for the help: what users write for each object of an extension point, and its help."""
    lines = []
    for entry in registry.entries_of(kind):
        names = ", ".join(registry.spellings_of(entry))
        lines += textwrap.wrap(f"{names}: {entry.help}", 100, initial_indent=" " * 8, subsequent_indent=" " * 12)
    return lines
