"""Bilevel methods: an explicit step each, on one loop. A new algorithm is a file and a line here."""

from bilevax.algorithms.alset import ALSET as ALSET
from bilevax.algorithms.amigo import AmIGO as AmIGO
from bilevax.algorithms.bome import BOME as BOME
from bilevax.algorithms.bsa import BSA as BSA
from bilevax.algorithms.bsgm import BSGM as BSGM
from bilevax.algorithms.f2sa import F2SA as F2SA
from bilevax.algorithms.fsla import FSLA as FSLA
from bilevax.algorithms.maid import MAID as MAID
from bilevax.algorithms.masoba import MASOBA as MASOBA
from bilevax.algorithms.measured_steps import measure_steps as measure_steps
from bilevax.algorithms.meha import MEHA as MEHA
from bilevax.algorithms.mrbo import MRBO as MRBO
from bilevax.algorithms.mstsa import MSTSA as MSTSA
from bilevax.algorithms.optim import optim as optim
from bilevax.algorithms.pzobo import PZOBO as PZOBO
from bilevax.algorithms.saba import SABA as SABA
from bilevax.algorithms.scgd import SCGD as SCGD
from bilevax.algorithms.soba import SOBA as SOBA
from bilevax.algorithms.srba import SRBA as SRBA
from bilevax.algorithms.step_rules import BiSLS as BiSLS
from bilevax.algorithms.step_rules import BiSPS as BiSPS
from bilevax.algorithms.stocbio import StocBiO as StocBiO
from bilevax.algorithms.sustain import SUSTAIN as SUSTAIN
from bilevax.algorithms.ttsa import TTSA as TTSA
from bilevax.algorithms.vpbgd import VPBGD as VPBGD
from bilevax.algorithms.vrbo import VRBO as VRBO
