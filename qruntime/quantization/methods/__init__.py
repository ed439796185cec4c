"""Methods of papers: a file for each, with its steps; and their recipes, which is what they are called by."""

from __future__ import annotations

from qruntime.quantization.methods.awq import AWQ, ClipRanges
from qruntime.quantization.methods.fptq import ActivationMode, LogEqualize
from qruntime.quantization.methods.gptq import GPTQ
from qruntime.quantization.methods.layer_distillation import LayerDistillation
from qruntime.quantization.methods.llm_qat import LLMQAT
from qruntime.quantization.methods.mofq import MoFQ
from qruntime.quantization.methods.norm_tweaking import NormTweaking
from qruntime.quantization.methods.olive import OliVe
from qruntime.quantization.methods.omniquant import OmniQuant
from qruntime.quantization.methods.outlier_suppression_plus import OutlierSuppressionPlus
from qruntime.quantization.methods.qat import QAT
from qruntime.quantization.methods.quantease import QuantEase
from qruntime.quantization.methods.rptq import ClusterCaches, ClusterInputs, ClusterRanges
from qruntime.quantization.methods.rtn import RTN
from qruntime.quantization.methods.smoothquant import SmoothQuant
from qruntime.quantization.methods.spqr import SpQR
from qruntime.quantization.methods.zeroquant import RowGroups
from qruntime.quantization.methods.zeroquant_v2 import LowRank
from qruntime.quantization.recipe import Recipe, Recipes

RECIPES = Recipes(
    [
        Recipe("RTN", "W4A16-g128", (RTN(),)),
        Recipe("GPTQ", "W4A16-g128", (GPTQ(),)),
        Recipe("SpQR", "W3A16-g16-bilevel", (SpQR(),)),
        Recipe("QuantEase", "W4A16", (QuantEase(),)),
        Recipe("MoFQ", "W4A16", (MoFQ(),)),
        Recipe("ZeroQuant", "W8A8", (RowGroups(),)),
        Recipe("ZeroQuant-LKD", "W8A8", (LayerDistillation(), RowGroups())),
        Recipe("ZeroQuant-FP", "Wfp4Afp8-g256", (GPTQ(),)),
        Recipe("AWQ", "W4A16-g128", (AWQ(), ClipRanges())),
        Recipe("SmoothQuant", "W8A8-static", (SmoothQuant(),)),
        Recipe("Outlier Suppression+", "W6A6-static", (OutlierSuppressionPlus(),)),
        Recipe("FPTQ", "W4A8-g128", (LogEqualize(), ActivationMode())),
        Recipe("RPTQ", "W4A4", (ClusterInputs(), ClusterRanges(clip=True), ClusterCaches(), GPTQ())),
        Recipe("OliVe", "Wovp4Aovp4", (OliVe(),)),
        Recipe("OmniQuant", "W3A16-g128", (OmniQuant(),)),
        Recipe("Norm Tweaking", "W4A16-g128", (NormTweaking(),)),
        Recipe("QAT", "W4A8", (QAT(),)),
        Recipe("LLM-QAT", "W4A8-KV4", (LLMQAT(),)),
        Recipe("ZeroQuant-V2", "W4A16-g128", (LowRank(rank=16),)),
    ],
    others={"round to nearest": "RTN", "OS+": "Outlier Suppression+"},
)
