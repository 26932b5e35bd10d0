"""What the data tests share: the embedded anatomy only, and one small phantom."""

import pytest

from multirecon.data.phantoms import Phantom, PhantomConfig, simulate


@pytest.fixture
def embedded_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behave as on a machine without label maps."""
    monkeypatch.delenv("MULTIRECON_ANATOMIES", raising=False)


@pytest.fixture(scope="session")
def coarse() -> PhantomConfig:
    """Settings for tests of logic: 3.75 mm voxels, a few slices."""
    return PhantomConfig(spacing_mm=(3.75, 3.75, 3.75), matrix=64)


@pytest.fixture(scope="session")
def phantom() -> Phantom:
    """A thin slab through the basal ganglia with every kind of lesion, at the default resolution."""
    config = PhantomConfig(
        z_mm=(-16.0, 0.0),
        ms_probability=1.0,
        infarct_probability=1.0,
        microbleed_probability=1.0,
        microbleed_count=(5, 5),
        pet_lesion_probability=1.0,
    )
    return simulate("mni152", 7, config=config)
