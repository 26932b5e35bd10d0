"""Convolutional dictionaries: synthesis (CDL) and analysis (CAOL, MCAOL), their codes, their learning."""

from .coding import CodingState, coding_objective, high_pass, sparse_code
from .filters import analyse, dct_bank, frame_error, nearest_tight_frame, random_bank, synthesise, transfer
from .learning import AnalysisLearner, DictionaryLearner, SynthesisLearner
from .network import AnalysisOperator, SynthesisDictionary
from .thresholds import group_energy, keep_jointly, shrink, shrink_mixed_norm
from .training import DictionaryTrainer, PrepareChannels

__all__ = [
    "AnalysisLearner",
    "AnalysisOperator",
    "CodingState",
    "DictionaryLearner",
    "DictionaryTrainer",
    "PrepareChannels",
    "SynthesisDictionary",
    "SynthesisLearner",
    "analyse",
    "coding_objective",
    "dct_bank",
    "frame_error",
    "group_energy",
    "high_pass",
    "keep_jointly",
    "nearest_tight_frame",
    "random_bank",
    "shrink",
    "shrink_mixed_norm",
    "sparse_code",
    "synthesise",
    "transfer",
]
