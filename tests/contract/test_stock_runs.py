"""`python -m monai.bundle run`, from three directories, on a measurement file; and what it refuses."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from contract.promises import expensive, quick
from contract.stock import arguments, run_command

from multirecon.bundle import load_network, schema_path

CPU = "$torch.device('cpu')"


def folder_with_strangers(parent: Path) -> Path:
    """A directory with a blank and an umlaut in its path that holds modules of other people's."""
    folder = parent / "mit Bündel und ü" / "work"
    (folder / "scripts").mkdir(parents=True)
    (folder / "scripts" / "__init__.py").write_text("raise ImportError('a stranger')\n", encoding="utf-8")
    (folder / "configs").mkdir()
    (folder / "configs" / "metadata.json").write_text("{}", encoding="utf-8")
    return folder


def options(bundle, data, out, **more):
    config = str(bundle.configs / "inference.json")
    places = {"bundle_root": str(bundle.root), "dataset_dir": str(data), "output_dir": str(out), "device": CPU}
    return arguments("run", config_file=config, **{**places, **bundle.quick, **more})


@pytest.fixture
def data(tilted, tmp_path):
    """A folder with one measurement file."""
    tilted.save(tmp_path / "data with ü" / "scan.h5")
    return tmp_path / "data with ü"


def images(folder):
    return {path.name: nib.load(path) for path in sorted(folder.glob("*.nii.gz"))}


def assert_same(one, other):
    """Bit for bit: values and affines."""
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name].get_fdata(), other[name].get_fdata(), err_msg=name)
        np.testing.assert_array_equal(one[name].affine, other[name].affine, err_msg=name)


@pytest.fixture
def expected(bundle, data, tmp_path):
    """The images of the same run from Python."""
    workflow = quick(bundle, dataset_dir=str(data), output_dir=str(tmp_path / "python"))
    workflow.run()
    return images(tmp_path / "python")


def test_run_gives_the_same_images_from_any_directory(bundle, stock, data, expected, tilted, tmp_path):
    places = {"root": bundle.root, "top": Path("/"), "strangers": folder_with_strangers(tmp_path)}
    for name, place in places.items():
        done = stock.run(options(bundle, data, tmp_path / name), place)
        assert done.code == 0, f"{name}: {done.err}"
        assert_same(images(tmp_path / name), expected)
    results = {name for name in expected if not name.endswith("_trust.nii.gz")}
    assert len(results) == tilted.batch_size * len(tilted.space.names)
    for index, affine in enumerate(tilted.space.affine.numpy()):
        for modality in tilted.space.names:
            image = next(i for n, i in expected.items() if f"{index:03d}" in n and n.endswith(f"_{modality}.nii.gz"))
            np.testing.assert_allclose(image.affine, affine, atol=1e-5)
            assert image.shape[: len(tilted.space.shape)] == tilted.space.shape
            assert image.get_data_dtype() == np.float32


@expensive
def test_run_in_a_process_of_its_own(bundle, data, expected, tmp_path):
    """The real command, from the worst directory."""
    done = run_command(options(bundle, data, tmp_path / "own"), folder_with_strangers(tmp_path))
    assert done.code == 0, done.err
    assert_same(images(tmp_path / "own"), expected)


def test_a_bundle_runs_from_where_it_was_copied_to(bundle, stock, data, expected, tmp_path):
    """Without --bundle_root, in the bundle's own folder, nothing but the output folder is written to."""
    copy = Path(shutil.copytree(bundle.root, tmp_path / "downloads" / bundle.name))
    before = sorted(p.relative_to(copy) for p in copy.rglob("*") if "__pycache__" not in p.parts)
    words = arguments("run", config_file="configs/inference.json", dataset_dir=str(data), device=CPU,
                      output_dir=str(tmp_path / "copied"), **bundle.quick)  # fmt: skip
    done = stock.run(words, copy)
    assert done.code == 0, done.err
    assert_same(images(tmp_path / "copied"), expected)
    assert sorted(p.relative_to(copy) for p in copy.rglob("*") if "__pycache__" not in p.parts) == before


def test_verification_commands(bundle, stock, tmp_path):
    """MONAI's own, in the bundle's folder, with our schema in the place of the download."""
    schema = Path(shutil.copy(schema_path(), tmp_path / "schema.json"))
    files = {"meta_file": "configs/metadata.json", "config_file": "configs/inference.json"}
    script = str(tmp_path / "model.ts")
    commands = [
        arguments("verify_metadata", meta_file=files["meta_file"], filepath=str(schema)),
        ["verify_net_in_out", "network_def", *arguments("", **files)[1:]],
        ["ckpt_export", "network_def", *arguments("", filepath=script, ckpt_file="models/model.pt", **files)[1:]],
    ]
    for words in commands:
        done = stock.run(words, bundle.root)
        assert done.code == 0, f"{words[0]}: {done.err}"
    assert (tmp_path / "model.ts").stat().st_size > 0


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ({"dataset_dir": "EMPTY"}, "dataset_dir: expected measurement files"),
        ({"dataset_dir": "NOWHERE"}, "dataset_dir: expected an existing folder"),
        ({"datasetdir": "x"}, "unknown key 'datasetdir' (did you mean 'dataset_dir'?)"),
    ],
    ids=["empty", "nowhere", "typo"],
)
def test_mistakes_end_in_one_clear_line(bundle, stock, data, mistake, words, tmp_path):
    (tmp_path / "empty").mkdir()
    paths = {"EMPTY": str(tmp_path / "empty"), "NOWHERE": str(tmp_path / "nowhere")}
    changed = {key: paths.get(value, value) for key, value in mistake.items()}
    done = stock.run(options(bundle, data, tmp_path / "out", **changed), tmp_path)
    assert done.code != 0
    assert not (tmp_path / "out").exists()
    lines = done.err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert words in lines[-1]
    assert "Traceback" not in done.err


def test_nested_mistakes_stop_the_run(bundle, stock, data, tmp_path):
    """What a component does not know is refused by the component, what a config does not have by MONAI."""
    for key in ("inferer#no_such_option", "no_such_part#option"):
        done = stock.run(options(bundle, data, tmp_path / "out", **{key: 1}), tmp_path)
        assert done.code != 0
        assert "no_such" in done.err
        assert not (tmp_path / "out").exists()


def test_train_and_evaluate_by_the_stock_command(bundle, stock, tmp_path):
    """Two real steps from another directory, a checkpoint that loads strictly, a table of metrics."""
    copy = Path(shutil.copytree(bundle.root, tmp_path / bundle.name))
    before = load_network(quick(bundle)).state_dict()
    train, evaluate = (str(copy / "configs" / f"{name}.json") for name in ("train", "evaluate"))
    places = {"bundle_root": str(copy), "ckpt_dir": str(tmp_path / "ckpt"), "output_dir": str(tmp_path / "eval")}
    short = {"train#trainer#max_epochs": 1, "train#trainer#epoch_length": 2, "validate#evaluator#epoch_length": 1}
    done = stock.run(arguments("run", config_file=train, device=CPU, **places, **short), tmp_path)
    assert done.code == 0, done.err
    shutil.copy(tmp_path / "ckpt" / "model.pt", copy / "models" / "model.pt")
    after = load_network(quick(type(bundle)(copy))).state_dict()
    assert before.keys() == after.keys()
    assert any(not np.array_equal(before[k].cpu().numpy(), after[k].cpu().numpy()) for k in before)
    words = arguments(
        "run", config_file=[train, evaluate], device=CPU, **places, **{"validate#evaluator#epoch_length": 1}
    )
    done = stock.run(words, tmp_path)
    assert done.code == 0, done.err
    assert (tmp_path / "eval" / "metrics.csv").read_text().count("\n") >= 1
