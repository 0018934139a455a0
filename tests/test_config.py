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
    (["kind=ldm"], "recipe kind 'ldm': allowed: first_stage, latent_diffusion"),
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
