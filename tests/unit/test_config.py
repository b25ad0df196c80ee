"""Recipes and command lines: the paper's numbers, one parser for both, and errors that name key, value and remedy."""

from __future__ import annotations

import os
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml
from commands import call

from equimod.models.settings import METHOD_NAMES, MethodSettings
from equimod.train import command
from equimod.train.config import RECIPES, Config, ConfigError, default_recipe, differences, parse, read_recipe, recipes
from equimod.train.main import main

ROOT = Path(__file__).parents[2]


def test_every_method_has_settings_of_its_name() -> None:
    assert tuple(field.name for field in fields(MethodSettings)) == METHOD_NAMES


def test_the_recipes_hold_the_papers_settings() -> None:
    for equimod, lr in ((False, 4.8), (True, 2.4)):
        recipe = default_recipe("simclr", "imagenet", equimod)
        assert recipe is not None
        config = read_recipe(recipe)
        assert (config.equimod, config.optim.lr, config.batch_size, config.epochs) == (equimod, lr, 4096, 800)
        assert (config.encoder.arch, config.encoder.stem, config.encoder.width) == ("resnet50", "imagenet", 64)
        assert (config.simclr.temperature, config.equivariance.temperature) == (0.2, 0.2)
        assert (config.optim.weight_decay, config.optim.momentum, config.optim.warmup_epochs) == (1e-6, 0.9, 10)
    for equimod in (False, True):
        config = parse(["--method", "simclr", "--dataset", "cifar10", *(["--equimod"] if equimod else [])])
        assert (config.equimod, config.optim.lr, config.batch_size, config.epochs) == (equimod, 4.0, 512, 800)
        assert (config.encoder.arch, config.encoder.stem) == ("resnet18", "cifar")
        assert (config.simclr.temperature, config.equivariance.temperature, config.equivariance.weight) == (0.5, 0.2, 1)


def test_the_recipes_of_byol_and_barlow_twins_hold_the_papers_settings() -> None:
    """Learning rate without and with EquiMod, weight decay, epochs, batch, dimension of the embedding (Sec. 3.1)."""
    expected = {
        ("byol", "imagenet"): (3.2, 4.8, 1.5e-6, 1000, 4096, 256),
        ("byol", "cifar10"): (2.0, 2.0, 1e-6, 800, 512, 256),
        ("barlow_twins", "cifar10"): (1.2, 1.2, 1.5e-6, 800, 512, 128),
    }
    for (method, dataset), (lr, lr_equimod, decay, epochs, batch_size, dim) in expected.items():
        for equimod in (False, True):
            recipe = default_recipe(method, dataset, equimod)
            assert recipe is not None
            config = read_recipe(recipe)
            assert (config.method, config.dataset, config.equimod) == (method, dataset, equimod)
            assert config.policy == f"{method}_{dataset}"
            assert (config.optim.lr, config.optim.weight_decay) == (lr_equimod if equimod else lr, decay)
            assert (config.epochs, config.batch_size, getattr(config, method).dim) == (epochs, batch_size, dim)
    assert (Config().byol.momentum, Config().barlow_twins.lambd) == (0.996, 0.005)


def test_methods_of_the_command_line_and_of_the_models_are_the_same() -> None:
    from equimod.models.ssl import METHODS

    assert tuple(METHODS) == METHOD_NAMES
    for method in METHOD_NAMES:
        assert parse(["--method", method, "--equimod"]).method == method


def test_only_the_settings_of_the_chosen_method_are_kept() -> None:
    kept = yaml.safe_load(parse(["--method", "byol", "--byol.momentum", "0.5"]).to_yaml())
    assert kept["byol"]["momentum"] == 0.5
    assert not set(kept) & (set(METHOD_NAMES) - {"byol"})


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_reads_and_survives_its_own_yaml(recipe: Path, tmp_path: Path) -> None:
    config = read_recipe(recipe)
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert read_recipe(tmp_path / "config.yaml") == config


def test_none_and_empty_lists_survive_yaml(tmp_path: Path) -> None:
    config = parse(
        ["--method", "simclr", "--equimod", "--equivariance.projector", "None", "--data", "None", "--simclr.hidden"]
    )
    assert (config.equivariance.projector, config.data, config.simclr.hidden) == (None, None, ())
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert read_recipe(tmp_path / "config.yaml") == config


def test_options_go_over_the_recipe() -> None:
    config = parse(["--method", "simclr", "--dataset", "cifar10", "--optim.lr", "1.5", "--batch-size", "64"])
    assert (config.optim.lr, config.batch_size, config.optim.momentum) == (1.5, 64, 0.9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nepochs: 3\nseed: 2", "a key twice among seed, epochs; correct it"),
        (f"epochs: {'[' * 3000}", "is not YAML in UTF-8: values nested more than 20 deep"),
        (
            "equivariance: {embedding: [--epochs, '3']}",
            r"equivariance.embedding=\['--epochs', '3'\] is of the wrong type",
        ),
        ("epoch: 3", r"no setting is called epoch \(did you mean epochs\?\)"),
        ("optim: {lrr: 3}", r"no setting is called optim.lrr \(did you mean optim.lr\?|lr\?\)"),
        ("optim: 3", "optim holds settings of its own"),
        ("epochs: many", "epochs='many' is of the wrong type"),
        ("seed: 1\noptim: {momentum: 0.5, lr: [1, 2]}", r"optim.lr=\[1, 2\] is of the wrong type"),
        ("equimod: 3", "equimod=3 is of the wrong type"),
        ("- 1", "`key: value`"),
        ("a: [", "not YAML"),
        ("# \xe9", "not YAML in UTF-8"),
        ("extends: other.yaml", "cannot be read"),
        ('extends: "a\\0b"', "a\ufffdb cannot be read"),
        (f"extends: {'a' * 300}", "cannot be read: File name too long"),
        (f"dataset: {'a' * 300}", "dataset='a+' is of the wrong type"),
        ("extends: mine.yaml", "extends mine.yaml, which extends it in turn"),
    ],
)
def test_a_wrong_recipe_is_refused_by_file_and_key(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=message) as caught:
        read_recipe(recipe)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


def test_what_is_of_the_wrong_type_in_a_whole_configuration_is_found_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each try takes a tenth of a second."""
    whole = read_recipe(RECIPES / "simclr_equimod_shapes.yaml").to_yaml()
    (tmp_path / "mine.yaml").write_text(whole.replace("workers: null", "workers: nothing"))
    tries: list[object] = []
    read = recipes.read_options
    monkeypatch.setattr(recipes, "read_options", lambda *given: tries.append(given) or read(*given))
    with pytest.raises(ConfigError, match=r"mine\.yaml: system\.workers='nothing' is of the wrong type"):
        read_recipe(tmp_path / "mine.yaml")
    assert len(tries) < 6


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_recipe_that_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    recipe = tmp_path / "mine.yaml"
    if kind == "pipe":
        os.mkfifo(recipe)
    else:
        recipe.symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match=r"mine\.yaml cannot be read: it is no file, but a pipe"):
        read_recipe(recipe)


def test_a_misspelt_recipe_has_a_hint() -> None:
    with pytest.raises(ConfigError, match=r"\(did you mean byol_cifar10_original\?\); recipes lie in"):
        parse(["--config", "byol_cifar10_orignal"])


def test_recipes_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    for name, parent in (("a", "b"), ("b", "c"), ("c", "b")):
        (tmp_path / f"{name}.yaml").write_text(f"extends: {parent}.yaml", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"c\.yaml: extends b\.yaml, which extends it in turn"):
        read_recipe(tmp_path / "a.yaml")


@pytest.mark.parametrize("equimod", [False, True])
@pytest.mark.parametrize("dataset", ["shapes", "cifar10", "imagenet"])
def test_a_recipe_starts_from_the_one_of_its_method_and_data_set(equimod: bool, dataset: str, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"dataset: {dataset}\nequimod: {equimod}\nseed: 5", encoding="utf-8")
    start = default_recipe("simclr", dataset, equimod)
    assert start is not None
    assert read_recipe(recipe) == replace(read_recipe(start), seed=5)


def test_settings_of_equimod_without_it_are_refused_in_a_recipe_too(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("dataset: shapes\nequivariance: {weight: 2}", encoding="utf-8")
    refused = r"mine\.yaml: equivariance.weight=2.0 has no effect without EquiMod"
    with pytest.raises(ConfigError, match=refused):
        read_recipe(recipe)
    with pytest.raises(ConfigError, match=refused):
        parse(["--config", str(recipe)])
    assert parse(["--config", str(recipe), "--equimod"]).equivariance.weight == 2


def test_a_recipe_with_equimod_can_be_run_without() -> None:
    config = parse(["--config", str(RECIPES / "simclr_equimod_shapes.yaml"), "--no-equimod"])
    assert replace(config, config=None) == read_recipe(RECIPES / "simclr_shapes.yaml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "--method is missing"),
        ("--dataset imagenet", "--method is missing"),
        ("--method simclr --dataset imagenet", "convert ImageNet with equimod convert"),
        ("--method simclr --policy simclr_cifar", "did you mean simclr_cifar10"),
        ("--method simclr --equivariance.weight 2", "^equivariance.weight=2.0 has no effect without EquiMod"),
        ("--method byol --simclr.dim 8", "^simclr.dim=8 has no effect with --method byol; leave it out"),
        ("--method byol --byol.momentum 1.5", r"byol.momentum=1.5 must lie in \[0, 1\]"),
        ("--method simclr --image-size 1", "kernel_size=3 is too large for images of 1 pixels; give less than twice"),
        ("--method simclr --optim.lr 1e40", r"optim.lr=1e\+40 is too large; give 1e\+38 or less"),
        ("--method simclr --optim.weight-decay inf", "optim.weight_decay=inf is too large"),
        ("--method simclr --output runs/\udce9", "is not UTF-8, which TensorBoard needs; give another"),
        (
            "--method simclr --dataset shapes --data photos/\0",
            r"'photos/\\x00' holds a NUL, which no path can; correct it",
        ),
        ("--method simclr --resume \0", "holds a NUL"),
        ("--method barlow_twins --barlow-twins.lambd -1", "barlow_twins.lambd=-1.0 is too small; give 0 or more"),
        ("--method simclr --epochs 2 --optim.warmup-epochs 5", "warmup_epochs=5.0 is not shorter than epochs=2"),
        ("--method simclr --resume auto --overwrite", "contradict"),
        ("--method simclr --equimod --x-as-view", "x_as_view is a control for simclr, barlow_twins"),
        ("--method byol --x-as-view", "x_as_view is a control for simclr, barlow_twins"),
        ("--method simclr --batch-size 1", "batch_size=1 is too small"),
        ("--method simclr --optim.lr 0", "optim.lr=0.0 must be positive"),
        ("--method simclr --optim.momentum 1", "optim.momentum=1.0"),
        ("--method simclr --seed 18446744073709551616", "seed=18446744073709551616 is too large"),
        ("--method simclr --simclr.hidden 16 0", r"simclr.hidden=\(16, 0\) holds a width below 1"),
        ("--method simclr --simclr.dim 0", "simclr.dim=0 is too small"),
        ("--method simclr --equimod --equivariance.projector 0", r"projector=\(0,\) holds a width below 1"),
        ("--method simclr --equimod --equivariance.predictor-hidden -1", "predictor_hidden=.* holds a width below 1"),
        ("--method simclr --equimod --equivariance.embedding 0", "embedding=.* holds a width below 1"),
        ("--method simclr --equimod --equivariance.projector", r"projector=\(\) is empty; give widths, or None"),
        ("--method simclr --equimod --equivariance.embedding", r"embedding=\(\) is empty; give widths, or None"),
        ("--method simclr --system.batchnorm apex", "batchnorm=apex computes in fp16, not auto; give --precision fp16"),
        (
            "--method simclr --essl --precision fp16 --system.batchnorm apex",
            "essl takes two .* --system.batchnorm torch",
        ),
        ("--method simclr --system.compile reduce-overhead --grad-cache 2", "give --system.compile default"),
        ("--method simclr --system.compile max-autotune --essl", "give --system.compile default"),
        ("--method simclr --resolution.start 20", "n.start=20 does not grow to 64 pixels in steps of 32; give 32"),
        ("--method simclr --resolution.start 64", "resolution.start=64 does not grow to 64 pixels"),
        ("--method simclr --resolution.until 1", "resolution.until=1.0 must lie between 0 and 1"),
        ("--method simclr --resolution.start 32 --resolution.until 0.001", "images of 0 of .* epochs smaller"),
        ("--config nowhere.yaml", "nowhere.yaml cannot be read"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_the_remedy(options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(options.split())


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["optim.lr=1.5", "batch_size=64"], ["--optim.lr", "1.5", "--batch-size", "64"]),
        (["equimod=true", "simclr.hidden=[16, 8]"], ["--equimod", "--simclr.hidden", "16", "8"]),
        (["encoder.width=16", "--seed", "3"], ["--encoder.width", "16", "--seed", "3"]),
        (["--output", "runs/a=b"], ["--output", "runs/a=b"]),
    ],
)
def test_settings_may_be_written_as_in_a_recipe(words: list[str], options: list[str]) -> None:
    assert parse(["--method", "simclr", *words]) == parse(["--method", "simclr", *options])


@pytest.mark.parametrize("word", ["optim=3", "optim.lrr=3", "learning_rate=3"])
def test_a_word_that_is_no_setting_is_refused(word: str) -> None:
    answer = call(main, "--method", "simclr", word)
    assert answer.code == 2
    assert word in answer.err


def test_a_value_that_is_no_yaml_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^simclr.hidden=\[3: the value is not YAML"):
        parse(["--method", "simclr", "simclr.hidden=[3"])


def test_a_recipe_may_be_given_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--data", "records"]
    named = parse(["--config", "simclr_imagenet_fast", *words])
    assert named == replace(
        parse(["--config", str(RECIPES / "simclr_imagenet_fast.yaml"), *words]), config=Path("simclr_imagenet_fast")
    )
    (tmp_path / "simclr_imagenet_fast").write_text("method: byol", encoding="utf-8")
    assert parse(["--config", "simclr_imagenet_fast", "--dataset", "shapes"]).method == "byol"


def test_only_settings_that_change_the_result_count_as_another_configuration() -> None:
    base = ["--method", "simclr"]
    same = parse([*base, "--output", "elsewhere", "--log.every", "3", "--system.workers", "4"])
    assert differences(same, parse(base)) == []
    other = parse([*base, "--optim.lr", "3", "--seed", "5"])
    assert differences(other, parse(base)) == ["seed=5 (was 0)", "optim.lr=3.0 (was 2.0)"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--method", "simclr", "--bach-size", "3"], "--batch-size"),
        (["--method", "byoll"], "simclr"),
        ([], "--method"),
        (["--optim.lrr", "3"], "--optim.lr"),
    ],
)
def test_a_wrong_command_line_exits_2_with_a_hint(options: list[str], text: str) -> None:
    answer = call(main, *options)
    assert answer.code == 2
    assert text in answer.err


@pytest.mark.parametrize("options", [["--bach-size", "3"], []])
def test_only_the_first_rank_tells_what_is_wrong_with_the_command_line(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(command, "_GRACE", 0.0)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        answer = call(main, *options)
        assert answer.code == 2
        assert bool(answer.err) == (rank == "0")
        assert not answer.out


def test_the_default_output_names_method_and_data_set() -> None:
    assert Config(equimod=True, dataset="shapes").run_folder() == Path("runs/simclr-equimod-shapes")
    assert Config(equimod=True, data=(Path("my/photos/"),)).run_folder() == Path("runs/simclr-equimod-photos")


def test_the_paper_page_has_every_recipe_of_a_data_set_with_its_numbers() -> None:
    names = []
    rows = re.findall(r"^\| (`.*) \|$", (ROOT / "docs" / "paper.md").read_text(), re.MULTILINE)
    for row in rows:
        in_row, encoder, *numbers = (cell.strip() for cell in row.split("|"))
        of_row = [name for name in re.findall(r"`(\w+)`", in_row) if (RECIPES / f"{name}.yaml").exists()]
        for place, name in enumerate(of_row):
            config = read_recipe(RECIPES / f"{name}.yaml")
            epochs, batch_size, lrs = numbers[0], numbers[1], numbers[2].split(", ")
            told = (encoder, int(epochs), int(batch_size), float(lrs[place % len(lrs)]))
            assert told == (_encoder(config), config.epochs, config.batch_size, config.optim.lr), name
        names += of_row
    of_data_sets = {path.stem for path in RECIPES.glob("*.yaml")} - set(METHOD_NAMES)
    assert sorted(names) == sorted(of_data_sets)


def _encoder(config: Config) -> str:
    """As the page says it."""
    encoder = config.encoder
    if encoder.arch == "vit_small_patch16_224":
        return "ViT-S/16"
    stem = ", CIFAR stem" if encoder.stem == "cifar" else ""
    width = f", width {encoder.width}" if encoder.width != 64 else ""
    return f"{encoder.arch.replace('resnet', 'ResNet-')}{stem}{width}"
