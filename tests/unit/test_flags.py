# SPDX-License-Identifier: Apache-2.0
"""Flags, config files and their precedence."""

import json

import pytest
from messages import refused

from tfq import registry
from tfq.cli import main
from tfq.cli.flags import COMMANDS, COMMON, HelpRequested, every_setting, parse, settings_of, with_flags
from tfq.errors import InputError


def parsed(*arguments, section="conversion"):
    return parse(["tfq", *arguments], command="convert", section=section, description="does").config


def test_a_command_uses_short_flags_and_run_uses_full_paths():
    assert "scheme" in {setting.flag for setting in settings_of("conversion")}
    names = {setting.flag for setting in settings_of(None)}
    assert {"conversion.scheme", "compression.prune.final_sparsity", "compression.prune", "data", "data.scale"} <= names


def test_flags_reach_their_place_in_the_tree():
    config = parsed("--model=m.keras", "--data=npz:x", "--data.scale=0.5", "--data.resize=32,48", "--scheme=float32")
    assert (config.model, config.data.source, config.data.scale) == ("m.keras", "npz:x", 0.5)
    assert config.data.resize == (32, 48)
    assert config.conversion.scheme == "float32"


def test_a_list_of_numbers_is_read_and_words_in_it_are_refused():
    flag = "--robustness.input_range"
    assert parsed(f"{flag}=-0.5,16", section="evaluation").evaluation.robustness.input_range == (-0.5, 16.0)
    with refused(InputError, field="evaluation.robustness.input_range"):
        parsed(f"{flag}=0,white", section="evaluation")


def test_a_section_can_be_switched_off_by_its_name():
    assert parsed("--noprune", section="compression").compression.prune.enabled is False
    assert (
        parsed("--prune", "--prune.final_sparsity=0.8", section="compression").compression.prune.final_sparsity == 0.8
    )


def test_flags_override_the_file_and_the_file_defaults(tmp_path):
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"scheme": "float32", "num_calibration_samples": 7, "data": "npz:f", "seed": 3}))
    config = parsed(f"--config={file}", "--num_calibration_samples=9", "--data.scale=2")
    assert (config.conversion.scheme, config.conversion.num_calibration_samples, config.seed) == ("float32", 9, 3)
    assert (config.data.source, config.data.scale) == ("npz:f", 2.0)


def test_any_command_accepts_a_run_config_or_record(tmp_path):
    tree = {"model": "a", "conversion": {"scheme": "float32"}, "training": {"epochs": 2}}
    for number, content in enumerate([tree, {"schema_version": 2, "command": "run", "config": tree, "models": []}]):
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps(content))
        assert parsed(f"--config={file}").conversion.scheme == "float32"
        assert parsed(f"--config={file}", section=None).training.epochs == 2


def test_compress_train_is_its_own_section_key(tmp_path):
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"train": {"epochs": 4}, "prune": {"final_sparsity": 0.75}}))
    config = parsed(f"--config={file}", section="compression")
    assert config.compression.train.epochs == 4
    assert config.compression.prune.final_sparsity == 0.75


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--shceme=int8"], "'--scheme'"),
        (["--scheme=int4"], "int4"),
        (["--num_calibration_samples=many"], "many"),
        (["--num_calibration_samples=0"], "num_calibration_samples"),
        (["--data.resize=a,b"], "integers"),
        (["model.keras"], "'model.keras'"),
        (["--config=nowhere.json"], "nowhere.json"),
    ],
)
def test_a_bad_command_line_is_an_input_error(arguments, word):
    with refused(InputError, word=word):
        parsed(*arguments)


@pytest.mark.parametrize("content", ["[1]", "{", '{"schema_version": 2, "config": 3}', '{"shceme": "int8"}'])
def test_a_bad_config_file_is_an_input_error(tmp_path, content):
    file = tmp_path / "c.json"
    file.write_text(content)
    with pytest.raises(InputError):
        parsed(f"--config={file}")


def test_a_record_of_another_schema_version_is_refused(tmp_path):
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"schema_version": 1, "command": "run", "config": {}}))
    with refused(InputError, field="config", expected=2, got=1, word="Replay"):
        parsed(f"--config={file}")


@pytest.mark.parametrize(
    ("section", "message", "shown"),
    [
        ("conversion", "conversion.scheme is 'int9'", "--scheme is 'int9'"),
        (None, "conversion.scheme is 'int9'", "--conversion.scheme is 'int9'"),
        ("audit", "convert with conversion.scheme=int8", "convert with tfq convert --scheme=int8"),
        ("audit", "or name it in audit.allow_float.", "or name it in --allow_float."),
        ("conversion", "conversion.techniques=bias_correction", "--techniques=bias_correction"),
        ("conversion", "set conversion.calibration.method", "set --calibration.method"),
        ("compression", "(compression.qat.enabled=False)", "(--noqat)"),
        ("compression", "compression.qat.enabled=True: no", "--qat: no"),
        ("compression", "compression.qat is on", "--qat is on"),
        (None, "compression.qat.enabled=False", "--nocompression.qat"),
        ("conversion", "compression.qat.enabled=False", "tfq compress --noqat"),
        ("conversion", "conversion.per_channel=false", "--noper_channel"),
        ("evaluation", "evaluation.xnnpack=False", "--noxnnpack"),
        ("conversion", "data.source=npz:x and data.scale", "--data=npz:x and --data.scale"),
        ("conversion", "model=gone.keras does not exist", "--model=gone.keras does not exist"),
        ("conversion", "the model is out of data", "the model is out of data"),
        ("conversion", "see out/data.scale or data.scale.x", "see out/data.scale or data.scale.x"),
        ("conversion", "pass allow_code=True", "pass --allow_code"),
    ],
)
def test_config_fields_in_messages_become_flags(section, message, shown):
    assert with_flags(message, section) == shown


def test_an_error_about_a_field_of_one_word_names_its_flag():
    assert with_flags("model is empty", "audit", field="model") == "--model is empty"
    assert with_flags("model is empty", "audit", field="out") == "model is empty"
    assert with_flags("model=a is gone", "audit", field="model") == "--model=a is gone"


def test_every_section_with_flags_has_a_command():
    sections = {setting.path[0] for setting in every_setting()} - set(COMMON)
    assert sections | {None} == set(COMMANDS)
    assert {flags.command for flags in COMMANDS.values()} == set(main.COMMANDS)


@pytest.mark.parametrize(
    ("section", "unknown"),
    [
        ("audit", ["data", "data.scale", "seed", "allow_code"]),
        ("evaluation", ["seed", "conversion.scheme"]),
        ("conversion", ["seed"]),
        ("training", ["conversion.scheme"]),
        ("benchmark", ["allow_code"]),
        ("analysis", ["seed"]),
        ("search", ["seed", "conversion.techniques", "conversion.calibration.method"]),
        (None, ["evaluation.reference", "benchmark.against", "search.methods", "analysis.limit"]),
    ],
)
def test_a_flag_that_a_command_ignores_is_unknown(section, unknown):
    for flag in unknown:
        with refused(InputError, got=flag, word=f"--{flag}"):
            parsed(f"--{flag}=1", section=section)


def test_what_commands_use_and_ignore_are_config_paths():
    paths = {".".join(setting.path[:depth]) for setting in every_setting() for depth in range(1, 5)}
    named = {name for flags in COMMANDS.values() for name in (*flags.uses, *flags.ignores)}
    assert named - {"allow_code"} <= paths


def test_messages_name_fields_without_flags_by_their_path():
    assert with_flags("data.source=npz:x", "audit") == "--data=npz:x"
    assert with_flags("evaluation.reference is", None) == "tfq evaluate --reference is"


def help_of(section):
    with pytest.raises(HelpRequested) as request:
        parsed("--help", section=section)
    return str(request.value)


def test_help_of_run_is_grouped_by_section():
    lines = help_of(None).splitlines()
    headings = [
        "Flags:",
        "data: source and preprocessing of the examples",
        "compression.prune: magnitude pruning of weights",
        "conversion.calibration: calibration of activation ranges",
    ]
    places = [lines.index(heading) for heading in headings]
    assert places == sorted(places)
    assert places[2] < lines.index("  --compression.prune.final_sparsity") < places[3]
    assert places[0] < lines.index("  --[no]fresh") < places[1]
    assert not [line for line in lines if line.startswith(("search", "analysis"))]


def test_help_lists_registered_objects_of_the_commands_own_fields():
    for entry in registry.entries_of("calibration_method"):
        assert f"        {entry.name}: {entry.help[:40]}" in help_of("conversion")
        assert entry.name in help_of(None)
        assert f"{entry.name}: {entry.help[:40]}" not in help_of(None)
    text = help_of("evaluation")
    for kind in ("backend", "metric", "data_source"):
        for entry in registry.entries_of(kind):
            assert f"\n        {', '.join(registry.spellings_of(entry))}: " in text
    assert "npz:PATH" in text and "qemu:cortex-a53" in text
    assert text.count("\n        local: ") == 2  # the backend and the executor, not repeated for backends


def test_help_tells_every_flag_with_its_default():
    text = help_of("conversion")
    for setting in settings_of("conversion"):
        assert setting.flag in text
        assert setting.field.metadata["help"].split()[0] in text
    assert "default: int8)" in text


def test_a_model_named_twice_is_refused_instead_of_the_first_one_being_ignored():
    with refused(InputError, field="model", word="--against"):
        parsed("--model=a.tflite", "--model=b.tflite", section="benchmark")
    assert parsed("--model=a.tflite", section="benchmark").model == "a.tflite"


def test_an_unknown_flag_suggests_the_nearest_flag_as_it_is_typed():
    with refused(InputError, got="outt", word="'--out'"):
        parsed("--outt=x")


@pytest.mark.parametrize("flag", ["--compression.qat.enabled=False", "--nocompression.qat.enabled"])
def test_the_key_of_a_switch_suggests_the_flag_of_its_section(flag):
    with refused(InputError, word="--nocompression.qat"):
        parsed(flag, section=None)


def test_text_where_a_number_is_expected_is_refused_with_the_flag():
    with refused(InputError, word="--data.scale:"):
        parsed("--data.scale=1/255")
