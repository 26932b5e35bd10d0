"""Names and versions that break some tool are refused, with the rule."""

import pytest

from multirecon.bundle import check_name, check_version


@pytest.mark.parametrize("name", ["sense_mr", "any2all_petmrct", "mcvarnet_mr", "wavelet_diffusion_petct3d"])
def test_good_names_pass(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("joint_vae", "no '_v'"),
        ("tumour_segmentation", "no 'segmentation'"),
        ("lesion_detection_pet", "no 'detection'"),
        ("deepedit_mr", "no 'deepedit'"),
        ("classification_ct", "no 'classification'"),
        ("sense", "<method>_<modalities>"),
        ("Sense_MR", "lower-case"),
        ("sense-mr", "lower-case"),
        ("../sense_mr", "lower-case"),
        ("sense_mr\n", "lower-case"),
        ("", "lower-case"),
    ],
)
def test_bad_names_say_why(name, rule):
    with pytest.raises(ValueError, match=rule):
        check_name(name)


@pytest.mark.parametrize("version", ["0.10.0", "1.0", "1.0.0rc1", "v1.0.0", "1.0.0\n"])
def test_versions_that_monai_sorts_wrongly_are_refused(version):
    assert check_version("0.9.9") == "0.9.9"
    with pytest.raises(ValueError, match="one digit"):
        check_version(version)
