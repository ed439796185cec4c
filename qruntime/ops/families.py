"""Where operators are defined: module of this package → domain → operators.

Most models need few families, so that one is imported when an operator of it is first looked up. Importing the
module named here makes its operators complete, fast paths included.
"""

from __future__ import annotations

FAMILIES = {
    "activations": {
        "": "Celu Elu Gelu HardSigmoid HardSwish LeakyRelu Mish Relu Selu Shrink Sigmoid Softplus Softsign Swish ThresholdedRelu",
    },
    "append_cache": {"qruntime": "AppendCache Dense"},
    "attention": {"": "Attention LinearAttention RotaryEmbedding", "ai.onnx.preview": "FlexAttention"},
    "binary": {
        "": "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Clip Div Equal Greater GreaterOrEqual Less LessOrEqual "
        "Max Mean Min Mod Mul Or PRelu Pow Sub Sum SwiGLU Where Xor",
    },
    "cache_codes": {"qruntime": "DequantizeCache DequantizeCacheClusters FitCache FitCacheClusters QuantizeCache QuantizeCacheClusters"},
    "cached_attention": {"qruntime": "CachedAttention"},
    "casting": {"": "BitCast Cast CastLike"},
    "channel_blocks": {
        "qruntime": "BlockChannels BlockedAveragePool BlockedConv BlockedConvTranspose BlockedGlobalAveragePool BlockedMaxPool "
        "BlockedShape UnblockChannels",
    },
    "clustered_linear": {"qruntime": "ClusteredLinear"},
    "control_flow": {"": "If Loop Scan"},
    "convolution": {"": "CausalConvWithState Col2Im Conv ConvInteger ConvTranspose DeformConv QLinearConv"},
    "detection": {"": "NonMaxSuppression"},
    "einsum": {"": "Einsum"},
    "elementwise_kernels": {"qruntime": "Gelu HardSwish Silu"},
    "embedding": {"qruntime": "QuantizedEmbedding StoredEmbedding"},
    "fused_attention": {"qruntime": "Attention"},
    "fused_concat": {"qruntime": "ConcatInto"},
    "fused_convolution": {"qruntime": "Conv ConvTranspose"},
    "fused_normalization": {"qruntime": "LayerNormalization RMSNormalization"},
    "image": {"": "AffineGrid GridSample Resize Upsample"},
    "indexing": {
        "": "Compress Gather GatherElements GatherND NonZero OneHot ReverseSequence Scatter ScatterElements ScatterND TensorScatter Unique",
    },
    "layout": {
        "": "CenterCropPad Concat DepthToSpace Expand Flatten Pad Reshape Slice SpaceToDepth Split Squeeze Tile Transpose Trilu Unsqueeze",
    },
    "linear": {"qruntime": "DynamicQuantizedLinear Linear MergedDynamicQuantizedLinear"},
    "linear_algebra": {"": "Det Gemm MatMul MatMulInteger"},
    "linear_models": {"ai.onnx.ml": "LinearClassifier LinearRegressor SVMClassifier SVMRegressor"},
    "loss": {"": "NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss"},
    "ml": {
        "ai.onnx.ml": "ArrayFeatureExtractor Binarizer CastMap CategoryMapper DictVectorizer FeatureVectorizer Imputer "
        "LabelEncoder Normalizer OneHotEncoder Scaler ZipMap",
        "qruntime": "StringLabels",
    },
    "normalization": {
        "": "BatchNormalization Dropout GroupNormalization InstanceNormalization LRN LayerNormalization "
        "MeanVarianceNormalization RMSNormalization",
    },
    "optimizers": {"ai.onnx.preview.training": "Adagrad Adam Momentum"},
    "outlier_pairs": {"qruntime": "OutlierVictimCodes OutlierVictimPairs"},
    "pooling": {
        "": "AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool MaxRoiPool MaxUnpool RoiAlign",
    },
    "quantize_linear": {"": "DequantizeLinear DynamicQuantizeLinear QLinearMatMul QuantizeLinear"},
    "quantized_convolution": {"qruntime": "BlockedQuantizedConv DynamicQuantizedConv"},
    "qlinear_layers": {"qruntime": "CodeTable QLinearConv QLinearMatMul"},
    "random": {
        "": "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike",
    },
    "recurrent_kernels": {
        "": "GRU LSTM RNN",
        "qruntime": "DynamicQuantizedGRU DynamicQuantizedLSTM DynamicQuantizedRNN StoredGRU StoredLSTM StoredRNN",
    },
    "reduction": {
        "": "ArgMax ArgMin CumProd CumSum Hardmax LogSoftmax LpNormalization ReduceL1 ReduceL2 ReduceLogSum "
        "ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Softmax TopK",
    },
    "sequence": {
        "": "ConcatFromSequence Optional OptionalGetElement OptionalHasElement SequenceAt SequenceConstruct "
        "SequenceEmpty SequenceErase SequenceInsert SequenceLength SequenceMap SplitToSequence",
    },
    "shape": {"": "Constant ConstantOfShape EyeLike Identity Range Shape Size"},
    "signal": {"": "BlackmanWindow DFT HammingWindow HannWindow MelWeightMatrix STFT"},
    "text": {"": "RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer"},
    "rounded_activations": {"qruntime": "QuantizeLinear RoundToCodes RoundToFloat8"},
    "tree_ensemble": {"ai.onnx.ml": "TreeEnsemble TreeEnsembleClassifier TreeEnsembleRegressor"},
    "unary": {
        "": "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Cos Cosh Erf Exp Floor IsInf IsNaN Log Neg Not "
        "Reciprocal Round Sign Sin Sinh Sqrt Tan Tanh",
    },
    "contrib.activations": {"com.microsoft": "BiasGelu FastGelu Gelu QuickGelu"},
    "contrib.attention": {"com.microsoft": "Attention QAttention"},
    "contrib.attention_lstm": {"com.microsoft": "AttnLSTM"},
    "contrib.causal_convolution": {"com.microsoft": "CausalConvWithState VarlenCausalConvWithState"},
    "contrib.convolution": {"com.microsoft": "ConvTransposeWithDynamicPads FusedConv"},
    "contrib.fused_matmul": {"com.microsoft": "FusedGemm FusedMatMul GemmFastGelu TransposeMatMul"},
    "contrib.gating": {
        "com.microsoft": "BranchwiseRMSNorm EngramGate GatedAdd GatedRMSNorm HyperConnectionPostMix HyperConnectionPreMix ScaledSiLU",
    },
    "contrib.generation": {"com.microsoft": "BeamSearch GreedySearch Sampling"},
    "contrib.group_query_attention": {"com.microsoft": "GroupQueryAttention"},
    "contrib.image": {"com.microsoft": "CropAndResize GridSample MaxpoolWithMask NhwcMaxPool"},
    "contrib.layout": {"com.microsoft": "ExpandDims GatherND Pad Range SampleOp UnfoldTensor Unique"},
    "contrib.linear_algebra": {
        "com.microsoft": "CDist DynamicTimeWarping Inverse MatMulInteger16 SparseToDenseMatMul Trilu",
    },
    "contrib.linear_attention": {"com.microsoft": "GatedDeltaNet LinearAttention LinearAttentionGate"},
    "contrib.low_bit": {"com.microsoft": "GatherBlockQuantized MatMulBnb4 MatMulFpQ4"},
    "contrib.matmul_nbits": {"com.microsoft": "MatMulNBits"},
    "contrib.mixture_of_experts": {"com.microsoft": "MoE MoEGroupRouter QMoE"},
    "contrib.multi_head_attention": {"com.microsoft": "DecoderMaskedMultiHeadAttention MultiHeadAttention"},
    "contrib.ngrams": {
        "com.microsoft": "BifurcationDetector NGramHashMapping NGramRepeatBlock VarlenNGramHashMapping",
    },
    "contrib.normalization": {
        "": "SimplifiedLayerNormalization",
        "com.microsoft": "EmbedLayerNormalization QEmbedLayerNormalization SimplifiedLayerNormalization "
        "SkipLayerNormalization SkipSimplifiedLayerNormalization",
    },
    "contrib.packed_rows": {"com.microsoft": "GatherPacked"},
    "contrib.qlinear": {
        "com.microsoft": "DequantizeLinear QGemm QLinearAdd QLinearAveragePool QLinearConcat QLinearConv "
        "QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearSigmoid QLinearSoftmax QLinearWhere QuantizeLinear",
    },
    "contrib.quantized_matmul": {"com.microsoft": "DynamicQuantizeMatMul MatMulIntegerToFloat"},
    "contrib.recurrent": {"com.microsoft": "DynamicQuantizeLSTM"},
    "contrib.rotary": {"com.microsoft": "MRotaryEmbedding RotaryEmbedding"},
    "contrib.sparse_attention": {"com.microsoft": "SparseAttention"},
    "contrib.text": {"com.microsoft": "MurmurHash3 Tokenizer WordConvEmbedding"},
    "contrib.withdrawn": {
        "": "Affine Crop DynamicSlice ImageScaler MemcpyFromHost MemcpyToHost ParametricSoftplus Scale ScaledTanh",
    },
}

MODULES = {
    (domain, op_type): f"{__package__}.{module}"
    for module, domains in FAMILIES.items()
    for domain, op_types in domains.items()
    for op_type in op_types.split()
}
"""(domain, operator) → module."""
