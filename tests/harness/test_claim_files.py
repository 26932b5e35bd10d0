"""The plan of comparisons in `claims/` names tasks, modalities, metrics and methods that exist or are announced."""

from functools import cache
from pathlib import Path

import pytest

from multirecon import tasks
from multirecon.harness.claims import read_claims
from multirecon.harness.hypotheses import POPULATION_METRICS, Better, CostRatio, Evidence, LargerGain, Trend
from multirecon.harness.leaderboard import select

ROOT = Path(__file__).resolve().parents[2]
CLAIMS = {claim.name: claim for claim in read_claims(ROOT / "claims")}
# bundles that claims may name before they are there
ANNOUNCED = {
    "any2all_petmrct", "wavelet_diffusion_petmrct", "minet_mr", "mcvarnet_mr", "discdiff_mr", "jointvae_petct",
    "pnp_admm_pet", "cdl_petct", "osem_pet", "map_pet", "tv_petmrct", "tikhonov_petmrct", "cs_mr",
    "dps_spectralct", "mcaol_spectralct", "jointvae_petmr",
}  # fmt: skip
REGIONS = ("brain", "lesion", "pet_lesion")


@cache
def task(name):
    return tasks.load(name)


def names():
    found = {path.parents[1].name: path.parent for path in ROOT.glob("bundles/*/configs/inference.json")}
    variants = {
        f"{n}:{p.stem.removeprefix('inference_')}" for n, c in found.items() for p in c.glob("inference_*.json")
    }
    return set(found) | variants


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_asks_what_tasks_answer(name):
    claim = CLAIMS[name]
    existing = names()
    bundles = {n.partition(":")[0] for n in existing}
    for test in claim.tests:
        for run in test.runs:
            bundle = run.method.partition(":")[0]
            assert run.task in tasks.names()
            # a variant is checked where its bundle is there; one of an announced bundle cannot be yet
            assert run.method in existing if bundle in bundles else bundle in ANNOUNCED, run.method
            if isinstance(test, CostRatio):
                continue
            metric, _, region = test.quantity.metric.partition("@")
            assert test.quantity.modality in task(run.task).targets
            assert metric in (*task(run.task).metrics, *POPULATION_METRICS)
            assert not region or region in REGIONS
            assert metric not in ("crc", "cnr") or region.endswith("lesion")


@pytest.mark.parametrize("name", CLAIMS)
def test_runs_that_are_compared_share_their_samples(name):
    for test in CLAIMS[name].tests:
        data = [task(run.task).config for run in test.runs]
        same = {
            (str(c["sets"]), *(str(c["dataset"].get(k)) for k in ("split", "seeds", "slices", "config"))) for c in data
        }
        assert len(same) == 1, [run.task for run in test.runs]


def test_every_kind_of_test_has_room_and_nothing_is_decided_without_results():
    kinds = {type(test) for claim in CLAIMS.values() for test in claim.tests}
    assert kinds <= {Better, CostRatio, LargerGain, Trend}
    assert len(CLAIMS) >= 20
    for claim in CLAIMS.values():
        assert all(o.verdict == "not tested" for test in claim.tests for o in test.check(Evidence(select([]))))


def test_the_page_lists_what_is_not_here():
    page = (ROOT / "claims" / "README.md").read_text(encoding="utf-8")
    for name in ("A13", "B11", "B12", "C2"):
        assert name in page
        assert name not in CLAIMS
    assert {path.stem.upper() for path in (ROOT / "claims").glob("*.json")} == set(CLAIMS)
