"""The command line from outside: what reaches the terminal, errors as JSON, and exit codes whatever goes wrong."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from hybridizer.cli import main
from hybridizer.cli.program import run_reported
from hybridizer.core.errors import InputError, RunError, from_os_error
from support.lines import hybridize, hybridize_json, make_donor, write_documents, write_recipe

HOSTILE = "x\x1b[31m\x9b2J\u202e[bold]y\n\x07[red]"
DIAL = {"host": "a", "deep": "a", "shallow": "a", "boundary": 0.5}
PROBES = [{"prompt": f"the opposite of {word} is ", "target": "abcd"[i % 4]} for i, word in enumerate(
    ["hot", "cold", "up", "down", "left", "right"])]  # fmt: skip


@pytest.fixture(autouse=True)
def bench(bench, monkeypatch):
    """The working folder, with a donor `a`, a recipe x.yaml, probes and a cache of its own."""
    monkeypatch.setenv("COLUMNS", "100")
    make_donor(Path("a"), seed=1)
    write_recipe(Path("x.yaml"), donors={"a": "a"}, layout=DIAL)
    Path("p.jsonl").write_text("".join(json.dumps(probe) + "\n" for probe in PROBES))
    return bench


def assert_harmless(result):
    """No character in either stream that a terminal acts on."""
    for text in (result.stdout, result.stderr):
        assert [letter for letter in text if not letter.isprintable() and letter != "\n"] == []


def hostile_donor():
    folder = Path(HOSTILE)
    Path("a").rename(folder)
    config = json.loads((folder / "config.json").read_text())
    config["layer_types"] = ["full_attention", HOSTILE, "[bold]", "full_attention"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("command", ["check", "plan", "build"])
def test_hostile_names_in_recipes_and_donors_reach_no_terminal(command):
    hostile_donor()
    donors = {"[bold]\u202e": f"./{HOSTILE}"}
    recipe = Path(f"{HOSTILE}.yaml")
    recipe.write_text(json.dumps({"donors": donors, "layout": {"deep": "[bold]\u202e", "shallow": "[bold]\u202e"}}))
    result = CliRunner().invoke(main, [command, str(recipe), "--set", f"layout.boundary={HOSTILE}"])
    assert result.exit_code == 2
    assert_harmless(result)
    result = CliRunner().invoke(main, [command, str(recipe), "--set", "name=n"])
    assert result.exit_code in (0, 2), result.output
    assert_harmless(result)


def test_a_plan_with_markup_and_escapes_in_its_layer_kinds_is_drawn_as_it_is_and_stored_exactly():
    config = json.loads(Path("a/config.json").read_text())
    kinds = ["[bold]", "[/nope]", "x\x1b[31m\u202e", "full_attention"]
    Path("a/config.json").write_text(json.dumps({**config, "layer_types": kinds}))
    shown = CliRunner().invoke(main, ["plan", "x.yaml", "--layers"])
    assert_harmless(shown)
    assert shown.exit_code == 0 and "[/nope]" in shown.stdout and r"x\x1b[31m\u202e" in shown.stdout
    printed = CliRunner().invoke(main, ["plan", "x.yaml", "--json"])
    assert_harmless(printed)
    assert [row["kind"] for row in json.loads(printed.stdout)["layers"]] == kinds


def test_a_manifest_with_hostile_names_is_shown_without_them_and_printed_exactly():
    hybridize("build", "x.yaml", "--no-load")
    path = Path("runs/x/model/manifest.json")
    manifest = json.loads(path.read_text())
    manifest["name"] = manifest["donors"]["a"]["reference"] = HOSTILE
    for layer in manifest["layers"]:
        layer["kind"] = HOSTILE
    path.write_text(json.dumps(manifest))
    shown = hybridize("inspect", "runs/x", "--tensors")
    assert_harmless(shown)
    assert r"\x1b[31m" in shown.stdout and "[bold]" in shown.stdout
    assert hybridize_json("inspect", "runs/x")["name"] == HOSTILE


@pytest.mark.slow
def test_a_trace_of_a_hostile_folder_is_harmless_too():
    Path("a").rename(HOSTILE)
    shown = hybridize("trace", f"./{HOSTILE}", "--probes", "p.jsonl")
    assert_harmless(shown)
    assert "S(layer)" in shown.stdout
    assert hybridize_json("trace", f"./{HOSTILE}", "--probes", "p.jsonl")["donor"]["reference"] == f"./{HOSTILE}"
    assert_harmless(hybridize("rank", f"./{HOSTILE}", "--probes", "p.jsonl"))
    assert_harmless(hybridize("trace", HOSTILE + "z", code=2))


def test_names_that_are_not_utf8_are_printed():
    name = os.fsdecode(b"\xff\xfe")
    assert r"\udcff" in hybridize("check", name, code=2).stderr
    problems = hybridize_json("check", name, code=2)["error"]["problems"]
    assert problems[0]["where"] == name


COMMANDS = [
    ["init", "nowhere/x.yaml"], ["check", "nowhere.yaml"], ["plan", "nowhere.yaml"], ["build", "nowhere.yaml"],
    ["verify", "nowhere"], ["inspect", "nowhere"], ["trace", "nowhere"], ["rank", "nowhere"], ["schema", "extra"],
    ["pack", "nowhere", "--base", "a", "--out", "p"], ["graft", "a", "nowhere", "--out", "m"], ["scan", "nowhere"],
    ["eval", "nowhere", "--recall", "2"], ["trial", "nowhere.yaml"], ["convert", "nowhere"],
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize("mistake", [[], ["--no-such-option"]], ids=["input", "usage"])
def test_every_command_prints_the_same_error_object(command, mistake):
    result = CliRunner().invoke(main, [*command, "--json", *mistake])
    error = json.loads(result.stdout)["error"]
    assert error.keys() == {"exit_code", "problems"} and error["exit_code"] == result.exit_code in (1, 2)
    assert all(problem.keys() == {"where", "what", "fix"} and problem["what"] for problem in error["problems"])
    assert result.stderr


def test_every_command_is_in_the_table_above():
    assert {command[0] for command in COMMANDS} == set(main.commands)


def test_every_command_prints_one_document_and_nothing_else():
    documents = [
        hybridize_json("init", "new.yaml"), hybridize_json("schema"), hybridize_json("check", "x.yaml"),
        hybridize_json("plan", "x.yaml"), hybridize_json("build", "x.yaml"), hybridize_json("verify", "runs/x"),
        hybridize_json("inspect", "runs/x"), hybridize_json("trace", "a", "--probes", "p.jsonl"),
        hybridize_json("rank", "a", "--probes", "p.jsonl"), hybridize_json("eval", "a", "--recall", "2"),
    ]  # fmt: skip
    assert all(isinstance(document, dict) for document in documents)


@pytest.mark.parametrize(
    ("words", "printed", "written"),
    [
        (["--json", "a"], True, None),
        (["a", "--json", "-"], True, None),
        (["a", "--json=-"], True, None),
        (["a", "--json", "out.json"], False, "out.json"),
        (["--json", "out.json", "a"], False, "out.json"),
        (["a", "--json=out.txt"], False, "out.txt"),
    ],
)
def test_json_of_a_trace_takes_a_file_and_never_a_donor_for_one(words, printed, written):
    stdout = hybridize("trace", *words, "--probes", "p.jsonl").stdout
    assert stdout.startswith("{") == printed
    record = stdout if printed else Path(written).read_text()
    assert json.loads(record)["schema"] == "hybridizer.trace/3"
    assert Path("a").is_dir()


def test_json_with_a_dash_is_the_flag():
    assert json.loads(hybridize("check", "x.yaml", "--json", "-").stdout)["ok"] is True
    assert "unexpected extra argument (-)" in hybridize("check", "x.yaml", "-", code=2).stderr


def prepare(name):
    path = Path(name)
    match name:
        case "folder.yaml":
            path.mkdir()
        case "pipe.yaml":
            os.mkfifo(path)
        case "latin.yaml":
            path.write_bytes(b"name: \xff\n")
        case "secret.yaml":
            path.touch(mode=0)


TRACE = ("trace", "a", "--probes", "p.jsonl")
MISTAKES = [
    (("check", "folder.yaml"), "is a directory"),
    (("check", "pipe.yaml"), "not a regular file"),
    (("build", "pipe.yaml"), "not a regular file"),
    (("plan", "latin.yaml"), "not UTF-8"),
    (("plan", "x.yaml", "--runs", "file"), "'--runs': Directory 'file' is a file."),
    (("plan", "x.yaml", "--runs", "file/below"), "file/below"),
    (("build", "x.yaml", "--runs", "file/below"), "file/below"),
    (("plan", "x.yaml", "--set", "seed=" + "9" * 5000), "--set seed="),
    (("plan", "x.yaml", "--set", "name=" + "n" * 5000), "name"),
    (("plan", "n" * 5000), "File name too long"),
    (("inspect", "n" * 5000), "File name too long"),
    (("verify", "n" * 5000), "File name too long"),
    ((*TRACE, "--json", "nowhere/out.json"), "'--json': the folder 'nowhere' does not exist."),
    ((*TRACE, "--json", "file/out.json"), "'--json': the folder 'file' does not exist."),
    ((*TRACE, "--plot", "nowhere/out.svg"), "'--plot': the folder 'nowhere' does not exist."),
    ((*TRACE, "--plot", "out.gif"), "'--plot': cannot write '.gif'. Name it .svg or .png."),
    ((*TRACE, "--seed", "9" * 30), "'--seed':"),
    ((*TRACE, "--seed", "9" * 6000), "'--seed':"),
    ((*TRACE, "--allow", "foo"), "'--allow': 'foo' is not one of"),
    (("trace", "n" * 5000), "n"),
    ((*TRACE, "--boundary", "x"), "No such option"),
    (("rank", "a", "--boundary", "9" * 5000), "--boundary"),
    (("rank", "a", "--boundary", "kneee"), "--boundary"),
    (("init", "n" * 300), "File name too long"),
]


@pytest.mark.parametrize(("words", "says"), MISTAKES, ids=lambda words: " ".join(words)[:50])
def test_a_mistake_on_the_command_line_is_an_error_that_names_it(words, says):
    Path("file").touch()
    for word in words:
        prepare(word)
    result = hybridize(*words, code=2)
    assert says in result.stderr and "Traceback" not in result.stderr
    assert result.stdout == "" or json.loads(result.stdout)["error"]


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), RunError, "runs/x: No space left on device."),
        (OSError(errno.EACCES, "Permission denied", "/root/x"), InputError, "/root/x: Permission denied."),
        (OSError(errno.EIO, "Input/output error"), RunError, "here: Input/output error."),
        (OSError("no number"), RunError, "here: no number."),
        (OSError(), RunError, "here: OSError."),
        (OSError(errno.EBADF, "Bad file descriptor", 7), RunError, "7: Bad file descriptor."),
        (OSError(errno.ENOENT, "No such file", b"\xff"), InputError, r"\udcff: No such file."),
    ],
)
def test_an_error_of_the_file_system_becomes_one_of_ours_with_path_and_reason(error, kind, says):
    found = from_os_error(error, "here")
    assert isinstance(found, kind) and str(found).startswith(says)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "f"), 1, "f: No space left on device."),
        (PermissionError(errno.EACCES, "Permission denied", "f"), 2, "f: Permission denied."),
        (KeyboardInterrupt(), 130, "interrupted: "),
        (MemoryError(), 1, "memory: "),
        (ZeroDivisionError("one by zero"), 70, "this is a bug in hybridizer"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_a_command_raises_is_reported_with_its_exit_code(error, code, says, capsys):
    def fail():
        raise error

    assert run_reported(fail, as_json=True) == code
    out, err = capsys.readouterr()
    assert says in err and json.loads(out)["error"]["exit_code"] == code
    assert ("Traceback" in err) == (code == 70)


def test_a_full_disk_while_records_are_written_is_an_error_and_not_a_bug(monkeypatch):
    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left on device" in hybridize("plan", "x.yaml", code=1).stderr
    assert "No space left on device" in hybridize("init", "y.yaml", code=1).stderr
    assert not Path("y.yaml").exists()


def run(*words, **options):
    command = [sys.executable, "-m", "hybridizer", *words]
    return subprocess.run(command, text=True, stderr=subprocess.PIPE, timeout=120, check=False, **options)


def test_a_reader_that_stops_early_ends_the_command_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    result = run("schema", stdout=writer)
    os.close(writer)
    assert (result.returncode, result.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", [("schema",), ("check", "nowhere.yaml", "--json")])
def test_a_full_disk_under_standard_output_is_reported(words):
    with Path("/dev/full").open("w") as full:
        result = run(*words, stdout=full)
    assert result.returncode == 1 and "Traceback" not in result.stderr and "Exception" not in result.stderr
    assert "standard output: No space left on device." in result.stderr or "nowhere.yaml: " in result.stderr


def test_a_terminal_that_cannot_show_a_character_gets_its_escape():
    write_recipe(Path("模.yaml"), donors={"a": "a"}, layout=DIAL)
    result = run("check", "模.yaml", stdout=subprocess.PIPE, env={**os.environ, "PYTHONIOENCODING": "latin-1"})
    assert result.returncode == 0 and result.stdout.startswith(r"\u6a21.yaml: no problem found")


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_columns_are_obeyed_and_nothing_is_cut_off(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = hybridize("plan", "x.yaml", "--layers").stdout.splitlines()
    (ruler,) = (line for line in lines if line.startswith("───"))
    table = lines[: lines.index("") + 8]
    assert max(map(len, table)) <= columns and len(ruler) <= columns
    assert "…" not in "\n".join(lines)
    assert any("parameters" in line and "from" in line for line in lines)


def first_words(result):
    """The first word of every line that begins with a digit."""
    return [line.split()[0] for line in result.stdout.splitlines() if line[:1].isdigit()]


def test_equal_layers_are_one_row_and_with_layers_each_has_its_own():
    rows = first_words(hybridize("plan", "x.yaml"))
    assert rows[0] == "0..3"
    rows = [
        line.split()[0] for line in hybridize("plan", "x.yaml", "--layers").stdout.splitlines() if line[:1].isdigit()
    ]
    assert rows[:4] == ["0", "1", "2", "3"]


def test_the_next_command_keeps_overrides_and_runs():
    shown = hybridize("check", "x.yaml", "--set", "output.dtype=bfloat16", "--set", "name=a b").stdout
    assert "next: hybridize plan x.yaml --set output.dtype=bfloat16 --set 'name=a b'" in shown
    shown = hybridize("plan", "x.yaml", "--set", "output.dtype=bfloat16", "--runs", "my runs").stdout
    assert "next: hybridize build 'my runs/x/plan.json'" in shown
    shown = hybridize("build", "my runs/x/plan.json", "--no-load").stdout
    assert f"next: hybridize inspect '{Path('my runs/x').absolute()}'" in shown


def test_a_plan_that_trains_shows_steps_epochs_and_disk():
    write_documents(Path("t.jsonl"), 40)
    train = {"data": [{"path": "t.jsonl"}], "tokens": 2000, "seq_len": 64, "global_batch_size": 4, "heldout_ratio": 0.1}
    write_recipe(Path("t.yaml"), donors={"a": "a"}, layout=DIAL, train=train)
    shown = hybridize("plan", "t.yaml").stdout
    epochs = 2000 * 4 / (0.9 * Path("t.jsonl").stat().st_size)
    assert "8 steps of 256 tokens" in shown
    assert f"t.jsonl: 2,000 tokens, about {epochs:,.2f} epochs at 4 bytes per token" in shown
    amounts = hybridize_json("plan", "t.yaml")["amounts"]
    assert amounts["steps"] == 8 and f"disk: about {amounts['disk_bytes'] / 1e6:.2f} MB" in shown
    assert hybridize_json("plan", "t.yaml", "--set", "train.max_steps=3")["amounts"]["steps"] == 3


def test_the_disk_that_a_splice_needs_is_the_size_of_its_model():
    needed = hybridize_json("plan", "x.yaml")["amounts"]["disk_bytes"]
    hybridize("build", "x.yaml", "--no-load")
    assert needed <= Path("runs/x/model/model.safetensors").stat().st_size < needed + 10_000


@pytest.mark.slow
def test_trace_and_rank_show_strategy_reason_and_settings():
    shown = hybridize("trace", "a", "--probes", "p.jsonl").stdout
    assert "boundary by strategy 'auto': layer " in shown
    assert "6 prompts of p.jsonl; settings: perturb context, mask_ratio 0.3" in shown
    shown = hybridize("rank", "a", "--probes", "p.jsonl", "--boundary", "0.5").stdout
    assert "a: deep from layer 2 on (share). 50% of 4 layers, as requested; S(2) = " in shown.replace("\n", " ")
    assert "mask_ratio 0.3" in shown


def test_a_table_of_somebody_else_is_made_printable_too():
    from rich.table import Table

    from hybridizer.report.terminal import render

    table = Table()
    table.add_column("x\x1b[31m")
    table.add_row("a\u202eb")
    assert r"x\x1b[31m" in render(table, 60) and r"a\u202eb" in render(table, 60)


def test_a_pipe_that_closes_at_the_last_flush_ends_the_command_quietly(capsys):
    def fail():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    assert run_reported(fail, as_json=True) == 1
    assert capsys.readouterr() == ("", "")
