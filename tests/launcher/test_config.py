"""Configuration: the order of precedence, and the one-line refusals."""

import pytest
from loops import TINY, tiny

from entroloop.data.errors import UserError
from entroloop.launcher import config as configuration

BAD = [
    ("train.lrr=1", "train.lrr: unknown key; did you mean train.lr?"),
    ("trian.lr=1", "trian: unknown key; did you mean train?"),
    ("train.lr=fast", "train.lr=fast: input should be a valid number"),
    ("train.kimg=0", "train.kimg=0: input should be greater than 0"),
    ("generations=0", "generations=0: input should be greater than or equal to 1"),
    ("loop.paradigm=replaced", "loop.paradigm=replaced: must be one of replace, accumulate, accumulate-subsample"),
    ("selection.strategy=gredy", "did you mean greedy?"),
    ("selection.options.strat=3", "option of strategy greedy 'strat' does not exist: did you mean start?"),
    ("selection.options.oversample=0.5", "selection.options: oversample: must be greater than or equal to 1, is 0.5"),
    ("selection.options.parts=two", "selection.options: parts: must be a valid integer, is two"),
    ("selection.options.trim=1", "selection.options: trim: must be less than 1, is 1"),
    ("selection.options.trim_k=0", "selection.options: trim_k: must be greater than or equal to 1, is 0"),
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
    config = configuration.load(path, ["train.lr=1e-4", "sample.steps=7", "selection.options.parts=9"])
    assert config.train.lr == 1e-4
    assert config.train.batch == 8
    assert config.sample.steps == 7
    assert config.selection.options == {"parts": 9}
    assert config.loop.candidates == 2


def test_precision_no_is_the_text_though_yaml_reads_it_as_false(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("name: x\ndata: {source: digits}\ntrain: {precision: no}\nsample: {precision: bf16}\n")
    config = configuration.load(path, ["sample.precision=no"])
    assert (config.train.precision, config.sample.precision) == ("no", "no")
    with pytest.raises(UserError, match=r"train\.precision=True: must be one of no, fp16, bf16"):
        configuration.load(path, ["train.precision=yes"])


def test_what_is_saved_reads_back_as_the_same(tmp_path):
    config = tiny(tmp_path, "selection.options.oversample=1.5", "data.limit=500")
    path = tmp_path / "saved.yaml"
    path.write_bytes(configuration.dump(config))
    assert configuration.load(path) == config


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: [1\nb: 2\n", ":2: not YAML"), ("- 1\n", "is a mapping of sections"), ("name: x\n", "data: missing")],
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
    assert configuration.differences(before, after) == ["a.c is 2 there, 3 here", "d is [1] there, [2] here"]


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
