"""Configuration: the order of precedence, and the one-line refusals."""

import re
from pathlib import Path

import pytest
from loops import TINY, tiny

from entroloop.data.errors import UserError
from entroloop.launcher import config as configuration
from entroloop.launcher.explain import differences, known_keys

BAD = [
    ("train.lrr=1", "train.lrr: unknown key; did you mean train.lr?"),
    ("trian.lr=1", "trian: unknown key; did you mean train?"),
    ("train.lr=fast", "train.lr=fast: must be a number"),
    ("train.kimg=0", "train.kimg=0: must be above 0"),
    ("train.betas=[0.9, 1]", "train.betas=1: must be below 1"),
    ("train.betas=[-0.1, 0.9]", "train.betas=-0.1: must be at least 0"),
    ("train.lr=.inf", "train.lr=inf: must be finite"),
    ("train.kimg=inf", "train.kimg=inf: must be finite"),
    ("sample.rho=.nan", "sample.rho=nan: must be finite"),
    (
        "selection={strategy: threshold-decay, encoder: pixel, options: {threshold: .inf}}",
        "threshold=inf: must be finite",
    ),
    ("train.batch=321", "train.batch=321: more than the 320 images that a generation sees"),
    ("generations=0", "generations=0: must be at least 1"),
    ("generations=1000000000000", "generations=1000000000000: must be at most 1e+06"),
    (
        "data.trusted=1",
        "data.trusted=1: a reference needs at least 2 samples, or 0 for none of its own",
    ),
    ("loop.paradigm=replaced", "loop.paradigm=replaced: must be one of replace, accumulate, accumulate-subsample"),
    ("selection.strategy=gredy", "did you mean greedy?"),
    ("selection.options.strat=3", "option of strategy greedy 'strat' does not exist: did you mean start?"),
    ("selection.options.oversample=0.5", "selection.options: oversample: must be at least 1, is 0.5"),
    ("selection.options.parts=two", "selection.options: parts: must be an integer, is two"),
    ("selection.options.trim=1", "selection.options: trim: must be below 1, is 1"),
    ("selection.options.trim_k=0", "selection.options: trim_k: must be at least 1, is 0"),
    ("selection.options.metric=cosine", "selection.options: metric: set selection.metric"),
    ("selection.options={start: 96}", "selection.options of generation 1: start: must be an id below"),
    (
        "selection.options={trim: 0.9}",
        "selection.options of generation 1: trim: must be a share that leaves at least 48 of",
    ),
    ("selection.options={trim: 0.1, trim_k: 96}", "selection.options of generation 1: trim_k: must be below"),
    ("selection.options.per_class=true", "selection.options.per_class=true: only a model with train.labels=true"),
    ("loop.balanced=true", "loop.balanced=true: only a model with train.labels=true samples known classes"),
    ("selection.strategy=random-class-balanced", "random-class-balanced: only a model with train.labels=true"),
    ("selection.encoder=classifier", "data.labelled=0: the encoder classifier needs labelled real images"),
    ("selection.encoder=no_such_module:net", "encoder no_such_module:net: cannot import no_such_module"),
    ("evaluation.encoders=[pixels]", "did you mean pixel?"),
    ("name=a/b", "name=a/b: must be a plain folder name"),
    ("train", "train: give overrides as section.key=value"),
    ("seed.inner=1", "seed.inner"),
    ("sample.guidance=2", "sample.guidance=2: the model is unconditional: set train.labels=true"),
]


@pytest.mark.parametrize(("override", "line"), BAD)
def test_bad_values_are_refused_in_one_line_that_names_the_key(tmp_path, override, line):
    raw = {**TINY, "seed": 0}
    with pytest.raises(UserError) as caught:
        configuration.compose(raw, [override], "tiny.yaml")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("name: x\ndata: {source: digits}\ntrain: {lr: 0.5, batch: 8}\n")
    config = configuration.load(path, ["train.lr=1e-4", "sample.steps=7", "selection.options.trim=0.1"])
    assert config.train.lr == 1e-4
    assert config.train.batch == 8
    assert config.sample.steps == 7
    assert config.selection.options == {"trim": 0.1}
    assert (config.selection.strategy, config.loop.candidates) == ("herding", 2)


def test_precision_no_is_the_text(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("name: x\ndata: {source: digits}\ntrain: {precision: no}\nsample: {precision: bf16}\n")
    config = configuration.load(path, ["sample.precision=no"])
    assert (config.train.precision, config.sample.precision) == ("no", "no")
    with pytest.raises(UserError, match=r"train\.precision=yes: must be one of no, fp16, bf16"):
        configuration.load(path, ["train.precision=yes"])


def test_what_is_saved_reads_back_as_the_same(tmp_path):
    config = tiny(tmp_path, "selection.options.oversample=1.5", "data.limit=500")
    path = tmp_path / "saved.yaml"
    path.write_bytes(configuration.dump(config))
    assert configuration.load(path) == config


def test_a_key_with_dots_in_a_file_is_told_its_section():
    line = r"tiny: train\.kimg: in a file, write it inside its section, train: \{kimg: …\}$"
    with pytest.raises(UserError, match=line):
        configuration.compose({**TINY, "train.kimg": 3}, [], "tiny")


WORDS_OF_PYDANTIC = re.compile(
    r"\b(input|valid|instance|tuple|dict(ionary)?|pars\w+|str(ing)?|validat\w+|float|int|bool|literal|function|type)\b",
    re.I,
)
WRONG = [
    "[[1]]",
    "{a: {b: 1}}",
    "fast",
    "3.5",
    "-1",
    "1e400",
    ".nan",
    "true",
    "null",
    "[]",
    "[1, 2, 3, 4]",
    "''",
    "[a]",
]


@pytest.mark.parametrize("key", known_keys(configuration.Config))
def test_no_word_of_the_library_is_in_a_refusal(key):
    lines = 0
    for value in WRONG:
        try:
            configuration.compose({**TINY, "seed": 0}, [f"{key}={value}"], "tiny.yaml")
        except UserError as error:
            line = str(error)
            assert line.startswith("tiny.yaml: ")
            assert key.rpartition(".")[2] in line
            assert "\n" not in line
            assert not WORDS_OF_PYDANTIC.search(line.replace(key, "").replace(value, "")), line
            lines += 1
    assert lines


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.betas=[0.9]", "train.betas: holds too few values"),
        ("train.betas=[0.9, 0.99, 0.5]", "train.betas: must hold at most 2, holds 3"),
        ("network.channels=[a, 8]", "network.channels=a: must be an integer"),
        ("selection.options.start=[1]", "selection.options.start: must be a number"),
        ("train.more_emas.a.rulee=none", "train.more_emas.a.rulee: unknown key; did you mean train.more_emas.a.rule?"),
        ("slurm.phases.train.nodes=0", "slurm.phases.train.nodes=0: must be at least 1"),
        ("train=3", "train=3: must be a section"),
        ("seed=true", "seed=true: must be a number"),
        ("name=2024", "name=2024: must be text, in quotes"),
        ("train={kimg: 1, kimg: 2}", "train:1: kimg is given twice, first in line 1"),
    ],
)
def test_a_fault_inside_a_value_is_named_by_its_key(override, line):
    with pytest.raises(UserError, match=re.escape(line)):
        configuration.compose({**TINY, "seed": 0}, [override], "tiny.yaml")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["train.lr=1", "train.lr=2"], "train.lr: given on the command line, and replaced again after it"),
        (["train.lr=1", "train={kimg: 8}"], "train.lr: given on the command line, and replaced by train after it"),
    ],
)
def test_an_override_that_another_replaces_is_refused(tmp_path, overrides, line):
    (tmp_path / "c.yaml").write_text("name: x\ndata: {source: digits}\n")
    with pytest.raises(UserError, match=line):
        configuration.load(tmp_path / "c.yaml", overrides)
    assert configuration.load(tmp_path / "c.yaml", ["train={kimg: 8}", "train.lr=1"]).train.lr == 1


@pytest.mark.parametrize(("written", "meant"), [("010", 10), ("0x10", 16), ("1e3", 1000)])
def test_numbers_are_those_of_yaml_1_2_in_the_file_and_in_overrides(tmp_path, written, meant):
    (tmp_path / "c.yaml").write_text(f"name: x\ndata: {{source: digits}}\nseed: {written}\n")
    assert configuration.load(tmp_path / "c.yaml").seed == meant
    assert configuration.load(tmp_path / "c.yaml", [f"train.batch={written}"]).train.batch == meant
    for sexagesimal in ("1:30", "190:20:30"):
        with pytest.raises(UserError, match="must be an integer"):
            configuration.load(tmp_path / "c.yaml", [f"seed={sexagesimal}"])


PATHS = ["folder", "modules", "data.source", "sample.guide", "tracking.folder"]


def test_every_path_is_known_to_be_one():
    config = configuration.compose(
        {**TINY, "modules": "m", "tracking": {"folder": "t"}}, ["sample.guide=g", "sample.guide_weight=1"], "tiny"
    )
    assert [key for key, _ in config.paths()] == PATHS


@pytest.mark.parametrize("key", PATHS)
@pytest.mark.parametrize(
    ("path", "line"),
    [("$NOT_SET_HERE/x", "the environment variable NOT_SET_HERE is not set"), ("~no_such_user/x", "~no_such_user")],
)
def test_a_path_that_cannot_be_expanded_is_refused(tmp_path, key, path, line):
    with pytest.raises(UserError, match=line) as caught:
        configuration.compose({**TINY}, ["sample.guide_weight=1", "sample.guide=previous", f"{key}={path}"], "tiny")
    assert f"{key}={path}" in str(caught.value)


def test_paths_are_expanded_where_they_are_used_and_kept_as_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    config = tiny(
        Path("~/runs"), "data.source=${SCRATCH}/set", "sample.guide=$SCRATCH/weights", "sample.guide_weight=1"
    )
    assert config.run_folder == tmp_path / "home/runs/tiny"
    assert config.data.located == str(tmp_path / "scratch/set")
    assert config.sample.guide_folder == tmp_path / "scratch/weights"
    saved = configuration.dump(config).decode()
    assert "folder: ~/runs" in saved
    assert "source: ${SCRATCH}/set" in saved


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [1\nb: 2\n", ":2: not YAML"),
        ("a: 1\nb: 2\na: 3\n", ":3: a is given twice, first in line 1"),
        ("- 1\n", "is a mapping of sections"),
        ("name: x\n", "data: missing"),
    ],
)
def test_broken_files_are_named(tmp_path, text, line):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"broken\.yaml") as caught:
        configuration.load(path)
    assert line in str(caught.value)


def test_differences_name_every_key():
    before = {"a": {"b": 1, "c": 2}, "d": [1]}
    after = {"a": {"b": 1, "c": 3}, "d": [2], "e": None}
    assert differences(before, after) == ["a.c is 2 there, 3 here", "d is [1] there, [2] here"]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["train.labels=true", "train.label_dropout=0", "sample.guidance=2"], "with train.label_dropout=0 the network"),
        (["train.objective=ddpm", "sample.sampler=ddpm", "sample.steps=1001"], "a ddpm model has 1000 noise levels"),
    ],
)
def test_what_sampling_could_not_do_is_refused_before_training(overrides, line):
    with pytest.raises(UserError, match=line):
        configuration.compose({**TINY, "seed": 0}, overrides, "tiny.yaml")
