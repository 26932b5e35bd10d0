import pytest

from multirecon.data.splits import EMBEDDED, SPLITS, check_samples, sample_seed, split_anatomies, split_of


def test_no_anatomy_is_in_two_splits():
    members = [name for names in SPLITS.values() for name in names]
    assert len(members) == len(set(members)) == 16


@pytest.mark.parametrize("other", ["validation", "test", "out_of_distribution"])
def test_training_set_refuses_anatomies_of_other_splits(other):
    for anatomy in SPLITS[other]:
        with pytest.raises(ValueError, match=f"{anatomy} seed 0 .{other}"):
            check_samples("train", [("01", 0), (anatomy, 0)])


def test_seeds_decide_for_the_embedded_anatomy():
    seeds = {split: sample_seed(EMBEDDED, 5, split) for split in SPLITS}
    assert len(set(seeds.values())) == len(SPLITS)
    for split, seed in seeds.items():
        assert split_of(EMBEDDED, seed) == split
        check_samples(split, [(EMBEDDED, seed)])
    with pytest.raises(ValueError, match="anatomies"):
        check_samples("train", [(EMBEDDED, seeds["test"])])


def test_seed_beyond_its_range_is_refused():
    with pytest.raises(ValueError, match="seed"):
        sample_seed(EMBEDDED, 1_000_000, "train")
    assert sample_seed("09", 3, "test") == 3


def test_users_own_anatomy_belongs_to_no_split():
    assert split_of("volunteer") is None
    check_samples("train", [("volunteer", 0)])


def test_split_anatomies_falls_back_to_the_embedded_one_only_when_it_is_listed():
    assert split_anatomies("test", ("01", "09", "15")) == ("09", "15")
    assert split_anatomies("test", (EMBEDDED,)) == (EMBEDDED,)
    with pytest.raises(ValueError, match="none of the anatomies"):
        split_anatomies("test", ("01",))
    with pytest.raises(ValueError, match="split"):
        split_anatomies("tset", ("01",))
