"""Settings: what is misspelt is named as it was written, with the nearest valid key; overrides reach everything, also into lists."""

import re

import pytest

from latentworks.config import merge, read_mapping
from latentworks.recipe import parse_recipe
from latentworks.recipes import RECIPES, get_recipe

MISTAKES = [
    (["trian.batch=2"], "unknown key 'trian.batch': did you mean 'train'?"),
    (["train.batchs=2"], "unknown key 'train.batchs': did you mean 'batch'?"),
    (["unet.chanels=2"], "unknown key 'unet.chanels': did you mean 'channels'?"),
    (["conditioners.0.widht=2"], "unknown key 'conditioners.0.widht': did you mean 'width'?"),
    (["conditioners.1.width=2"], "unknown key 'conditioners.1.width': allowed: 0"),
    (["train.batch.size=2"], "unknown key 'train.batch.size': batch is a value, not a group of settings"),
    (["train.batch=0"], "train.batch: Input should be greater than or equal to 1 (got 0)"),
    (["train.batch=many"], "train.batch: Input should be a valid integer, unable to parse string as an integer (got 'many')"),
    (["process.prediction=epsilon"], "process.prediction: Input should be 'eps', 'x0' or 'v' (got 'epsilon')"),
    (["conditioners.0.kind=txt"], "conditioners.0: Input tag 'txt' found using 'kind' does not match any of the expected tags"),
    (["data={}"], "data.size: is required"),
    (["unet.multipliers=[]"], "unet: multipliers: give one positive integer per level, not []"),
    (["kind=ldm"], "recipe kind 'ldm': allowed: classifier, first_stage, latent_diffusion"),
    (["train.batch"], "'train.batch': write a setting as key=value, e.g. train.batch=32"),
    (["train.batch=[2"], "'train.batch=[2': the value is no YAML; quote it"),
]


@pytest.mark.parametrize(("overrides", "message"), MISTAKES, ids=[overrides[0] for overrides, _ in MISTAKES])
def test_mistakes_are_named(overrides, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        get_recipe("openmoji-64", overrides)
    assert "\n" not in str(error.value)


def test_keys_of_a_union_are_those_of_its_kind():
    with pytest.raises(ValueError, match=r"unknown key 'first_stage.codez': did you mean 'codes'\?"):
        get_recipe("openmoji-64-ae-vq", ["first_stage.codez=2"])
    with pytest.raises(ValueError, match=r"unknown key 'first_stage.codes': allowed: .*channels"):
        get_recipe("openmoji-64-ae", ["first_stage.codes=2"])
    with pytest.raises(ValueError, match="crop_size 99 is larger than size 64"):
        get_recipe("openmoji-64-ae", ["data.crop_size=99"])


def test_overrides_are_read_as_yaml():
    values = {"a": {"b": 1, "list": [{"c": 1}, 2]}, "name": "x"}
    changed = merge(values, ["a.b=1e-4", "a.list.0.c=null", "a.list.1=[3, 4]", "name=1e5x", "a.new=2.5E3"])
    assert changed == {"a": {"b": 1e-4, "list": [{"c": None}, [3, 4]], "new": 2500.0}, "name": "1e5x"}
    assert values["a"]["b"] == 1, "the original is as it was"
    assert merge(values, ["name=nan"])["name"] == "nan", "a word stays a word"


def test_recipes_by_name_and_by_file(tmp_path):
    for name in RECIPES:
        recipe = get_recipe(name)
        assert recipe.name == name
        recipe.save(tmp_path / "recipe.json")
        assert get_recipe(str(tmp_path / "recipe.json")) == recipe
        assert parse_recipe(recipe.model_dump(mode="json")) == recipe
    with pytest.raises(ValueError, match=r"unknown recipe 'openmoj-64': did you mean 'openmoji-64'\?, or give a .json or .yaml file"):
        get_recipe("openmoj-64")
    with pytest.raises(ValueError, match=r"cannot read missing.yaml: .*No such file"):
        get_recipe("missing.yaml")
    for text, message in (("a: [", "cannot read"), ("- 1", "must hold a mapping of settings, not list"), ("kind: [1]", "recipe kind")):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            get_recipe(str(tmp_path / "bad.yaml"))
    (tmp_path / "bad.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="cannot read"):
        read_mapping(tmp_path / "bad.json")


def repeated(start: str, form: str) -> str:
    """Nine times the line before, nine times over."""
    pairs = zip("abcdefgh", "bcdefghi", strict=True)
    return f"a: &a {start}\n" + "".join(f"{b}: &{b} {form.format(', '.join(['*' + a] * 9))}\n" for a, b in pairs)


HOSTILE = {
    "laughs.yaml": (repeated("[1, 1]", "[{}]"), "more than 20000 values, with those its aliases stand for"),
    "merges.yaml": (repeated("{k: 1}", "{{<<: [{}]}}"), "more than 20000 values, with"),
    "many.yaml": ("[" + "1, " * 30_000 + "]", "more than 20000 values"),
    "itself.yaml": ("a: &a [*a]", "line 1: a value contains itself"),
    "deep.yaml": ("a: " + "[" * 100_000, "nested too deeply"),
    "deep block.yaml": ("- " * 100_000, "nested too deeply"),
    "deep.json": ("[" * 400_000, "nested too deeply"),
    "alias.yaml": ("a: *nothing", "found undefined alias"),
    "digits.yaml": ("a: " + "9" * 900_000, "a number of 900000 letters is no setting"),
    "hex.yaml": ("a: 0x" + "f" * 900_000, "a number of 900002 letters"),
    "sexagesimal.yaml": ("a: 1" + ":59" * 300_000, "a number of 900001 letters"),
    "digits.json": ('{"a": ' + "9" * 900_000 + "}", "digits"),
    "huge.json": ('{"a": {"b": 1' + "0" * 400 + "}}", "a.b: the number is not finite, or too large"),
    "nan.json": ('{"a": [NaN]}', "a.0: the number is not finite"),
    "inf.yaml": ("a: .inf", "a: the number is not finite"),
    "nan.yaml": ("a: .nan", "a: the number is not finite"),
    "twice.yaml": ("b: 1\na: 1\na: 2", "line 1: 'a' occurs twice"),
    "twice.json": ('{"a": 1, "a": 2}', "'a' occurs twice"),
    "key.yaml": ("1: a", "line 1: a key that is no text: quote it"),
    "bool key.yaml": ("on: a", "a key that is no text"),
    "list key.yaml": ("? [a]\n: b", "a key that is no text"),
    "date.yaml": ("a: 2020-01-01", "a value of kind 'timestamp' is no setting: quote it"),
    "binary.yaml": ("a: !!binary aGk=", "a value of kind 'binary'"),
    "python.yaml": ("a: !!python/object/apply:os.system [x]", "a value of kind 'python/object/apply:os.system' is no setting"),
    "own.yaml": ("a: !mine x", "a value of kind '!mine'"),
    "set.yaml": ("a: !!set {b}", "a value of kind 'set'"),
    "wrong int.yaml": ("a: !!int x", "invalid literal"),
    "no int.yaml": ("a: !!int ", "a value does not have the type its tag says"),
    "wrong bool.yaml": ("a: !!bool x", "a value does not have the type its tag says"),
    "wrong map.yaml": ("a: !!map x", "expected a mapping"),
    "wrong merge.yaml": ("a:\n  <<: x", "expected a mapping"),
    "two.yaml": ("a: 1\n---\nb: 1", "expected a single document"),
    "surrogate.json": ('{"a": "\\ud800"}', "surrogates not allowed"),
    "empty.yaml": ("", "must hold a mapping of settings, not NoneType"),
    "control.yaml": ("a: \x00", "special characters are not allowed"),
    "large.yaml": ("a: " + "x" * (1 << 20), "it has 1048579 bytes: settings have at most 1048576"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_settings_are_refused_in_one_line(tmp_path, name):
    text, message = HOSTILE[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_mapping(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700


def test_a_folder_is_no_file_of_settings(tmp_path):
    with pytest.raises(ValueError, match="it is no file"):
        read_mapping(tmp_path)


def test_aliases_and_merges_within_bounds_are_read(tmp_path):
    (tmp_path / "a.yaml").write_text("base: &base {lr: 1.0e-4, at: [1, 2]}\nmodel: {<<: *base, lr: 2}\nagain: *base\nnone: ~\n")
    values = read_mapping(tmp_path / "a.yaml")
    assert values["model"] == {"lr": 2, "at": [1, 2]}
    assert values["again"] == {"lr": 1e-4, "at": [1, 2]}
    for override in ("train=*a", "train=.inf", "train=" + "[" * 3000, "train=2020-01-01"):
        with pytest.raises(ValueError, match="the value is no YAML; quote it"):
            merge(values, [override])
