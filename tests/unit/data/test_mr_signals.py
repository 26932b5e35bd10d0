import math

import pytest
import torch

from multirecon.data.mr_signals import Sequences, draw_sequences, signals


def test_inversion_nulls_the_tissue_it_should():
    s = Sequences(t1_ti=900 * math.log(2 / (1 + math.exp(-2400 / 900))), t1_tr=2400)
    t1 = torch.tensor([900.0], dtype=torch.float64)
    assert float(signals(t1, t1 / 10, t1 / 20, s)["t1"]) < 1e-12


def test_drawn_flair_nulls_fluid_within_its_jitter():
    for seed in range(5):
        s = draw_sequences(torch.Generator().manual_seed(seed), jitter=0.06, t1_csf=4300.0)
        fluid, tissue = torch.tensor([4300.0]), torch.tensor([900.0])
        t2 = torch.tensor([75.0])
        assert signals(fluid, t2 * 20, t2, s)["flair"] < 0.05
        assert signals(tissue, t2, t2, s)["flair"] > 0.1


def test_echo_time_decay_is_exponential():
    t1 = torch.full((2,), 1000.0, dtype=torch.float64)
    t2 = torch.tensor([80.0, 80.0], dtype=torch.float64)
    one, two = (signals(t1, t2, t2, Sequences(t2_te=te, t2star_te=te)) for te in (50.0, 100.0))
    for name in ("t2", "t2star"):
        assert float(two[name][0] / one[name][0]) == pytest.approx(math.exp(-50 / 80), rel=1e-12)


def test_jitter_zero_keeps_the_defaults():
    s = draw_sequences(torch.Generator().manual_seed(0), jitter=0.0, t1_csf=4300.0)
    assert s.t1_ti == Sequences.t1_ti
    assert s.t2_te == Sequences.t2_te
